// The menu of one chat, in the list and in the head; and the menu of all (archive, export, import).
import { $, $$, isPlain, make } from "../lib/dom.js";
import { onDemand, preload } from "../lib/on_demand.js";
import { route, succeeded } from "../requests.js";
import { change, describeChange } from "./change.js";
import { entryOf, isSelecting, list, openChat } from "./entries.js";
import { showArchive } from "./list.js";
import { onPress } from "./press.js";
import { showRail } from "./sheet.js";
import { toast } from "./toast.js";

const menu = $("#item-menu"), all = $("#all-menu"), chatMenu = $("#chat-menu");
let chosen = null; // the entry whose menu is open, or the head

const describe = (popover, entry) => {
  chosen = entry;
  const { dataset } = entry;
  for (const anchor of $$("[data-export]", popover)) {
    anchor.href = `/c/${dataset.id}/export?format=${anchor.dataset.export}`;
  }
  describeChange(popover, "archive", "archived" in dataset);
  describeChange(popover, "pin", "pinned" in dataset).hidden = "archived" in dataset;
};
list.addEventListener("click", event => {
  const button = event.target.closest(".more");
  if (button) describe(menu, button.closest("li"));
}, true);
chatMenu.addEventListener("beforetoggle", ({ newState }) => {
  if (newState === "open") describe(chatMenu, openChat());
});
describe(chatMenu, openChat()); // it may be open already
if (menu.matches(":popover-open")) { // opened before this script ran, so its entry is not known
  menu.hidePopover(); // returns the focus to the button that opened it
  document.activeElement.closest(".more")?.click();
}
list.addEventListener("pointerenter", () => preload("select"), { once: true });
const selectWith = async (name, { dataset: { id } }) => {
  const module = await onDemand("select"), entry = entryOf(id); // a refresh may have replaced it
  if (entry) module?.[name](entry);
};
onPress(entry => {
  if (isSelecting()) selectWith("toggle", entry);
  else $(".more", entry)?.click();
});
// Ctrl and a click open a new tab, as everywhere.
list.addEventListener("click", event => {
  if (!event.shiftKey || isSelecting() || !event.target.closest("a")) return;
  event.preventDefault();
  selectWith("select", event.target.closest("li"));
}, true);
for (const popover of [menu, chatMenu]) {
  popover.addEventListener("click", async ({ target }) => {
    const { operation } = target.closest("[data-operation]")?.dataset ?? {}, entry = chosen;
    if (target.closest("a, button")) popover.hidePopover();
    if (operation) change(operation, [entry.dataset.id]);
    else if (target.closest("#select")) selectWith("select", entry);
    else if (target.closest("#rename-chat")) (await onDemand("rename"))?.openRename(entry);
  });
}
export const pinOpenChat = () => {
  const { dataset } = openChat();
  change("pinned" in dataset ? "unpin" : "pin", [dataset.id]);
};
all.addEventListener("click", ({ target }) => {
  if (target.closest("a, button")) all.hidePopover();
});
for (const popover of $$(".menu")) { // Tab works too
  popover.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const controls = $$("a, button, input", popover).filter(control => control.checkVisibility());
    if (!step || !controls.length) return;
    event.preventDefault();
    const at = controls.indexOf(document.activeElement);
    controls.at((at + step) % controls.length).focus();
  });
}

// --- the archive ---------------------------------------------------------------------------------
const showArchiveOn = (selector, isShown, focused) => {
  $(selector).addEventListener("click", async event => {
    if (!isPlain(event)) return;
    event.preventDefault();
    showRail();
    if (await showArchive(isShown)) $(focused).focus();
  });
};
showArchiveOn("#open-archive", true, "#close-archive");
showArchiveOn("#close-archive", false, "#open-all");

$("#import-here")?.addEventListener("click", () => $("#import input").click());

// --- requests ------------------------------------------------------------------------------------
route(".rename-it", {
  config({ ctx }) {
    ctx.request.action = `/c/${chosen.dataset.id}/title`;
    ctx.target = `#c-${chosen.dataset.id}`; // by ID: a refresh may replace the element meanwhile
  },
});
route("#import", {
  config({ source, event }) {
    all.hidePopover(); // it would cover the message on a phone
    const most = Number(source.dataset.most);
    if (!(source.file.files[0]?.size > most)) return;
    event.preventDefault(); // the server would close the connection during the upload
    const bytes = most.toLocaleString("en");
    const limit = `The file is larger than ${bytes} bytes (HALT_MAX_IMPORT_BYTES).`;
    const textContent = `${limit} Export fewer chats at once.`;
    toast.replaceChildren(make("p", { className: "fault", textContent }));
    source.reset();
  },
  finished({ ctx, source }) {
    if (succeeded(ctx)) source.reset();
  },
});

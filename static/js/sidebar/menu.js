// The menu of one conversation (rename, export, delete), and the menu of all (export, import).
import { $, $$, make } from "../lib/dom.js";
import { route, succeeded } from "../requests.js";
import { entryOf, linkIn, list } from "./entries.js";
import { toast } from "./toast.js";

const menu = $("#item-menu"), all = $("#all-menu");
let chosen = null; // the entry whose menu is open

list.addEventListener("click", event => {
  const button = event.target.closest(".more");
  if (!button) return;
  chosen = button.closest("li");
  for (const anchor of $$("[data-export]", menu)) {
    anchor.href = `/c/${chosen.dataset.id}/export?format=${anchor.dataset.export}`;
  }
}, true);
if (menu.matches(":popover-open")) { // opened before this script ran, so its entry is not known
  menu.hidePopover(); // returns the focus to the button that opened it
  document.activeElement.closest(".more")?.click();
}
for (const popover of [menu, all]) {
  popover.addEventListener("click", event => {
    if (event.target.closest("a, button")) popover.hidePopover();
  });
}

route(".rename-it", {
  config({ ctx }) {
    ctx.request.action = `/c/${chosen.dataset.id}/title`;
    ctx.target = `#c-${chosen.dataset.id}`; // by ID: a refresh may replace the element meanwhile
  },
});
route(".delete-it", {
  config({ ctx }) { ctx.request.action = `/c/${chosen.dataset.id}/delete`; },
  finished({ ctx }) {
    if (!succeeded(ctx)) return;
    const gone = entryOf(chosen.dataset.id);
    if (gone) gone.hidden = true; // until a refresh removes it, or Undo shows it again
    $("button", toast)?.focus();
  },
});
route(".undo", {
  finished({ ctx, source }) {
    if (!succeeded(ctx)) return;
    const undone = entryOf(source.dataset.id);
    if (undone) undone.hidden = false;
    (linkIn(undone) ?? $("#new-here")).focus();
  },
});
route("#import", {
  config({ source, event }) {
    const most = Number(source.dataset.most);
    if (!(source.file.files[0]?.size > most)) return;
    event.preventDefault(); // the server would close the connection during the upload
    const bytes = most.toLocaleString("en");
    const textContent = `The file is larger than ${bytes} bytes (HALT_MAX_IMPORT_BYTES).`;
    toast.replaceChildren(make("p", { className: "fault", textContent }));
    source.reset();
  },
  finished({ ctx, source }) {
    if (!succeeded(ctx)) return;
    source.reset();
    all.hidePopover();
  },
});

// Several conversations at once: each entry gets a checkbox, and a bar has what can be done.
import { $, $$, announce, make, parse } from "../lib/dom.js";
import { fetchHtml } from "../lib/fetch_html.js";
import { change, describeChange } from "../sidebar/change.js";
import {
  entries, entryOf, isArchive, isSelecting, linkIn, list, sidebar, titleOf,
} from "../sidebar/entries.js";
import { returnFocusTo, toast } from "../sidebar/toast.js";

const bar = $("#selection"), count = $("#selected-count");
const chosen = new Set(); // IDs
let anchor = ""; // the ID from which Shift selects
let last = ""; // the ID of the entry that was changed last

const boxIn = entry => $(":scope > .select", entry);

const addBox = entry => {
  const link = $(":scope > a", entry);
  if (!link || boxIn(entry)) return;
  link.tabIndex = -1;
  entry.prepend(make("input", {
    type: "checkbox", className: "select", checked: chosen.has(entry.dataset.id),
    ariaLabel: `Select ${titleOf(entry)}`, autocomplete: "off",
  }));
};
const removeBox = entry => {
  boxIn(entry)?.remove();
  $(":scope > a", entry)?.removeAttribute("tabindex");
};
const update = () => {
  const text = `${chosen.size.toLocaleString("en")} selected`;
  if (count.textContent !== text) announce(text);
  count.textContent = text;
  const isUnpin = [...chosen].every(id => entryOf(id)?.dataset.pinned !== undefined);
  describeChange(bar, "archive", isArchive());
  describeChange(bar, "pin", chosen.size && isUnpin).hidden = isArchive();
  for (const button of $$("[data-operation], [popovertarget]", bar)) button.disabled = !chosen.size;
};
const set = (entry, isChosen) => {
  if (isChosen) chosen.add(entry.dataset.id);
  else chosen.delete(entry.dataset.id);
  last = entry.dataset.id;
  const box = boxIn(entry);
  if (box) box.checked = isChosen;
};
const setRange = (to, isChosen) => {
  const all = entries(), ends = [entryOf(anchor) ?? to, to].map(entry => all.indexOf(entry));
  for (const entry of all.slice(Math.min(...ends), Math.max(...ends) + 1)) set(entry, isChosen);
  last = to.dataset.id;
};

export const select = entry => {
  if (isSelecting()) { // a second click came before this module
    setRange(entry, true);
    update();
    return;
  }
  bar.hidden = false;
  sidebar.classList.add("selecting");
  entries().forEach(addBox);
  anchor = entry.dataset.id;
  set(entry, true);
  update();
  boxIn(entry)?.focus();
};
export const toggle = entry => {
  set(entry, !chosen.has(entry.dataset.id));
  anchor = entry.dataset.id;
  update();
};
const endSelecting = () => {
  const hadFocus = [bar, list].some(part => part.contains(document.activeElement));
  bar.hidden = true;
  sidebar.classList.remove("selecting");
  chosen.clear();
  for (const entry of $$(":scope > [data-id]", list)) removeBox(entry);
  if (hadFocus) (linkIn(entryOf(last)) ?? $("#new-here")).focus({ preventScroll: true });
};
new MutationObserver(() => { // entries that a refresh has replaced or added
  if (!isSelecting()) return;
  entries().forEach(addBox);
  const entry = document.activeElement.closest("#conversations > [data-id]");
  if (entry) boxIn(entry)?.focus({ preventScroll: true }); // a refresh leaves it on the link
}).observe(list, { childList: true });

// --- pointer and keys ----------------------------------------------------------------------------
list.addEventListener("click", event => {
  const entry = event.target.closest("[data-id]"), isBox = event.target.matches(".select");
  if (!entry || !isSelecting()) return;
  if (!isBox) event.preventDefault();
  event.stopPropagation();
  if (event.shiftKey) setRange(entry, isBox ? event.target.checked : true);
  else {
    set(entry, isBox ? event.target.checked : !chosen.has(entry.dataset.id));
    anchor = entry.dataset.id;
  }
  update();
}, true);
list.addEventListener("keydown", event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.matches(".select")) return;
  event.preventDefault();
  const all = entries(), entry = event.target.closest("li"), next = all[all.indexOf(entry) + step];
  if (!next) return;
  if (event.shiftKey) {
    set(entry, true);
    set(next, true);
    update();
  } else anchor = next.dataset.id;
  boxIn(next).focus();
});

// --- what can be done ----------------------------------------------------------------------------
const download = async format => {
  const body = new URLSearchParams([["format", format], ...[...chosen].map(id => ["id", id])]);
  const response = await fetchHtml("/export", { method: "POST", body }).catch(() => null);
  if (!response?.ok) {
    const fault = "The server could not be reached. Try again.";
    toast.replaceChildren(...(response ? parse(await response.text())
      : [make("p", { className: "fault", textContent: fault })]));
    return;
  }
  const name = /filename="?([^";]+)/.exec(response.headers.get("Content-Disposition"))?.[1];
  const href = URL.createObjectURL(await response.blob());
  make("a", { href, download: name ?? "Halt" }).click();
  setTimeout(URL.revokeObjectURL, 60_000, href);
};
bar.addEventListener("click", ({ target }) => {
  const { operation } = target.closest("[data-operation]")?.dataset ?? {};
  if (operation) {
    const ids = [...chosen];
    endSelecting();
    returnFocusTo(() => linkIn(entryOf(last)));
    change(operation, ids);
  } else if (target.closest("#end-selection")) endSelecting();
  else if (target.closest("#select-all")) {
    for (const entry of entries()) set(entry, true);
    update();
  }
});
$("#export-menu").addEventListener("click", ({ target }) => {
  const { format } = target.closest("button").dataset;
  $("#export-menu").hidePopover();
  download(format);
});

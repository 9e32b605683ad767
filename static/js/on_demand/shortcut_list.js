// The dialog of all shortcuts.
import { openOnce } from "../lib/dialog.js";
import { iconButton, make } from "../lib/dom.js";
import { local } from "../lib/storage.js";
import { keyNames, SHORTCUTS, shortcut, SINGLE_KEY, usesSingleKey } from "../shortcuts.js";

const GROUPS = { // all others are the page's
  Chat: ["send", "line", "edit-last", "field", "new", "search", "previous", "next", "pin"],
  Answer: ["stop", "continue", "again", "copy", "copy-code"],
};
const keysOf = row => {
  const list = make("dd");
  for (const name of keyNames(row)) list.append(make("kbd", { textContent: name }), " ");
  return list;
};
const groupOf = (title, rows) => {
  const parts = rows.flatMap(row => [make("dt", { textContent: row.name }), keysOf(row)]);
  return make("section", {}, make("h3", { textContent: title }), make("dl", {}, ...parts));
};
const groups = () => {
  const lists = Object.values(GROUPS).map(ids => ids.map(shortcut));
  const grouped = new Set(lists.flat());
  return [
    ...Object.keys(GROUPS).map((title, n) => groupOf(title, lists[n])),
    groupOf("Page", SHORTCUTS.filter(row => !grouped.has(row))),
  ];
};
const build = () => {
  const box = make("input", { type: "checkbox", checked: usesSingleKey() });
  box.addEventListener("change", () => local.set(SINGLE_KEY, box.checked ? "on" : "off"));
  const label = make("label", { className: "check" }, box, "The key ? opens this list");
  const close = iconButton("x", "Close", "", () => dialog.close());
  const name = make("h2", { id: "shortcuts-name", textContent: "Shortcuts" });
  const dialog = make(
    "dialog", { id: "shortcuts" },
    make("div", { className: "dialog-head" }, name, close),
    make("div", { className: "dialog-body" }, ...groups(), label),
  );
  dialog.setAttribute("aria-labelledby", name.id);
  return dialog;
};
export const openShortcutList = () => openOnce(build());

// The dialog of all shortcuts.
import { openOnce } from "../lib/dialog.js";
import { iconButton, make } from "../lib/dom.js";
import { keyNames, setSingleKey, shortcut, usesSingleKey } from "../shortcuts.js";

const GROUPS = {
  Chat: ["send", "line", "edit-last", "field", "new", "search", "previous", "next", "pin"],
  Answer: ["stop", "continue", "again", "copy", "copy-code"],
  Page: ["rail", "theme", "help"],
};
const keysOf = row => {
  const list = make("dd");
  for (const name of keyNames(row)) list.append(make("kbd", { textContent: name }), " ");
  return list;
};
const groupOf = ([title, ids]) => {
  const rows = ids.map(shortcut).flatMap(row => (
    [make("dt", { textContent: row.name }), keysOf(row)]
  ));
  return make("section", {}, make("h3", { textContent: title }), make("dl", {}, ...rows));
};
const build = () => {
  const box = make("input", { type: "checkbox", checked: usesSingleKey() });
  box.addEventListener("change", () => setSingleKey(box.checked));
  const label = make("label", { className: "check" }, box, "The key ? opens this list");
  const close = iconButton("x", "Close", "", () => dialog.close());
  const name = make("h2", { id: "shortcuts-name", textContent: "Shortcuts" });
  const dialog = make(
    "dialog", { id: "shortcuts" },
    make("div", { className: "dialog-head" }, name, close),
    make("div", { className: "dialog-body" }, ...Object.entries(GROUPS).map(groupOf), label),
  );
  dialog.setAttribute("aria-labelledby", name.id);
  return dialog;
};
export const openHelp = () => openOnce(build());

// The dialog of all shortcuts.
import { openOnce } from "../lib/dialog.js";
import { make } from "../lib/dom.js";
import { keyNames, setSingleKey, SHORTCUTS, usesSingleKey } from "../shortcuts.js";

const keysOf = row => {
  const list = make("dd");
  for (const name of keyNames(row)) list.append(make("kbd", { textContent: name }), " ");
  return list;
};
const build = () => {
  const box = make("input", { type: "checkbox", checked: usesSingleKey() });
  box.addEventListener("change", () => setSingleKey(box.checked));
  const rows = SHORTCUTS.flatMap(row => [make("dt", { textContent: row.name }), keysOf(row)]);
  const label = make("label", { className: "check" }, box, "The key ? opens this list");
  const close = make("button", { type: "button", autofocus: true, textContent: "Close" });
  const dialog = make(
    "dialog", { id: "shortcuts" },
    make("h2", { id: "shortcuts-name", textContent: "Shortcuts" }),
    make("dl", {}, ...rows),
    make("p", { className: "ends" }, label, close),
  );
  dialog.setAttribute("aria-labelledby", "shortcuts-name");
  close.addEventListener("click", () => dialog.close());
  return dialog;
};
export const openHelp = () => openOnce(build());

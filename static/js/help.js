// The dialog of all shortcuts.
import { openOnce } from "./lib/dialog.js";
import { make } from "./lib/dom.js";
import { local } from "./lib/storage.js";
import { keyNames, SHORTCUTS } from "./shortcuts.js";

const KEY = "halt.single-key";
export const usesSingleKey = () => local.get(KEY) !== "off";

const keysOf = row => {
  const list = make("dd");
  for (const name of keyNames(row)) list.append(make("kbd", { textContent: name }), " ");
  return list;
};
const build = () => {
  const box = make("input", { type: "checkbox", checked: usesSingleKey() });
  box.addEventListener("change", () => local.set(KEY, box.checked ? "on" : "off"));
  const rows = SHORTCUTS.flatMap(row => [make("dt", { textContent: row.name }), keysOf(row)]);
  const close = make("button", { type: "button", autofocus: true, textContent: "Close" });
  const dialog = make(
    "dialog", { id: "shortcuts" },
    make("h2", { id: "shortcuts-name", textContent: "Shortcuts" }),
    make("dl", {}, ...rows),
    make("p", { className: "ends" }, make("label", {}, box, " The key ? opens this list"), close),
  );
  dialog.setAttribute("aria-labelledby", "shortcuts-name");
  close.addEventListener("click", () => dialog.close());
  return dialog;
};
export const openHelp = () => openOnce(build());

// How the page looks in this browser: theme, text size, width, even text. Each is an attribute of
// the document and a cookie, which the server reads: the page arrives with it, so nothing flashes.
import { openDialog } from "../lib/dialog.js";
import { $, $$, announce } from "../lib/dom.js";
import { keepLook } from "../lib/storage.js";

const root = document.documentElement, dialog = $("#display");
const dark = matchMedia("(prefers-color-scheme: dark)");

const keep = (name, value) => {
  keepLook(name, value);
  // The colour of the browser's bars. The root has another while a dialog is open.
  const { backgroundColor } = getComputedStyle(dialog.open ? document.body : root);
  for (const meta of $$("meta[name=theme-color]")) meta.content = backgroundColor;
};
// Changes between light and dark, whichever is shown now.
export const toggleTheme = () => {
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  const theme = isDark ? "light" : "dark";
  keep("theme", theme);
  $(`[name=theme][value=${theme}]`, dialog).checked = true;
  announce(`${isDark ? "Light" : "Dark"} theme.`);
};

export const openDisplay = () => openDialog(dialog);
for (const choice of $$("input", dialog)) {
  const isOff = () => choice.type === "checkbox" && choice.checked; // its value: of a cleared box
  choice.addEventListener("change", () => keep(choice.name, isOff() ? "" : choice.value));
}

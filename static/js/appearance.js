// Light or dark. The choice is in a cookie, so that the server's first page has it already.
import { $, announce } from "./lib/dom.js";

const YEAR = 31_536_000; // seconds
const root = document.documentElement, select = $("#theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");

const show = () => { select.value = root.dataset.theme ?? "system"; };
export const setTheme = theme => { // "light", "dark" or "system"
  const isChosen = theme !== "system";
  if (isChosen) root.dataset.theme = theme;
  else delete root.dataset.theme;
  const age = isChosen ? YEAR : 0;
  document.cookie = `halt-theme=${theme}; path=/; max-age=${age}; samesite=lax`;
  show();
};
export const toggleTheme = () => {
  const shown = root.dataset.theme ?? (systemDark.matches ? "dark" : "light");
  const theme = shown === "dark" ? "light" : "dark";
  setTheme(theme);
  announce(theme === "dark" ? "Dark." : "Light.");
};
select.addEventListener("change", () => setTheme(select.value));
show();

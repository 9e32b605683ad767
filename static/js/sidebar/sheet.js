// On narrow screens the list is a sheet over the page.
import { $, $$ } from "../lib/dom.js";

const opener = $("#open-sidebar"), closer = $("#close-sidebar");
export const narrow = matchMedia("(width < 64rem)");

const draw = isOpen => {
  document.body.classList.toggle("sidebar-open", isOpen);
  opener.setAttribute("aria-expanded", isOpen);
  for (const area of $$("body > :is(header, main, footer)")) area.inert = isOpen;
};
export const isSheetOpen = () => document.body.classList.contains("sidebar-open");
export const openSheet = () => draw(true);
export const closeSheet = () => {
  draw(false);
  opener.focus();
};
opener.addEventListener("click", () => {
  openSheet();
  closer.focus();
});
closer.addEventListener("click", closeSheet);
$("#sidebar-shade").addEventListener("click", closeSheet);
narrow.addEventListener("change", () => draw(false));

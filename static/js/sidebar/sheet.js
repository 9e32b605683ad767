// The rail: beside the page, where it can be hidden; or a sheet over the page if there is no room.
// The sheet closes by its button, Esc, the shade, a swipe, and the browser's Back.
import { $, $$, isPlain } from "../lib/dom.js";
import { preload } from "../lib/on_demand.js";
import { keepLook } from "../lib/storage.js";
import { sidebar } from "./entries.js";

const root = document.documentElement;
const opener = $("#open-sidebar"), closer = $("#close-sidebar"), shade = $("#sidebar-shade");
export const narrow = matchMedia("(width < 64rem)");

// --- beside the page -----------------------------------------------------------------------------
const isRailShown = () => (
  narrow.matches ? isSheetOpen() : root.dataset.rail !== "hidden"
);

// --- the sheet -----------------------------------------------------------------------------------
export const isSheetOpen = () => document.body.classList.contains("sidebar-open");
const describe = () => opener.ariaExpanded = isRailShown();
const draw = isOpen => {
  document.body.classList.toggle("sidebar-open", isOpen);
  for (const area of $$("body > :is(header, main, footer)")) area.inert = isOpen;
  describe();
};

// An entry of the history, so that Back closes the sheet. htmx would reload the page for it.
const keys = new Set(); // of the entry of the page, and of the one with the sheet
const key = () => window.navigation?.currentEntry?.key ?? "";
const pushEntry = () => {
  keys.clear();
  keys.add(key());
  history.pushState({ ...history.state, sheet: true }, "");
  keys.add(key());
};
let isDropping = false; // Back is on its way
const dropEntry = () => {
  if (!history.state?.sheet) return;
  isDropping = true;
  history.back();
};
const hide = () => {
  draw(false);
  opener.focus();
};
const show = () => {
  draw(true);
  closer.focus({ preventScroll: true });
};
window.navigation?.addEventListener("navigate", event => {
  const isOurs = keys.has(key()) && keys.has(event.destination.key);
  if (event.navigationType === "traverse" && isOurs) event.stopImmediatePropagation();
});
addEventListener("popstate", event => {
  if (isDropping) {
    isDropping = false;
    if (isSheetOpen()) pushEntry(); // it was opened again meanwhile
  } else if (event.state?.sheet) {
    if (narrow.matches) show();
  } else if (isSheetOpen()) hide();
  else return;
  event.stopImmediatePropagation();
}, true);
if (history.state?.sheet) { // the page was loaded again
  const { sheet: _, ...state } = history.state;
  history.replaceState(state, "");
}
// A page that is opened from the sheet takes the place of that entry.
sidebar.addEventListener("click", event => {
  const link = event.target.closest("a[href]");
  if (!link || !isPlain(event) || !history.state?.sheet || event.defaultPrevented) return;
  event.preventDefault();
  location.replace(link.href);
});

export const closeSheet = () => {
  if (!isSheetOpen()) return;
  hide();
  dropEntry();
};
// Show or hide the rail; the focus goes to the control that undoes it.
export const toggleRail = () => {
  if (narrow.matches) {
    if (isSheetOpen()) closeSheet();
    else {
      if (!isDropping) pushEntry();
      show();
    }
    return;
  }
  const isShown = !isRailShown();
  keepLook("rail", isShown ? "" : "hidden");
  describe();
  (isShown ? closer : opener).focus();
};
// For an action of the palette: the rail may be hidden.
export const showRail = () => { if (!isRailShown()) toggleRail(); };
opener.addEventListener("click", toggleRail);
closer.addEventListener("click", toggleRail);
shade.addEventListener("click", closeSheet);
narrow.addEventListener("change", () => {
  closeSheet();
  describe();
});
describe();
if (navigator.maxTouchPoints) preload("swipe");

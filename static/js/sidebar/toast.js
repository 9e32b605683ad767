// The toast: 8 seconds, longer while the pointer or the focus is on it.
import { $ } from "../lib/dom.js";

const SHOWN_MS = 8000, LONGER_MS = 2000;
export const toast = $("#toast");
let ends = 0; // timer
let findReturn = () => null;

// What gets the focus if the toast goes away with it: the result of `find`, or the message field.
export const returnFocusTo = find => { findReturn = find; };
const empty = () => {
  const hadFocus = toast.contains(document.activeElement);
  toast.replaceChildren();
  if (!hadFocus) return;
  const element = findReturn();
  (element?.checkVisibility() ? element : $("#prompt")).focus({ preventScroll: true });
};
const clear = () => {
  if (toast.matches(":hover") || $(":focus-visible", toast)) ends = setTimeout(clear, LONGER_MS);
  else empty();
};
const start = () => {
  clearTimeout(ends);
  if (toast.firstElementChild) ends = setTimeout(clear, SHOWN_MS);
};
new MutationObserver(start).observe(toast, { childList: true });
toast.addEventListener("click", event => { if (event.target.closest(".dismiss")) empty(); });
start();

const url = new URL(location);
if (url.searchParams.has("deleted")) { // a reload must not show the message again
  for (const name of ["deleted", "count", "stopped"]) url.searchParams.delete(name);
  history.replaceState(history.state, "", url);
}

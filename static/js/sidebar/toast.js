// The toast: 8 seconds, longer while the pointer or the focus is on it. A fault stays until it is
// dismissed, by its button or Esc.
import { $, focusComposer, iconButton } from "../lib/dom.js";

const SHOWN_MS = 8000, LONGER_MS = 2000;
export const toast = $("#toast");
let ends = 0; // timer
let findReturn = () => null;

// The result of `find`, or else the message field, gets the focus if a toast with the focus ends.
export const returnFocusTo = find => { findReturn = find; };
const empty = () => {
  const hadFocus = toast.contains(document.activeElement);
  toast.replaceChildren();
  if (!hadFocus) return;
  const element = findReturn();
  if (element?.checkVisibility()) element.focus({ preventScroll: true });
  else focusComposer();
};
const clear = () => {
  if (toast.matches(":hover") || $(":focus-visible", toast)) ends = setTimeout(clear, LONGER_MS);
  else empty();
};
const start = () => {
  clearTimeout(ends);
  if (!toast.firstElementChild) return;
  if (!$(".dismiss", toast)) {
    const button = iconButton("x", "Dismiss", "", empty);
    button.classList.add("dismiss");
    toast.append(button);
  }
  if (!$(".fault", toast)) ends = setTimeout(clear, SHOWN_MS);
};
new MutationObserver(start).observe(toast, { childList: true });
export const dismissFault = () => { if ($(".fault", toast)) empty(); };
start();

const url = new URL(location);
if (url.searchParams.has("deleted")) { // a reload must not show the message again
  for (const name of ["deleted", "count", "stopped"]) url.searchParams.delete(name);
  history.replaceState(history.state, "", url);
}

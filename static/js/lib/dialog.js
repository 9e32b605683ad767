// Native dialogs over the page: Esc, the button "Close" and a click outside ask to close; a handler
// of `cancel` may prevent it. The focus returns to the opener.
import { $ } from "./dom.js";

// The element, or the button of the menu in which it stands: the menu is closed by now.
const buttonOf = element => {
  const menu = element?.closest("[popover]");
  return menu ? $(`[popovertarget="${menu.id}"]`) : element;
};
// `opener`: the element that gets the focus afterwards; another with its ID if it was replaced.
export const openDialog = (dialog, opener = document.activeElement) => {
  if (dialog.open) return;
  dialog.showModal();
  dialog.addEventListener("close", () => {
    const focused = document.activeElement;
    if (focused !== document.body && focused.checkVisibility()) return; // returned by the browser
    const found = opener?.isConnected ? opener : document.getElementById(opener?.id || "prompt");
    const back = [found, buttonOf(found), $("#prompt")].find(place => place?.checkVisibility());
    back?.focus({ preventScroll: true });
  }, { once: true });
};
// A dialog that a script has made: it leaves the page when it closes.
export const openOnce = dialog => {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  openDialog(dialog);
};
export const requestClose = dialog => {
  if (dialog.dispatchEvent(new Event("cancel", { cancelable: true }))) dialog.close();
};
export const openedDialog = () => $("dialog[open]");

// A click on the backdrop has the dialog itself as its target. One that began inside, such as the
// selection of a text, is not meant to close.
let pressed = null;
document.addEventListener("pointerdown", ({ target }) => { pressed = target; });
document.addEventListener("click", ({ target }) => {
  if (target.closest?.(".close-dialog")) requestClose(target.closest("dialog"));
  else if (target.matches?.("dialog[open]") && pressed === target) requestClose(target);
});

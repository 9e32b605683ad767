// Esc closes what is open before it stops an answer. Held down, it does one of these.
import { openedDialog, requestClose } from "./lib/dialog.js";
import { $ } from "./lib/dom.js";
import { isSelecting, pressEndSelection } from "./sidebar/entries.js";
import { leaveRename } from "./sidebar/rename.js";
import { closeSheet, isSheetOpen } from "./sidebar/sheet.js";
import { dismissFault } from "./sidebar/toast.js";

const handleEscape = event => {
  const { target } = event, dialog = openedDialog();
  if (!dialog) dismissFault(); // and does what else it would do: a fault does not delay a Stop
  if (dialog) { // not left to the browser, which asks only once before it closes
    event.stopPropagation();
    event.preventDefault();
    requestClose(dialog);
  } else if ($(":popover-open")) event.stopPropagation(); // the browser closes it
  else if (target.matches?.(".rename input")) {
    event.stopPropagation();
    leaveRename(target, true);
  } else if (isSelecting()) {
    event.stopPropagation();
    pressEndSelection();
  } else if (isSheetOpen()) {
    event.stopPropagation();
    closeSheet();
  }
};
addEventListener("keydown", event => {
  if (event.key !== "Escape") return;
  if (!event.repeat) { handleEscape(event); return; }
  event.preventDefault();
  event.stopPropagation();
}, true);

// Does what a pressed shortcut says, by pressing the control that does it by pointer.
import { isBusy } from "./activity.js";
import { openedDialog } from "./lib/dialog.js";
import { $, $$, notice } from "./lib/dom.js";
import { onDemand, preload } from "./lib/on_demand.js";
import { ariaKeys, keyNames, shortcut, SHORTCUTS, shortcutOf, usesSingleKey } from "./shortcuts.js";
import { pinOpenChat } from "./sidebar/menu.js";
import { closeSheet, toggleRail } from "./sidebar/sheet.js";
import { keepEdit } from "./versions.js";

const search = async () => (await onDemand("palette"))?.openPalette(act);
// The palette is loaded as soon as its first key is down: the letters typed next are for it.
addEventListener("keydown", ({ key }) => {
  if (key === "Control" || key === "Meta") preload("palette");
}, true);
const theme = async () => (await onDemand("display"))?.toggleTheme();
const help = async () => (await onDemand("shortcut_list"))?.openShortcutList();
const copyCode = async () => {
  const block = shortcut("copy-code").find(), code = await onDemand("code");
  code?.equip([block]);
  $(".copy", block)?.click();
};
const ACTIONS = {
  search, pin: pinOpenChat, rail: toggleRail, theme, help, "copy-code": copyCode,
};
const isField = target => target.matches?.("input:not([type=checkbox]), textarea, select");

// Says why there is no control for an action.
const explain = ({ missing, ofAnswer }) => {
  const edited = ofAnswer && $("#messages > :last-child .rewriter");
  if (edited) keepEdit(edited);
  else notice(ofAnswer && isBusy() ? "An answer is still being written." : missing);
};
// Does an action of the table: also called for those chosen in the palette.
export const act = row => {
  const control = row.find?.();
  for (const open of $$(":popover-open")) open.hidePopover();
  if (row.find && !control) explain(row);
  else if (ACTIONS[row.id]) ACTIONS[row.id]();
  else if (row.id === "field") {
    closeSheet();
    control.focus();
  } else control.click();
};
addEventListener("keydown", event => {
  const row = shortcutOf(event), dialog = openedDialog();
  const isHidden = dialog && (dialog.id !== "palette" || row?.id !== "search");
  if (!row || event.repeat || isHidden) return;
  if (row.id === "help" && (isField(event.target) || !usesSingleKey())) return;
  event.preventDefault();
  event.stopPropagation();
  act(row);
}, true);

// Screen readers read a control's shortcut, and people see it: `data-keys` is the ID of its row.
for (const control of $$("[data-keys]")) {
  const row = shortcut(control.dataset.keys);
  if (control.matches("kbd")) control.textContent = keyNames(row).join(" ");
  else control.ariaKeyShortcuts = ariaKeys(row);
}
document.addEventListener("click", async ({ target }) => {
  const control = target.closest("[data-act]"), settings = target.closest(".opens-settings");
  if (control) act(SHORTCUTS.find(row => row.id === control.dataset.act));
  if (target.closest("#open-display")) (await onDemand("display"))?.openDisplay();
  if (!settings) return;
  (await onDemand("settings"))?.openSettings(settings);
});

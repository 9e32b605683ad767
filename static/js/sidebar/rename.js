// Renaming in place: Enter saves; Esc or an unchanged title cancels.
import { $, refuse } from "../lib/dom.js";
import { route } from "../requests.js";
import { entryOf, linkIn, list, shownConversation } from "./entries.js";

const submitted = new WeakMap(); // form -> the ID of its chat, and whether its field had the focus
const isField = element => element.matches?.(".rename input");
const isChanged = input => input.value.trim() && input.value !== input.defaultValue;

export const leaveRename = async (input, focus) => {
  const entry = input.closest("li"), { id } = entry.dataset;
  input.form.dataset.over = "";
  const url = `/c/${id}/item?current=${shownConversation()}`;
  await htmx.ajax("GET", url, { source: entry, target: `#${entry.id}`, swap: "outerHTML" });
  if (focus) linkIn(entryOf(id))?.focus();
};
list.addEventListener("focusin", ({ target }) => { if (isField(target)) target.select(); });
list.addEventListener("focusout", ({ target }) => {
  if (!isField(target) || !target.isConnected || "over" in target.form.dataset) return;
  if (isChanged(target)) target.form.requestSubmit();
  else leaveRename(target, false);
});
list.addEventListener("submit", event => {
  const form = event.target, input = $("input", form), isOver = "over" in form.dataset;
  if (isOver || !isChanged(input)) {
    refuse(event);
    if (!isOver) leaveRename(input, true);
    return;
  }
  form.dataset.over = ""; // focusout must not send it a second time
  const { id } = form.closest("li").dataset, hadFocus = document.activeElement === input;
  submitted.set(form, { id, hadFocus });
}, true);
route(".rename", {
  finished({ source }) {
    const { id, hadFocus } = submitted.get(source), entry = entryOf(id);
    const refused = entry && $("form", entry); // the title can be corrected
    if (refused) delete refused.dataset.over;
    else if (hadFocus) (linkIn(entry) ?? $("#new-here")).focus();
  },
});

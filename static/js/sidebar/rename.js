// Renaming in place: Enter saves; Esc or an unchanged title cancels.
import { $ } from "../lib/dom.js";
import { entryOf, linkIn, list, shownConversation } from "./entries.js";

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
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!isOver) leaveRename(input, true);
    return;
  }
  const { id } = form.closest("li").dataset, hadFocus = document.activeElement === input;
  form.dataset.over = ""; // focusout must not send it a second time
  document.addEventListener("htmx:finally:swap", () => {
    const refused = $("form", entryOf(id)); // the title can be corrected
    if (refused) delete refused.dataset.over;
    else if (hadFocus) linkIn(entryOf(id))?.focus();
  }, { once: true });
}, true);

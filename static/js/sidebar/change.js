// Changes of one or several conversations: pin, archive, delete; and their Undo.
import { $, $$, announce, make } from "../lib/dom.js";
import { route, succeeded } from "../requests.js";
import { entries, entryOf, head, linkIn } from "./entries.js";
import { group } from "./groups.js";
import { refreshChanged } from "./list.js";
import { returnFocusTo, toast } from "./toast.js";

const form = $("#change");
const HIDING = ["archive", "unarchive", "delete"]; // they hide the entries
const ANNOUNCEMENTS = { pin: "Pinned.", unpin: "Unpinned." };
// operation -> the name of its control
const NAMES = { pin: "Pin", unpin: "Unpin", archive: "Archive", unarchive: "Move back" };
// operation -> the state that it sets or removes
const STATES = { pin: "pinned", archive: "archived" };
// Makes the control in `root` that sets a state remove it where it is set. Returns the control.
export const describeChange = (root, operation, isSet) => {
  const control = $(`[data-operation$="${operation}"]`, root);
  control.dataset.operation = isSet ? `un${operation}` : operation;
  $("span", control).textContent = NAMES[control.dataset.operation];
  return control;
};
let pending = null; // the change whose response has not arrived
let hidden = []; // the IDs of entries that the last change has hidden

// The entry that stays beside those with these IDs; null if none does.
const neighbourOf = ids => {
  const all = entries(), gone = new Set(ids), stays = ({ dataset }) => !gone.has(dataset.id);
  const first = all.findIndex(entry => !stays(entry));
  return all.slice(first + 1).find(stays) ?? all.slice(0, Math.max(first, 0)).findLast(stays);
};

// The head follows at once; the list at its next refresh.
const setHead = (operation, ids) => {
  const state = STATES[operation.replace(/^un/, "")];
  if (state && ids.includes(head.dataset.id)) {
    head.toggleAttribute(`data-${state}`, !operation.startsWith("un"));
  }
};
// `operation` is what the server is to do with the conversations.
export const change = (operation, ids) => {
  if (pending || !ids.length) return;
  pending = { operation, ids };
  form.elements.do.value = operation;
  for (const field of $$("[name=id]", form)) field.remove();
  form.append(...ids.map(value => make("input", { type: "hidden", name: "id", value })));
  form.requestSubmit();
};
route("#change", {
  finished({ ctx }) {
    const { operation, ids } = pending;
    pending = null;
    if (!succeeded(ctx)) return;
    setHead(operation, ids);
    if (operation in ANNOUNCEMENTS) {
      announce(ANNOUNCEMENTS[operation]);
      const isSeen = entryOf(ids[0])?.checkVisibility({ visibilityProperty: true });
      if (!isSeen) toast.replaceChildren(make("p", { textContent: ANNOUNCEMENTS[operation] }));
    }
    if (!HIDING.includes(operation)) return;
    const neighbour = entryOf(ids[0]) && neighbourOf(ids)?.dataset.id;
    hidden = ids;
    for (const id of ids) { // until a refresh removes them, or Undo shows them again
      const gone = entryOf(id);
      if (gone) gone.hidden = true;
    }
    group();
    returnFocusTo(() => linkIn(entryOf(neighbour)));
    ($("button", toast) ?? linkIn(entryOf(neighbour)))?.focus();
  },
});
route(".undo", {
  async finished({ ctx, source }) {
    if (!succeeded(ctx)) return;
    const fields = new FormData(source);
    setHead(fields.get("do") ?? "", fields.getAll("id"));
    for (const id of hidden) {
      const undone = entryOf(id);
      if (undone) undone.hidden = false;
    }
    group();
    const back = () => linkIn(entryOf(source.dataset.id)) ?? $("#new-here");
    returnFocusTo(back);
    back().focus();
    await refreshChanged(); // a refresh may have removed the entry
    if (document.activeElement === $("#new-here")) back().focus();
  },
});

// Steps (thoughts, tool calls): an opened one stays open when its answer is replaced.
import { $, $$ } from "./lib/dom.js";

const opened = new Set(); // IDs
document.addEventListener("toggle", ({ target }) => {
  const figures = $(":scope.figures[open] > dl", target);
  figures?.scrollIntoView({ block: "nearest" });
  if (target.open) opened.add(target.id);
  else opened.delete(target.id);
}, true);
// The popup of an answer's figures closes by Esc, and by a click elsewhere.
const closeFigures = ({ key, target }) => {
  const open = $(".figures[open]");
  if (!open || (key ? key !== "Escape" : open.contains(target))) return false;
  open.open = false;
  return true;
};
document.addEventListener("pointerdown", closeFigures);
document.addEventListener("keydown", event => {
  if (closeFigures(event)) event.stopImmediatePropagation(); // it does not stop the answer
}, true);

export const reopenSteps = answer => {
  for (const step of $$(".step", answer)) step.open = opened.has(step.id);
};

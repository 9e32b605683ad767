// Steps (thoughts, tool calls): an opened one stays open when its answer is replaced.
import { $$ } from "./lib/dom.js";

const opened = new Set(); // IDs
document.addEventListener("toggle", ({ target }) => {
  if (target.open) opened.add(target.id);
  else opened.delete(target.id);
}, true);

export const reopenSteps = answer => {
  for (const step of $$(".step", answer)) step.open = opened.has(step.id);
};

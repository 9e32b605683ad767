// Boxes of code and tables that come near the visible part: they take the focus where they are
// wider than their place, so that they can be scrolled by keyboard, and code gets its buttons.
import { $$ } from "./lib/dom.js";
import { listen } from "./lib/events.js";
import { load } from "./lib/on_demand.js";
import { route } from "./requests.js";

const BOXES = ".answer :is(pre, .table)";
const equip = async box => {
  try { (await load("code")).equip(box); } catch { /* the code can be read without its buttons */ }
};
const seen = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
    if (target.matches("pre")) equip(target.parentElement);
  }
}, { rootMargin: "50%" });
export const watch = root => { for (const box of $$(BOXES, root)) seen.observe(box); };
const watchAll = () => watch(document);

watchAll();
addEventListener("resize", watchAll);
listen("ended", watchAll);
listen("updated", watchAll);
route("*", {
  // A running answer changes many times a second: answers.js watches the blocks that it adds.
  swapped({ source }) { if (!source.matches(".feed")) watchAll(); },
});

// Boxes of code and tables that come near the visible part: they take the focus where they are
// wider than their place, so that they can be scrolled by keyboard, and code gets its buttons.
import { $$ } from "./lib/dom.js";
import { listen } from "./lib/events.js";
import { load } from "./lib/on_demand.js";
import { route } from "./requests.js";

const BOXES = ".answer :is(pre, .table)";
const equip = async blocks => {
  try { (await load("code")).equip(blocks); } catch { /* it can be read without its buttons */ }
};
const seen = new IntersectionObserver(entries => {
  const boxes = entries.filter(entry => entry.isIntersecting).map(({ target }) => target);
  const wide = boxes.filter(box => box.scrollWidth > box.clientWidth);
  for (const box of boxes) {
    seen.unobserve(box);
    if (wide.includes(box)) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
  const blocks = boxes.filter(box => box.matches("pre")).map(pre => pre.parentElement);
  if (blocks.length) equip(blocks);
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

// Boxes of code and tables take the focus where they are wider than their place, so that they can
// be scrolled by keyboard.
import { $$ } from "./lib/dom.js";
import { listen } from "./lib/events.js";
import { route } from "./requests.js";

const BOXES = ".answer :is(pre, .table)";
const seen = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
const watch = () => { for (const box of $$(BOXES)) seen.observe(box); };

watch();
addEventListener("resize", watch);
listen("ended", watch);
listen("updated", watch);
route("*", {
  // A running answer changes many times a second, and its boxes are replaced at its end.
  swapped({ source }) { if (!source.matches(".feed")) watch(); },
});

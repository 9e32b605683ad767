// On iOS the keyboard covers the page without making it smaller: the composer stays above it. Other
// browsers make the page smaller (`interactive-widget` in base.html), and the height is 0.
import { touch } from "./lib/dom.js";

const viewport = window.visualViewport, root = document.documentElement;
const place = () => {
  const isZoomed = viewport.scale > 1.01;
  const height = isZoomed ? 0 : Math.max(0, innerHeight - viewport.height - viewport.offsetTop);
  root.style.setProperty("--keyboard", `${Math.round(height)}px`);
};
if (viewport && touch.matches) {
  viewport.addEventListener("resize", place);
  viewport.addEventListener("scroll", place);
}

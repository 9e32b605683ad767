// The rail's sheet follows a finger: from the left edge to open it, leftwards to close it.
import { $, reducedMotion } from "../lib/dom.js";
import { sidebar } from "../sidebar/entries.js";
import { isSheetOpen, narrow, toggleRail } from "../sidebar/sheet.js";

const shade = $("#sidebar-shade");
const EDGE = 40, SLOP = 10; // pixels
const FAST = 0.3; // pixels a millisecond
let swipe = null; // { id, x, y, at, isOpen, width }

const place = x => {
  const { width, isOpen } = swipe, shift = Math.min(0, (isOpen ? 0 : -width) + x);
  sidebar.style.setProperty("--shift", `${Math.max(-width, shift)}px`);
  shade.style.setProperty("--shown", 1 + Math.max(-width, shift) / width);
};
const endSwipe = () => {
  document.body.classList.remove("swiping");
  sidebar.style.removeProperty("--shift");
  shade.style.removeProperty("--shown");
  swipe = null;
};
const isScroller = element => {
  for (let e = element; e && e !== document.body; e = e.parentElement) {
    const { overflowX } = getComputedStyle(e);
    if (e.scrollWidth > e.clientWidth && ["auto", "scroll"].includes(overflowX)) return true;
  }
  return false;
};
addEventListener("pointerdown", event => {
  const { clientX: x, clientY: y, pointerId: id, target } = event, isOpen = isSheetOpen();
  if (!event.isPrimary || event.pointerType === "mouse" || !narrow.matches) return;
  if (isOpen ? !target.closest("#sidebar, #sidebar-shade") : x > EDGE || isScroller(target)) return;
  swipe = { id, x, y, at: event.timeStamp, isOpen, width: 0 };
}, { passive: true });
addEventListener("pointermove", event => {
  if (event.pointerId !== swipe?.id) return;
  const x = event.clientX - swipe.x, y = event.clientY - swipe.y;
  if (!swipe.width) {
    if (Math.hypot(x, y) < SLOP) return;
    if (Math.abs(y) > Math.abs(x) || (swipe.isOpen ? x > 0 : x < 0)) {
      swipe = null;
      return;
    }
    swipe.width = sidebar.offsetWidth;
    if (!reducedMotion.matches) document.body.classList.add("swiping");
  }
  if (!reducedMotion.matches) place(x);
}, { passive: true });
addEventListener("pointerup", event => {
  if (event.pointerId !== swipe?.id) return;
  const { isOpen, width, at, x: from } = swipe, x = event.clientX - from;
  endSwipe();
  if (!width) return;
  const isFar = Math.abs(x) > width / 2 || Math.abs(x) / (event.timeStamp - at) > FAST;
  const isRight = isOpen ? x < 0 : x > 0;
  if (isFar && isRight) toggleRail();
}, true);
addEventListener("pointercancel", () => { if (swipe) endSwipe(); }, true);

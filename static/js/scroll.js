// Scrolling: the page follows the text while it is scrolled to its end.
import { $ } from "./lib/dom.js";

const page = document.scrollingElement, messages = $("#messages");
let following = true, last = 0; // scroll position at the last check

const scrollToEnd = () => { page.scrollTop = page.scrollHeight; last = page.scrollTop; };
// Any scroll upwards ends following, unless the page became shorter.
const updateFollowing = () => {
  const top = page.scrollTop, below = page.scrollHeight - top - page.clientHeight;
  if (top < last) following = below < 2;
  else if (below < 40) following = !$(":scope > .later", messages); // else the end is not loaded
  last = top;
  return following;
};
addEventListener("scroll", updateFollowing, { passive: true });

export const startFollowing = () => { following = true; };

// Scrolls to the end in the next frame if the page follows. Heights are read once a frame, because
// each read after a change forces a layout.
let isScheduled = false;
export const follow = () => {
  if (isScheduled || !following) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    if (following && updateFollowing()) scrollToEnd();
  });
};

const around = new ResizeObserver(() => { if (following) scrollToEnd(); });
around.observe($("body > footer")); // covers the text below it
around.observe($("#usage")); // grows when the answer is complete
if (new URLSearchParams(location.search).has("at")) following = false; // opened at a message
else scrollToEnd();

// Shows text that arrives in bursts at an even pace. Text is added to the page as soon as it
// arrives, and counts as seen from then on; a highlight hides its last characters for a moment.
// Stop shows all of it at once.
import { $, reducedMotion } from "../lib/dom.js";
import { listen } from "../lib/events.js";

const MOST = 200; // milliseconds that a character stays hidden at most
const isSupported = Boolean(globalThis.Highlight && CSS.highlights);
const box = $("#smooth");
const hidden = isSupported ? new Highlight() : null;
const waiting = new Map(); // growing text element -> state of its hidden characters

const showAll = () => {
  waiting.clear();
  hidden.clear();
};
// A range over the last `count` characters of a text.
const lastOf = (text, count) => {
  const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT), range = new Range();
  range.setEnd(text, text.childNodes.length);
  while (walker.lastChild());
  let rest = count;
  for (let node = walker.currentNode; node; node = walker.previousNode()) {
    if (node.nodeType !== Node.TEXT_NODE) continue;
    if (node.length >= rest) {
      range.setStart(node, node.length - rest);
      return range;
    }
    rest -= node.length;
  }
  range.setStart(text, 0);
  return range;
};
const frame = () => {
  const now = performance.now();
  hidden.clear();
  for (const [text, state] of waiting) {
    state.count -= state.speed * (now - state.at);
    state.at = now;
    if (state.count < 1 || !text.isConnected) {
      state.count = state.speed = 0;
      continue;
    }
    hidden.add(lastOf(text, Math.floor(state.count)));
  }
  if (hidden.size) requestAnimationFrame(frame);
};
const grow = (text, count) => {
  const now = performance.now();
  const state = waiting.get(text) ?? { count: 0, speed: 0, at: now, came: now, gap: 0 };
  waiting.set(text, state);
  // moving average of the time between two bursts
  state.gap = Math.min(MOST, (3 * state.gap + now - state.came) / 4);
  state.came = now;
  if (!state.count) state.at = now;
  state.count = Math.max(0, state.count + count);
  // shows all of it within one gap
  state.speed = Math.max(state.speed, state.count / Math.max(state.gap, 1));
  if (!hidden.size) frame();
};
// Characters that a change added to an answer's text.
const countAdded = ({ addedNodes, removedNodes }) => {
  let count = 0;
  for (const node of addedNodes) count += node.textContent.length;
  for (const node of removedNodes) { // a removed text node was joined with the one before it
    if (node.nodeType === Node.ELEMENT_NODE) count -= node.textContent.length;
  }
  return count;
};
const observe = changes => {
  if (!box.checked || reducedMotion.matches || document.hidden) { showAll(); return; }
  const counts = new Map();
  for (const change of changes) {
    const text = change.target.parentElement?.closest(".answer[data-state=running] > .text");
    if (text) counts.set(text, (counts.get(text) ?? 0) + countAdded(change));
  }
  for (const [text, count] of counts) grow(text, count);
  for (const text of waiting.keys()) if (!text.isConnected) waiting.delete(text);
};

if (isSupported) {
  CSS.highlights.set("unread", hidden);
  box.addEventListener("change", showAll);
  new MutationObserver(observe).observe($("#messages"), { childList: true, subtree: true });
  listen("frozen", showAll);
}

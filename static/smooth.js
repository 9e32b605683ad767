// Text that comes in bursts is shown evenly. It is in the page as soon as it is here, and what counts
// as seen is what is in the page: only its ink comes a little later, by a highlight that hides it. Stop
// shows all of it at once.
"use strict";
(() => {
  const MOST = 200; // milliseconds that a character waits for its ink at most
  const box = document.querySelector("#smooth");
  if (!globalThis.Highlight || !CSS.highlights) { box.closest(".settings").hidden = true; return; }
  const hidden = new Highlight(), waiting = new Map(); // a text that grows -> what of it has no ink yet
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  CSS.highlights.set("unread", hidden);
  try { box.checked = localStorage.getItem("halt.smooth") !== "off"; } catch { /* not allowed here */ }
  box.addEventListener("change", () => {
    try { localStorage.setItem("halt.smooth", box.checked ? "on" : "off"); } catch { /* not allowed here */ }
    show();
  });

  const show = () => { waiting.clear(); hidden.clear(); };
  const last = (text, count) => { // a range over the last characters of a text
    const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT), range = new Range();
    range.setEnd(text, text.childNodes.length);
    while (walker.lastChild());
    for (let node = walker.currentNode; node; node = walker.previousNode()) {
      if (node.nodeType !== Node.TEXT_NODE) continue;
      if (node.length >= count) { range.setStart(node, node.length - count); return range; }
      count -= node.length;
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
      if (state.count < 1 || !text.isConnected) { state.count = state.speed = 0; continue; }
      hidden.add(last(text, Math.floor(state.count)));
    }
    if (hidden.size) requestAnimationFrame(frame);
  };
  const grown = (text, count) => {
    const now = performance.now(), state = waiting.get(text) ?? { count: 0, speed: 0, at: now, came: now, gap: 0 };
    waiting.set(text, state);
    state.gap = Math.min(MOST, (3 * state.gap + now - state.came) / 4); // the usual time between two bursts
    state.came = now;
    if (!state.count) state.at = now;
    state.count = Math.max(0, state.count + count);
    state.speed = Math.max(state.speed, state.count / Math.max(state.gap, 1)); // all of it within a gap
    if (!hidden.size) frame();
  };
  new MutationObserver(changes => {
    if (!box.checked || still.matches || document.hidden) { show(); return; }
    const counts = new Map();
    for (const change of changes) {
      const text = change.target.parentElement?.closest(".answer[data-state=running] > .text");
      if (!text) continue;
      let count = counts.get(text) ?? 0;
      for (const node of change.addedNodes) count += node.textContent.length;
      for (const node of change.removedNodes) {
        if (node.nodeType === Node.ELEMENT_NODE) count -= node.textContent.length; // text alone was joined with the text before it
      }
      counts.set(text, count);
    }
    for (const [text, count] of counts) grown(text, count);
    for (const text of waiting.keys()) if (!text.isConnected) waiting.delete(text);
  }).observe(document.querySelector("#messages"), { childList: true, subtree: true });
  document.addEventListener("halt:still", show);
})();

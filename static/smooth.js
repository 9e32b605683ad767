// Shows text that arrives in bursts at an even pace. Text is added to the page as soon as it arrives,
// and counts as seen from then on; a highlight hides its last characters for a moment. Stop shows all
// of it at once.
"use strict";
(() => {
  const MOST = 200; // milliseconds that a character stays hidden at most
  const box = document.querySelector("#smooth");
  if (!globalThis.Highlight || !CSS.highlights) { box.closest(".settings").hidden = true; return; }
  const hidden = new Highlight(), waiting = new Map(); // growing text element -> state of its hidden characters
  const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
  CSS.highlights.set("unread", hidden);
  try { box.checked = localStorage.getItem("halt.smooth") !== "off"; } catch { /* storage is not allowed */ }
  box.addEventListener("change", () => {
    try { localStorage.setItem("halt.smooth", box.checked ? "on" : "off"); } catch { /* storage is not allowed */ }
    show();
  });

  const show = () => { waiting.clear(); hidden.clear(); };
  const last = (text, count) => { // a range over the last `count` characters of a text
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
    state.gap = Math.min(MOST, (3 * state.gap + now - state.came) / 4); // moving average of the time between two bursts
    state.came = now;
    if (!state.count) state.at = now;
    state.count = Math.max(0, state.count + count);
    state.speed = Math.max(state.speed, state.count / Math.max(state.gap, 1)); // shows all of it within one gap
    if (!hidden.size) frame();
  };
  new MutationObserver(changes => {
    if (!box.checked || reducedMotion.matches || document.hidden) { show(); return; }
    const counts = new Map();
    for (const change of changes) {
      const text = change.target.parentElement?.closest(".answer[data-state=running] > .text");
      if (!text) continue;
      let count = counts.get(text) ?? 0;
      for (const node of change.addedNodes) count += node.textContent.length;
      for (const node of change.removedNodes) {
        if (node.nodeType === Node.ELEMENT_NODE) count -= node.textContent.length; // a removed text node was joined with the one before it
      }
      counts.set(text, count);
    }
    for (const [text, count] of counts) grown(text, count);
    for (const text of waiting.keys()) if (!text.isConnected) waiting.delete(text);
  }).observe(document.querySelector("#messages"), { childList: true, subtree: true });
  document.addEventListener("halt:frozen", show);
})();

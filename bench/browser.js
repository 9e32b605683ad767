// Put into the page before its own scripts: when was what seen, by the page's own clock.
// Times are those of `performance.now()`; an input event's `timeStamp` is of the same clock.
"use strict";
window.bench = { sent: null, clicked: null, shown: null, painted: null, changed: null, done: null, frames: [] };
window.benchWatchesText = true; // off for long answers: reading all of the text costs too much then
(() => {
  const { bench } = window;
  const visible = answer => answer.querySelector(".text").textContent.replace(/\s+/g, " ").trim();
  let text = "";

  addEventListener("keydown", event => { if (event.key === "Enter") bench.sent = event.timeStamp; }, true);
  addEventListener("click", event => { if (event.target.id === "stop") bench.clicked = event.timeStamp; }, true);

  const frame = () => { // not the time that is handed over: that of a late frame is the early one's
    if (bench.shown !== null) bench.frames.push(performance.now());
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);

  addEventListener("DOMContentLoaded", () => {
    new MutationObserver(() => {
      const now = performance.now();
      const answer = [...document.querySelectorAll(".answer")].pop();
      if (!answer) return;
      if (bench.shown === null || window.benchWatchesText) {
        const seen = visible(answer);
        if (seen !== text) {
          text = seen;
          bench.changed = now;
          if (bench.shown === null && seen && answer.checkVisibility()) {
            bench.shown = now;
            requestAnimationFrame(() => { bench.painted = performance.now(); });
          }
        }
      }
      if (bench.done === null && answer.dataset.state !== "running") bench.done = now;
    }).observe(document.querySelector("#messages"), { childList: true, characterData: true, subtree: true });
  });
})();

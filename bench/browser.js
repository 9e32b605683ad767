// Injected before the page's scripts. Records the times of events on the page, in milliseconds of
// `performance.now()`; the `timeStamp` of input events uses the same clock.
"use strict";
window.bench = {
  sent: null, clicked: null, shown: null, painted: null, changed: null, done: null, frames: [],
  ready: null, opened: null, // the first frame after the scripts; the first one with the last exchange's end
};
window.benchWatchesText = true; // false for long answers, where reading the whole text would take too long
(() => {
  const { bench } = window;
  const visible = answer => answer.querySelector(".text").textContent.replace(/\s+/g, " ").trim();
  let text = "";

  addEventListener("keydown", event => { if (event.key === "Enter") bench.sent = event.timeStamp; }, true);
  addEventListener("click", event => { if (event.target.id === "stop") bench.clicked = event.timeStamp; }, true);

  const atNextFrame = key => requestAnimationFrame(() => { bench[key] ??= performance.now(); });
  const watchOpening = () => {
    if (bench.ready === null) atNextFrame("ready");
    const end = document.querySelector("#messages > .exchange:last-child")?.getBoundingClientRect().bottom;
    if (end > 0 && end <= innerHeight) atNextFrame("opened");
    else if (performance.now() < 15_000 && end) requestAnimationFrame(watchOpening);
  };
  addEventListener("DOMContentLoaded", () => requestAnimationFrame(watchOpening));

  const frame = () => { // not the argument: for a late frame it is the time when the frame was due
    if (bench.shown !== null) bench.frames.push(performance.now());
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);

  addEventListener("DOMContentLoaded", () => {
    const messages = document.querySelector("#messages");
    new MutationObserver(() => {
      const now = performance.now();
      const answer = [...messages.lastElementChild?.querySelectorAll(".answer") ?? []].pop(); // of the last exchange
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
    }).observe(messages, { childList: true, characterData: true, subtree: true });
  });
})();

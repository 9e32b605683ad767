// Stop, as far as it is the page's: the text is frozen at once, a connection becomes free, the
// request says what the reader has seen, and a Stop that did not arrive is sent again.
import { isBusy, runningAnswers, sendingIds } from "./activity.js";
import { closeFeed, shownEvent } from "./feed.js";
import { $, clearNotice, notice } from "./lib/dom.js";
import { emit } from "./lib/events.js";
import { route } from "./requests.js";

const AGAIN_MS = 2000; // after which a Stop that did not reach the server is sent again
const frozen = new Map(); // ID of a stopped stream, whose text must not change -> last event shown
let pressedAgain = 0; // timer

const isFrozen = stream => frozen.has(stream);

// Freezes an answer's text. Returns the last event shown; the same one for a second press.
const freeze = answer => {
  const { stream } = answer.dataset;
  if (!frozen.has(stream)) {
    frozen.set(stream, shownEvent(answer));
    emit("frozen");
    closeFeed(answer);
  }
  return frozen.get(stream);
};
// The answers that a Stop button stops: its own, or all.
const answersOf = stopper => (stopper.id ? runningAnswers() : [stopper.closest(".answer")]);

export const isStopper = element => element.matches("#stopper, .stop-one");

// A frozen answer does not follow its stream, so the Stop must arrive.
export const reportLostStop = stopper => {
  notice("Stop did not reach the server. Press Stop again.");
  clearTimeout(pressedAgain);
  pressedAgain = setTimeout(() => {
    const isOpen = answersOf(stopper).some(answer => isFrozen(answer.dataset.stream));
    if (stopper.isConnected && isOpen) stopper.requestSubmit();
  }, AGAIN_MS);
};

route("#stopper, .stop-one", {
  config({ ctx, source, event }) {
    const { body } = ctx.request, answers = answersOf(source), ids = sendingIds();
    if (!answers.length && !ids.length) { event.preventDefault(); return; }
    emit("stop");
    for (const answer of answers) {
      body.append("stream_id", answer.dataset.stream);
      body.append("seen", freeze(answer));
    }
    if (answers.length) body.set("shown", "1");
    for (const id of answers.length ? [] : ids) {
      body.append("stream_id", id);
      body.append("seen", "0"); // no event of it has been shown
    }
    clearNotice(); // removes the message of an earlier press
  },
});
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || !isBusy()) return;
  event.preventDefault();
  $("#stopper").requestSubmit();
});

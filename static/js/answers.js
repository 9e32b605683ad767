// Changes of the conversation: texts for screen readers, the place of the focus, and a prompt
// that returns to the message field because its answer was stopped before the first text.
import { sendingIds } from "./activity.js";
import { messageOf } from "./attach.js";
import { returnPrompt } from "./composer.js";
import { setConnectionLost } from "./feed.js";
import { $, $$, announce, focusComposer } from "./lib/dom.js";
import { emit } from "./lib/events.js";
import { loadStyle } from "./lib/on_demand.js";
import { route } from "./requests.js";
import { watch } from "./scrollers.js";
import { reopenSteps } from "./steps.js";

const messages = $("#messages");
const STATES = {
  running: "The answer has started.",
  done: "The answer is complete.",
};

// A removed button that was pressed keeps the focus until the next frame. Focus on any visible
// element stays. `answer`: the one whose own button was pressed.
const keepFocus = answer => {
  const focused = document.activeElement;
  if (focused !== document.body && focused?.checkVisibility()) return;
  const control = answer && $$("footer button", answer).find(button => button.checkVisibility());
  if (control) control.focus({ preventScroll: true });
  else focusComposer();
};
let stopped = ""; // ID of the answer that was stopped by its own button
route(".stop-one", { config({ source }) { stopped = source.closest(".answer").id; } });
route(".pick", {
  config({ ctx, source }) { ctx.picked = source.closest(".answer").id; },
  finished({ ctx }) { keepFocus(document.getElementById(ctx.picked)); },
});
const update = answer => { // an answer was added or replaced
  setConnectionLost(false); // the server has sent it
  const { state } = answer.dataset, exchange = answer.closest(".exchange");
  const isCut = state === "done" && "cut" in answer.dataset;
  const others = $$(".answer", exchange).filter(other => other !== answer);
  const isLast = others.every(other => other.dataset.state !== "running");
  if (state !== "running" && !isLast) { // only the last end counts
    if (answer.id === stopped) queueMicrotask(() => keepFocus(answer));
    return;
  }
  const note = state !== "running" && $(".note-title", answer)?.textContent;
  if (state !== "withdrawn") announce(state === "error" ? `Error: ${note}` : note || STATES[state]);
  queueMicrotask(() => keepFocus()); // when the page shows the other of Send and Stop
  if (state === "running") return;
  end(exchange, isCut ? "cut" : state, others, $(".note", answer));
};

// `back`: an earlier version is shown again.
const end = (exchange, state, others, note) => {
  const { dataset } = exchange;
  const isWithdrawn = answer => answer.dataset.state === "withdrawn";
  const isGone = state === "withdrawn" && others.every(isWithdrawn);
  const back = "again" in dataset ? state === "withdrawn" : isGone && "edited" in dataset;
  emit("ended", { state, exchange, back });
  if (!isGone || back || !exchange.isConnected) {
    if (state === "withdrawn") announce($(".note-title", note).textContent);
    return;
  }
  const place = returnPrompt(messageOf(exchange));
  $(".note-title", note).append(` Your message is back in the ${place}.`);
  exchange.remove();
  $("#notice").replaceChildren(note); // which is read out
  focusComposer();
};

// The server no longer has the stream: a note replaced its feed.
const lose = answer => {
  answer.dataset.state = "lost";
  emit("ended", { state: "lost" });
  for (const waiting of $$(".waiting, .elapsed", answer)) waiting.remove();
};

const handle = node => {
  if (node.nodeType !== Node.ELEMENT_NODE) return;
  if (node.matches(".seam")) {
    // Joins the text nodes before it, so that they are shaped once. Selections stay.
    node.parentElement?.normalize();
  } else if (node.matches(".answer")) {
    reopenSteps(node);
    update(node);
  } else if (node.matches(".exchange") && sendingIds().length) {
    update($('.answer[data-state="running"]', node) ?? $(".answer", node));
  } else if (node.matches(".answer > .note")) lose(node.parentElement);
  else watch(node);
};
new MutationObserver(changes => {
  for (const { addedNodes } of changes) addedNodes.forEach(handle);
  const running = $('.answer[data-state="running"]', messages.lastElementChild ?? messages);
  const { classList } = document.body;
  classList.toggle("running", running !== null);
  const isEmpty = !messages.childElementCount;
  classList.toggle("empty", isEmpty);
  if (!isEmpty) loadStyle("formats+files");
}).observe(messages, { childList: true, subtree: true });

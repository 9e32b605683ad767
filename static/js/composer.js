// The message field. Its text leaves it when it is sent, and comes back if the server did not
// take it.
import { isBusy } from "./activity.js";
import { $, setValue } from "./lib/dom.js";
import { emit } from "./lib/events.js";
import { route } from "./requests.js";

const prompt = $("#prompt"), composer = $("#composer");
let leaving = ""; // the message that was taken from the field and that the server may not have yet

const grow = field => { // height = text + both borders
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
};
document.addEventListener("input", event => {
  if (event.target.matches("textarea[rows='1']")) grow(event.target);
});
prompt.addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  composer.requestSubmit();
});
document.addEventListener("submit", event => {
  if (event.target !== composer) return;
  const text = prompt.value.trim(), waits = isBusy();
  if (waits || !text) { event.preventDefault(); event.stopImmediatePropagation(); }
  if (waits && text) emit("queue", { text });
}, true);

// The prompt of an answer that was withdrawn; a text in the field goes first.
export const returnPrompt = text => {
  if (prompt.value) emit("queue", { text, first: true });
  else setValue(prompt, text);
};

route("#composer", {
  config({ event }) {
    if (event.defaultPrevented) return;
    leaving = prompt.value;
    setValue(prompt, ""); // the next message can be typed
  },
  response({ ctx }) {
    // in the queue: see queue.js
    const waits = ctx.text?.includes('data-code="conversation_moved"');
    if (ctx.response.status < 400 || waits) leaving = "";
  },
  finished() {
    if (!leaving) return;
    setValue(prompt, leaving + (prompt.value && `\n${prompt.value}`));
    leaving = "";
  },
});

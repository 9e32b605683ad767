// The message: its field, its files and its pasted texts. It is emptied when the message is sent,
// and refilled if the server refuses it.
import { isBusy } from "./activity.js";
import { filesOf, isHeld, LONG, pastedTexts, setFiles, setPastedTexts } from "./attach.js";
import { $, $$, isPlain, refuse, setValue, touch } from "./lib/dom.js";
import { emit } from "./lib/events.js";
import { hasCode, route, succeeded } from "./requests.js";
import { editPrompt } from "./versions.js";

const prompt = $("#prompt"), composer = $("#composer");
let sentParts = null; // of the message under way, until the server has it

export const messageParts = () => (
  { text: prompt.value, pasted: pastedTexts(), files: filesOf(composer) }
);
export const setMessage = ({ text = "", pasted = [], files = [] }) => {
  setFiles(composer, files);
  setPastedTexts(pasted);
  setValue(prompt, text);
};
export const clearMessage = () => setMessage({});
const messageText = ({ text, pasted }) => [text.trim(), ...pasted].filter(Boolean).join("\n\n");
const isEmpty = parts => !messageText(parts) && !parts.files.length;
// Puts parts before those that are there.
const putBack = ({ text, pasted, files }) => {
  const now = messageParts();
  const joined = text && now.text ? `${text}\n${now.text}` : text || now.text;
  setMessage({
    text: joined, pasted: [...pasted, ...now.pasted], files: [...files, ...now.files],
  });
};
// The prompt { text, files } of an answer that was withdrawn; a message that is being written goes
// first. Returns where it is now.
export const returnPrompt = ({ text, files }) => {
  if (!isEmpty(messageParts())) {
    emit("queue", { text, files, first: true });
    return "queue";
  }
  setMessage(text.length > LONG ? { pasted: [text], files } : { text, files });
  return "field";
};

// --- the field grows with its text ---------------------------------------------------------------
// By the browser, or in the next frame: reading a height after a change forces a layout.
const growing = new Set();
const grow = () => {
  for (const field of growing) { // height = text + both borders
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight + field.offsetHeight - field.clientHeight}px`;
  }
  growing.clear();
};
if (!CSS.supports("field-sizing", "content")) {
  document.addEventListener("input", ({ target }) => {
    if (!target.matches("textarea[rows='1']")) return;
    if (!growing.size) requestAnimationFrame(grow);
    growing.add(target);
  });
}

// --- keys ----------------------------------------------------------------------------------------
// Up in an empty field edits the last message; Esc there returns to the field.
let editor = null; // the form that Up has opened
const editLast = () => {
  const exchange = $$("#messages > .exchange").at(-1);
  if (!exchange || isBusy()) return false;
  editPrompt(exchange);
  editor = $(".editor", exchange);
  return true;
};
addEventListener("keydown", event => {
  if (event.key !== "Escape" || !editor?.contains(event.target)) return;
  setTimeout(() => { if (!editor.isConnected) prompt.focus(); }); // versions.js closes it
}, true);
prompt.addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    composer.requestSubmit();
  } else if (event.key === "ArrowUp" && isPlain(event) && isEmpty(messageParts())) {
    if (editLast()) event.preventDefault();
  }
});

// --- sending -------------------------------------------------------------------------------------
document.addEventListener("submit", event => {
  if (event.target !== composer) return;
  const parts = messageParts(), waits = isBusy();
  if (isHeld(composer) || isEmpty(parts)) refuse(event);
  else if (waits) {
    refuse(event);
    emit("queue", { text: messageText(parts), files: parts.files });
  }
}, true);
route("#composer", {
  config({ ctx, event }) {
    if (event.defaultPrevented) return;
    sentParts = messageParts();
    if (sentParts.pasted.length) ctx.request.body.set("prompt", messageText(sentParts));
    clearMessage(); // the next message can be typed
    if (touch.matches) prompt.blur(); // closes the keyboard, which covers the answer
  },
  response({ ctx }) {
    // A message for a changed conversation goes to the queue: see queue.js.
    if (succeeded(ctx) || hasCode(ctx, "conversation_moved")) sentParts = null;
  },
  finished() {
    if (sentParts) putBack(sentParts);
    sentParts = null;
  },
});

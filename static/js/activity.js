// The messages of this conversation that are being sent, and its answers that run.
import { $$ } from "./lib/dom.js";

// Elements whose requests start an answer.
export const STARTS = "#composer, #sender, .editor, .regenerate, .continue";

let sending = []; // IDs of the streams whose request is under way

export const sendingIds = () => sending;
export const setSending = ids => {
  sending = ids;
  document.body.classList.toggle("sending", ids.length > 0);
};
export const runningAnswers = () => $$('.answer[data-state="running"]');
export const isBusy = () => sending.length > 0 || runningAnswers().length > 0;

// The conversation's ID. A new conversation has one before its first message.
export const conversationId = () => (
  document.querySelector("#sender").getAttribute("hx-post").match(/\/c\/([^/]+)/)[1]
);

// The queue of messages that were written while an answer was running. They can be seen, edited
// and removed, and are sent one by one, each when the answer before it is done. A Stop or an error
// pauses the queue: messages are neither sent nor dropped. A reload keeps them, for this tab only.
// A message gets its stream IDs before it is sent, so that the server accepts none of them twice.
import { conversationId, isBusy } from "./activity.js";
import { fileFields, keptFile } from "./attach.js";
import { clearMessage } from "./composer.js";
import { $, $$, announce, focusComposer, make, notice } from "./lib/dom.js";
import { listen } from "./lib/events.js";
import { newId } from "./lib/ids.js";
import { onDemand } from "./lib/on_demand.js";
import { areFiles, isText, isTexts, session } from "./lib/storage.js";
import { hasCode, openConversation, route, succeeded } from "./requests.js";

const MOST = 20; // messages that wait
const box = $("#queue"), go = $("#queue-go"), sender = $("#sender");
const key = `halt.queue.${conversationId()}`;
const HELD = { // why it is paused
  stopped: "you stopped",
  interrupted: "the answer was interrupted",
  cut: "the answer was cut off",
  refused: "the first message could not be sent",
  moved: "the conversation changed in another tab or device",
  error: "the answer failed",
};
let waiting = []; // { text, files, models, ids }: `ids` once it has been sent
let lines = null; // the module that draws them
let held = ""; // a key of HELD: nothing is sent until "Send now" is pressed
let editing = null; // the message that is being edited; it is not sent meanwhile
let sent = null; // the message whose request is under way

const keep = () => {
  if (waiting.length) session.set(key, JSON.stringify({ held, waiting }));
  else session.remove(key);
};
const chosenModels = () => $$(".choices [name=model]").map(field => field.value);

// --- the list ------------------------------------------------------------------------------------
const actions = {
  begin(item) { editing = item; },
  end(item, text) { // text is null: cancelled
    editing = null;
    if (text === "" && !item.files.length) { actions.drop(item); return; }
    if (text !== null) item.text = text;
    draw();
    next();
  },
  drop(item) {
    const beside = lines.focusBeside(item);
    waiting = waiting.filter(other => other !== item);
    if (editing === item) editing = null;
    draw();
    if (beside) beside.focus();
    else focusComposer();
    announce("Removed from the queue.");
    next();
  },
};
const drawLines = async () => {
  if (!waiting.length && !lines) return;
  lines ??= await onDemand("queue_list");
  lines?.drawLines(waiting, actions);
};
const draw = () => {
  if (!waiting.length) held = "";
  keep();
  drawLines();
  box.hidden = !waiting.length;
  const count = waiting.length, messages = count === 1 ? "1 message" : `${count} messages`;
  $("#queue-state").textContent = held
    ? `Paused, because ${HELD[held]}.` : `${messages} queued until the answer is done`;
  go.hidden = !held;
  const all = ["", "both "][count - 1] ?? "all ";
  go.textContent = `Send ${all}${isBusy() ? "after the answer" : "now"}`;
};
listen("queue", ({ text, files, first }) => {
  if (waiting.length >= MOST && !first) {
    notice(`The queue is full: at most ${MOST} messages can wait.`);
    return;
  }
  const item = { text, files: files.map(keptFile), models: chosenModels() };
  if (first) { // the prompt of an answer that was stopped before its first text
    waiting.unshift(item);
    held ||= "stopped";
  } else {
    waiting.push(item);
    clearMessage();
  }
  draw();
  announce(waiting.length === 1 ? "Message queued." : `${waiting.length} messages queued.`);
});

// --- sending -------------------------------------------------------------------------------------
const holdQueue = reason => {
  if (waiting.length) held ||= reason;
  draw();
};
const next = () => {
  const [item] = waiting;
  if (!item || held || sent || isBusy() || editing === item) return;
  sent = item;
  item.ids ??= item.models.map(newId);
  keep();
  sender.dataset.ids = item.ids.join(" ");
  const models = item.models.map(model => ["model", model]);
  const fields = [["prompt", item.text], ...models, ...fileFields(item.files)];
  sender.replaceChildren(
    ...fields.map(([name, value]) => make("input", { type: "hidden", name, value })),
  );
  sender.requestSubmit();
};
route("*", {
  response({ ctx, source }) {
    if (!hasCode(ctx, "conversation_moved")) return;
    // The new messages must be seen before this one is sent.
    if (source !== sender) {
      const text = ctx.request.body.get("prompt").trim();
      waiting.unshift({ text, files: ctx.files.map(keptFile), models: chosenModels() });
    }
    holdQueue("moved");
    openConversation(ctx);
  },
});
route("#sender", {
  response({ ctx }) {
    if (hasCode(ctx, "conversation_moved")) return;
    // taken by another tab, or before a reload
    const isTaken = hasCode(ctx, "stream_in_use");
    if (succeeded(ctx) || isTaken) {
      waiting = waiting.filter(item => item !== sent);
      draw();
    } else holdQueue("refused");
    if (isTaken) location.reload();
  },
  failed() { holdQueue("refused"); },
  finished() { sent = null; },
});
route("*", {
  finished() { queueMicrotask(() => { draw(); next(); }); }, // after all other handlers
});
listen("stop", () => {
  if (sent) delete sent.ids; // the server ends the streams with these IDs at once
  holdQueue("stopped");
});
listen("ended", ({ state }) => {
  if (state === "done") next();
  else holdQueue(state === "withdrawn" ? "stopped" : state in HELD ? state : "error");
  draw();
});
go.addEventListener("click", () => {
  held = "";
  draw();
  focusComposer();
  next();
});

// --- after a reload ------------------------------------------------------------------------------
const restore = () => {
  const kept = session.getJson(key) ?? {};
  const isMessage = item => (
    isText(item?.text) && isTexts(item.models) && isTexts(item.ids ?? [])
    && areFiles(item.files ??= [])
  );
  const isKnown = id => $(`.answer[data-stream="${CSS.escape(id)}"]`);
  waiting = [].concat(kept.waiting).filter(isMessage).filter(item => !item.ids?.some(isKnown));
  held = Object.hasOwn(HELD, kept.held) ? kept.held : "";
  const last = $(".exchange:last-child > .answer");
  const isCut = last?.dataset.state === "done" && "cut" in last.dataset;
  const state = isCut ? "cut" : last?.dataset.state;
  if (last && !isBusy() && state !== "done") holdQueue(state in HELD ? state : "error");
  draw();
};
restore();
addEventListener("load", next); // htmx is loaded by then

// The queue of messages that were written while an answer was running. They can be seen, edited and
// removed, and are sent one by one, each when the answer before it is done. A Stop or an error pauses
// the queue: messages are neither sent nor dropped. A reload keeps them, for this tab only. A message
// gets its stream IDs before it is sent, so that the server accepts none of them twice.
"use strict";
(() => {
  const MOST = 20; // messages that wait
  const $ = (selector, root = document) => root.querySelector(selector);
  const box = $("#queue"), list = $("ol", box), go = $("#queue-go"), sender = $("#sender"), prompt = $("#prompt");
  const key = `halt.queue.${sender.getAttribute("hx-post").split("/")[2]}`;
  const HELD = {
    stopped: "Paused: you stopped the answer",
    interrupted: "Paused: the answer was interrupted",
    cut: "Paused: the answer was cut off",
    refused: "Paused: the first message could not be sent",
    moved: "Paused: the conversation changed in another tab or device",
    error: "Paused: the answer failed",
  };
  let waiting = [];    // { text, models, ids }: `ids` once it has been sent
  let held = "";       // a key of HELD: nothing is sent until "Send now" is pressed
  let editing = null;  // the message that is being edited; it is not sent meanwhile
  let sent = null;     // the message whose request is under way
  const lines = new Map(); // message -> its element

  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, "0")).join("");
  const busy = () => document.body.matches('.sending, :has(.answer[data-state="running"])');
  const announce = text => { $("#announcer").textContent = text; };
  const keep = () => {
    try {
      if (waiting.length) sessionStorage.setItem(key, JSON.stringify({ held, waiting }));
      else sessionStorage.removeItem(key);
    } catch { /* storage is not allowed */ }
  };
  const make = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });

  // --- the list -----------------------------------------------------------------------------------
  const named = (button, verb, item) => {
    button.type = "button";
    button.setAttribute("aria-label", `${verb} “${item.text.slice(0, 40)}”`);
    return button;
  };
  const line = item => {
    const li = make("li", ""), text = make("span", "text", item.text);
    const change = named(make("button", "change", "Edit"), "Edit", item);
    const remove = named(make("button", "remove", "Remove"), "Remove", item);
    change.addEventListener("click", () => begin(item));
    remove.addEventListener("click", () => drop(item));
    li.append(text, change, remove);
    return li;
  };
  const draw = () => {
    if (!waiting.length) held = "";
    keep();
    for (const [item, li] of lines) if (!waiting.includes(item)) { li.remove(); lines.delete(item); }
    waiting.forEach((item, n) => {
      if (!lines.has(item)) lines.set(item, line(item));
      if (list.children[n] !== lines.get(item)) list.insertBefore(lines.get(item), list.children[n] ?? null);
    });
    box.hidden = !waiting.length;
    box.classList.toggle("held", held !== "");
    $("#queue-state").textContent = HELD[held] ?? (waiting.length === 1 ? "1 message queued until the answer is done" : `${waiting.length} messages queued until the answer is done`);
    go.hidden = !held;
    go.textContent = busy() ? "Send after the answer" : "Send now";
  };

  // --- editing ------------------------------------------------------------------------------------
  const begin = item => {
    if (editing) end(true);
    const field = make("textarea", ""), save = make("button", "save", "Save"), cancel = make("button", "cancel", "Cancel");
    field.rows = 1;
    field.setAttribute("aria-label", "Edit the queued message");
    field.value = item.text;
    save.type = cancel.type = "button";
    save.addEventListener("click", () => end(true));
    cancel.addEventListener("click", () => end(false));
    editing = item;
    lines.get(item).replaceChildren(field, save, cancel);
    field.dispatchEvent(new Event("input", { bubbles: true })); // resizes the field
    field.focus();
  };
  const end = saved => {
    const item = editing, li = lines.get(item), text = $("textarea", li).value.trim();
    editing = null;
    if (saved && !text) { drop(item); return; }
    if (saved) item.text = text;
    li.replaceChildren(...line(item).childNodes);
    $(".change", li).focus();
    draw();
    next();
  };
  const drop = item => {
    const beside = lines.get(item).nextElementSibling ?? lines.get(item).previousElementSibling;
    waiting = waiting.filter(other => other !== item);
    if (editing === item) editing = null;
    draw();
    ($(".remove", beside ?? box) ?? prompt).focus();
    announce("Removed from the queue.");
    next();
  };
  box.addEventListener("keydown", event => {
    if (!event.target.matches("textarea")) return;
    if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation(); // Esc must not stop the answer
      end(false);
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      end(true);
    }
  });
  const chosen = () => [...document.querySelectorAll(".choices select[name=model]")].map(select => select.value);
  document.addEventListener("halt:queue", event => {
    const { text, first } = event.detail;
    if (waiting.length >= MOST && !first) {
      $("#notice").replaceChildren(make("p", "fault", `The queue is full: at most ${MOST} messages can wait.`));
      return;
    }
    const models = chosen();
    if (first) { waiting.unshift({ text, models }); held ||= "stopped"; } // the prompt of an answer that was stopped before its first text
    else {
      waiting.push({ text, models });
      prompt.value = "";
      prompt.dispatchEvent(new Event("input", { bubbles: true }));
    }
    draw();
    announce(waiting.length === 1 ? "Message queued." : `${waiting.length} messages queued.`);
  });

  // --- sending ------------------------------------------------------------------------------------
  const holdQueue = reason => { if (waiting.length) held ||= reason; draw(); };
  const next = () => {
    const [item] = waiting;
    if (!item || held || sent || busy() || editing === item) return;
    sent = item;
    item.ids ??= item.models.map(newId);
    keep();
    sender.dataset.ids = item.ids.join(" ");
    sender.replaceChildren(...[["prompt", item.text], ...item.models.map(model => ["model", model])].map(
      ([name, value]) => Object.assign(document.createElement("input"), { type: "hidden", name, value })));
    sender.requestSubmit();
  };
  document.addEventListener("htmx:after:request", event => {
    const { ctx } = event.detail;
    if (ctx.text?.includes('data-code="conversation_moved"')) { // the new messages must be seen before this one is sent
      if (ctx.sourceElement !== sender) waiting.unshift({ text: ctx.request.body.get("prompt").trim(), models: chosen() });
      holdQueue("moved");
      location.assign(ctx.request.action.replace(/\/messages$/, ""));
      return;
    }
    if (ctx.sourceElement !== sender) return;
    const taken = ctx.text.includes('data-code="stream_in_use"'); // by another tab, or before a reload
    if (ctx.response.status < 400 || taken) {
      waiting = waiting.filter(item => item !== sent);
      draw();
    } else holdQueue("refused");
    if (taken) location.reload();
  });
  document.addEventListener("htmx:error", event => {
    if (event.detail.ctx?.sourceElement === sender) holdQueue("refused");
  });
  document.addEventListener("htmx:finally:request", event => {
    if (event.detail.ctx.sourceElement === sender) sent = null;
    queueMicrotask(() => { draw(); next(); }); // after all other listeners of this event
  });
  document.addEventListener("halt:stop", () => {
    if (sent) delete sent.ids; // the server ends the streams with these IDs at once
    holdQueue("stopped");
  });
  document.addEventListener("halt:ended", event => {
    const { state } = event.detail;
    if (state === "done") next();
    else holdQueue(state === "withdrawn" ? "stopped" : state in HELD ? state : "error");
    draw();
  });
  go.addEventListener("click", () => {
    held = "";
    draw();
    prompt.focus();
    next();
  });

  // --- after a reload -----------------------------------------------------------------------------
  try {
    const kept = JSON.parse(sessionStorage.getItem(key) ?? "{}");
    const known = id => $(`.answer[data-stream="${id}"]`);
    waiting = (kept.waiting ?? []).filter(item => !item.ids?.some(known));
    held = kept.held ?? "";
  } catch { /* storage is not allowed */ }
  const last = $(".exchange:last-child > .answer");
  const state = last?.dataset.state === "done" && "cut" in last.dataset ? "cut" : last?.dataset.state;
  if (last && !busy() && state !== "done") holdQueue(state in HELD ? state : "error");
  draw();
  addEventListener("load", next); // htmx is loaded by then
})();

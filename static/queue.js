// Messages that were written while an answer came. They wait where they can be seen, changed and
// removed, and go out one by one when the answer before each is done. A Stop and a fault hold them:
// they are neither sent nor dropped. A reload keeps them, for this tab alone; each has its streams'
// IDs before it is sent, so that the server takes none of them twice.
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
  let held = "";       // a key of HELD: nothing goes out until the person says so
  let editing = null;  // the message that is being changed: it waits for that, too
  let sent = null;     // the message whose request is under way
  const lines = new Map(); // message -> its element

  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, "0")).join("");
  const busy = () => document.body.matches('.sending, :has(.answer[data-state="running"])');
  const announce = text => { $("#announcer").textContent = text; };
  const keep = () => {
    try {
      if (waiting.length) sessionStorage.setItem(key, JSON.stringify({ held, waiting }));
      else sessionStorage.removeItem(key);
    } catch { /* not allowed here */ }
  };
  const make = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });

  // --- what is seen -------------------------------------------------------------------------------
  const named = (button, what, item) => {
    button.type = "button";
    button.setAttribute("aria-label", `${what} “${item.text.slice(0, 40)}”`);
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

  // --- changing it --------------------------------------------------------------------------------
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
    field.dispatchEvent(new Event("input", { bubbles: true })); // it grows
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
    waiting = waiting.filter(each => each !== item);
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
      event.stopPropagation(); // it stops no answer
      end(false);
    } else if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      end(true);
    }
  });
  const chosen = () => [...document.querySelectorAll(".choices select[name=model]")].map(each => each.value);
  document.addEventListener("halt:queue", event => {
    const { text, first } = event.detail;
    if (waiting.length >= MOST && !first) {
      $("#notice").replaceChildren(make("p", "fault", `The queue is full: at most ${MOST} messages can wait.`));
      return;
    }
    const models = chosen();
    if (first) { waiting.unshift({ text, models }); held ||= "stopped"; } // given back by an answer that brought nothing
    else {
      waiting.push({ text, models });
      prompt.value = "";
      prompt.dispatchEvent(new Event("input", { bubbles: true }));
    }
    draw();
    announce(waiting.length === 1 ? "Message queued." : `${waiting.length} messages queued.`);
  });

  // --- sending ------------------------------------------------------------------------------------
  const hold = why => { if (waiting.length) held ||= why; draw(); };
  const next = () => {
    const [item] = waiting;
    if (!item || held || sent || busy() || editing === item) return;
    sent = item;
    item.ids ??= item.models.map(newId);
    keep();
    sender.dataset.ids = item.ids.join(" ");
    sender.replaceChildren(...[["prompt", item.text], ...item.models.map(each => ["model", each])].map(
      ([name, value]) => Object.assign(document.createElement("input"), { type: "hidden", name, value })));
    sender.requestSubmit();
  };
  document.addEventListener("htmx:after:request", event => {
    const { ctx } = event.detail;
    if (ctx.text?.includes('data-code="conversation_moved"')) { // to be seen before it is gone on with
      if (ctx.sourceElement !== sender) waiting.unshift({ text: ctx.request.body.get("prompt").trim(), models: chosen() });
      hold("moved");
      location.assign(ctx.request.action.replace(/\/messages$/, ""));
      return;
    }
    if (ctx.sourceElement !== sender) return;
    const taken = ctx.text.includes('data-code="stream_in_use"'); // by another tab, or before a reload
    if (ctx.response.status < 400 || taken) {
      waiting = waiting.filter(each => each !== sent);
      draw();
    } else hold("refused");
    if (taken) location.reload();
  });
  document.addEventListener("htmx:error", event => {
    if (event.detail.ctx?.sourceElement === sender) hold("refused");
  });
  document.addEventListener("htmx:finally:request", event => {
    if (event.detail.ctx.sourceElement === sender) sent = null;
    queueMicrotask(() => { draw(); next(); }); // when whoever else heard of it is through
  });
  document.addEventListener("halt:stop", () => {
    if (sent) delete sent.ids; // the server will end these streams at once
    hold("stopped");
  });
  document.addEventListener("halt:settled", event => {
    const { state } = event.detail;
    if (state === "done") next();
    else hold(state === "withdrawn" ? "stopped" : state in HELD ? state : "error");
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
    waiting = (kept.waiting ?? []).filter(each => !each.ids?.some(known));
    held = kept.held ?? "";
  } catch { /* not allowed here */ }
  const last = $(".exchange:last-child > .answer");
  const state = last?.dataset.state === "done" && "cut" in last.dataset ? "cut" : last?.dataset.state;
  if (last && !busy() && state !== "done") hold(state in HELD ? state : "error");
  draw();
  addEventListener("load", next); // when htmx is there, too
})();

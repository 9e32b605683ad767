// What htmx does not do: immediate Stop, keyboard, scrolling, copying, announcements.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const messages = $("#messages"), prompt = $("#prompt"), composer = $("#composer");
  const connections = new Map(); // feed element's id -> its SSE connection
  const frozen = new Map();      // ID of a stopped stream, whose text must not change -> last event shown
  let sending = [];              // IDs of the streams whose request is under way
  let sender = null;             // that request's context; a swap may replace its source element
  let leaving = "";              // the message that was taken from the field and that the server may not have yet

  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, "0")).join("");
  const running = () => [...document.querySelectorAll('.answer[data-state="running"]')];
  const busy = () => sending.length > 0 || running().length > 0;
  const announce = text => { $("#announcer").textContent = text; };
  const emit = (name, detail) => document.dispatchEvent(new CustomEvent(`halt:${name}`, { detail }));
  const setSending = ids => { sending = ids; document.body.classList.toggle("sending", ids.length > 0); };
  const notice = text => { const p = document.createElement("p"); p.className = "fault"; p.textContent = text; $("#notice").replaceChildren(p); };

  // --- sending: Stop takes Send's place before the first byte comes back -------------------------
  const grow = field => { // height = text + both borders
    field.style.height = "auto";
    field.style.height = field.scrollHeight + field.offsetHeight - field.clientHeight + "px";
  };
  document.addEventListener("input", event => { if (event.target.matches("textarea")) grow(event.target); });
  // Two kinds of keys stay with the field and reach none of Halt's handlers: keys of an input method (Safari
  // sends the key that ends a composition after it, with isComposing false), and Enter where the primary
  // pointer is a finger: such keyboards have no Shift+Enter. Ctrl+Enter and Cmd+Enter send everywhere.
  const COMPOSED = 50; // milliseconds after a composition in which a key still belongs to it
  const touch = matchMedia("(pointer: coarse)");
  let composed = -COMPOSED;
  addEventListener("compositionend", event => { composed = event.timeStamp; }, true);
  addEventListener("keydown", event => {
    const composes = event.isComposing || event.keyCode === 229 || (["Enter", "Escape"].includes(event.key) && event.timeStamp - composed < COMPOSED);
    const breaks = event.key === "Enter" && touch.matches && event.target.matches?.("textarea") && !event.ctrlKey && !event.metaKey;
    if (composes || breaks) event.stopImmediatePropagation();
  }, true);
  prompt.addEventListener("keydown", event => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    composer.requestSubmit();
  });
  let ready = false; // true once htmx handles forms; before that, the browser would load another page
  document.addEventListener("DOMContentLoaded", () => { ready = true; });
  document.addEventListener("submit", event => {
    if (event.target !== composer) return;
    if (!ready) {
      event.preventDefault();
      event.stopImmediatePropagation();
      document.addEventListener("DOMContentLoaded", () => composer.requestSubmit(), { once: true });
      return;
    }
    const text = prompt.value.trim(), waits = busy();
    if (waits || !text) { event.preventDefault(); event.stopImmediatePropagation(); }
    if (waits && text) emit("queue", { text });
  }, true);
  const STARTS = "#composer, #sender, .editor, .regenerate, .continue"; // elements that start an answer
  document.addEventListener("htmx:config:request", event => {
    const { ctx } = event.detail, source = ctx.sourceElement, { body } = ctx.request;
    const exchange = source.closest(".exchange");
    if (source.dataset.do) { // an action on one exchange of the conversation
      ctx.request.action = `/c/${exchange.dataset.conversation}/${source.dataset.do}`;
      body.set("prompt_id", exchange.dataset.prompt);
    } else if (source.matches(".editor")) {
      body.set("edit_of", exchange.dataset.prompt);
    }
    if (source.matches(STARTS)) {
      if (busy()) {
        event.preventDefault();
        if (source.matches(".editor")) notice("An answer is still being written. Stop it first, or wait until it is complete.");
        return;
      }
      const models = body.getAll("model");
      setSending(source.dataset.ids?.split(" ") ?? (models.length ? models.map(newId) : [newId()])); // one answer per model
      sender = ctx;
      for (const id of sending) body.append("id", id);
      if (source.matches("#composer, #sender") && !$(":scope > .later", messages)) body.set("after", $(":scope > .exchange:last-child", messages)?.dataset.prompt ?? "0");
      $("#notice").replaceChildren();
      following = true;
      if (source === composer) { leaving = prompt.value; prompt.value = ""; prompt.style.height = ""; } // the next message can be typed
    } else if (source.matches("#stopper, .stop-one")) {
      const answers = source.id ? running() : [source.closest(".answer")];
      if (!answers.length && !sending.length) { event.preventDefault(); return; }
      emit("stop");
      for (const answer of answers) {
        body.append("stream_id", answer.dataset.stream);
        body.append("seen", frozenAt(answer));
      }
      if (answers.length) body.set("shown", "1");
      for (const id of answers.length ? [] : sending) {
        body.append("stream_id", id);
        body.append("seen", "0"); // no event of it has been shown
      }
      $("#notice").replaceChildren(); // removes the message of an earlier press
    }
  });
  // The server limits a session's streams over HTTP/1.1, where a browser has few connections. If the
  // browser does not know the protocol, the header is empty and the server assumes HTTP/1.1.
  const protocol = { "Halt-Protocol": performance.getEntriesByType("navigation")[0]?.nextHopProtocol ?? "" };
  document.addEventListener("htmx:config:request", event => {
    const { ctx } = event.detail;
    if (ctx.sourceElement.matches(`.feed, ${STARTS}`)) Object.assign(ctx.request.headers, protocol); // also used for reconnects
  });
  // The response to a POST that starts an answer is the answer's stream. htmx receives the first message
  // as if it were the whole response; the feed element in that message reads the rest.
  const openStreams = new Map(); // ID of the feed element -> the rest of its stream
  const start = async (action, request) => {
    const response = await fetch(action, request), headers = new Headers(response.headers);
    if (!headers.get("Content-Type")?.startsWith("text/event-stream")) return response;
    const reader = response.body.getReader();
    let bytes = new Uint8Array(), end = -1;
    while (end < 0) {
      const { done, value } = await reader.read();
      if (done) throw new TypeError("The stream broke off in its first message.");
      const longer = new Uint8Array(bytes.length + value.length);
      longer.set(bytes);
      longer.set(value, bytes.length);
      bytes = longer;
      end = new TextDecoder("latin1").decode(bytes).indexOf("\n\n"); // a byte is a character here
    }
    const body = new ReadableStream({
      start: controller => { if (bytes.length > end + 2) controller.enqueue(bytes.subarray(end + 2)); },
      pull: async controller => {
        const { done, value } = await reader.read();
        if (done) controller.close();
        else controller.enqueue(value);
      },
      cancel: reason => reader.cancel(reason),
    });
    openStreams.set(`feed-${headers.get("X-Stream-Id")}`, { body, cancel: () => reader.cancel() });
    headers.set("Content-Type", "text/html");
    const lines = new TextDecoder().decode(bytes.subarray(0, end)).split("\n").filter(line => line.startsWith("data: "));
    return new Response(lines.map(line => line.slice(6)).join("\n"), { status: response.status, headers });
  };
  document.addEventListener("htmx:before:request", event => {
    const { ctx } = event.detail, rest = openStreams.get(ctx.sourceElement.id);
    if (ctx === sender) ctx.fetch = start;
    if (!rest) return;
    openStreams.delete(ctx.sourceElement.id);
    ctx.request.signal.addEventListener("abort", rest.cancel);
    ctx.fetch = async () => new Response(rest.body, { headers: { "Content-Type": "text/event-stream" } });
  });
  document.addEventListener("htmx:after:process", event => {
    for (const feed of openStreams.size ? event.target.querySelectorAll(".feed") : []) {
      if (openStreams.has(feed.id)) htmx.ajax("GET", urlOf(feed), { source: feed });
    }
  });
  document.addEventListener("htmx:after:request", event => {
    const { ctx } = event.detail;
    const waits = ctx.text?.includes('data-code="conversation_moved"'); // in the queue, see queue.js
    if (ctx.sourceElement === composer && (ctx.response.status < 400 || waits)) leaving = "";
  });
  document.addEventListener("htmx:finally:request", event => {
    if (event.detail.ctx !== sender) return;
    setSending([]);
    sender = null;
    for (const { cancel } of openStreams.values()) cancel(); // their feed elements are not on the page
    openStreams.clear();
    if (leaving) { prompt.value = leaving + (prompt.value && `\n${prompt.value}`); leaving = ""; grow(prompt); }
  });
  const reportUnreachable = (source, status) => {
    const server = `could not be reached${status ? ` (${status})` : ""}`;
    if (source.matches("#stopper, .stop-one")) { notice("Stop did not reach the server. Press Stop again."); stopLater(source); }
    else if (source.matches(".feed")) { setConnectionLost(true); retryFeed(source); }
    else if (source.matches(`${STARTS}, [data-do]`)) notice(`The server ${server}. Your message is still here: try again.`);
    else if (source.closest("#toast, #import, .menu, .rename, #settings")) notice(`The server ${server}. Try again.`);
  };
  document.addEventListener("htmx:error", event => {
    const source = event.detail.ctx?.sourceElement;
    if (source && event.detail.error?.name !== "AbortError") reportUnreachable(source);
  });
  // Halt's errors have an HX-Retarget header. An error without it is a whole page of a proxy in front
  // of Halt, which must not be swapped into the conversation.
  document.addEventListener("htmx:before:swap", event => {
    const { ctx } = event.detail, { status, headers } = ctx.response ?? {};
    if (!(status >= 400) || headers.has("HX-Retarget")) return;
    event.preventDefault();
    if (!ctx.sourceElement.matches(".feed")) reportUnreachable(ctx.sourceElement, status); // feeds handle htmx:response:error
  });

  // --- Stop: freeze the text, free a connection, then send the request to the server ------------
  const frozenAt = answer => {
    if (frozen.has(answer.dataset.stream)) return frozen.get(answer.dataset.stream); // a second press
    const connection = connections.get(`feed-${answer.dataset.stream}`);
    const shownId = connection?.shownId || $(".feed", answer).dataset.after;
    frozen.set(answer.dataset.stream, shownId);
    document.dispatchEvent(new Event("halt:frozen"));
    if (connection) { // a browser has six connections to a host, and Stop needs one
      connection.config.reconnect = false;
      connection.reader?.cancel();
      connection.delayCanceller?.();
    }
    return shownId;
  };
  let pressedAgain = 0; // timer: a Stop that did not reach the server is sent again, since the frozen answer does not follow its stream
  const stopLater = stopper => {
    clearTimeout(pressedAgain);
    pressedAgain = setTimeout(() => {
      const answers = stopper.id ? running() : [stopper.closest(".answer")];
      if (stopper.isConnected && answers.some(answer => frozen.has(answer.dataset.stream))) stopper.requestSubmit();
    }, 2000);
  };
  document.addEventListener("keydown", event => {
    if (event.key === "Escape" && busy()) { event.preventDefault(); $("#stopper").requestSubmit(); }
  });

  // --- the stream ---------------------------------------------------------------------------------
  const urlOf = feed => `/streams/${feed.id.slice(5)}/page?after=${feed.dataset.after}`;
  const connect = feed => { // by a GET, which htmx repeats after a failure
    if (!feed.isConnected || frozen.has(feed.id.slice(5))) return;
    const fresh = feed.cloneNode(false); // htmx connects an element once
    delete fresh.dataset.htmxPowered;
    fresh.setAttribute("hx-sse:connect", urlOf(feed));
    feed.replaceWith(fresh);
    htmx.process(fresh);
  };
  const retryFeed = feed => setTimeout(connect, 1000, feed);
  const setConnectionLost = isLost => { $("#connection").hidden = !isLost; };
  document.addEventListener("htmx:response:error", event => {
    const source = event.detail.ctx?.sourceElement;
    if (source?.matches?.(".feed")) { setConnectionLost(true); retryFeed(source); }
  });
  document.addEventListener("htmx:sse:after:connection", event => {
    connections.set(event.target.id, event.detail.connection);
    setConnectionLost(false);
  });
  document.addEventListener("htmx:sse:error", () => setConnectionLost(true));
  document.addEventListener("htmx:sse:close", event => {
    const feed = event.target, { connection, reason } = event.detail;
    connections.delete(feed.id);
    if (reason !== "ended" || feed.hasAttribute("hx-sse:connect")) return;
    feed.dataset.after = connection.shownId ?? feed.dataset.after; // the POST's stream broke off: a GET continues it
    connect(feed);
  });
  document.addEventListener("htmx:sse:before:message", event => {
    if (frozen.has(event.target.id.slice(5))) event.preventDefault();
    else {
      const { connection, message } = event.detail;
      if (connection.shownId !== message.id) markReceived(event.target.id.slice(5));
      connection.shownId = message.id;
    }
  });

  // --- changes of the conversation: announcements, focus, the end of an answer ----------------------
  const STATE_TEXTS = { running: "The answer has started.", done: "The answer is complete.", stopped: "The answer was stopped.", withdrawn: "Stopped.", interrupted: "The answer was interrupted." };
  const update = answer => { // an answer was added or replaced
    setConnectionLost(false); // the server has sent it
    const { state } = answer.dataset, exchange = answer.closest(".exchange"), cut = state === "done" && "cut" in answer.dataset;
    const others = [...exchange.querySelectorAll(".answer")].filter(other => other !== answer);
    if (state !== "running" && others.some(other => other.dataset.state === "running")) return; // only the last end counts
    if (state === "error") announce(`Error: ${$(".fault", answer)?.textContent ?? ""}`);
    else announce(cut ? $(".badge", answer)?.textContent : STATE_TEXTS[state]);
    // A removed button that was pressed keeps the focus until the next frame. Focus on any visible element stays.
    const focused = document.activeElement;
    if (state !== "running" && (focused === document.body || !focused?.checkVisibility())) prompt.focus({ preventScroll: true });
    if (state === "running") return;
    const gone = state === "withdrawn" && others.every(other => other.dataset.state === "withdrawn");
    const back = "again" in exchange.dataset ? state === "withdrawn" : gone && "edited" in exchange.dataset;
    emit("ended", { state: cut ? "cut" : state, exchange, back }); // `back`: an earlier version is shown again
    if (!gone || back || !exchange.isConnected) return;
    const text = $(".prompt .text", exchange).textContent; // the prompt returns to the message field
    if (prompt.value) emit("queue", { text, first: true });
    else { prompt.value = text; grow(prompt); }
    exchange.remove();
    prompt.focus();
  };
  new MutationObserver(changes => {
    for (const change of changes) for (const node of change.addedNodes) {
      if (node.nodeType !== Node.ELEMENT_NODE) continue;
      if (node.matches(".seam")) node.parentElement?.normalize(); // joins the text nodes before it, so that they are shaped once; selections stay
      else if (node.matches(".answer")) { reopenSteps(node); update(node); }
      else if (node.matches(".exchange") && sending.length) update($('.answer[data-state="running"]', node) ?? $(".answer", node));
      else if (node.matches(".answer > .note")) { // replaces the feed: the server no longer has the stream
        node.parentElement.dataset.state = "lost";
        emit("ended", { state: "lost" });
        for (const waiting of node.parentElement.querySelectorAll(".waiting, .elapsed")) waiting.remove();
      }
    }
    follow();
  }).observe(messages, { childList: true, subtree: true });

  // --- elapsed times ----------------------------------------------------------------------------------
  const SILENT = 2; // seconds without a new event after which the page shows that the model is silent
  const QUIET = 10; // seconds without a new event after which a Stop button appears beside it
  const clock = seconds => {
    const minutes = Math.floor(seconds / 60), two = number => String(number).padStart(2, "0");
    if (minutes < 60) return minutes ? `${minutes}:${two(seconds % 60)}` : `${seconds} s`;
    return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}`;
  };
  const markReceived = id => { // an event of this stream has arrived
    const silence = document.getElementById(`silence-${id}`); // fast lookup: an answer may have thousands of elements
    if (!silence) return;
    silence.lastElementChild.since = performance.now();
    silence.hidden = true;
    if (!silence.classList.contains("first")) return;
    silence.classList.remove("first");
    silence.firstElementChild.textContent = "No text for";
  };
  setInterval(() => {
    for (const elapsed of document.querySelectorAll(".elapsed")) {
      elapsed.since ??= performance.now() - 1000 * elapsed.dataset.age;
      const seconds = Math.floor((performance.now() - elapsed.since) / 1000), around = elapsed.parentElement;
      const first = around.matches(".first");
      elapsed.textContent = `${first ? "," : ""} ${clock(seconds)}`;
      if (!around.matches(".silence")) continue;
      around.hidden = !first && seconds < SILENT;
      around.closest(".answer").classList.toggle("quiet", seconds >= QUIET);
    }
  }, 250);

  // --- steps (thoughts, tool calls): an opened one stays open when its answer is replaced -----------
  const opened = new Set();
  document.addEventListener("toggle", event => opened[event.target.open ? "add" : "delete"](event.target.id), true);
  const reopenSteps = answer => { for (const step of answer.querySelectorAll(".step")) step.open = opened.has(step.id); };

  // --- scrolling: follows the text while the page is scrolled to its end ---------------------------
  let following = true, last = 0; // scroll position at the last check
  const page = document.scrollingElement;
  const scrollToEnd = () => { page.scrollTop = page.scrollHeight; last = page.scrollTop; };
  const updateFollowing = () => { // any scroll upwards ends following, unless the page became shorter
    const top = page.scrollTop, below = page.scrollHeight - top - page.clientHeight;
    if (top < last) following = below < 2;
    else if (below < 40) following = !$(":scope > .later", messages); // the end of the conversation is not loaded
    last = top;
    return following;
  };
  addEventListener("scroll", updateFollowing, { passive: true });
  // Heights are read once a frame, because each read after a change forces a layout.
  let scheduled = false;
  const follow = () => {
    if (scheduled || !following) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      if (following && updateFollowing()) scrollToEnd();
    });
  };
  const around = new ResizeObserver(() => { if (following) scrollToEnd(); });
  around.observe($("body > footer")); // covers the text below it
  around.observe($("#usage"));        // grows when the answer is complete
  if (new URLSearchParams(location.search).has("at")) following = false; // opened at a message
  else scrollToEnd();

  // --- copying ------------------------------------------------------------------------------------
  const copy = async text => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea"); // pages without TLS have no clipboard API
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  document.addEventListener("click", async event => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const text = button.dataset.copy === "code" ? $("code", button.closest(".code")).textContent : $(".source", button.closest(".answer")).content.textContent;
    try { await copy(text); button.textContent = "Copied"; } catch { button.textContent = "Copy failed"; }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
})();

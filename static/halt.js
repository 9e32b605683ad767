// What htmx does not do by itself: Stop at once, keyboard, scrolling, copying, announcements.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const messages = $("#messages"), prompt = $("#prompt"), composer = $("#composer");
  const connections = new Map(); // feed element's id -> its SSE connection
  const frozen = new Map();      // streams whose text must not move any more -> last event shown
  let sending = [];              // IDs of the streams whose request is under way
  let sender = null;             // that request; the swap may change the element it names
  let leaving = "";              // the message that has left the field and that the server may not have

  const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, "0")).join("");
  const running = () => [...document.querySelectorAll('.answer[data-state="running"]')];
  const busy = () => sending.length > 0 || running().length > 0;
  const announce = text => { $("#announcer").textContent = text; };
  const said = (name, detail) => document.dispatchEvent(new CustomEvent(`halt:${name}`, { detail }));
  const setSending = ids => { sending = ids; document.body.classList.toggle("sending", ids.length > 0); };
  const notice = text => { const p = document.createElement("p"); p.className = "fault"; p.textContent = text; $("#notice").replaceChildren(p); };

  // --- sending: Stop takes Send's place before the first byte comes back -------------------------
  const grow = field => { // its height is that of the text and of its two borders
    field.style.height = "auto";
    field.style.height = field.scrollHeight + field.offsetHeight - field.clientHeight + "px";
  };
  document.addEventListener("input", event => { if (event.target.matches("textarea")) grow(event.target); });
  // Keys that are a field's own reach none of Halt's handlers: those that an input method takes (Safari
  // sends the one that ends a composition behind it, with isComposing false), and Enter where the primary
  // pointer is a finger, whose keyboard has no Shift+Enter. Ctrl+Enter and Cmd+Enter send everywhere.
  const COMPOSED = 50; // milliseconds behind a composition in which a key belongs to it
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
  let ready = false; // from then on forms are htmx's; before, the browser would load another page
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
    if (waits && text) said("queue", { text });
  }, true);
  const STARTS = "#composer, #sender, .editor, .regenerate, .continue"; // each asks for an answer
  document.addEventListener("htmx:config:request", event => {
    const { ctx } = event.detail, source = ctx.sourceElement, { body } = ctx.request;
    const exchange = source.closest(".exchange");
    if (source.dataset.do) { // what is done at one exchange of the conversation
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
      setSending(source.dataset.ids?.split(" ") ?? (models.length ? models.map(newId) : [newId()])); // an answer for each model
      sender = ctx;
      for (const id of sending) body.append("id", id);
      if (source.matches("#composer, #sender") && !$(":scope > .later", messages)) body.set("after", $(":scope > .exchange:last-child", messages)?.dataset.prompt ?? "0");
      $("#notice").replaceChildren();
      following = true;
      if (source === composer) { leaving = prompt.value; prompt.value = ""; prompt.style.height = ""; } // the next one can be typed
    } else if (source.matches("#stopper, .stop-one")) {
      const answers = source.id ? running() : [source.closest(".answer")];
      if (!answers.length && !sending.length) { event.preventDefault(); return; }
      said("stop");
      for (const answer of answers) {
        body.append("stream_id", answer.dataset.stream);
        body.append("seen", frozenAt(answer));
      }
      if (answers.length) body.set("shown", "1");
      for (const id of answers.length ? [] : sending) {
        body.append("stream_id", id);
        body.append("seen", "0"); // none of it is on the page
      }
      $("#notice").replaceChildren(); // what an earlier press had to say
    }
  });
  // The server limits a session's streams over HTTP/1.1, where a browser's connections are few. Where
  // the browser does not know the protocol it is empty, and the server takes it for HTTP/1.1.
  const protocol = { "Halt-Protocol": performance.getEntriesByType("navigation")[0]?.nextHopProtocol ?? "" };
  document.addEventListener("htmx:config:request", event => {
    const { ctx } = event.detail;
    if (ctx.sourceElement.matches(`.feed, ${STARTS}`)) Object.assign(ctx.request.headers, protocol); // kept when it connects again
  });
  // The response to a POST that asks for an answer is the answer's stream. htmx gets the first message
  // as if it were all of it; the feed that comes with it reads the others.
  const begun = new Map(); // feed's ID -> the rest of its stream
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
    begun.set(`feed-${headers.get("X-Stream-Id")}`, { body, cancel: () => reader.cancel() });
    headers.set("Content-Type", "text/html");
    const lines = new TextDecoder().decode(bytes.subarray(0, end)).split("\n").filter(line => line.startsWith("data: "));
    return new Response(lines.map(line => line.slice(6)).join("\n"), { status: response.status, headers });
  };
  document.addEventListener("htmx:before:request", event => {
    const { ctx } = event.detail, rest = begun.get(ctx.sourceElement.id);
    if (ctx === sender) ctx.fetch = start;
    if (!rest) return;
    begun.delete(ctx.sourceElement.id);
    ctx.request.signal.addEventListener("abort", rest.cancel);
    ctx.fetch = async () => new Response(rest.body, { headers: { "Content-Type": "text/event-stream" } });
  });
  document.addEventListener("htmx:after:process", event => {
    for (const feed of begun.size ? event.target.querySelectorAll(".feed") : []) {
      if (begun.has(feed.id)) htmx.ajax("GET", place(feed), { source: feed });
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
    for (const { cancel } of begun.values()) cancel(); // its place is not there
    begun.clear();
    if (leaving) { prompt.value = leaving + (prompt.value && `\n${prompt.value}`); leaving = ""; grow(prompt); }
  });
  const unreached = (source, status) => {
    const server = `could not be reached${status ? ` (${status})` : ""}`;
    if (source.matches("#stopper, .stop-one")) { notice("Stop did not reach the server. Press Stop again."); stopLater(source); }
    else if (source.matches(".feed")) { lost(true); retryFeed(source); }
    else if (source.matches(`${STARTS}, [data-do]`)) notice(`The server ${server}. Your message is still here: try again.`);
    else if (source.closest("#toast, #import, .menu, .rename, #settings")) notice(`The server ${server}. Try again.`);
  };
  document.addEventListener("htmx:error", event => {
    const source = event.detail.ctx?.sourceElement;
    if (source && event.detail.error?.name !== "AbortError") unreached(source);
  });
  // Halt says where its errors are to be shown. One without that comes from a proxy in front of it: a
  // whole page, which has no place in the conversation.
  document.addEventListener("htmx:before:swap", event => {
    const { ctx } = event.detail, { status, headers } = ctx.response ?? {};
    if (!(status >= 400) || headers.has("HX-Retarget")) return;
    event.preventDefault();
    if (!ctx.sourceElement.matches(".feed")) unreached(ctx.sourceElement, status); // a feed has heard of it
  });

  // --- Stop: the text stands still, a connection is freed, then the server is told ---------------
  const frozenAt = answer => {
    if (frozen.has(answer.dataset.stream)) return frozen.get(answer.dataset.stream); // pressed again
    const connection = connections.get(`feed-${answer.dataset.stream}`);
    const shown = connection?.shown || $(".feed", answer).dataset.after;
    frozen.set(answer.dataset.stream, shown);
    document.dispatchEvent(new Event("halt:still"));
    if (connection) { // a browser has six connections to a host, and Stop needs one
      connection.config.reconnect = false;
      connection.reader?.cancel();
      connection.delayCanceller?.();
    }
    return shown;
  };
  let pressedAgain = 0; // a Stop that was lost on its way: its text stands still, so nothing else would learn the end
  const stopLater = stopper => {
    clearTimeout(pressedAgain);
    pressedAgain = setTimeout(() => {
      const answers = stopper.id ? running() : [stopper.closest(".answer")];
      if (stopper.isConnected && answers.some(each => frozen.has(each.dataset.stream))) stopper.requestSubmit();
    }, 2000);
  };
  document.addEventListener("keydown", event => {
    if (event.key === "Escape" && busy()) { event.preventDefault(); $("#stopper").requestSubmit(); }
  });

  // --- the stream ---------------------------------------------------------------------------------
  const place = feed => `/streams/${feed.id.slice(5)}/page?after=${feed.dataset.after}`;
  const connect = feed => { // by a GET, which htmx repeats
    if (!feed.isConnected || frozen.has(feed.id.slice(5))) return;
    const fresh = feed.cloneNode(false); // htmx connects an element once
    delete fresh.dataset.htmxPowered;
    fresh.setAttribute("hx-sse:connect", place(feed));
    feed.replaceWith(fresh);
    htmx.process(fresh);
  };
  const retryFeed = feed => setTimeout(connect, 1000, feed);
  const lost = yes => { $("#connection").hidden = !yes; };
  document.addEventListener("htmx:response:error", event => {
    const source = event.detail.ctx?.sourceElement;
    if (source?.matches?.(".feed")) { lost(true); retryFeed(source); }
  });
  document.addEventListener("htmx:sse:after:connection", event => {
    connections.set(event.target.id, event.detail.connection);
    lost(false);
  });
  document.addEventListener("htmx:sse:error", () => lost(true));
  document.addEventListener("htmx:sse:close", event => {
    const feed = event.target, { connection, reason } = event.detail;
    connections.delete(feed.id);
    if (reason !== "ended" || feed.hasAttribute("hx-sse:connect")) return;
    feed.dataset.after = connection.shown ?? feed.dataset.after; // the POST's stream was cut: the GET goes on
    connect(feed);
  });
  document.addEventListener("htmx:sse:before:message", event => {
    if (frozen.has(event.target.id.slice(5))) event.preventDefault();
    else {
      const { connection, message } = event.detail;
      if (connection.shown !== message.id) heard(event.target.id.slice(5));
      connection.shown = message.id;
    }
  });

  // --- what a change of the conversation means ----------------------------------------------------
  const SAID = { running: "The answer has started.", done: "The answer is complete.", stopped: "The answer was stopped.", withdrawn: "Stopped.", interrupted: "The answer was interrupted." };
  const settle = answer => {
    lost(false); // it comes from the server
    const { state } = answer.dataset, exchange = answer.closest(".exchange"), cut = state === "done" && "cut" in answer.dataset;
    const others = [...exchange.querySelectorAll(".answer")].filter(each => each !== answer);
    if (state !== "running" && others.some(each => each.dataset.state === "running")) return; // the last one speaks
    if (state === "error") announce(`Error: ${$(".fault", answer)?.textContent ?? ""}`);
    else announce(cut ? $(".badge", answer)?.textContent : SAID[state]);
    // A pressed button that has gone keeps the focus until the next frame; nobody else's is taken.
    const focused = document.activeElement;
    if (state !== "running" && (focused === document.body || !focused?.checkVisibility())) prompt.focus({ preventScroll: true });
    if (state === "running") return;
    const gone = state === "withdrawn" && others.every(each => each.dataset.state === "withdrawn");
    const back = "again" in exchange.dataset ? state === "withdrawn" : gone && "edited" in exchange.dataset;
    said("settled", { state: cut ? "cut" : state, exchange, back }); // `back`: an earlier version is there again
    if (!gone || back || !exchange.isConnected) return;
    const text = $(".prompt .text", exchange).textContent; // the prompt is given back
    if (prompt.value) said("queue", { text, first: true });
    else { prompt.value = text; grow(prompt); }
    exchange.remove();
    prompt.focus();
  };
  new MutationObserver(changes => {
    for (const change of changes) for (const node of change.addedNodes) {
      if (node.nodeType !== Node.ELEMENT_NODE) continue;
      if (node.matches(".seam")) node.parentElement?.normalize(); // the pieces before it become one, which is shaped once; selections stay
      else if (node.matches(".answer")) { unfold(node); settle(node); }
      else if (node.matches(".exchange") && sending.length) settle($('.answer[data-state="running"]', node) ?? $(".answer", node));
      else if (node.matches(".answer > .note")) { // in its feed's place: the server has lost it
        node.parentElement.dataset.state = "lost";
        said("settled", { state: "lost" });
        for (const waiting of node.parentElement.querySelectorAll(".waiting, .elapsed")) waiting.remove();
      }
    }
    follow();
  }).observe(messages, { childList: true, subtree: true });

  // --- how long something has been going on ---------------------------------------------------------
  const SILENT = 2; // seconds without anything new, after which it is shown that the model is waited for
  const QUIET = 10; // seconds of that after which there is a Stop beside it
  const clock = seconds => {
    const minutes = Math.floor(seconds / 60), two = number => String(number).padStart(2, "0");
    if (minutes < 60) return minutes ? `${minutes}:${two(seconds % 60)}` : `${seconds} s`;
    return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}`;
  };
  const heard = id => {
    const silence = document.getElementById(`silence-${id}`); // by its ID: an answer may have thousands of elements
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

  // --- folds: one that the reader has opened stays open when its answer is replaced -----------------
  const opened = new Set();
  document.addEventListener("toggle", event => opened[event.target.open ? "add" : "delete"](event.target.id), true);
  const unfold = answer => { for (const fold of answer.querySelectorAll(".fold")) fold.open = opened.has(fold.id); };

  // --- scrolling: along with the text, but only while the reader is at its end ---------------------
  let following = true, last = 0; // where the page stood when it was last looked at
  const page = document.scrollingElement;
  const scrollToEnd = () => { page.scrollTop = page.scrollHeight; last = page.scrollTop; };
  const look = () => { // the least step back leaves the end, unless the page has become shorter
    const top = page.scrollTop, below = page.scrollHeight - top - page.clientHeight;
    if (top < last) following = below < 2;
    else if (below < 40) following = !$(":scope > .later", messages); // the end is not here
    last = top;
    return following;
  };
  addEventListener("scroll", look, { passive: true });
  // Heights are read once a frame: each read after a change has the browser lay the page out.
  let scheduled = false;
  const follow = () => {
    if (scheduled || !following) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      if (following && look()) scrollToEnd();
    });
  };
  const around = new ResizeObserver(() => { if (following) scrollToEnd(); });
  around.observe($("body > footer")); // it covers what is below it
  around.observe($("#usage"));        // it grows when the answer is complete
  if (new URLSearchParams(location.search).has("at")) following = false; // opened at a message
  else scrollToEnd();

  // --- copying ------------------------------------------------------------------------------------
  const copy = async text => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea"); // pages that come without TLS
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

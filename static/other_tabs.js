// When this tab becomes visible again, shows changes that another tab or device made to this
// conversation. An answer that is still running streams here, too.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const messages = $("#messages"), sender = $("#sender");
  const conversation = sender.getAttribute("hx-post").split("/")[2];
  const exchanges = () => [...messages.children].filter(child => child.matches(".exchange"));
  // The page does not change while a message is sent, a stream runs, a prompt is edited or a request is under way.
  const busy = () => document.hidden || document.body.matches('.sending, :has(.answer[data-state="running"], .editor, #messages .htmx-request, #messages > .later)');
  const mark = exchange => JSON.stringify([exchange.dataset.prompt, exchange.dataset.answers, exchange.dataset.edited,
    ...[...exchange.querySelectorAll(".answer")].map(answer => [answer.dataset.stream, answer.dataset.state])]);

  // Replaces all exchanges from the first one that differs.
  const replaceFrom = (first, html) => {
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    const received = [...fresh.content.children], old = exchanges().slice(exchanges().indexOf(first));
    const different = received.findIndex((exchange, n) => !old[n] || mark(exchange) !== mark(old[n]));
    const kept = different < 0 ? received.length : different;
    if (kept === received.length && kept === old.length) return;
    for (const exchange of old.slice(kept)) exchange.remove();
    const added = received.slice(kept);
    messages.append(...added);
    for (const exchange of added) htmx.process(exchange);
    $("#announcer").textContent = "The conversation changed in another tab or device.";
    document.dispatchEvent(new Event("halt:updated"));
  };
  let refreshing = false;
  const refresh = async () => {
    const before = exchanges(), last = before.at(-1);
    if (refreshing || !last || busy()) return;
    refreshing = true;
    try { // low priority: a browser has six connections to a host, and Stop must not wait for this request
      for (const from of new Set([last, before[0]])) {
        const response = await fetch(`/c/${conversation}/from?prompt_id=${from.dataset.prompt}`, { headers: { "HX-Request": "true" }, priority: "low" });
        const html = (await response.text()).trim();
        if (!response.ok || busy() || exchanges().at(-1) !== last || !from.isConnected) return;
        if (html) { replaceFrom(from, html); return; }
      }
      location.reload(); // the conversation differs from its first exchange on
    } catch { /* the server cannot be reached: streams and sends report it */ }
    finally { refreshing = false; }
  };
  document.addEventListener("visibilitychange", refresh);
  addEventListener("focus", refresh);
})();

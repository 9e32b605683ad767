// What was said in this conversation in another tab, or on another device, is shown when this tab is
// looked at again; an answer that is being written there streams here, too.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const messages = $("#messages"), sender = $("#sender");
  const conversation = sender.getAttribute("hx-post").split("/")[2];
  const shown = () => [...messages.children].filter(each => each.matches(".exchange"));
  // Nothing moves under the hands of somebody who sends, reads a stream, edits or presses a button.
  const busy = () => document.hidden || document.body.matches('.sending, :has(.answer[data-state="running"], .editor, #messages .htmx-request, #messages > .later)');
  const mark = exchange => JSON.stringify([exchange.dataset.prompt, exchange.dataset.answers, exchange.dataset.edited,
    ...[...exchange.querySelectorAll(".answer")].map(each => [each.dataset.stream, each.dataset.state])]);

  // From the first exchange on that is another one, the page shows what there is now.
  const take = (first, html) => {
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    const now = [...fresh.content.children], old = shown().slice(shown().indexOf(first));
    const same = now.findIndex((each, n) => !old[n] || mark(each) !== mark(old[n]));
    const kept = same < 0 ? now.length : same;
    if (kept === now.length && kept === old.length) return;
    for (const each of old.slice(kept)) each.remove();
    const added = now.slice(kept);
    messages.append(...added);
    for (const each of added) htmx.process(each);
    $("#announcer").textContent = "The conversation changed in another tab or device.";
    document.dispatchEvent(new Event("halt:elsewhere"));
  };
  let looking = false;
  const look = async () => {
    const before = shown(), last = before.at(-1);
    if (looking || !last || busy()) return;
    looking = true;
    try { // with low priority: a browser has six connections, and Stop must not wait for this
      for (const from of new Set([last, before[0]])) {
        const response = await fetch(`/c/${conversation}/from?prompt_id=${from.dataset.prompt}`, { headers: { "HX-Request": "true" }, priority: "low" });
        const html = (await response.text()).trim();
        if (!response.ok || busy() || shown().at(-1) !== last || !from.isConnected) return;
        if (html) { take(from, html); return; }
      }
      location.reload(); // it goes another way from its beginning
    } catch { /* the server is away: the page says so where it matters */ }
    finally { looking = false; }
  };
  document.addEventListener("visibilitychange", look);
  addEventListener("focus", look);
})();

// Loads a long conversation in parts, and opens it at a message that was searched for.
"use strict";
(() => {
  const messages = document.querySelector("#messages"), page = document.documentElement;

  // --- messages that are loaded above do not move the visible text -----------------------------------
  let anchor = null, top = 0;
  document.addEventListener("htmx:before:swap", ({ detail: { ctx } }) => {
    if (!ctx.sourceElement.matches?.(".earlier")) return;
    anchor = ctx.sourceElement.nextElementSibling;
    if (!anchor) return;
    page.classList.add("held"); // turns off the browser's scroll anchoring, which would correct a second time
    top = anchor.getBoundingClientRect().top;
  });
  new MutationObserver(() => {
    if (!anchor) return;
    scrollBy({ top: anchor.getBoundingClientRect().top - top, behavior: "instant" });
    anchor = null;
    requestAnimationFrame(() => requestAnimationFrame(() => page.classList.remove("held")));
  }).observe(messages, { childList: true });

  // --- a message sent while the end is not loaded: the page reloads at the end of the conversation -----
  document.addEventListener("htmx:after:request", ({ detail: { ctx } }) => {
    if (ctx.sourceElement.id === "composer" && ctx.response.status < 400 && messages.querySelector(".later")) location.assign(ctx.request.action.replace(/\/messages$/, ""));
  });

  // --- the message that was searched for ----------------------------------------------------------------
  const parameters = new URLSearchParams(location.search), at = CSS.escape(parameters.get("at") ?? "");
  const exchange = at && messages.querySelector(`[data-prompt="${at}"], [data-answers~="${at}"]`);
  if (!exchange) return;
  const others = exchange.querySelector(".others"), beside = exchange.dataset.answers.includes(" ");
  const target = exchange.dataset.prompt === parameters.get("at") ? exchange.querySelector(".prompt") : beside ? exchange : exchange.querySelector(".answer");
  if (others && target === exchange) others.open = true;
  target.classList.add("found");
  target.tabIndex = -1;
  target.focus({ preventScroll: true });
  target.scrollIntoView({ block: "start", behavior: "instant" });
  const words = (parameters.get("q") ?? "").normalize().toLowerCase().match(/[\p{L}\p{N}\p{M}]+/gu) ?? [];
  if (!words.length || !CSS.highlights) return;
  const marks = new Highlight(), texts = document.createTreeWalker(target === exchange ? target : target.querySelector(".text"), NodeFilter.SHOW_TEXT);
  const unspaced = /[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Thai}\p{sc=Laoo}\p{sc=Mymr}\p{sc=Khmr}]/u; // scripts without spaces: words match anywhere in a text
  const mark = (start, length) => {
    const range = new Range();
    range.setStart(texts.currentNode, start);
    range.setEnd(texts.currentNode, start + length);
    marks.add(range);
  };
  while (texts.nextNode()) {
    const { data } = texts.currentNode;
    for (const match of data.matchAll(/[\p{L}\p{N}\p{M}]+/gu)) {
      if (words.some(word => !unspaced.test(word) && match[0].toLowerCase().startsWith(word))) mark(match.index, match[0].length);
    }
    for (const word of words.filter(term => unspaced.test(term))) {
      for (let at = data.indexOf(word); at >= 0; at = data.indexOf(word, at + word.length)) mark(at, word.length);
    }
  }
  CSS.highlights.set("found", marks);
  const [word] = marks;
  const where = word?.getBoundingClientRect();
  if (where && where.bottom > innerHeight * 0.7) scrollBy({ top: where.top - innerHeight / 3, behavior: "instant" });
})();

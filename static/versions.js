// Versions of a message: prompts edited in place, regenerated answers, and switching between versions.
// The exchanges after a changed one belong to its previous version.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const messages = $("#messages"), announcer = $("#announcer");

  document.addEventListener("htmx:after:request", event => {
    const { ctx } = event.detail;
    if (ctx.response.status >= 400 || !ctx.target?.matches?.("#messages > .exchange") || ctx.swap !== "outerHTML") return;
    while (ctx.target.nextElementSibling) ctx.target.nextElementSibling.remove(); // the response contains the exchanges that follow now
  });

  // --- editing a prompt ---------------------------------------------------------------------------
  const close = form => {
    const exchange = form.closest(".exchange");
    form.remove();
    exchange.classList.remove("editing");
    $(".edit", exchange).focus({ preventScroll: true });
  };
  const edit = (exchange, words) => {
    if (!$(".editor", exchange)) {
      const form = $("#editor").content.cloneNode(true).firstElementChild;
      exchange.classList.add("editing");
      $(".prompt", exchange).append(form);
      htmx.process(form);
    }
    const field = $(".editor textarea", exchange);
    field.value = words ?? $(".prompt .text", exchange).textContent;
    field.dispatchEvent(new Event("input", { bubbles: true })); // resizes the field
    field.focus();
  };
  document.addEventListener("click", event => {
    if (event.target.matches(".edit")) edit(event.target.closest(".exchange"));
    else if (event.target.matches(".editor .cancel")) close(event.target.closest(".editor"));
  });
  document.addEventListener("keydown", event => {
    const form = event.target.closest?.(".editor");
    if (!form) return;
    if (event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation(); // Esc must not stop the answer
      close(form);
    } else if (event.key === "Enter" && !event.shiftKey && event.target.matches("textarea")) {
      event.preventDefault();
      form.requestSubmit();
    }
  }, true);
  document.addEventListener("submit", event => {
    if (!event.target.matches(".editor") || $("textarea", event.target).value.trim()) return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }, true);

  // --- a change of version ------------------------------------------------------------------------
  // A new version that is stopped before its first text is dropped: the previous version is shown again.
  document.addEventListener("halt:ended", async event => {
    const { back, exchange } = event.detail;
    if (!back) return;
    const { conversation, prompt, edited, again } = exchange.dataset, place = [...messages.children].indexOf(exchange);
    const words = again === undefined ? $(".prompt .text", exchange).textContent : null;
    await htmx.ajax("GET", `/c/${conversation}/from?prompt_id=${words === null ? prompt : edited}`, { source: exchange, target: exchange, swap: "outerHTML" });
    const now = messages.children[place];
    if (words !== null && now && now !== exchange) edit(now, words); // keeps the edited text
  });
  // The focus stays on the version button, so that it can be pressed again by keyboard.
  document.addEventListener("htmx:config:request", event => {
    const { ctx } = event.detail, source = ctx.sourceElement;
    if (!source.matches(".version, .discard")) return;
    const exchange = source.closest(".exchange");
    ctx.place = [...messages.children].indexOf(exchange);
    ctx.words = $(".prompt .text", exchange).textContent;
    const group = source.closest(".versions");
    ctx.group = group?.getAttribute("aria-label");
    ctx.later = group !== null && source === group.lastElementChild;
  });
  document.addEventListener("htmx:finally:request", event => {
    const { ctx } = event.detail;
    if (ctx.place === undefined || ctx.status !== "swapped" || ctx.response.status >= 400) return;
    const exchange = messages.children[ctx.place];
    if (!ctx.group) { // discarded
      const prompt = $("#prompt");
      if (!exchange && !prompt.value) {
        prompt.value = ctx.words;
        prompt.dispatchEvent(new Event("input", { bubbles: true }));
      }
      announcer.textContent = exchange ? "Discarded. Another version is shown." : "Discarded.";
      prompt.focus({ preventScroll: true });
      return;
    }
    const group = $(`.versions[aria-label="${ctx.group}"]`, exchange);
    if (!group) return;
    const [earlier, later] = group.querySelectorAll("button");
    const wanted = ctx.later ? later : earlier;
    (wanted.disabled ? (ctx.later ? earlier : later) : wanted).focus({ preventScroll: true });
    announcer.textContent = $(".number", group).textContent.replace("/", "");
  });
})();

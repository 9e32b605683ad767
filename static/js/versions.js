// Versions of a message: prompts edited in place, regenerated answers, and switching between
// versions. The exchanges after a changed one belong to its previous version.
import { $, $$, announce, setValue } from "./lib/dom.js";
import { listen } from "./lib/events.js";
import { route, succeeded } from "./requests.js";

const messages = $("#messages"), prompt = $("#prompt");

route("*", {
  response({ ctx }) {
    const { target } = ctx;
    const isExchange = target?.matches?.("#messages > .exchange") && ctx.swap === "outerHTML";
    if (!succeeded(ctx) || !isExchange) return;
    // the response contains the exchanges that follow now
    while (target.nextElementSibling) target.nextElementSibling.remove();
  },
});

// --- editing a prompt ----------------------------------------------------------------------------
const close = form => {
  const exchange = form.closest(".exchange");
  form.remove();
  exchange.classList.remove("editing");
  $(".edit", exchange).focus({ preventScroll: true });
};
export const editPrompt = (exchange, words) => {
  if (!$(".editor", exchange)) {
    const form = $("#editor").content.cloneNode(true).firstElementChild;
    exchange.classList.add("editing");
    $(".prompt", exchange).append(form);
    htmx.process(form);
  }
  const field = $(".editor textarea", exchange);
  setValue(field, words ?? $(".prompt .text", exchange).textContent);
  field.focus();
};
document.addEventListener("click", ({ target }) => {
  if (target.matches(".edit")) editPrompt(target.closest(".exchange"));
  else if (target.matches(".editor .cancel")) close(target.closest(".editor"));
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

// --- a change of version -------------------------------------------------------------------------
// A new version that is stopped before its first text is dropped: the previous one is shown again.
listen("ended", async ({ back, exchange }) => {
  if (!back) return;
  const { conversation, prompt: promptId, edited, again } = exchange.dataset;
  const place = [...messages.children].indexOf(exchange);
  const words = again === undefined ? $(".prompt .text", exchange).textContent : null;
  const from = `/c/${conversation}/from?prompt_id=${words === null ? promptId : edited}`;
  await htmx.ajax("GET", from, { source: exchange, target: exchange, swap: "outerHTML" });
  const now = messages.children[place];
  if (words !== null && now && now !== exchange) editPrompt(now, words); // keeps the edited text
});

const afterDiscard = (ctx, exchange) => {
  if (!exchange && !prompt.value) setValue(prompt, ctx.words);
  announce(exchange ? "Discarded. Another version is shown." : "Discarded.");
  prompt.focus({ preventScroll: true });
};
// The focus stays on the version button, so that it can be pressed again by keyboard.
const afterSwitch = (ctx, exchange) => {
  const group = $(`.versions[aria-label="${ctx.group}"]`, exchange);
  if (!group) return;
  const [earlier, later] = $$("button", group);
  const [wanted, other] = ctx.later ? [later, earlier] : [earlier, later];
  (wanted.disabled ? other : wanted).focus({ preventScroll: true });
  announce($(".number", group).textContent.replace("/", ""));
};
route(".version, .discard", {
  config({ ctx, source }) {
    const exchange = source.closest(".exchange"), group = source.closest(".versions");
    ctx.place = [...messages.children].indexOf(exchange);
    ctx.words = $(".prompt .text", exchange).textContent;
    ctx.group = group?.getAttribute("aria-label");
    ctx.later = group !== null && source === group.lastElementChild;
  },
  finished({ ctx }) {
    if (ctx.status !== "swapped" || !succeeded(ctx)) return;
    const exchange = messages.children[ctx.place];
    if (ctx.group) afterSwitch(ctx, exchange);
    else afterDiscard(ctx, exchange);
  },
});

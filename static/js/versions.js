// Versions of a message: prompts and answers edited in place, regenerated answers, and switching
// between versions. The exchanges after a changed one belong to its previous version.
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

// --- editing a message in place ------------------------------------------------------------------
// `.editor` sends another version of a prompt, `.rewriter` saves another version of an answer.
const EDITORS = ".editor, .rewriter";
const close = form => {
  const box = form.parentElement;
  form.remove();
  box.classList.remove("editing");
  $(".edit, .edit-answer", box).focus({ preventScroll: true });
};
const open = (box, template, words) => {
  let form = $(EDITORS, box);
  if (!form) {
    form = $(template).content.cloneNode(true).firstElementChild;
    box.classList.add("editing");
    $(":scope > .text", box).after(form);
    htmx.process(form);
  }
  const field = $("textarea", form);
  setValue(field, words);
  field.focus();
  return form;
};
export const editPrompt = (exchange, words) => {
  const box = $(".prompt", exchange);
  open(box, "#editor", words ?? $(".text", box).textContent);
};
const editAnswer = answer => {
  const form = open(answer, "#rewriter", $(".source", answer).content.textContent);
  form.elements.stream_id.value = answer.dataset.stream;
  const field = $("textarea", form);
  field.setSelectionRange(0, 0);
  field.scrollTop = 0; // the beginning of a long text
};
document.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (!button) return;
  if (button.matches(".edit")) editPrompt(button.closest(".exchange"));
  else if (button.matches(".edit-answer")) editAnswer(button.closest(".answer"));
  else if (button.matches(":is(.editor, .rewriter) .cancel")) close(button.closest("form"));
});
document.addEventListener("keydown", event => {
  const { key, target } = event, form = target.closest?.(EDITORS);
  if (!form) return;
  if (key === "Escape") {
    event.preventDefault();
    event.stopPropagation(); // Esc must not stop the answer
    close(form);
  } else if (key === "Enter" && target.matches("textarea") && sends(event, form)) {
    event.preventDefault();
    form.requestSubmit();
  }
}, true);
// Enter sends a prompt; in an answer it is a new line, and with Ctrl or Cmd it saves.
const sends = (event, form) => (
  form.matches(".rewriter") ? event.ctrlKey || event.metaKey : !event.shiftKey
);
document.addEventListener("submit", event => {
  if (!event.target.matches(EDITORS) || $("textarea", event.target).value.trim()) return;
  event.preventDefault();
  event.stopImmediatePropagation();
}, true);
route(".rewriter", {
  config({ ctx, source }) {
    ctx.place = [...messages.children].indexOf(source.closest(".exchange"));
  },
  finished({ ctx }) {
    if (ctx.status !== "swapped" || !succeeded(ctx)) return;
    announce("Saved as a version of its own.");
    $(".edit-answer", messages.children[ctx.place])?.focus({ preventScroll: true });
  },
});

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
  announce($(".number", group).textContent);
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

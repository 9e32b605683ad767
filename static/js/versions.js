// Versions of a message: prompts and answers edited in place, regenerated answers, and switching
// between versions. The exchanges after a changed one belong to its previous version.
import {
  $, $$, announce, focusComposer, make, notice, refuse, setValue, touch,
} from "./lib/dom.js";
import { filesOf, isHeld, messageOf, setFiles } from "./attach.js";
import { listen } from "./lib/events.js";
import { route, succeeded } from "./requests.js";

const messages = $("#messages"), prompt = $("#prompt");
const idsOf = form => filesOf(form).map(({ id, name }) => id ?? name).join();

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
  if (idsOf(form)) setFiles(form, []); // ends uploads
  form.remove();
  box.classList.remove("editing");
  $(".edit, .edit-answer", box).focus({ preventScroll: true });
};
const open = (box, template, text) => {
  const form = $(template).content.cloneNode(true).firstElementChild, field = $("textarea", form);
  box.classList.add("editing");
  $$(":scope > :is(.text, .files)", box).at(-1).after(form);
  htmx.process(form);
  setValue(field, text);
  field.defaultValue = field.value; // the saved text
  field.addEventListener("input", () => $(".fault", form)?.remove());
  field.focus();
  return field;
};
export const editPrompt = exchange => {
  const box = $(".prompt", exchange), opened = $(".editor textarea", box);
  if (opened) {
    opened.focus();
    return opened;
  }
  const { text, files } = messageOf(exchange), field = open(box, "#editor", text);
  setFiles(field.form, files);
  field.form.dataset.files = idsOf(field.form); // the saved ones
  return field;
};
const editAnswer = answer => {
  const field = open(answer, "#rewriter", $(".source", answer).content.textContent);
  field.form.elements.stream_id.value = answer.dataset.stream;
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
  const { target: form } = event, field = $("textarea", form);
  if (!form.matches(EDITORS)) return;
  if (isHeld(form)) { refuse(event); return; }
  if (field.value.trim() || idsOf(form)) { guard(event, form); return; }
  refuse(event);
  const textContent = `${form.matches(".editor") ? "A message" : "An answer"} needs text.`;
  $(".fault", form)?.remove();
  field.after(make("p", { className: "fault", role: "alert", textContent }));
  field.focus();
}, true);
// Refuses what would drop an edit with changes.
export const keepEdit = form => {
  notice("Save or cancel your edit first.");
  $("textarea", form).focus();
};
// `source` replaces its exchange, and removes those after it.
const guard = (event, source) => {
  const exchange = source.closest(".exchange");
  const dropped = $$(EDITORS, messages).find(form => {
    const { value, defaultValue } = $("textarea", form);
    const isEarlier = exchange.compareDocumentPosition(form) & Node.DOCUMENT_POSITION_PRECEDING;
    const isChanged = value !== defaultValue || idsOf(form) !== (form.dataset.files ?? "");
    return form !== source && !isEarlier && isChanged;
  });
  if (!dropped) return;
  refuse(event);
  keepEdit(dropped);
};
document.addEventListener("click", event => {
  const button = event.target.closest("button[data-do]");
  if (button) guard(event, button);
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
  const message = again === undefined ? messageOf(exchange) : null;
  const from = `/c/${conversation}/from?prompt_id=${message ? edited : promptId}`;
  await htmx.ajax("GET", from, { source: exchange, target: exchange, swap: "outerHTML" });
  const now = messages.children[place];
  if (!message || !now || now === exchange) return;
  const field = editPrompt(now);
  setFiles(field.form, message.files);
  setValue(field, message.text); // keeps the edited text
  if (touch.matches) field.blur();
});

const afterDiscard = (ctx, exchange) => {
  if (!exchange && !prompt.value && !idsOf(prompt.form)) {
    setFiles(prompt.form, ctx.message.files);
    setValue(prompt, ctx.message.text);
  }
  announce(`Discarded.${exchange ? " Another version is shown." : ""}`);
  focusComposer();
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
    ctx.message = messageOf(exchange);
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

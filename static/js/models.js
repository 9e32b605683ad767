// The models that answer. The first is the value of #model, the others (Compare) are hidden fields
// beside it; all belong to the composer's form. The server fills #model with what is offered.
import { $, $$, make, touch } from "./lib/dom.js";
import { emit } from "./lib/events.js";
import { onDemand, preload } from "./lib/on_demand.js";
import { local } from "./lib/storage.js";
import { route, succeeded } from "./requests.js";

export const MOST = 4; // models in one message; the server accepts no more
const KEY = "halt.model"; // the name of the model for a new chat
const RECENT_KEY = "halt.models", RECENT = 4; // the models that were chosen last
const SHOWN = touch.matches ? 20 : 40; // characters of a model's name in the message field
const select = $("#model"), button = $("#open-models"), one = $("#one-model");
const prompt = $("#prompt");

const optionOf = name => [...select.options].find(({ value }) => value === name);
const extras = () => $$("input[name=model]", select.parentElement);
const extraNames = () => extras().map(({ value }) => value);
// The option of the model that answers if none is chosen, if the list has it.
export const defaultOption = () => $("option[data-default]", select);

export const modelOf = option => ({
  name: option.value, // "": the default
  label: option.dataset.label || option.text,
  provider: option.dataset.provider ?? option.closest("optgroup")?.label ?? "",
  can: option.dataset.can?.split(", ") ?? [],
  isDefault: option === defaultOption() || !option.value,
});

// The names of the models that answer the next message.
export const chosen = () => [select.value || defaultOption()?.value || "", ...extraNames()];

// The models that were chosen last, the latest first: { name, label, provider }.
export const recent = () => (
  [].concat(local.getJson(RECENT_KEY) ?? []).filter(model => model?.name)
);

// A model's own name without its maker's: "llama-3" of "meta/llama-3".
const shortName = label => label.slice(label.lastIndexOf("/") + 1);

const show = () => {
  const models = [select.value, ...extraNames()]
    .map(name => modelOf(optionOf(name) ?? new Option(name, name)));
  const [{ label, provider, name }] = models, count = models.length, several = count > 1;
  const short = several ? `${count} models` : shortName(label);
  const labels = models.map(model => model.label).join(", ");
  $(".vendor", button).textContent = several ? "" : label.slice(0, -short.length);
  $(".model-name", button).textContent = short;
  $("small", button).textContent = several ? labels : provider;
  button.title = several ? labels : name || label;
  one.hidden = !several;
  one.title = `Use ${label} alone`;
  const isNamed = several || name || select.options[0]?.dataset.label;
  const words = short.length > SHOWN ? `${short.slice(0, SHOWN)}…` : short;
  prompt.placeholder = isNamed ? `Message ${words}` : "Message";
};

const setExtras = names => {
  for (const field of extras()) field.remove();
  select.after(...names.map(name => {
    const field = make("input", { type: "hidden", name: "model", value: name });
    field.setAttribute("form", "composer");
    return field;
  }));
};

export const choose = ([name, ...others]) => {
  const isNew = select.value !== name;
  if (!optionOf(name)) select.add(new Option(name, name));
  select.value = name;
  setExtras(others);
  local.set(KEY, name);
  const now = [name, ...others].filter(Boolean).map(optionOf).filter(Boolean).map(modelOf)
    .map(({ name, label, provider }) => ({ name, label, provider }));
  const before = recent().filter(model => !now.some(other => other.name === model.name));
  local.set(RECENT_KEY, JSON.stringify([...now, ...before].slice(0, RECENT)));
  show();
  if (isNew) select.dispatchEvent(new Event("change", { bubbles: true }));
};

const remembered = local.get(KEY);
if ("new" in select.dataset && remembered) {
  const option = new Option(remembered, remembered, true, true);
  const { label, provider } = recent().find(({ name }) => name === remembered) ?? {};
  if (label) Object.assign(option.dataset, { label, provider });
  select.add(option);
}
show();
one.addEventListener("click", () => {
  setExtras([]);
  show();
  button.focus();
});
new MutationObserver(() => { // a list has arrived, perhaps with another choice
  setExtras(extraNames().filter(optionOf));
  show();
  emit("listed");
}).observe(select, { childList: true });

// The panel is loaded when it first opens, and then opens itself.
const panel = $("#models");
const loadPanel = event => {
  if (event.newState !== "open") return;
  event.preventDefault();
  openPicker(false);
};
panel.addEventListener("beforetoggle", loadPanel);
for (const type of ["pointerenter", "focus"]) {
  button.addEventListener(type, () => preload("picker"), { once: true });
}
// `forSeveral`: to choose models to compare.
export const openPicker = async forSeveral => {
  const picker = await onDemand("picker");
  if (!picker) return;
  panel.removeEventListener("beforetoggle", loadPanel);
  picker.openPanel(forSeveral);
};

// "Use this answer" chooses that answer's model alone.
route(".pick", {
  response({ ctx, source }) {
    if (succeeded(ctx)) choose([source.closest(".answer").dataset.model]);
  },
});

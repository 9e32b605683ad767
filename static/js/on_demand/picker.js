// The panel in which models are chosen: a combobox with a listbox, grouped by provider. "Compare"
// makes several models choosable.
import { $, $$, make, touch } from "../lib/dom.js";
import { emit, listen } from "../lib/events.js";
import { MOST, choose, chosen, offered, recent } from "../models.js";

const MANY = 8; // models; above it there is a search field
const PAGE = 10; // rows of Page Up and Page Down
const button = $("#open-models"), panel = $("#models"), search = $("#model-search");
const list = $("#model-list"), count = $("#model-count"), notes = $("#model-notes");
const compare = $("#compare"), compareCount = $("#compare-count");
let comparing = false; // whether several models can be chosen
let active = null; // the row that Enter chooses

const isOpen = () => panel.matches(":popover-open");
const rows = () => $$(".model", list);
const shownRows = () => rows().filter(row => !row.hidden);
const clone = id => $(id).content.firstElementChild.cloneNode(true);

const setActive = row => {
  active?.classList.remove("active");
  active = row ?? null;
  active?.classList.add("active");
  for (const field of [search, list]) field.setAttribute("aria-activedescendant", active?.id ?? "");
  active?.scrollIntoView({ block: "nearest" });
};

const mark = () => {
  const names = chosen();
  for (const row of rows()) row.setAttribute("aria-selected", names.includes(row.dataset.name));
  list.setAttribute("aria-multiselectable", comparing);
  panel.classList.toggle("comparing", comparing);
  compare.textContent = comparing ? "Done" : "Compare…";
  compareCount.textContent = comparing ? `${names.length} of at most ${MOST} models` : "";
};

const filter = () => {
  const words = search.value.toLowerCase().split(/\s+/);
  for (const row of rows()) row.hidden = !words.every(word => row.dataset.text.includes(word));
  for (const group of list.children) group.hidden = !$(".model:not([hidden])", group);
  const found = shownRows();
  count.textContent = !search.value ? "" : found.length
    ? `${found.length} ${found.length === 1 ? "model" : "models"}` : "No model has this name.";
  count.classList.toggle("hidden", found.length > 0);
  if (!active || active.hidden) setActive(found[0]);
};

const rowOf = (model, number, withProvider) => {
  const row = clone("#model-row");
  const words = [...(withProvider ? [model.provider] : []), ...model.can];
  row.id = `model-${number}`;
  row.title = model.name;
  row.dataset.name = model.name;
  row.dataset.text = [model.label, model.provider, ...model.can].join(" ").toLowerCase();
  $(".model-name", row).textContent = model.label;
  $("small", row).textContent = [...(model.isDefault ? ["Default"] : []), ...words].join(" · ");
  return row;
};

const groupOf = (title, rows, number) => {
  const group = clone("#model-group"), heading = $("p", group);
  heading.id = `models-${number}`;
  heading.textContent = title;
  heading.hidden = !title;
  if (title) group.setAttribute("aria-labelledby", heading.id);
  group.append(...rows);
  return group;
};

const draw = () => {
  const { groups, notes: texts } = offered(), before = active?.dataset.name;
  const models = groups.flatMap(group => group.models), isMany = models.length > MANY;
  const found = (isMany ? recent() : [])
    .map(({ name }) => models.find(model => model.name === name)).filter(Boolean);
  if (found.length) groups.unshift({ title: "Recent", models: found });
  let number = 0;
  list.replaceChildren(...groups.map(({ title, models }, index) => {
    const isRecent = models === found;
    const own = models.filter(model => isRecent || !found.includes(model));
    return groupOf(title, own.map(model => rowOf(model, ++number, isRecent)), index);
  }));
  notes.replaceChildren(...texts.map(text => make("p", { textContent: text })));
  search.hidden = !isMany && !search.value;
  list.tabIndex = keyTarget() === list ? 0 : -1;
  compare.hidden = models.length < 2;
  mark();
  setActive(rows().find(row => row.dataset.name === before)
    ?? rows().find(row => row.ariaSelected === "true"));
  filter();
  return texts.length > 0;
};

const pick = row => {
  const { name } = row.dataset;
  if (!comparing) {
    choose([name]);
    panel.hidePopover();
    return;
  }
  const names = chosen(), rest = names.filter(other => other !== name);
  setActive(row);
  if (rest.length === names.length) {
    if (names.length < MOST) choose([...names, name]);
  } else if (rest.length) choose(rest);
  mark();
};

// The element that has the focus: on a phone not the field, whose keyboard would cover the list.
const keyTarget = () => (search.hidden || touch.matches ? list : search);

const setComparing = flag => {
  comparing = flag;
  mark();
  keyTarget().focus();
};

// Opens the panel; `forSeveral`: to choose models to compare.
export const openPanel = forSeveral => {
  if (!isOpen()) panel.showPopover({ source: button });
  if (forSeveral) setComparing(true);
};

panel.addEventListener("beforetoggle", ({ newState }) => {
  if (newState !== "open") return;
  comparing = chosen().length > 1;
  search.value = "";
  active = null;
  const hasNotes = draw();
  for (const field of [search, list]) field.autofocus = field === keyTarget();
  if (hasNotes || "live" in $("#model").dataset) emit("models"); // requests the list again
});
panel.addEventListener("toggle", ({ newState }) => {
  if (newState === "open") {
    active?.scrollIntoView({ block: "center" });
  } else {
    list.replaceChildren();
    if (document.activeElement === document.body) button.focus();
  }
});
listen("listed", () => { if (isOpen()) draw(); });

const MOVES = {
  ArrowDown: (at, last) => (at >= last ? 0 : at + 1),
  ArrowUp: (at, last) => (at <= 0 ? last : at - 1),
  PageDown: (at, last) => Math.min(at + PAGE, last),
  PageUp: at => Math.max(at - PAGE, 0),
  Home: () => 0,
  End: (_, last) => last,
};
panel.addEventListener("keydown", event => {
  const { key, target } = event;
  if (![search, list].includes(target) || event.altKey || event.ctrlKey || event.metaKey) return;
  const found = shownRows(), move = MOVES[key];
  if (move && found.length) setActive(found[move(found.indexOf(active), found.length - 1)]);
  else if ((key === "Enter" || (key === " " && target === list)) && active) pick(active);
  else if (key.length === 1 && key !== " " && target === list) { // the field gets this key
    search.hidden = false;
    search.focus();
    return;
  } else return;
  event.preventDefault();
});
search.addEventListener("input", filter);
list.addEventListener("click", ({ target }) => {
  const row = target.closest(".model");
  if (row) pick(row);
});
compare.addEventListener("click", () => {
  if (comparing) panel.hidePopover();
  else setComparing(true);
});

// The panel in which models are chosen: a combobox with a listbox, grouped by provider. "Compare"
// makes several models choosable.
import { $, $$, icon, make, parse, touch } from "../lib/dom.js";
import { emit, listen } from "../lib/events.js";
import { MOST, choose, chosen, defaultOption, modelOf, recent } from "../models.js";
import {
  compare, compareCount, count, groupOf, list, notes, panel, rowOf, search,
} from "./picker_panel.js";

const MANY = 8; // models; above it there is a search field
const PAGE = 10; // rows of Page Up and Page Down
const button = $("#open-models"), select = $("#model");
let comparing = false; // whether several models can be chosen
let offersSeveral = false;
let active = null; // the row that Enter chooses

const isOpen = () => panel.matches(":popover-open");
const rows = () => $$(".model", list);
const shownRows = () => rows().filter(row => !row.hidden);

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
  const terms = search.value.toLowerCase().split(/\s+/);
  for (const row of rows()) row.hidden = !terms.every(word => row.dataset.text.includes(word));
  for (const group of list.children) group.hidden = !$(".model:not([hidden])", group);
  const visibleRows = shownRows();
  const size = visibleRows.length, none = "No models found. Search for other words.";
  const words = size ? `${size} ${size === 1 ? "model" : "models"}` : none;
  count.textContent = search.value && words;
  count.classList.toggle("hidden", size > 0);
  compare.hidden = !comparing && !(offersSeveral && size);
  if (!active || active.hidden) setActive(visibleRows[0]);
};

// Requests the list again, and has the server ask the providers of this title that have failed.
const retry = async event => {
  const { provider } = event.target.dataset;
  event.target.disabled = true;
  event.target.textContent = "Trying…";
  const values = new URLSearchParams({ model: select.value, retry: provider });
  await htmx.ajax("GET", `${select.getAttribute("hx-get")}?${values}`, {
    source: notes, target: select, swap: "innerHTML",
  }).catch(() => {});
  draw();
  ($$("button", notes).find(other => other.dataset.provider === provider) ?? keyTarget()).focus();
};
// The note of a provider that failed, or of a discovered server that needs a key.
const noteOf = ({ label, dataset: { provider, fault } }) => {
  const text = provider ? label.slice(provider.length + 2) : label;
  const mark = parse(icon(fault === undefined ? "info" : "triangle-alert"));
  const parts = [make("p", {}, ...mark, text)];
  if (provider) parts.unshift(make("h2", { textContent: provider, title: provider }));
  if (fault !== undefined) {
    const button = make("button", { type: "button", textContent: "Try again" });
    button.dataset.provider = provider;
    button.addEventListener("click", retry);
    parts.push(button);
  }
  return make("section", {}, ...parts);
};

// The offered models in groups, each with the title of its provider; and notes as options.
const offered = () => {
  const groups = [], notes = [], single = { title: "", models: [] };
  for (const child of select.children) {
    if (!child.matches("optgroup")) {
      if (child.value || !defaultOption()) single.models.push(modelOf(child));
    } else if (child.children.length) {
      groups.push({ title: child.label, models: [...child.children].map(modelOf) });
    } else notes.push(child);
  }
  if (single.models.length) groups.unshift(single);
  return { groups, notes };
};

const draw = () => {
  const { groups, notes: failed } = offered(), before = active?.dataset.name;
  const models = groups.flatMap(group => group.models), isMany = models.length > MANY;
  const recentModels = (isMany ? recent() : [])
    .map(({ name }) => models.find(model => model.name === name)).filter(Boolean);
  if (recentModels.length) groups.unshift({ title: "Recent", models: recentModels });
  let number = 0;
  list.replaceChildren(...groups.map(({ title, models }, index) => {
    const isRecent = models === recentModels;
    const own = models.filter(model => isRecent || !recentModels.includes(model));
    return groupOf(title, own.map(model => rowOf(model, ++number, isRecent)), index);
  }));
  notes.replaceChildren(...failed.map(noteOf));
  search.hidden = !isMany && !search.value;
  list.tabIndex = keyTarget() === list ? 0 : -1;
  offersSeveral = models.length > 1;
  mark();
  setActive(rows().find(row => row.dataset.name === before)
    ?? rows().find(row => row.ariaSelected === "true"));
  filter();
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
  draw();
  for (const field of [search, list]) field.autofocus = field === keyTarget();
  emit("models"); // requests the list again
});
panel.addEventListener("toggle", ({ newState }) => {
  if (newState === "open") {
    active?.scrollIntoView({ block: "center" });
  } else {
    list.replaceChildren();
    panel.style.minHeight = "";
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
  const visibleRows = shownRows(), move = MOVES[key];
  const at = visibleRows.indexOf(active), last = visibleRows.length - 1;
  if (move && last >= 0) setActive(visibleRows[move(at, last)]);
  else if ((key === "Enter" || (key === " " && target === list)) && active) pick(active);
  else if (key.length === 1 && key !== " " && target === list) { // the field gets this key
    search.hidden = false;
    search.focus();
    return;
  } else return;
  event.preventDefault();
});
search.addEventListener("input", () => {
  panel.style.minHeight ||= `min(${panel.offsetHeight}px, 85dvh)`; // fewer rows move nothing
  filter();
});
list.addEventListener("click", ({ target }) => {
  const row = target.closest(".model");
  if (row) pick(row);
});
compare.addEventListener("click", () => {
  if (comparing) panel.hidePopover();
  else setComparing(true);
});

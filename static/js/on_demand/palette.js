// The palette: one field that finds chats by their titles and messages, and actions of the page.
// The server makes the results' HTML, see templates/hits.html.
import { openOnce } from "../lib/dialog.js";
import { $, $$, iconButton, make, parse, touch } from "../lib/dom.js";
import { fetchHtml } from "../lib/fetch_html.js";
import { keyNames, SHORTCUTS } from "../shortcuts.js";
import { fillTimes } from "../sidebar/times.js";

const WAIT_MS = 120; // after the last key press
const MOST = 400; // characters: one takes up to 9 of the 4094 of an address
const NO_USE_BY_FINGER = ["help", "field"];
// Actions with a control now: those of the table, other than this palette; then those without keys.
const available = () => [
  ...SHORTCUTS.filter(({ id, keys, find }) => (
    id === "help" || (id !== "search" && !keys && (!find || find()))
  )).filter(({ id }) => !touch.matches || !NO_USE_BY_FINGER.includes(id)),
  ...[
    ["Chat settings", "#chat-menu .opens-settings"],
    ["Display", "#open-display"],
    ["Archived chats", "#open-archive"],
  ].map(([name, selector]) => ({ name, keys: [], find: () => $(selector) })),
];
const beginsWord = (name, word) => ` ${name.toLowerCase()}`.includes(` ${word}`);

const build = () => {
  const field = make("input", {
    type: "text", id: "palette-field", placeholder: "Search chats and actions",
    autocomplete: "off", spellcheck: false, maxLength: MOST, dir: "auto",
  });
  const list = make("div", { id: "palette-list", role: "listbox", ariaLabel: "Results" });
  const count = make("p", { className: "count", role: "status" });
  const close = iconButton("x", "Close", "", () => dialog.close());
  for (const [name, value] of Object.entries({
    role: "combobox", "aria-expanded": "true", "aria-controls": "palette-list",
    "aria-autocomplete": "list", "aria-label": "Search chats and actions",
  })) field.setAttribute(name, value);
  const bar = make("div", { className: "bar" }, field, close);
  const dialog = make("dialog", { id: "palette", ariaLabel: "Search" }, bar, count, list);
  return { dialog, field, list, count };
};

// Only one palette is open at a time.
let parts = null; // { dialog, field, list, count }
let doAction = null; // does an action of the table
let active = null; // the option that Enter chooses
let resultGroups = []; // from the server
let turn = 0; // of the last request
let timer = 0; // of the next search
let hasFailed = false; // Enter searches again

// --- the list ------------------------------------------------------------------------------------
const choose = option => {
  active?.setAttribute("aria-selected", "false");
  active = option ?? null;
  active?.setAttribute("aria-selected", "true");
  active?.scrollIntoView({ block: "nearest" });
  if (active) parts.field.setAttribute("aria-activedescendant", active.id);
  else parts.field.removeAttribute("aria-activedescendant");
};
const move = step => {
  const options = $$("[role=option]", parts.list);
  choose(options.at((options.indexOf(active) + step) % options.length));
};
const optionOf = row => {
  const keys = make("kbd", { textContent: keyNames(row).join(" ") });
  const properties = { type: "button", role: "option", tabIndex: -1 };
  const element = make("button", properties, row.name, keys);
  element.addEventListener("click", () => {
    parts.dialog.close();
    doAction(row);
  });
  return element;
};
const actionGroups = () => {
  const words = parts.field.value.toLowerCase().match(/\S+/g) ?? [];
  const rows = available().filter(({ name }) => words.every(word => beginsWord(name, word)));
  if (!rows.length) return [];
  const name = make("p", { role: "presentation", textContent: "Actions" });
  return [make("div", { role: "group", ariaLabel: "Actions" }, name, ...rows.map(optionOf))];
};
const describe = () => {
  const { field, list, count } = parts;
  fillTimes(list);
  const options = $$("[role=option]", list), more = $("[data-further]", list);
  options.forEach((element, n) => { element.id = `palette-${n}`; });
  const size = options.length - (more ? 1 : 0);
  const words = `${size}${more ? " or more" : ""} ${size === 1 ? "result" : "results"}.`;
  const none = "Nothing found. Search for other words, or for the start of a word.";
  count.textContent = field.value.trim() && (size ? words : none);
};
const draw = () => {
  parts.list.replaceChildren(...resultGroups, ...actionGroups());
  describe();
  choose($("[role=option]", parts.list));
};

// --- requests ------------------------------------------------------------------------------------
const fail = text => {
  hasFailed = true;
  resultGroups = [];
  draw();
  parts.count.textContent = `${text} Press Enter to search again.`;
};
// Calls `show` with the elements at this address, unless the field has changed meanwhile.
const get = async (url, show) => {
  const mine = ++turn;
  hasFailed = false;
  try {
    const response = await fetchHtml(url), html = await response.text();
    if (mine !== turn) return;
    if (response.ok) show(parse(html));
    else fail("The search failed.");
  } catch {
    if (mine === turn) fail("The server could not be reached.");
  }
};
const search = () => {
  clearTimeout(timer);
  const words = new URLSearchParams({ q: parts.field.value.trim() });
  get(`/conversations/search?${words}`, groups => {
    resultGroups = groups;
    draw();
  });
};
const addFurther = button => {
  get(button.dataset.further, options => {
    button.replaceWith(...options);
    describe();
    choose(options[0]);
  });
};

// --- the dialog ----------------------------------------------------------------------------------
const handleKey = event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) move(step);
  else if (event.key !== "Enter") return;
  else if (hasFailed) search();
  else active?.click();
  event.preventDefault();
};
const forget = () => { // responses that are under way
  clearTimeout(timer);
  turn += 1;
  active = null;
  resultGroups = [];
};
// `act` does an action of the table.
export const openPalette = act => {
  if ($("#palette")) { $("#palette").close(); return; }
  parts = build();
  doAction = act;
  const { dialog, field, list } = parts;
  list.addEventListener("click", ({ target }) => {
    const more = target.closest("[data-further]");
    if (!more) return;
    if (!touch.matches) field.focus();
    addFurther(more);
  });
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, WAIT_MS);
  });
  field.addEventListener("keydown", handleKey);
  dialog.addEventListener("close", forget);
  openOnce(dialog);
  field.focus();
  draw();
  search();
};

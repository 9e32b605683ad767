// The palette: one field that finds chats by their titles and messages, and actions of the page.
// The server makes the results' HTML, see templates/palette.html.
import { openOnce } from "../lib/dialog.js";
import { $, $$, make, parse } from "../lib/dom.js";
import { keyNames, SHORTCUTS } from "../shortcuts.js";
import { fillTimes } from "../sidebar/times.js";

const WAIT_MS = 120; // after the last key press
// Of the table's rows: actions other than this palette, with a control now.
const available = () => SHORTCUTS.filter(({ id, keys, find }) => (
  id === "help" || (id !== "search" && !keys && (!find || find()))
));
const beginsWord = (name, word) => ` ${name.toLowerCase()}`.includes(` ${word}`);

const build = () => {
  const field = make("input", {
    type: "text", id: "palette-field", placeholder: "Search chats and actions",
    autocomplete: "off", spellcheck: false, maxLength: 500, dir: "auto",
  });
  const list = make("div", { id: "palette-list", role: "listbox", ariaLabel: "Results" });
  const count = make("p", { className: "count", role: "status" });
  const close = make("button", { type: "button", className: "close", textContent: "Close" });
  for (const [name, value] of Object.entries({
    role: "combobox", "aria-expanded": "true", "aria-controls": "palette-list",
    "aria-autocomplete": "list", "aria-label": "Search chats and actions",
  })) field.setAttribute(name, value);
  const bar = make("div", { className: "bar" }, field, close);
  const dialog = make("dialog", { id: "palette", ariaLabel: "Search" }, bar, list, count);
  return { dialog, field, list, count, close };
};

// `act` does an action of the table.
export const openPalette = act => {
  if ($("#palette")) { $("#palette").close(); return; }
  const { dialog, field, list, count, close } = build();
  let active = null, timer = 0, turn = 0, found = []; // groups from the server

  const choose = option => {
    active?.setAttribute("aria-selected", "false");
    active = option ?? null;
    active?.setAttribute("aria-selected", "true");
    active?.scrollIntoView({ block: "nearest" });
    if (active) field.setAttribute("aria-activedescendant", active.id);
    else field.removeAttribute("aria-activedescendant");
  };
  const option = row => {
    const keys = make("kbd", { textContent: keyNames(row).join(" ") });
    const properties = { type: "button", role: "option", tabIndex: -1 };
    const element = make("button", properties, row.name, keys);
    element.addEventListener("click", () => {
      dialog.close();
      act(row);
    });
    return element;
  };
  const actions = () => {
    const words = field.value.toLowerCase().match(/\S+/g) ?? [];
    const rows = available().filter(({ name }) => words.every(word => beginsWord(name, word)));
    if (!rows.length) return [];
    const name = make("p", { role: "presentation", textContent: "Actions" });
    return [make("div", { role: "group", ariaLabel: "Actions" }, name, ...rows.map(option))];
  };
  const draw = () => {
    list.replaceChildren(...found, ...actions());
    fillTimes(list);
    const options = $$("[role=option]", list);
    options.forEach((element, n) => { element.id = `palette-${n}`; });
    choose(options[0]);
    const words = options.length === 1 ? "1 result." : `${options.length} results.`;
    count.textContent = options.length ? words : "Nothing found.";
  };
  const load = async () => {
    const mine = ++turn, query = encodeURIComponent(field.value.trim());
    try {
      const options = { headers: { "HX-Request": "true" } };
      const response = await fetch(`/conversations/palette?q=${query}`, options);
      const html = await response.text();
      if (mine !== turn || !dialog.open) return;
      found = response.ok ? parse(html) : [];
      draw();
      if (!response.ok) count.textContent = "The search failed. Try again.";
    } catch {
      if (mine === turn) count.textContent = "The server could not be reached. Try again.";
    }
  };
  const move = step => {
    const options = $$("[role=option]", list);
    choose(options.at((options.indexOf(active) + step) % options.length));
  };
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(load, WAIT_MS);
  });
  field.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) move(step);
    else if (event.key === "Enter") active?.click();
    else return;
    event.preventDefault();
  });
  close.addEventListener("click", () => dialog.close());
  openOnce(dialog);
  field.focus();
  draw();
  load();
};

// The model picker. The choice is remembered; "Compare" adds pickers for more models at a time.
import { $, $$, make } from "./lib/dom.js";
import { local } from "./lib/storage.js";
import { route, succeeded } from "./requests.js";

const MOST = 4; // models in one message; the server accepts no more
const KEY = "halt.model";
const first = $("#model"), more = $("#compare");
const extras = () => $$(".choices .extra");
const showMore = () => { more.hidden = extras().length >= MOST - 1; };

const remembered = local.get(KEY);
if ("new" in first.dataset && remembered) first.add(new Option(remembered, remembered, true, true));
first.addEventListener("change", () => local.set(KEY, first.value));

const fill = select => { // with the options of the first picker
  const { value } = select;
  select.replaceChildren(...[...first.children].map(option => option.cloneNode(true)));
  if ([...select.options].some(option => option.value === value)) select.value = value;
};
const add = () => {
  const count = extras().length, select = make("select", { name: "model" });
  select.setAttribute("form", "composer");
  select.setAttribute("aria-label", `Model ${count + 2}`);
  fill(select);
  select.selectedIndex = Math.min(first.selectedIndex + count + 1, select.options.length - 1);
  const remove = make("button", { type: "button", textContent: "×" });
  remove.setAttribute("aria-label", "Remove this model");
  const extra = make("span", { className: "extra" }, select, remove);
  remove.addEventListener("click", () => {
    extra.remove();
    showMore();
    more.focus();
  });
  more.before(extra);
  showMore();
  select.focus();
};
more.addEventListener("click", add);
first.addEventListener("htmx:after:swap", () => {
  for (const extra of extras()) fill(extra.firstChild);
});

// "Use this answer" selects that answer's model and removes the other pickers.
route(".pick", {
  response({ ctx, source }) {
    if (!succeeded(ctx)) return;
    const { model } = source.closest(".answer").dataset;
    if (![...first.options].some(option => option.value === model)) {
      first.add(new Option(model, model));
    }
    first.value = model;
    local.set(KEY, model);
    for (const extra of extras()) extra.remove();
    showMore();
  },
});

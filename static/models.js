// The model picker. The choice is remembered; "Compare" adds pickers for more models at the same time.
"use strict";
(() => {
  const MOST = 4; // models in one message; the server accepts no more
  const first = document.querySelector("#model"), more = document.querySelector("#compare");
  const recall = () => { try { return localStorage.getItem("halt.model"); } catch { return null; } };
  const remember = name => { try { localStorage.setItem("halt.model", name); } catch { /* storage is not allowed */ } };
  const extras = () => [...document.querySelectorAll(".choices .extra")];

  const last = recall();
  if ("new" in first.dataset && last) first.add(new Option(last, last, true, true));
  first.addEventListener("change", () => remember(first.value));

  const count = () => { more.hidden = extras().length >= MOST - 1; };
  const fill = select => { // with the options of the first picker
    const { value } = select;
    select.replaceChildren(...[...first.children].map(option => option.cloneNode(true)));
    if ([...select.options].some(option => option.value === value)) select.value = value;
  };
  const add = () => {
    const extra = document.createElement("span"), select = document.createElement("select"), remove = document.createElement("button");
    extra.className = "extra";
    select.name = "model";
    select.setAttribute("form", "composer");
    select.setAttribute("aria-label", `Model ${extras().length + 2}`);
    fill(select);
    select.selectedIndex = Math.min(first.selectedIndex + extras().length + 1, select.options.length - 1);
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", "Remove this model");
    remove.addEventListener("click", () => { extra.remove(); count(); more.focus(); });
    extra.append(select, remove);
    more.before(extra);
    count();
    select.focus();
  };
  more.addEventListener("click", add);
  first.addEventListener("htmx:after:swap", () => { for (const extra of extras()) fill(extra.firstChild); });

  // "Use this answer" selects that answer's model and removes the other pickers.
  document.addEventListener("htmx:after:request", event => {
    const { ctx } = event.detail;
    if (!ctx.sourceElement.matches(".pick") || ctx.response.status >= 400) return;
    const { model } = ctx.sourceElement.closest(".answer").dataset;
    if (![...first.options].some(option => option.value === model)) first.add(new Option(model, model));
    first.value = model;
    remember(model);
    for (const extra of extras()) extra.remove();
    count();
  });
})();

// Which model answers. The choice is remembered; "Compare" asks further models at the same time.
"use strict";
(() => {
  const MOST = 4; // as many as the server takes
  const first = document.querySelector("#model"), more = document.querySelector("#compare");
  const recall = () => { try { return localStorage.getItem("halt.model"); } catch { return null; } };
  const remember = name => { try { localStorage.setItem("halt.model", name); } catch { /* not allowed here */ } };
  const rivals = () => [...document.querySelectorAll(".choices .rival")];

  const last = recall();
  if ("new" in first.dataset && last) first.add(new Option(last, last, true, true));
  first.addEventListener("change", () => remember(first.value));

  const count = () => { more.hidden = rivals().length >= MOST - 1; };
  const fill = select => { // with what the first one offers
    const { value } = select;
    select.replaceChildren(...[...first.children].map(each => each.cloneNode(true)));
    if ([...select.options].some(each => each.value === value)) select.value = value;
  };
  const add = () => {
    const rival = document.createElement("span"), select = document.createElement("select"), remove = document.createElement("button");
    rival.className = "rival";
    select.name = "model";
    select.setAttribute("form", "composer");
    select.setAttribute("aria-label", `Model ${rivals().length + 2}`);
    fill(select);
    select.selectedIndex = Math.min(first.selectedIndex + rivals().length + 1, select.options.length - 1);
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", "Remove this model");
    remove.addEventListener("click", () => { rival.remove(); count(); more.focus(); });
    rival.append(select, remove);
    more.before(rival);
    count();
    select.focus();
  };
  more.addEventListener("click", add);
  first.addEventListener("htmx:after:swap", () => { for (const rival of rivals()) fill(rival.firstChild); });

  // Whoever picks an answer goes on with its model alone.
  document.addEventListener("htmx:after:request", event => {
    const { ctx } = event.detail;
    if (!ctx.sourceElement.matches(".pick") || ctx.response.status >= 400) return;
    const { model } = ctx.sourceElement.closest(".answer").dataset;
    if (![...first.options].some(each => each.value === model)) first.add(new Option(model, model));
    first.value = model;
    remember(model);
    for (const rival of rivals()) rival.remove();
    count();
  });
})();

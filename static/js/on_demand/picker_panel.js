// The elements of the panel in which models are chosen.
import { $, icon, make, parse } from "../lib/dom.js";

export const panel = $("#models");
const { page } = panel.dataset; // the address of the page Models, where the person has it
const link = page ? `<a class="button" href="${page}">Manage models…</a>` : "";
panel.append(...parse([
  '<div class="dialog-head"><h2>Models</h2><button type="button" class="icon-button"',
  'popovertarget="models" popovertargetaction="hide" aria-label="Close">',
  `${icon("x")}</button></div>`,
  '<input type="search" id="model-search" role="combobox" aria-label="Search models"',
  'placeholder="Search models" aria-controls="model-list" aria-expanded="true"',
  'aria-autocomplete="list" autocomplete="off" spellcheck="false" enterkeyhint="go">',
  '<p id="model-count" role="status"></p>',
  '<div id="model-list" role="listbox" aria-label="Models" tabindex="0"></div>',
  `<div id="model-notes"></div><div class="ends">${link}`,
  '<span id="compare-count" role="status"></span>',
  '<button type="button" id="compare">Compare…</button></div>',
].join(" ")));
export const search = $("#model-search"), list = $("#model-list"), count = $("#model-count");
export const notes = $("#model-notes"), compare = $("#compare");
export const compareCount = $("#compare-count");

// A row of the list. `withProvider`: under a heading that does not name it.
export const rowOf = (model, number, withProvider) => {
  const words = [...(withProvider ? [model.provider] : []), ...model.can];
  const small = make("small", {
    textContent: [...(model.isDefault ? ["Default"] : []), ...words].join(" · "),
  });
  const name = make("span", { className: "model-name", textContent: model.label });
  const row = make("div", {
    className: "model", role: "option", id: `model-${number}`, title: model.name,
  }, name, " ", small);
  row.dataset.name = model.name;
  row.dataset.text = [model.label, model.provider, ...model.can].join(" ").toLowerCase();
  return row;
};

export const groupOf = (title, rows, number) => {
  const heading = make("p", { id: `models-${number}`, title, textContent: title, hidden: !title });
  const group = make("div", { role: "group" }, heading, ...rows);
  if (title) group.setAttribute("aria-labelledby", heading.id);
  return group;
};

// The dialog with the settings of the conversation on the page.
import { openDialog } from "../lib/dialog.js";
import { $, $$ } from "../lib/dom.js";
import { route, succeeded } from "../requests.js";
import { shownConversation } from "../sidebar/entries.js";

const panel = $("#settings");
const NUMBERS = ["temperature", "top_p", "max_tokens"];
const TEXT = "#settings-prompt", NAME = "#settings-prompt-name", PRESET = "#settings-preset";
let before = ""; // the fields when the dialog was opened
let written = null; // the text that was typed, which a chosen prompt replaces

const values = () => {
  const fields = [...new FormData($("#settings-form", panel))];
  return JSON.stringify(fields.filter(([name]) => name !== "preset"));
};
const selectKind = (select, kind) => {
  select.selectedIndex = [...select.options].findIndex(option => option.dataset.kind === kind);
};
// "Save as" offers the own name that is selected, and "Delete" is there for it.
const showActions = select => {
  const [chosen] = select.selectedOptions, part = select.closest("fieldset");
  const isOwn = chosen.dataset.kind === "own";
  $(".delete-named", part).hidden = !isOwn;
  if (isOwn) $(".save-row input", part).value = chosen.text;
};

// --- open and close ---
export const openSettings = async opener => {
  const id = shownConversation(), model = encodeURIComponent($("#model").value);
  const isByKey = $(":focus-visible") !== null; // a field that a pointer opens shows no ring
  const url = `${id ? `/c/${id}` : ""}/settings?model=${model}`;
  await htmx.ajax("GET", url, { source: panel, target: panel, swap: "innerHTML" });
  if (!$("form", panel)) return;
  before = values();
  written = null;
  openDialog(panel, opener);
  $(isByKey ? opener.dataset.at ?? "#settings-model" : "h2", panel).focus();
};
const showQuestion = isShown => {
  const [foot, question] = $$(".dialog-foot", panel);
  foot.hidden = isShown;
  question.hidden = !isShown;
  $(isShown ? ".keep-editing" : "[type=submit]", isShown ? question : foot).focus();
};
panel.addEventListener("cancel", event => {
  if (!$("#settings-form", panel) || values() === before) return;
  event.preventDefault();
  showQuestion(true);
});
panel.addEventListener("close", () => panel.replaceChildren());
panel.addEventListener("click", ({ target }) => {
  if (target.closest(".keep-editing")) showQuestion(false);
  else if (target.closest(".discard-changes")) panel.close();
  else if (target.closest("#settings-reset")) reset();
});

// --- the parts ---
const reset = () => {
  const text = $(TEXT, panel), preset = $(PRESET, panel);
  $("#settings-model", panel).selectedIndex = 0;
  selectKind($(NAME, panel), "default");
  text.value = text.dataset.default;
  $("#help-system-prompt", panel).textContent = "";
  preset.selectedIndex = 0;
  apply(preset);
  showActions($(NAME, panel));
  clearFaults();
};
const apply = preset => {
  const [{ dataset }] = preset.selectedOptions;
  if (dataset.kind !== "written") {
    for (const name of NUMBERS) $(`[name=${name}]`, panel).value = dataset[name];
  }
  showActions(preset);
};
panel.addEventListener("toggle", ({ target }) => { // of "Save as"
  if (!target.matches("details[open]")) return;
  const field = $("input", target);
  field.focus();
  field.select();
  target.scrollIntoView({ block: "nearest" });
}, true);
panel.addEventListener("change", ({ target }) => {
  if (target.matches(PRESET)) apply(target);
  else if (target.matches(NAME)) showActions(target);
});
panel.addEventListener("pointerover", ({ target }) => { // a long name is cut off
  if (target.matches("select")) target.title = target.selectedOptions[0].text;
});
panel.addEventListener("input", ({ target }) => {
  clearFault(target);
  if (target.matches(TEXT)) {
    written = target.value;
    selectKind($(NAME, panel), "written");
    showActions($(NAME, panel));
  } else if (NUMBERS.includes(target.name)) {
    const preset = $(PRESET, panel);
    const same = [...preset.options].findIndex(({ dataset }) => NUMBERS.every(
      name => dataset[name] === $(`[name=${name}]`, panel).value.trim(),
    ));
    if (same < 0) selectKind(preset, "written");
    else preset.selectedIndex = same;
    showActions(preset);
  }
});
route(NAME, {
  config({ source, event }) {
    const { kind } = source.selectedOptions[0].dataset, text = $(TEXT, panel);
    if (!["none", "written"].includes(kind)) return;
    event.preventDefault();
    $("#help-system-prompt", panel).textContent = "";
    text.value = kind === "none" ? "" : written ?? text.value; // what was typed comes back
    if (kind === "written") text.focus();
  },
});
const focusChoice = selector => ({ finished({ ctx }) {
  if (succeeded(ctx)) $(selector, panel)?.focus();
} });
route("#prompt-saver, #settings-prompt-part .delete-named", focusChoice(NAME));
route("#preset-saver, #settings-sampling-part .delete-named", focusChoice(PRESET));

// --- saving, and faults below their fields ---
const clearFault = field => {
  const place = $(`#${field.getAttribute("aria-describedby")?.split(" ")[0] || "settings-fault"}`);
  place?.replaceChildren();
  field.removeAttribute("aria-invalid");
};
const clearFaults = () => {
  for (const place of $$("#settings-fault, .field-fault", panel)) place.replaceChildren();
  for (const field of $$("[aria-invalid]", panel)) field.removeAttribute("aria-invalid");
};
route("#settings-form", {
  config({ ctx }) {
    ctx.request.action = $("#composer").getAttribute("hx-post").replace(/messages$/, "settings");
    clearFaults();
  },
  response({ ctx }) { if (succeeded(ctx)) panel.close(); },
});
route("#settings *, #settings", {
  swapped({ ctx }) {
    if (succeeded(ctx)) return;
    const [place] = $$(".field-fault:not(:empty)", panel);
    const field = place && $(`[aria-describedby~="${place.id}"]`, panel);
    field?.setAttribute("aria-invalid", "true");
    field?.focus();
    place?.scrollIntoView({ block: "nearest" });
  },
});

// What is attached to a message, and to a prompt that is edited: files, and long pasted texts. This
// module has the data. The cards and the uploads are loaded when there is something to attach.
//
// A file is { name } while it is uploaded, { name, fault } if that failed, and then what the server
// says of it: { id, name, kind, label, detail }.
import { $, $$ } from "./lib/dom.js";
import { onDemand, preload } from "./lib/on_demand.js";
import { hasCode, route } from "./requests.js";

// Characters from which a pasted text becomes a card. A field with 200,000 characters in one
// paragraph takes the browser a second for each key.
export const LONG = 20_000;
const FORMS = "#composer, .editor";
const composer = $("#composer"), picker = $("#picker");
const attached = new WeakMap(); // form -> its files
let texts = []; // the pasted texts of the composer
let adding = 0; // these are given to the module that is being loaded

let loaded;
export const withModule = async (action, ...values) => {
  loaded = await onDemand("attachments");
  return loaded?.[action](...values);
};
const show = (list, items, ...values) => {
  const isShown = !list.hidden;
  list.hidden = !items.length;
  if (items.length || isShown) withModule(...values);
};
export const filesOf = form => attached.get(form) ?? [];
export const setFiles = (form, files) => {
  attached.set(form, [...files]);
  show($(".attached", form), files, "drawFiles", form);
};
export const pastedTexts = () => texts;
export const setPastedTexts = newTexts => {
  texts = [...newTexts];
  show($("#pasted"), texts, "drawTexts");
};
// What is kept of a file, and sent.
export const keptFile = ({ id, name, kind, label, detail }) => ({ id, name, kind, label, detail });
// The text and the files of a prompt on the page.
export const messageOf = exchange => ({
  text: $(".prompt .text", exchange)?.textContent ?? "",
  files: $$(".prompt .files li", exchange)
    .map(({ dataset }) => keptFile({ ...dataset, id: dataset.file })),
});
export const fileFields = files => (
  files.flatMap(({ id, name }) => [["file", id], ["file_name", name]])
);

// Whether a form must not be sent yet: a file is uploaded, or one could not be. If all arrive, the
// form is then sent.
export const isHeld = form => {
  const isUnfinished = adding > 0 || filesOf(form).some(({ id, fault }) => !id || fault);
  if (isUnfinished && loaded && !adding) loaded.hold(form); // at once, before the next key
  else if (isUnfinished) withModule("hold", form);
  return isUnfinished;
};
route(FORMS, {
  config({ ctx, source, event }) {
    if (event.defaultPrevented) return;
    ctx.files = filesOf(source);
    for (const [name, value] of fileFields(ctx.files)) ctx.request.body.append(name, value);
  },
  finished({ ctx, source }) {
    if (hasCode(ctx, "unknown_file")) withModule("check", source);
  },
});

// --- picked, pasted and dropped ------------------------------------------------------------------
const add = async (...action) => {
  adding++;
  try { await withModule(...action); } finally { adding--; }
};
let pickedFor = composer;
document.addEventListener("click", ({ target }) => {
  const button = target.closest(".attach");
  if (!button) return;
  pickedFor = button.form;
  picker.click();
  preload("attachments");
});
picker?.addEventListener("change", () => {
  add("addFiles", pickedFor, [...picker.files]);
  picker.value = ""; // the same file can be picked again
});
addEventListener("paste", event => {
  const { target, clipboardData: data } = event, { types, files } = data;
  const text = data.getData("text/plain");
  const isField = target.closest?.("input, textarea"), isOurs = target.closest?.(FORMS);
  if ((isField && !isOurs) || $("dialog[open]")) return;
  // From a document, the clipboard also has a picture of the text.
  const isDocument = text.trim() && types.some(type => /html|rtf/.test(type));
  if (picker && files.length && !isDocument) {
    add("addFiles", target.closest?.(FORMS) ?? composer, [...files]);
  } else if (text.length >= LONG && target.id === "prompt") add("addText", text);
  else return;
  event.preventDefault();
});
for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(type, event => {
    const { types, files } = event.dataTransfer;
    if (!picker || !types.includes("Files")) return;
    event.preventDefault(); // else the browser would open the file
    if (type !== "dragover") withModule("drag", event, [...files]);
  });
}

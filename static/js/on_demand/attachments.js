// Attaches files: takes them within the limits, uploads them, and holds a message until they are
// there. attach.js calls the functions of this module.
import { isBusy } from "../activity.js";
import { filesOf, setFiles } from "../attach.js";
import {
  $, announce, clearNotice, focusComposer, make, notice, refuse, touch,
} from "../lib/dom.js";
import { loadStyle } from "../lib/on_demand.js";
import { cardOf, drawFile, drawList, factsOf, setFacts, showProgress } from "./file_cards.js";
import { isThere, upload } from "./uploads.js";

export { addText, drawTexts } from "./pasted_cards.js";

await loadStyle("files");
// Without the button Halt takes no files; pasted texts are attached all the same.
const limits = $("#attach")?.dataset ?? {}; // most: files of a message; bytes: of a file
const composer = $("#composer");
const megabytes = bytes => `${Math.round(bytes / 1e6).toLocaleString()} MB`;
const changed = form => {
  $("textarea", form).dispatchEvent(new Event("input", { bubbles: true }));
};

// --- the files of a form -------------------------------------------------------------------------
const replace = (form, files) => {
  setFiles(form, files);
  drawFiles(form);
  changed(form);
};
const remove = (form, file) => {
  const files = filesOf(form), place = files.indexOf(file);
  replace(form, files.toSpliced(place, 1));
  const beside = files[place + 1] ?? files[place - 1];
  if (beside) $(".remove", cardOf(beside)).focus();
  else if (form === composer) focusComposer();
  else $(touch.matches ? ".attach" : "textarea", form).focus();
  announce(`Removed ${file.name}.`);
  settle(form);
};
export const drawFiles = form => drawList(form, file => remove(form, file));

// --- uploads -------------------------------------------------------------------------------------
const start = async (form, file) => {
  delete file.fault;
  setFacts(file, { part: undefined });
  drawFile(file);
  const job = upload(factsOf(file).source, file.name, part => {
    setFacts(file, { part });
    showProgress(file);
  });
  setFacts(file, { job });
  const result = await job.done;
  if (!result || !filesOf(form).includes(file)) return; // it was removed
  const { again, ...answer } = result;
  setFacts(file, { again, retry: () => {
    $(".remove", cardOf(file)).focus();
    start(form, file);
    clearNotice();
  } });
  const others = filesOf(form).filter(other => other !== file);
  if (answer.id && others.some(({ id }) => id === answer.id)) {
    replace(form, others);
    notice(`${file.name} is attached already.`);
  } else {
    Object.assign(file, answer);
    drawFile(file);
    changed(form);
    const { name, fault, detail } = file;
    announce(fault ? `${name} was not attached: ${fault}` : `Attached ${name}: ${detail}`);
  }
  settle(form);
};
// A name that none of these files has: a browser calls each pasted picture the same.
const freeName = (name, files) => {
  const isTaken = candidate => files.some(file => file.name === candidate);
  const [, stem, ending] = name.match(/^(.+?)(\.\w+)?$/s) ?? ["", "file", ""];
  let free = name || "file";
  for (let n = 2; isTaken(free); n++) free = `${stem} ${n}${ending ?? ""}`;
  return free;
};
export const addFiles = (form, sources) => {
  const files = [...filesOf(form)], { most, bytes } = limits;
  const added = sources.slice(0, Math.max(0, most - files.length));
  const left = sources.length - added.length;
  for (const source of added) {
    const isPasted = /^image\.\w+$/.test(source.name);
    const file = { name: isPasted ? freeName(source.name, files) : source.name };
    setFacts(file, { source });
    if (source.size > bytes) file.fault = `The file is larger than ${megabytes(bytes)}.`;
    files.push(file);
  }
  if (left) {
    const were = left === 1 ? "1 file was" : `${left} files were`;
    notice(`A message has at most ${most} files. ${were} not attached.`);
  }
  const before = filesOf(form).length;
  replace(form, files);
  for (const file of files.slice(before)) {
    if (file.fault) announce(`${file.name} was not attached: ${file.fault}`);
    else start(form, file);
  }
  const list = $(".attached", form);
  list.scrollTop = list.scrollHeight;
};
// After a refusal: files that the server has no longer.
export const check = async form => {
  for (const file of filesOf(form)) {
    if (!file.id || await isThere(file)) continue;
    delete file.id;
    file.fault = "It is no longer here. Attach it again.";
    setFacts(file, { again: Boolean(factsOf(file).source), retry: () => start(form, file) });
    drawFile(file);
    changed(form);
  }
};

// --- a message that is sent when its files are there ---------------------------------------------
let held = null; // its form
const line = make("p", { className: "holding", textContent: "Waiting for the files…" });

const letGo = () => {
  held = null;
  line.remove();
  document.body.classList.remove("held");
};
export const hold = form => {
  const failed = filesOf(form).find(({ fault }) => fault);
  if (failed) {
    letGo();
    const way = factsOf(failed).again ? "Remove it or try again" : "Remove it";
    notice(`${failed.name} was not attached. ${way}, then send the message.`);
    $("button", cardOf(failed)).focus();
    return;
  }
  held = form;
  if (!settle(form)) {
    document.body.classList.toggle("held", form === composer);
    $(".attach", form).after(line);
    announce("The message is sent when its files are there.");
  }
};
// Sends the held message if all of its files are there. Returns whether it is no longer held.
const settle = form => {
  if (form !== held) return false;
  const files = filesOf(form);
  if (files.some(({ fault }) => fault)) hold(form);
  else if (files.every(({ id }) => id)) {
    letGo();
    if (form.isConnected) form.requestSubmit();
  }
  return held !== form;
};
const giveUp = () => {
  letGo();
  announce("Not sent. The message and its files are still here.");
};
addEventListener("keydown", event => {
  if (event.key !== "Escape" || event.defaultPrevented || !held || $(":popover-open")) return;
  if (held !== composer || !isBusy()) { // else Esc also stops the answer
    event.preventDefault();
    event.stopPropagation();
  }
  giveUp();
}, true);
addEventListener("submit", event => {
  if (!held || event.target.id !== "stopper") return;
  if (!isBusy()) refuse(event);
  giveUp();
  focusComposer();
}, true);

// --- a veil over the page while files are dragged ------------------------------------------------
const cover = make("div", { className: "veil", hidden: true, ariaHidden: "true" });
cover.append(make("p", { textContent: "Drop to attach" }));
document.body.append(cover);
let entered = 0; // elements that the drag has entered and not left: it enters the next one first
const uncover = () => {
  entered = 0;
  cover.hidden = true;
};
export const drag = ({ type, clientX, clientY }, files) => {
  if (type === "dragenter") entered++;
  else entered--;
  cover.hidden = entered < 1 || $("dialog[open]") !== null;
  if (type === "drop") uncover();
  if (type !== "drop" || $("dialog[open]")) return;
  const below = document.elementFromPoint(clientX, clientY);
  addFiles(below?.closest(".editor") ?? composer, files);
};
// A drag that ended elsewhere: its pointer moves again.
addEventListener("pointermove", uncover);

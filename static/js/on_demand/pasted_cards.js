// Long pasted texts, as cards above the message field. The message has them below the typed text.
import { pastedTexts, setPastedTexts } from "../attach.js";
import { $, focusComposer, iconButton, make, setValue } from "../lib/dom.js";

const list = $("#pasted"), prompt = $("#prompt");

const changed = () => prompt.dispatchEvent(new Event("input", { bubbles: true }));
const card = (text, n) => {
  const start = text.trim().slice(0, 60), count = text.length.toLocaleString();
  const name = make("span", { className: "title", dir: "auto", textContent: start });
  const size = make("small", { textContent: `Pasted text, ${count} characters` });
  const take = () => {
    setPastedTexts(pastedTexts().toSpliced(n, 1));
    changed();
    focusComposer();
  };
  const edit = () => {
    setValue(prompt, [prompt.value, text].filter(Boolean).join("\n\n"));
    take();
    prompt.focus();
  };
  const of = `the pasted text “${start}”`;
  return make("li", {}, make("div", {}, name, size),
    iconButton("pencil", "Edit", of, edit), iconButton("x", "Remove", of, take));
};

export const drawTexts = () => { list.replaceChildren(...pastedTexts().map(card)); };
export const addText = text => {
  setPastedTexts([...pastedTexts(), text]);
  drawTexts();
  list.scrollTop = list.scrollHeight;
  changed();
};

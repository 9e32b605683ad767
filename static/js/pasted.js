// Long pasted texts, as cards above the message field: a field with 200,000 characters in one
// paragraph takes the browser a second for each key. The message has them below the typed text.
import { $, focusComposer, iconButton, make, setValue } from "./lib/dom.js";

export const LONG = 20_000; // characters from which a pasted text becomes a card
const list = $("#pasted"), prompt = $("#prompt");
let texts = [];

const changed = () => prompt.dispatchEvent(new Event("input", { bubbles: true }));
const card = (text, n) => {
  const start = text.trim().slice(0, 60), count = text.length.toLocaleString();
  const name = make("span", { className: "title", dir: "auto", textContent: start });
  const size = make("small", { textContent: `Pasted text, ${count} characters` });
  const take = () => {
    setPastedTexts(texts.toSpliced(n, 1));
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

export const pastedTexts = () => texts;
export const setPastedTexts = newTexts => {
  if (!texts.length && !newTexts.length) return;
  texts = [...newTexts];
  list.replaceChildren(...texts.map(card));
  list.hidden = !texts.length;
};
prompt.addEventListener("paste", event => {
  const text = event.clipboardData.getData("text/plain");
  if (text.length < LONG) return;
  event.preventDefault();
  setPastedTexts([...texts, text]);
  list.scrollTop = list.scrollHeight;
  changed();
});

// The queued messages as a list in which each can be edited and removed.
import { $, iconButton, make, setValue } from "../lib/dom.js";

const box = $("#queue"), list = $("ol", box);
const lines = new Map(); // message -> its element
let current = null; // the message that is being edited
let callbacks = null; // begin(item), end(item, text or null), drop(item)

const button = (className, text, action) => {
  const element = make("button", { type: "button", className, textContent: text });
  element.addEventListener("click", action);
  return element;
};
const content = item => {
  const names = item.files.map(({ name }) => name).join(", ");
  const start = `“${(item.text || names).slice(0, 40)}”`;
  const shown = make("span", { className: "text" }, item.text.slice(0, 300));
  if (names) shown.append(" ", make("small", { dir: "auto", textContent: names }));
  return [
    shown,
    iconButton("pencil", "Edit", start, () => begin(item)),
    iconButton("x", "Remove", start, () => callbacks.drop(item)),
  ];
};

const begin = item => {
  if (current) end(true);
  current = item;
  callbacks.begin(item);
  const field = make("textarea", { rows: 1, ariaLabel: "Edit the queued message" });
  lines.get(item).replaceChildren(
    field, button("", "Cancel", () => end(false)), button("primary", "Save", () => end(true)),
  );
  setValue(field, item.text);
  field.focus();
};
const end = isSaved => {
  const item = current, line = lines.get(item), text = $("textarea", line).value.trim();
  current = null;
  if (isSaved && !text && !item.files.length) { callbacks.end(item, ""); return; }
  if (isSaved) item.text = text;
  line.replaceChildren(...content(item));
  $("button", line).focus();
  callbacks.end(item, isSaved ? text : null);
};
box.addEventListener("keydown", event => {
  if (!event.target.matches("textarea")) return;
  if (event.key === "Escape") {
    event.preventDefault();
    event.stopPropagation(); // Esc must not stop the answer
    end(false);
  } else if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    end(true);
  }
});

// The button that gets the focus when this message is removed.
export const focusBeside = item => {
  const line = lines.get(item), beside = line.nextElementSibling ?? line.previousElementSibling;
  return beside && $("button:last-child", beside);
};
export const drawLines = (waiting, actions) => {
  callbacks = actions;
  for (const [item, line] of lines) {
    if (waiting.includes(item)) continue;
    if (current === item) current = null;
    line.remove();
    lines.delete(item);
  }
  waiting.forEach((item, n) => {
    if (!lines.has(item)) lines.set(item, make("li", {}, ...content(item)));
    const line = lines.get(item);
    if (list.children[n] !== line) list.insertBefore(line, list.children[n] ?? null);
  });
};

// Elements, and the two places for messages: the announcer for screen readers, and the notice.
export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// A finger: Enter makes a new line, and a focused field would open the keyboard over the page.
export const touch = matchMedia("(pointer: coarse)");
export const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

// By touch, the focus goes to the button: it opens no keyboard.
export const focusComposer = () => {
  const places = $$(touch.matches ? "#stop, #send" : "#prompt");
  places.find(place => place.checkVisibility())?.focus({ preventScroll: true });
};

// An element with properties, and with children: elements and plain text.
export const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// The elements of a piece of the server's HTML. Never of a person's text.
export const parse = html => {
  const template = document.createElement("template");
  template.innerHTML = html;
  return [...template.content.children];
};

// An icon of the sprite, as HTML.
export const icon = name => (
  `<svg class="icon i-${name}" aria-hidden="true"><use href="#i-${name}"/></svg>`
);

// A button with an icon; `of` ends its accessible name.
export const iconButton = (name, title, of, action) => {
  const className = "icon-button", ariaLabel = `${title} ${of}`.trim();
  const properties = { type: "button", className, title, ariaLabel };
  const button = make("button", properties, ...parse(icon(name)));
  button.addEventListener("click", action);
  return button;
};

// Whether a key or a click is pressed alone.
export const isPlain = ({ ctrlKey, metaKey, shiftKey, altKey }) => (
  !(ctrlKey || metaKey || shiftKey || altKey)
);

// The event has no effect, and reaches no further handler.
export const refuse = event => {
  event.preventDefault();
  event.stopImmediatePropagation();
};

export const setValue = (field, text) => {
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true })); // resizes the field
};

// For screen readers alone.
export const announce = text => { $("#announcer").textContent = text; };

// A fault above the message field; it stays until the next message, Stop or fault.
export const notice = text => {
  $("#notice").replaceChildren(make("p", { className: "fault", textContent: text }));
};
export const clearNotice = () => $("#notice").replaceChildren();

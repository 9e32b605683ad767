// Keys that stay with the field and reach none of Halt's handlers: keys of an input method (Safari
// sends the key that ends a composition after it, with isComposing false), and Enter where the
// primary pointer is a finger: such keyboards have no Shift+Enter. Ctrl+Enter and Cmd+Enter send
// everywhere.
import { touch } from "./lib/dom.js";

const COMPOSED_MS = 50; // after a composition, in which a key still belongs to it
let composed = -COMPOSED_MS;

addEventListener("compositionend", event => { composed = event.timeStamp; }, true);
addEventListener("keydown", event => {
  const { key, target } = event, ends = event.timeStamp - composed < COMPOSED_MS;
  const composes = event.isComposing || event.keyCode === 229
    || (ends && ["Enter", "Escape"].includes(key));
  const breaks = key === "Enter" && touch.matches && target.matches?.("textarea")
    && !event.ctrlKey && !event.metaKey;
  if (composes || breaks) event.stopImmediatePropagation();
}, true);

// The table of shortcuts. The keys, the dialog of `?`, the palette and aria-keyshortcuts use it.
//
// `wide` is Alt+Shift, and Control+Shift on macOS. No key belongs to a browser, a system, an input
// method or a layout, except Ctrl+K: browsers take it as a second key of their search field, which
// keeps Ctrl+E and Ctrl+L. Where the facts are from:
// - Chromium, chrome/browser/ui/views/accelerator_table.cc: Alt+Shift has A, B, I and T alone.
//   Ctrl+Shift+O, Ctrl+Shift+C and Shift+Esc are taken. On macOS (global_keyboard_shortcuts_mac.mm,
//   accelerators_cocoa.mm), Control+Shift has Tab and the page keys, Control+Command C, P, W, X, Z.
// - Firefox, browser/base/content/browser-sets.inc.xhtml: no key has Alt+Shift; on macOS none has
//   Control+Shift, and Control+Command has F. Ctrl+Shift+O, Ctrl+Shift+S and / are taken.
// - macOS: text fields take Control+Shift with A, B, E, F, N, P and V (StandardKeyBinding.dict),
//   Japanese input J, K, R and Z. Safari's keys have Command; Option types characters.
// - Windows: AltGr is Ctrl+Alt, so no key has both. Alt+Shift alone, without a third key, changes
//   the layout there and on some Linux systems.
// - Screen readers take Insert, Caps Lock or Control+Option with another key. While they browse,
//   they take single keys, so that `?` does not reach the page.
import { $, $$ } from "./lib/dom.js";
import { local } from "./lib/storage.js";

const platform = navigator.userAgentData?.platform ?? navigator.platform;
const isMac = /mac|iphone|ipad/i.test(platform);

// The last visible control of this kind in the last exchange. `ofAnswer`: the controls of an answer
// are hidden while it is written or edited.
const onLast = (selector, missing) => ({
  find: () => $$(`#messages > .exchange:last-child ${selector}`)
    .findLast(control => control.checkVisibility({ visibilityProperty: true })),
  missing,
  ofAnswer: true,
});
// The conversation `step` places from the open one in the list.
const beside = step => {
  const links = $$("#conversations a"), open = $('#conversations a[aria-current="page"]');
  return open ? links[links.indexOf(open) + step] : links[0];
};

// `find` returns the control that does it by pointer; `missing` is said where there is none now.
// Rows without `find` are keys that other modules handle.
export const SHORTCUTS = [
  { id: "send", name: "Send", keys: ["Enter"] },
  { id: "line", name: "New line", keys: ["Shift", "Enter"] },
  { id: "stop", name: "Stop the answer", keys: ["Esc"] },
  { id: "edit-last", name: "Edit your last message, in an empty field", keys: ["↑"] },
  { id: "new", name: "New chat", wide: "o", find: () => $("#new-here") },
  { id: "search", name: "Search all chats", main: "k" },
  { id: "field", name: "Go to the message field", wide: "m", find: () => $("#prompt") },
  {
    id: "continue", name: "Continue the answer", wide: "g",
    ...onLast(".continue", "There is no answer to continue."),
  },
  {
    id: "again", name: "Write the answer again", wide: "w",
    ...onLast(".regenerate", "No answer can be written again now."),
  },
  {
    id: "copy", name: "Copy the last answer", wide: "c",
    ...onLast(".copy[data-copy=answer]", "No answer can be copied yet."),
  },
  {
    id: "copy-code", name: "Copy the last code", wide: "x",
    ...onLast(".code", "The last answer has no code."),
  },
  {
    id: "previous", name: "Previous chat in the list", wide: "ArrowUp",
    find: () => beside(-1), missing: "This is the first chat.",
  },
  {
    id: "next", name: "Next chat in the list", wide: "ArrowDown",
    find: () => beside(1), missing: "This is the last chat.",
  },
  {
    id: "pin", name: "Pin or unpin this chat", wide: "u",
    find: () => $("body:not(.empty) .head"), missing: "This chat has no message yet.",
  },
  { id: "rail", name: "Show or hide the list of chats", wide: "s" },
  { id: "theme", name: "Light or dark", wide: "d" },
  { id: "help", name: "All shortcuts", keys: ["?"] },
];
// `?` can be switched off, for people whose speech input types it.
export const SINGLE_KEY = "halt.single-key";
export const usesSingleKey = () => local.get(SINGLE_KEY) !== "off";

export const shortcut = id => SHORTCUTS.find(row => row.id === id);

const SIGNS = { ArrowUp: "↑", ArrowDown: "↓" };
// On macOS, Control and an arrow key belong to Mission Control, also with Shift.
const wideNames = key => {
  if (!isMac) return ["Alt", "Shift"];
  return key in SIGNS ? ["⌃", "⌘"] : ["⌃", "⇧"];
};
// The names of a shortcut's keys, as they are on the keyboard.
export const keyNames = ({ keys, main, wide }) => {
  if (keys) return keys;
  if (main) return [isMac ? "⌘" : "Ctrl", main.toUpperCase()];
  return [...wideNames(wide), SIGNS[wide] ?? wide.toUpperCase()];
};
const ARIA = { "⌃": "Control", "⌘": "Meta", "⇧": "Shift", Ctrl: "Control", Esc: "Escape" };
export const ariaKeys = row => {
  const names = keyNames(row).slice(0, -1).map(name => ARIA[name] ?? name);
  return [...names, row.wide ?? row.main ?? row.keys.at(-1)].join("+");
};

// The key's letter on the layout in use; on one without Latin letters, that of its place.
const keyOf = ({ key, code }) => {
  if (/^[a-z]$/i.test(key)) return key.toLowerCase();
  return code.match(/^Key([A-Z])$/)?.[1].toLowerCase() ?? key;
};
const modifiersOf = event => (
  ["ctrlKey", "metaKey", "altKey", "shiftKey"].map(name => (event[name] ? name[0] : "")).join("")
);
// The shortcut of a key press, or undefined.
export const shortcutOf = event => {
  if (event.getModifierState?.("AltGraph")) return undefined;
  const key = keyOf(event), pressed = modifiersOf(event);
  if (event.key === "?" && ["", "s"].includes(pressed)) return shortcut("help");
  const wanted = ({ main, wide }) => {
    if (main) return isMac ? "m" : "c";
    if (!isMac) return "as";
    return wide in SIGNS ? "cm" : "cs";
  };
  return SHORTCUTS.find(row => (row.main ?? row.wide) === key && wanted(row) === pressed);
};

// Modules in on_demand/ are loaded when they are first needed: a page begins without them.
import { make, notice } from "./dom.js";

const STYLES = { // module -> its style sheet
  palette: "palette", shortcut_list: "shortcuts", picker: "models", settings: "settings",
  code: "code_bar", attachments: "attachments",
};
const loads = new Map(); // style sheet -> the promise of its load

const addStyle = name => new Promise(resolve => {
  const { href } = new URL(`../../css/${name}.css`, import.meta.url);
  // Without the link, the next call tries again.
  const onerror = () => { link.remove(); loads.delete(name); resolve(); };
  const link = make("link", { rel: "stylesheet", href, onload: resolve, onerror });
  document.head.append(link);
});
// Loads a style sheet, unless the page came with it. Never rejects: all works without it.
export const loadStyle = name => {
  if (!loads.has(name)) {
    const isThere = document.querySelector(`[rel=stylesheet][href*="${name}"]`);
    loads.set(name, isThere ? undefined : addStyle(name));
  }
  return loads.get(name);
};

// The module. Rejects if it could not be loaded.
export const load = async name => {
  const style = STYLES[name], module = import(`../on_demand/${name}.js`);
  if (style) await loadStyle(style);
  return module;
};

// Loads a module that is probably needed soon.
export const preload = name => { load(name).catch(() => {}); };
// The module, or undefined, with a notice, if it could not be loaded.
export const onDemand = async name => {
  try { return await load(name); } catch {
    notice("A part of the page could not be loaded. Try again.");
    return undefined;
  }
};

// Modules in on_demand/ are loaded when they are first needed: a page begins without them.
import { make, notice } from "./dom.js";

const STYLES = { palette: "palette", help: "palette" }; // module -> its style sheet
const loads = new Map(); // style sheet -> the promise of its load

const loadStyle = name => {
  const { href } = new URL(`../../css/${name}.css`, import.meta.url);
  const link = make("link", { rel: "stylesheet", href });
  const load = new Promise((resolve, reject) => {
    link.addEventListener("load", resolve);
    link.addEventListener("error", reject);
  });
  document.head.append(link);
  loads.set(name, load);
  return load;
};

// The module, or undefined, with a notice, if it could not be loaded.
export const onDemand = async name => {
  const style = STYLES[name];
  try {
    const module = import(`../on_demand/${name}.js`);
    if (style) await (loads.get(style) ?? loadStyle(style));
    return await module;
  } catch {
    loads.delete(style);
    notice("A part of the page could not be loaded. Reload the page.");
    return undefined;
  }
};

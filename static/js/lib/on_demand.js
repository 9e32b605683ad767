// Modules in on_demand/ are loaded when they are first needed: a page begins without them.
import { notice } from "./dom.js";

// The module, or undefined, with a notice, if it could not be loaded.
export const onDemand = async name => {
  try { return await import(`../on_demand/${name}.js`); } catch {
    notice("A part of the page could not be loaded. Reload the page.");
    return undefined;
  }
};

// When this tab becomes visible again, shows changes that another tab or device made meanwhile.
import { $ } from "./lib/dom.js";

const refresh = async () => {
  if (document.hidden || !$("#messages > .exchange")) return;
  try {
    (await import("./on_demand/refresh.js")).refresh();
  } catch { /* the server cannot be reached: streams and sends report it */ }
};
document.addEventListener("visibilitychange", refresh);
addEventListener("focus", refresh);

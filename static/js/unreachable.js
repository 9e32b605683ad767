// Notices about requests that do not reach Halt.
import { STARTS } from "./activity.js";
import { notice } from "./lib/dom.js";
import { route } from "./requests.js";
import { isStopper, reportLostStop } from "./stop.js";

const MESSAGES = "#composer, #sender, .editor";
const OTHERS = "#toast, #import, #change, .menu, .rename, #settings";

const report = (source, status) => {
  const server = `The server could not be reached${status ? ` (${status})` : ""}.`;
  if (isStopper(source)) reportLostStop(source);
  else if (source.matches(MESSAGES)) notice(`${server} Your message is still here: try again.`);
  else if (source.matches(`${STARTS}, [data-do]`) || source.closest(OTHERS)) {
    notice(`${server} Try again.`);
  }
};
route("*", {
  failed({ source }) { report(source); },
  // Halt's errors have an HX-Retarget header. An error without it is a whole page of a proxy in
  // front of Halt, which must not be swapped into the conversation.
  swap({ ctx, source, event }) {
    const { status, headers } = ctx.response ?? {};
    if (!(status >= 400) || headers.has("HX-Retarget")) return;
    event.preventDefault();
    if (!source.matches(".feed")) report(source, status); // feed.js handles those
  },
});

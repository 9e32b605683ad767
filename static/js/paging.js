// Loads a long conversation in parts: messages that are loaded above do not move the visible text.
import { $ } from "./lib/dom.js";
import { openConversation, route, succeeded } from "./requests.js";

const messages = $("#messages"), page = document.documentElement;
let anchor = null, top = 0;

route(".earlier", {
  swap({ source }) {
    anchor = source.nextElementSibling;
    if (!anchor) return;
    // turns off the browser's scroll anchoring, which would correct a second time
    page.style.overflowAnchor = "none";
    top = anchor.getBoundingClientRect().top;
  },
});
new MutationObserver(() => {
  if (!anchor) return;
  scrollBy({ top: anchor.getBoundingClientRect().top - top, behavior: "instant" });
  anchor = null;
  page.style.overflowAnchor = ""; // it corrects when the new messages get their real sizes
}).observe(messages, { childList: true });

// A message sent while the end is not loaded: the page reloads at the end of the conversation.
route("#composer", {
  response({ ctx }) {
    if (succeeded(ctx) && $(".later", messages)) openConversation(ctx);
  },
});

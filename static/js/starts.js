// Requests that start an answer. They name their streams' IDs, so that Stop needs no response.
import { STARTS, isBusy, sendingIds, setSending } from "./activity.js";
import { $, clearNotice, notice } from "./lib/dom.js";
import { newId } from "./lib/ids.js";
import { route } from "./requests.js";
import { startFollowing } from "./scroll.js";
import { openStream, cancelUnread } from "./stream_start.js";

const messages = $("#messages");
let current = null; // the context of the request under way; a swap may replace its source element

route("[data-do]", { // an action on one exchange of the conversation
  config({ ctx, source }) {
    const { conversation, prompt } = source.closest(".exchange").dataset;
    ctx.request.action = `/c/${conversation}/${source.dataset.do}`;
    ctx.request.body.set("prompt_id", prompt);
  },
});
route(".editor", {
  config({ ctx, source }) {
    ctx.request.body.set("edit_of", source.closest(".exchange").dataset.prompt);
  },
});
route(STARTS, {
  config({ ctx, source, event }) {
    const { body } = ctx.request;
    if (isBusy()) {
      event.preventDefault();
      if (source.matches(".editor")) {
        notice("An answer is still being written. Stop it first, or wait until it is complete.");
      }
      return;
    }
    const models = body.getAll("model"); // one answer per model
    setSending(source.dataset.ids?.split(" ") ?? (models.length ? models : [""]).map(newId));
    current = ctx;
    for (const id of sendingIds()) body.append("id", id);
    if (source.matches("#composer, #sender") && !$(":scope > .later", messages)) {
      body.set("after", $(":scope > .exchange:last-child", messages)?.dataset.prompt ?? "0");
    }
    clearNotice();
    startFollowing();
  },
});
route("*", {
  before({ ctx }) { if (ctx === current) ctx.fetch = openStream; },
  finished({ ctx }) {
    if (ctx !== current) return;
    setSending([]);
    current = null;
    cancelUnread();
  },
});

// The dialog with the settings of the conversation on the page.
import { $ } from "./lib/dom.js";
import { route, succeeded } from "./requests.js";
import { shownConversation } from "./sidebar/entries.js";

const panel = $("#settings");

$("#open-settings").addEventListener("click", async () => {
  const id = shownConversation(), model = encodeURIComponent($("#model").value);
  const url = `${id ? `/c/${id}` : ""}/settings?model=${model}`;
  await htmx.ajax("GET", url, { source: panel, target: panel, swap: "innerHTML" });
  if ($("form", panel) && !panel.open) panel.showModal();
});
panel.addEventListener("click", ({ target }) => {
  const prompt = $("#settings-prompt", panel);
  if (target.closest(".cancel") || target === panel) panel.close();
  else if (target.closest("#settings-reset")) {
    prompt.value = prompt.dataset.default;
    prompt.focus();
  }
});
panel.addEventListener("close", () => panel.replaceChildren());
route("#settings-form", {
  config({ ctx }) {
    ctx.request.action = $("#composer").getAttribute("hx-post").replace(/messages$/, "settings");
  },
  response({ ctx }) { if (succeeded(ctx)) panel.close(); },
});

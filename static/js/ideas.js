// The ideas of an empty chat: each begins a message, or opens the comparison of models.
import { $, $$ } from "./lib/dom.js";
import { listen } from "./lib/events.js";
import { onDemand } from "./lib/on_demand.js";
import { openPicker } from "./models.js";

const ideas = $$(".idea"), comparison = $("#compare-idea");

for (const idea of ideas) {
  idea.addEventListener("click", async () => {
    if (idea === comparison) openPicker(true);
    else (await onDemand("beginnings"))?.begin(idea);
  });
}
listen("listed", () => { // with a single model there is nothing to compare
  if (!comparison) return;
  comparison.hidden = $$("#model option:not([value=''])").length < 2;
  ideas.at(-1).hidden = !comparison.hidden;
});

// The ideas of an empty chat: each begins a message, or opens the comparison of models.
import { $, $$, setValue } from "./lib/dom.js";
import { listen } from "./lib/events.js";
import { openPicker } from "./models.js";

const prompt = $("#prompt"), ideas = $$(".idea"), comparison = $("#compare-idea");
const beginnings = ideas.map(({ dataset }) => dataset.text).filter(Boolean);

// Puts a beginning before the text of the field, in place of another idea's.
const begin = text => {
  const other = beginnings.find(beginning => prompt.value.startsWith(beginning)) ?? "";
  const rest = prompt.value.slice(other.length);
  setValue(prompt, text + rest);
  prompt.focus();
  prompt.setSelectionRange(text.length, text.length + rest.length);
};

for (const idea of ideas) {
  idea.addEventListener("click", () => {
    if (idea === comparison) openPicker(true);
    else begin(idea.dataset.text);
  });
}
listen("listed", () => { // with a single model there is nothing to compare
  if (!comparison) return;
  comparison.hidden = $$("#model option:not([value=''])").length < 2;
  ideas.at(-1).hidden = !comparison.hidden;
});

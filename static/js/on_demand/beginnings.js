// The ideas of an empty chat that begin a message.
import { $, $$, setValue } from "../lib/dom.js";

const prompt = $("#prompt");
const beginnings = $$(".idea").map(({ dataset }) => dataset.text).filter(Boolean);

// Puts the idea's words before the text of the field, in place of another idea's.
export const begin = ({ dataset }) => {
  const { text } = dataset;
  const other = beginnings.find(beginning => prompt.value.startsWith(beginning)) ?? "";
  const rest = prompt.value.slice(other.length);
  setValue(prompt, text + rest);
  prompt.focus();
  prompt.setSelectionRange(text.length, text.length + rest.length);
  if ("attach" in dataset) $("#attach").click();
};

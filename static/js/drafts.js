// Keeps the unsent text of the message field across a reload, for this tab only.
import { $, setValue } from "./lib/dom.js";
import { session } from "./lib/storage.js";

const MOST = 200_000; // characters
const prompt = $("#prompt");
// a new conversation has no other name yet
const currentKey = () => `halt.draft.${location.pathname}`;
let key = currentKey();

// Returns the draft and removes it from storage, so that a sent text is never restored.
const take = () => {
  const text = session.get(key);
  session.remove(key);
  return text ?? "";
};
const keep = () => {
  key = currentKey();
  if (prompt.value.trim() && prompt.value.length <= MOST) session.set(key, prompt.value);
};
addEventListener("pagehide", keep);
addEventListener("pageshow", take);
document.addEventListener("visibilitychange", () => (document.hidden ? keep : take)());
const draft = prompt.value || take();
if (draft) setValue(prompt, draft);

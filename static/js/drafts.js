// Keeps the unsent message of each conversation, and of a new one, until it is sent: over reloads,
// and for all tabs. A tab writes the draft only if it has changed the message itself.
import { messageParts, setMessage } from "./composer.js";
import { $ } from "./lib/dom.js";
import { local } from "./lib/storage.js";
import { shownConversation } from "./sidebar/entries.js";

const PREFIX = "halt.draft.";
const MOST = 200_000; // characters of a draft's typed text, and of its pasted texts
const COUNT = 50, TOTAL = 1_500_000; // drafts and their characters; the oldest are dropped
const WAIT_MS = 300; // after the last change
const prompt = $("#prompt");
let timer = 0;

const currentKey = () => PREFIX + (shownConversation() || "new");
const contentOf = parts => JSON.stringify([parts?.text ?? "", ...(parts?.pasted ?? [])]);
const EMPTY = contentOf(null);
let key = currentKey(); // of the message in the field
let known = contentOf(local.getJson(key)); // the draft in the storage, as this tab knows it

const prune = () => {
  const drafts = local.keys(PREFIX).map(name => {
    const text = local.get(name) ?? "";
    return { name, length: text.length, at: local.getJson(name)?.at ?? 0 };
  });
  drafts.sort((one, other) => other.at - one.at);
  let total = 0;
  drafts.forEach(({ name, length }, n) => {
    total += length;
    if (n >= COUNT || total > TOTAL) local.remove(name);
  });
};
const save = () => {
  clearTimeout(timer);
  if (key !== currentKey()) { // the first message gave a new chat its address
    if (contentOf(local.getJson(key)) === known) local.remove(key);
    key = currentKey();
    known = EMPTY;
  }
  const parts = messageParts(), content = contentOf(parts), { text, pasted } = parts;
  if (content === known) return;
  known = content;
  const isLong = text.length > MOST || pasted.join("").length > MOST;
  if (isLong || (!text.trim() && !pasted.length)) { local.remove(key); return; }
  local.set(key, JSON.stringify({ text, pasted, at: Date.now() }));
  prune();
};
const restore = () => {
  const draft = local.getJson(key);
  known = contentOf(draft);
  setMessage({ text: draft?.text ?? "", pasted: draft?.pasted ?? [] });
};

if (!prompt.value && known !== EMPTY) restore();
prompt.addEventListener("input", () => {
  clearTimeout(timer);
  // A sent message must not come back, not even from a tab that ends at once.
  if (contentOf(messageParts()) === EMPTY) save();
  else timer = setTimeout(save, WAIT_MS);
});
addEventListener("pagehide", save);
document.addEventListener("visibilitychange", () => { if (document.hidden) save(); });
// Another tab has changed or sent the draft that stands here unchanged.
addEventListener("storage", event => {
  if (event.key === key && contentOf(messageParts()) === known) restore();
});

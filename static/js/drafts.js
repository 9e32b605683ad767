// Keeps the unsent message of each conversation, and of a new one, until it is sent: over reloads,
// and for all tabs. A tab writes the draft only if it has changed the message itself.
import { sendingIds } from "./activity.js";
import { keptFile } from "./attach.js";
import { messageParts, setMessage } from "./composer.js";
import { $, notice } from "./lib/dom.js";
import { areFiles, isText, isTexts, local } from "./lib/storage.js";
import { shownConversation } from "./sidebar/entries.js";

const PREFIX = "halt.draft.";
const MOST = 500_000; // characters of a draft with its pasted texts
const COUNT = 50, TOTAL = 1_500_000; // drafts and their characters; the oldest are dropped
const WAIT_MS = 300; // after the last change
const prompt = $("#prompt");
let timer = 0, isLong = false; // whether the message is too long to be kept

const currentKey = () => PREFIX + (shownConversation() || "new");
const read = name => {
  const { text, pasted, files, at } = local.getJson(name) ?? {};
  return {
    text: isText(text) ? text : "", pasted: isTexts(pasted) ? pasted : [],
    files: areFiles(files) ? files : [], at: Number(at) || 0,
  };
};
const contentOf = ({ text, pasted, files }) => (
  JSON.stringify([text, pasted, files.map(({ id }) => id)])
);
const EMPTY = contentOf({ text: "", pasted: [], files: [] });
let key = currentKey(); // of the message in the field
let known = contentOf(read(key)); // the draft in the storage, as this tab knows it

const prune = () => {
  const drafts = local.keys(PREFIX).map(name => (
    { name, length: local.get(name)?.length ?? 0, at: read(name).at }
  ));
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
    if (contentOf(read(key)) === known) local.remove(key);
    key = currentKey();
    known = EMPTY;
  }
  const parts = messageParts(), content = contentOf(parts), { text, pasted } = parts;
  const files = parts.files.filter(({ id }) => id).map(keptFile);
  if (content === known) return;
  const wasLong = isLong;
  isLong = content.length > MOST;
  if (isLong) { // the last draft that was kept stays
    if (!wasLong) notice("This draft is too long to be kept over a reload.");
    return;
  }
  known = content;
  if (!text.trim() && !pasted.length && !files.length) { local.remove(key); return; }
  local.set(key, JSON.stringify({ text, pasted, files, at: Date.now() }));
  prune();
};
const restore = () => {
  const draft = read(key);
  known = contentOf(draft);
  setMessage(draft);
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
// Another tab has changed or sent the draft that stands here unchanged. Not if it is the draft of a
// new chat, and this tab has just made a conversation of its own new chat.
addEventListener("storage", event => {
  if (event.key !== key || key !== currentKey() || sendingIds().length) return;
  const parts = messageParts(), isThere = parts.files.every(({ id }) => id); // else it is uploaded
  if (isThere && contentOf(parts) === known) restore();
});

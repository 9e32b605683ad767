// Scrolling. The page follows the text while its reader is at the end. It never moves a reader who
// has scrolled up; a button leads back to the end, and says whether text has come since. A reload
// keeps the reader's place.
import { $, $$, touch } from "./lib/dom.js";
import { session } from "./lib/storage.js";
import { route } from "./requests.js";

const FAR = 160; // pixels of the page below the visible part from which on the button is shown
const HOLD = 200; // milliseconds after a key or a turn of the wheel in which the page stays
const HEAD = 64; // pixels at the top that the head covers
const UPWARDS = ["ArrowUp", "PageUp", "Home"];
const KEY = "halt.place";

const page = document.scrollingElement, messages = $("#messages"), button = $("#to-end");
let following = true;
let last = 0; // scroll position at the last check
let height = 0; // of the page at the last check
let timer = 0; // of the end of a hold

const below = () => page.scrollHeight - page.scrollTop - page.clientHeight;
// Not by a search, which would look through the whole conversation.
const isEndLoaded = () => !messages.lastElementChild?.matches(".later");
const isRunning = () => document.body.classList.contains("running");

const showButton = () => {
  const isFar = below() > FAR || !isEndLoaded();
  const isNew = isFar && (button.classList.contains("new")
    || (!following && page.scrollHeight > height && isRunning()));
  height = page.scrollHeight;
  if (button.hidden === isFar) button.hidden = !isFar;
  if (button.classList.contains("new") === isNew) return;
  button.classList.toggle("new", isNew);
  button.title = isNew ? "New text below" : "To the end";
  button.ariaLabel = isNew ? "New text below: to the end" : "To the end";
};
const scrollToEnd = () => {
  page.scrollTop = page.scrollHeight;
  last = page.scrollTop;
};
// After each change of the page's size, which a frame reports before it is drawn.
const stay = () => {
  if (following && !timer) scrollToEnd();
  showButton();
};
export const startFollowing = () => {
  following = true;
  requestAnimationFrame(stay); // not now: a layout would delay the request
};
// A scroll upwards by any means ends following, unless the page became shorter.
const check = () => {
  const top = page.scrollTop;
  if (top < last) following = below() < 2;
  else if (top > last && below() < 40) following = isEndLoaded();
  last = top;
  showButton();
};
addEventListener("scroll", check, { passive: true });
addEventListener("hashchange", () => { following = false; }); // the reader wants to see a footnote
const sizes = new ResizeObserver(stay);
sizes.observe($("main"));
sizes.observe($("body > footer"));
const resize = () => { // also when a phone shows its keyboard; comes before the scroll event
  check();
  stay();
};
addEventListener("resize", resize);
globalThis.visualViewport?.addEventListener("resize", resize);

// A scroll may begin with less than a pixel. So the page does not scroll by itself after a wheel or
// a key, nor while a pointer is down, until it is known whether the reader has scrolled.
const release = () => {
  timer = 0;
  check();
  stay();
};
const hold = (milliseconds = HOLD) => {
  clearTimeout(timer);
  timer = setTimeout(release, milliseconds);
};
addEventListener("wheel", event => { if (event.deltaY < 0) hold(); }, { passive: true });
addEventListener("keydown", ({ key, shiftKey }) => {
  if (UPWARDS.includes(key) || (key === " " && shiftKey)) hold();
}, true);
messages.addEventListener("pointerdown", () => hold(60_000), { passive: true });
for (const name of ["pointerup", "pointercancel", "blur"]) {
  addEventListener(name, () => { if (timer) hold(); }, { passive: true });
}

button.addEventListener("click", () => {
  if (!isEndLoaded()) {
    location.assign(location.pathname);
    return;
  }
  startFollowing();
  if (!touch.matches) $("#prompt").focus({ preventScroll: true }); // the button is hidden now
});

// --- the reader's place: a block of an exchange, and how far from the top it stands -----------
const BLOCKS = ".prompt, .answer > .text > div > *";
const blocksOf = exchange => [exchange, ...$$(BLOCKS, exchange)];
const isInView = element => element.getBoundingClientRect().bottom > HEAD;
const placeNow = () => {
  const exchange = $$(":scope > .exchange", messages).find(isInView);
  if (!exchange) return null;
  const blocks = blocksOf(exchange);
  const seen = blocks.findIndex((part, at) => at > 0 && isInView(part));
  const block = Math.max(seen, 0), { top } = blocks[block].getBoundingClientRect();
  return { path: location.pathname, prompt: exchange.dataset.prompt, block, top };
};
const findPlace = prompt => $(`:scope > [data-prompt="${CSS.escape(prompt)}"]`, messages);
const showPlace = ({ block, top }, exchange) => {
  const element = blocksOf(exchange)[block] ?? exchange;
  for (const part of [exchange, element]) part.classList.add("placed"); // laid out at its real size
  page.scrollTop += element.getBoundingClientRect().top - top;
  last = page.scrollTop;
  showButton();
};
let wanted = null; // the place, until the part of the conversation with it is loaded
const seekPlace = () => {
  if (!wanted) return;
  const exchange = findPlace(wanted.prompt), part = $(":scope > .earlier", messages);
  if (exchange) showPlace(wanted, exchange);
  if (exchange || !part) wanted = null;
  else htmx.trigger(part, "click");
};
route(".earlier", { finished: seekPlace });

history.scrollRestoration = "manual";
addEventListener("pagehide", () => {
  const place = following ? null : placeNow();
  if (place) session.set(KEY, JSON.stringify(place));
  else session.remove(KEY);
});
const keptPlace = () => {
  const [navigation] = performance.getEntriesByType("navigation");
  if (!["reload", "back_forward"].includes(navigation?.type)) return null;
  const place = session.getJson(KEY);
  return place?.path === location.pathname ? place : null;
};
wanted = keptPlace();
export const isPlaceKept = wanted !== null;
if (isPlaceKept || new URLSearchParams(location.search).has("at")) following = false;
if (!wanted) stay();
else if (findPlace(wanted.prompt)) seekPlace();
else addEventListener("DOMContentLoaded", seekPlace); // on the window: htmx starts before this

// Opens the page at the message that was searched for (?at=ID&q=WORDS), and marks the words in it.
import { $ } from "../lib/dom.js";
import { isPlaceKept } from "../scroll.js";

const WORD = /[\p{L}\p{N}\p{M}]+/gu;
// Scripts without spaces: words match anywhere in a text.
const UNSPACED = /[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}\p{sc=Thai}\p{sc=Laoo}\p{sc=Mymr}\p{sc=Khmr}]/u;

const rangeOf = (node, start, length) => {
  const range = new Range();
  range.setStart(node, start);
  range.setEnd(node, start + length);
  return range;
};
// Ranges in a text node: words that begin so; in scripts without spaces anywhere.
const rangesOf = (node, words) => {
  const { data } = node, ranges = [];
  for (const { 0: match, index } of data.matchAll(WORD)) {
    const begins = word => !UNSPACED.test(word) && match.toLowerCase().startsWith(word);
    if (words.some(begins)) ranges.push(rangeOf(node, index, match.length));
  }
  for (const word of words.filter(term => UNSPACED.test(term))) {
    for (let at = data.indexOf(word); at >= 0; at = data.indexOf(word, at + word.length)) {
      ranges.push(rangeOf(node, at, word.length));
    }
  }
  return ranges;
};
const wordsOf = text => text.normalize().toLowerCase().match(WORD) ?? [];

const mark = (roots, words) => {
  const marks = new Highlight();
  for (const root of roots) {
    const texts = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      for (const range of rangesOf(texts.currentNode, words)) marks.add(range);
    }
  }
  CSS.highlights.set("found", marks);
  if (isPlaceKept) return;
  const where = [...marks][0]?.getBoundingClientRect();
  if (where && where.bottom > innerHeight * 0.7) {
    scrollBy({ top: where.top - innerHeight / 3, behavior: "instant" });
  }
};
const open = (exchange, id, words) => {
  const isBeside = exchange.dataset.answers.includes(" "), others = $(".others", exchange);
  const isPrompt = exchange.dataset.prompt === id;
  const target = isPrompt ? $(".prompt", exchange) : isBeside ? exchange : $(".answer", exchange);
  if (others && target === exchange) others.open = true;
  target.classList.add("found");
  target.closest(".exchange").classList.add("placed"); // laid out at its real size
  target.tabIndex = -1;
  if (!isPlaceKept) {
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "start", behavior: "instant" });
  }
  const parts = [$(":scope > .files", target), $(".text", target)].filter(Boolean);
  if (words.length && CSS.highlights) mark(target === exchange ? [target] : parts, words);
};

const parameters = new URLSearchParams(location.search), id = parameters.get("at") ?? "";
const at = CSS.escape(id);
const exchange = at && $(`#messages [data-prompt="${at}"], #messages [data-answers~="${at}"]`);
if (exchange) open(exchange, id, wordsOf(parameters.get("q") ?? ""));

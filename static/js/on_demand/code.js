// The buttons of code blocks: Copy, Wrap where a line is too long, Download where there is a name.
import { $, $$, announce, icon, make, parse } from "../lib/dom.js";
import { keepLook } from "../lib/storage.js";
import { watch } from "../scrollers.js";

const root = document.documentElement;
const isWrapped = () => "wrap" in root.dataset;
const WRAP_ICON = '<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d="m16 16-3 3 3 3'
  + 'M3 12h14.5a1 1 0 0 1 0 7H13M3 19h6M3 5h18"/></svg>'; // Lucide's `wrap-text`

const button = (className, word, drawn) => make(
  "button", { type: "button", className },
  ...parse(drawn), make("span", { textContent: word }),
);

// Whether a line is wider than its box, or would be if it did not wrap.
const isTooLong = pre => {
  if (!isWrapped()) return pre.scrollWidth > pre.clientWidth;
  const { lineHeight, paddingTop, paddingBottom } = getComputedStyle(pre);
  const lines = pre.textContent.replace(/\n$/, "").split("\n").length;
  const padding = parseFloat(paddingTop) + parseFloat(paddingBottom);
  return pre.scrollHeight > (lines + 0.5) * parseFloat(lineHeight) + padding;
};
const showWraps = () => {
  for (const wrap of $$(".code-bar .wrap")) wrap.ariaPressed = String(isWrapped());
};
const toggleWrap = wrap => {
  const before = wrap.getBoundingClientRect().top, value = isWrapped() ? "" : "on";
  keepLook("wrap", value);
  showWraps();
  announce(value ? "Long lines wrap." : "Long lines scroll.");
  // Blocks above have another height.
  scrollBy({ top: wrap.getBoundingClientRect().top - before, behavior: "instant" });
  watch(document);
};
const download = ({ name }, code) => {
  const text = code.endsWith("\n") ? code : `${code}\n`;
  const href = URL.createObjectURL(new Blob([text], { type: "application/octet-stream" }));
  make("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000); // the browser may ask where to save it
};

const addButtons = bar => {
  const label = make("span", { textContent: bar.textContent });
  const copy = button("copy", "Copy", icon("copy")), wrap = button("wrap", "Wrap", WRAP_ICON);
  copy.dataset.copy = "code";
  Object.assign(wrap, {
    title: "Wrap long lines", ariaLabel: "Wrap", ariaPressed: String(isWrapped()),
  });
  wrap.addEventListener("click", () => toggleWrap(wrap));
  bar.replaceChildren(label, wrap, copy);
  if (!bar.dataset.name) return;
  const save = button("download", "Download", icon("download"));
  save.title = save.ariaLabel = `Download ${bar.dataset.name}`;
  save.addEventListener("click", () => {
    download(bar.dataset, $("code", bar.parentElement).textContent);
  });
  copy.before(save);
};

// Adds the buttons to blocks that have none. All are measured first: one layout instead of many.
export const equip = boxes => {
  const areTooLong = boxes.map(box => isTooLong($("pre", box)));
  boxes.forEach((box, at) => {
    const bar = $(".code-bar", box);
    if (!$("button", bar)) addButtons(bar);
    $(".wrap", bar).hidden = !areTooLong[at];
  });
};

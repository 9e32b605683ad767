// The conversation list refreshes after a change here, when the page becomes visible, and while an
// answer runs.
import { $, $$, parse } from "../lib/dom.js";
import { listen } from "../lib/events.js";
import { route, succeeded } from "../requests.js";
import { linkIn, list, shownConversation, sidebar } from "./entries.js";
import { fillTimes } from "./times.js";

const menu = $("#item-menu");
const RUNNING_MS = 3000; // between two refreshes while an answer runs
// Refreshes after the first answer, after which a title may still follow.
const FIRST_MS = [1000, 2000, 5000, 10_000, 20_000];

const setPageTitle = () => { // the list has the current title of the conversation on the page
  const title = $('[aria-current="page"] .title', list)?.textContent;
  if (title) document.title = `${title} · Halt`;
};
new MutationObserver(() => {
  fillTimes(sidebar);
  setPageTitle();
}).observe(sidebar, { childList: true, subtree: true });
fillTimes(sidebar);

// --- merging the server's list into the page -----------------------------------------------------
const drawn = new WeakMap(); // entry -> its HTML as the server sent it
for (const entry of list.children) drawn.set(entry, entry.outerHTML);

// The entry on the page if it is the same or its title is being edited; else the new one.
const keptOf = fresh => {
  const old = document.getElementById(fresh.id), source = fresh.outerHTML;
  if (old && (drawn.get(old) === source || $("form", old))) return old;
  drawn.set(fresh, source);
  return fresh;
};
const restoreFocus = (focused, entryId, className) => {
  if (focused.isConnected) return;
  const entry = document.getElementById(entryId);
  (className ? $(`.${className}`, entry) : linkIn(entry))?.focus({ preventScroll: true });
};
const merge = html => {
  const first = parse(html), more = first.at(-1)?.matches(".further") ? first.pop() : null;
  // older entries are not in this response
  const oldest = more ? Number(first.at(-1).dataset.at) : -Infinity;
  const focused = list.contains(document.activeElement) && document.activeElement;
  const place = focused && [focused, focused.closest("li").id, focused.className];
  const wanted = first.map(keptOf), ids = new Set(wanted.map(({ id }) => id));
  const isOlder = entry => entry.dataset.at < oldest && !ids.has(entry.id);
  const older = [...list.children].filter(isOlder);
  const end = older.length ? $(":scope > .further", list) : more;
  const whole = [...wanted, ...older, ...(end ? [end] : [])];
  whole.forEach((entry, n) => {
    if (list.children[n] !== entry) list.insertBefore(entry, list.children[n] ?? null);
  });
  while (list.children.length > whole.length) list.lastElementChild.remove();
  htmx.process(list);
  if (place) restoreFocus(...place);
};

// --- refreshing ----------------------------------------------------------------------------------
let timer = 0, delays = [], requests = 0, shownHtml = "";
const schedule = () => {
  clearTimeout(timer);
  const wait = $("[data-running]", list) ? RUNNING_MS : delays.shift();
  if (wait && !document.hidden) timer = setTimeout(refresh, wait);
};
const refresh = async () => {
  if (document.hidden) return;
  const turn = ++requests;
  clearTimeout(timer);
  try { // low priority: a browser has six connections to a host, and Stop must not wait for this
    const url = `/conversations?current=${shownConversation()}`;
    const response = await fetch(url, { headers: { "HX-Request": "true" }, priority: "low" });
    const html = await response.text();
    if (turn !== requests) return;
    if (response.ok && html !== shownHtml && !menu.matches(":popover-open")) {
      merge(html);
      shownHtml = html;
    }
  } catch { /* the server cannot be reached: streams and sends report it */ }
  if (turn === requests) schedule();
};
export const refreshChanged = () => {
  delays = $$(".exchange").length === 1 ? [...FIRST_MS] : FIRST_MS.slice(0, 1);
  shownHtml = "";
  refresh();
};
document.addEventListener("visibilitychange", refresh);
addEventListener("focus", refresh);
listen("ended", refreshChanged);
route("*", {
  finished({ ctx }) { if (ctx.request.method === "POST" && succeeded(ctx)) refreshChanged(); },
});
schedule();

// The conversation list refreshes after a change here or in another tab, when the page becomes
// visible, often while an answer runs, and now and then for changes on other devices.
import { $, $$, notice, parse } from "../lib/dom.js";
import { listen } from "../lib/events.js";
import { fetchHtml } from "../lib/fetch_html.js";
import { route, succeeded } from "../requests.js";
import {
  head, isArchive, linkIn, list, openChat, shownConversation, sidebar, titleOf,
} from "./entries.js";
import { group } from "./groups.js";
import { fillTimes } from "./times.js";

const menu = $("#item-menu");
// Between two refreshes: while an answer runs, and otherwise.
const RUNNING_MS = 3000, IDLE_MS = 30_000;
// Refreshes after the first answer, after which a title may still follow.
const FIRST_MS = [1000, 2000, 5000, 10_000, 20_000];

const setPageState = () => { // the list has the current title and state of the open chat
  const entry = openChat(), title = entry !== head && titleOf(entry);
  if (!title) return;
  document.title = `${title} · Halt`;
  $("h1", head).textContent = title;
  for (const state of ["pinned", "archived"]) {
    head.toggleAttribute(`data-${state}`, state in entry.dataset);
  }
};
new MutationObserver(() => {
  fillTimes(sidebar);
  setPageState();
  group();
}).observe(sidebar, { childList: true, subtree: true });
fillTimes(sidebar);

// --- merging the server's list into the page -----------------------------------------------------
const drawn = new WeakMap(); // entry -> its HTML as the server sent it
for (const entry of list.children) drawn.set(entry, entry.outerHTML);

// The entry on the page if it is the same or its title is being edited; else the new one.
const keptOf = fresh => {
  const old = document.getElementById(fresh.id), source = fresh.outerHTML;
  if (old && (drawn.get(old) === source || $("form", old))) {
    old.hidden = false;
    return old;
  }
  drawn.set(fresh, source);
  return fresh;
};
// A moved element has lost the focus, a replaced one is gone.
const restoreFocus = (focused, entryId, className) => {
  if (document.activeElement === focused) return;
  const entry = document.getElementById(entryId);
  const again = focused.isConnected ? focused : $(`.${className || "none"}`, entry);
  (again ?? linkIn(entry) ?? $("#new-here")).focus({ preventScroll: true });
};
// Entries of the page that are older than those of the response, the newest first. Those that were
// pinned, and are no longer, have their place among them as far as the list is loaded.
const olderThan = (oldest, ids) => {
  const rest = $$(":scope > [data-id]", list).filter(({ id }) => !ids.has(id));
  const last = Number(rest.findLast(({ dataset }) => !("pinned" in dataset))?.dataset.at ?? NaN);
  const end = $(":scope > .further", list) ? last : -Infinity;
  const older = rest.filter(({ dataset }) => {
    const at = Number(dataset.at);
    return at < oldest && (!("pinned" in dataset) || at > end);
  });
  for (const entry of older) delete entry.dataset.pinned;
  return older.sort((a, b) => b.dataset.at - a.dataset.at);
};
const merge = html => {
  const fresh = parse(html), more = fresh.find(element => element.matches(".further"));
  const first = fresh.filter(({ dataset }) => dataset.id);
  // older entries are not in this response
  const oldest = more ? Number(first.at(-1).dataset.at) : -Infinity;
  const focused = list.contains(document.activeElement) && document.activeElement;
  const place = focused && [focused, focused.closest("li").id, focused.classList[0]];
  const wanted = first.map(keptOf);
  const older = olderThan(oldest, new Set(wanted.map(({ id }) => id)));
  const end = older.length ? $(":scope > .further", list) : more;
  let next = list.firstElementChild;
  const skipDays = () => { while (next?.matches(".day")) next = next.nextElementSibling; };
  for (const entry of [...wanted, ...older, ...(end ? [end] : [])]) {
    skipDays();
    if (entry === next) next = next.nextElementSibling;
    else {
      list.insertBefore(entry, next);
      htmx.process(entry);
    }
  }
  while (next) {
    const gone = next;
    next = next.nextElementSibling;
    if (!gone.matches(".day")) gone.remove();
  }
  group();
  if (place) restoreFocus(...place);
};

// --- refreshing ----------------------------------------------------------------------------------
let timer = 0, delays = [], requests = 0, shownHtml = "";
const schedule = () => {
  clearTimeout(timer);
  const wait = $("[data-running]", list) ? RUNNING_MS : delays.shift() ?? IDLE_MS;
  if (!document.hidden) timer = setTimeout(refresh, wait);
};
// Returns whether the server has answered.
const refresh = async () => {
  if (document.hidden) return true;
  const turn = ++requests;
  clearTimeout(timer);
  let isAnswered = false;
  try { // low priority: a browser has six connections to a host, and Stop must not wait for this
    const url = `/conversations?current=${shownConversation()}${isArchive() ? "&archived=1" : ""}`;
    const response = await fetchHtml(url, { priority: "low" });
    const html = await response.text();
    if (turn !== requests) return true;
    isAnswered = response.ok;
    if (response.ok && html !== shownHtml && !menu.matches(":popover-open")) {
      merge(html);
      shownHtml = html;
    }
  } catch { /* the server cannot be reached: streams and sends report it */ }
  if (turn === requests) schedule();
  return isAnswered;
};
const otherTabs = new BroadcastChannel("halt-list");
otherTabs.addEventListener("message", () => {
  delays = FIRST_MS.slice(0, 1);
  refresh();
});
export const refreshChanged = () => {
  delays = $$(".exchange").length === 1 ? [...FIRST_MS] : FIRST_MS.slice(0, 1);
  shownHtml = "";
  otherTabs.postMessage("");
  return refresh();
};
// Show the archive in place of the list, or the list again. Returns whether that was possible.
export const showArchive = async isShown => {
  const before = [...list.childNodes];
  const show = (isArchived, ...entries) => {
    list.toggleAttribute("data-archived", isArchived);
    $("#archive-head").hidden = !isArchived;
    shownHtml = "";
    list.replaceChildren(...entries);
  };
  list.ariaBusy = "true";
  show(isShown);
  const isDone = await refresh();
  if (!isDone) {
    show(!isShown, ...before);
    notice("The server could not be reached. Try again.");
  }
  list.ariaBusy = null;
  group();
  return isDone;
};
document.addEventListener("visibilitychange", refresh);
addEventListener("focus", refresh);
listen("ended", refreshChanged);
route("*", {
  finished({ ctx }) { if (ctx.request.method === "POST" && succeeded(ctx)) refreshChanged(); },
});
schedule();

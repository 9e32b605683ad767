// The connections that answers' text comes over (SSE), and what the page does when one breaks off.
import { $ } from "./lib/dom.js";
import { markReceived } from "./elapsed.js";
import { preload } from "./lib/on_demand.js";
import { route } from "./requests.js";

const connections = new Map(); // feed element's ID -> its SSE connection
const closed = new Set(); // IDs of feed elements that show no more events
const streamOf = feed => feed.id.slice("feed-".length);

export const feedUrl = feed => `/streams/${streamOf(feed)}/page?after=${feed.dataset.after}`;
export const setConnectionLost = isLost => {
  $("#connection").hidden = !isLost;
  document.body.classList.toggle("offline", isLost);
};

// The last event of an answer that the page has shown.
export const shownEvent = answer => (
  connections.get(`feed-${answer.dataset.stream}`)?.shownId || $(".feed", answer).dataset.after
);

// Closes an answer's connection for good. A browser has six connections to a host; Stop needs one.
export const closeFeed = answer => {
  const id = `feed-${answer.dataset.stream}`, connection = connections.get(id);
  closed.add(id);
  if (!connection) return;
  connection.config.reconnect = false;
  connection.reader?.cancel();
  connection.delayCanceller?.();
};

const connect = feed => { // by a GET, which htmx repeats after a failure
  if (!feed.isConnected || closed.has(feed.id)) return;
  const fresh = feed.cloneNode(false); // htmx connects an element once
  delete fresh.dataset.htmxPowered;
  fresh.setAttribute("hx-sse:connect", feedUrl(feed));
  feed.replaceWith(fresh);
  htmx.process(fresh);
};
const retryFeed = feed => {
  setConnectionLost(true);
  setTimeout(connect, 1000, feed);
};

route(".feed", {
  refused({ source }) { retryFeed(source); },
  failed({ source }) { retryFeed(source); },
});
document.addEventListener("htmx:sse:after:connection", event => {
  preload("smooth");
  connections.set(event.target.id, event.detail.connection);
  setConnectionLost(false);
});
document.addEventListener("htmx:sse:error", ({ detail }) => {
  setConnectionLost(true);
  if (detail.status === 401) location.reload(); // to the sign-in
});
document.addEventListener("htmx:sse:close", event => {
  const feed = event.target, { connection, reason } = event.detail;
  connections.delete(feed.id);
  if (reason !== "ended" || feed.hasAttribute("hx-sse:connect")) return;
  feed.dataset.after = connection.shownId ?? feed.dataset.after; // the POST's stream broke off
  connect(feed);
});
document.addEventListener("htmx:sse:before:message", event => {
  const feed = event.target, { connection, message } = event.detail;
  if (closed.has(feed.id)) { event.preventDefault(); return; }
  if (connection.shownId !== message.id) markReceived(streamOf(feed));
  connection.shownId = message.id;
});

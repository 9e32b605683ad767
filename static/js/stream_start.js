// The response to a POST that starts an answer is the answer's stream. htmx receives the first
// message as if it were the whole response; the feed element in that message reads the rest.
import { $$ } from "./lib/dom.js";
import { STARTS } from "./activity.js";
import { feedUrl } from "./feed.js";
import { route } from "./requests.js";

const unread = new Map(); // ID of the feed element -> the rest of its stream

// Reads to the end of the first message. Returns the bytes read so far and the message's length.
const readFirst = async reader => {
  let bytes = new Uint8Array(), end = -1;
  while (end < 0) {
    const { done, value } = await reader.read();
    if (done) throw new TypeError("The stream broke off in its first message.");
    const longer = new Uint8Array(bytes.length + value.length);
    longer.set(bytes);
    longer.set(value, bytes.length);
    bytes = longer;
    end = new TextDecoder("latin1").decode(bytes).indexOf("\n\n"); // a byte is a character here
  }
  return { bytes, end };
};

// Replaces `fetch` for such a request.
export const openStream = async (action, request) => {
  const response = await fetch(action, request), headers = new Headers(response.headers);
  if (!headers.get("Content-Type")?.startsWith("text/event-stream")) return response;
  const reader = response.body.getReader(), { bytes, end } = await readFirst(reader);
  const body = new ReadableStream({
    start(controller) {
      if (bytes.length > end + 2) controller.enqueue(bytes.subarray(end + 2));
    },
    async pull(controller) {
      const { done, value } = await reader.read();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    cancel: reason => reader.cancel(reason),
  });
  unread.set(`feed-${headers.get("X-Stream-Id")}`, { body, cancel: () => reader.cancel() });
  headers.set("Content-Type", "text/html");
  const lines = new TextDecoder().decode(bytes.subarray(0, end)).split("\n");
  const data = lines.filter(line => line.startsWith("data: ")).map(line => line.slice(6));
  return new Response(data.join("\n"), { status: response.status, headers });
};

// Closes the streams whose feed elements did not come onto the page.
export const cancelUnread = () => {
  for (const { cancel } of unread.values()) cancel();
  unread.clear();
};

// The server limits a session's streams over HTTP/1.1, where a browser has few connections. If the
// browser does not know the protocol, the header is empty and the server assumes HTTP/1.1.
const protocol = performance.getEntriesByType("navigation")[0]?.nextHopProtocol ?? "";
route(`.feed, ${STARTS}`, {
  config({ ctx }) { ctx.request.headers["Halt-Protocol"] = protocol; }, // also used for reconnects
});

route(".feed", {
  before({ ctx, source }) {
    const rest = unread.get(source.id);
    if (!rest) return;
    unread.delete(source.id);
    ctx.request.signal.addEventListener("abort", rest.cancel);
    ctx.fetch = async () => new Response(
      rest.body, { headers: { "Content-Type": "text/event-stream" } },
    );
  },
});
document.addEventListener("htmx:after:process", event => {
  for (const feed of unread.size ? $$(".feed", event.target) : []) {
    if (unread.has(feed.id)) htmx.ajax("GET", feedUrl(feed), { source: feed });
  }
});

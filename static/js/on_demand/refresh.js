// Shows changes that another tab or device made to this conversation. An answer that is still
// running streams here, too.
import { conversationId } from "../activity.js";
import { $, $$, announce, parse } from "../lib/dom.js";
import { emit } from "../lib/events.js";
import { fetchHtml } from "../lib/fetch_html.js";

const messages = $("#messages");
const exchanges = () => $$(":scope > .exchange", messages);
// The page does not change while a message is sent, a stream runs, a message is edited or a request
// is under way.
const BUSY = '.sending, :has(.answer[data-state="running"], .editor, .rewriter, '
  + "#messages .htmx-request, #messages > .later)";
const mustNotChange = () => document.hidden || document.body.matches(BUSY);
const mark = exchange => {
  const { prompt, answers, edited } = exchange.dataset;
  const states = $$(".answer", exchange).map(({ dataset }) => [dataset.stream, dataset.state]);
  return JSON.stringify([prompt, answers, edited, ...states]);
};

// Replaces all exchanges from the first one that differs.
const replaceFrom = (first, html) => {
  const received = parse(html), pageExchanges = exchanges();
  const old = pageExchanges.slice(pageExchanges.indexOf(first));
  const isDifferent = (exchange, n) => !old[n] || mark(exchange) !== mark(old[n]);
  const different = received.findIndex(isDifferent);
  const kept = different < 0 ? received.length : different;
  if (kept === received.length && kept === old.length) return;
  for (const exchange of old.slice(kept)) exchange.remove();
  const added = received.slice(kept);
  messages.append(...added);
  for (const exchange of added) htmx.process(exchange);
  announce("The conversation changed in another tab or device.");
  emit("updated");
};
let isRefreshing = false;
export const refresh = async () => {
  const before = exchanges(), last = before.at(-1);
  if (isRefreshing || !last || mustNotChange()) return;
  isRefreshing = true;
  try { // low priority: a browser has six connections to a host, and Stop must not wait for this
    for (const from of new Set([last, before[0]])) {
      const url = `/c/${conversationId()}/from?prompt_id=${from.dataset.prompt}`;
      const response = await fetchHtml(url, { priority: "low" });
      const html = (await response.text()).trim();
      if (!response.ok || mustNotChange()) return;
      if (exchanges().at(-1) !== last || !from.isConnected) return;
      if (html) { replaceFrom(from, html); return; }
    }
    location.reload(); // the conversation differs from its first exchange on
  } catch { /* the server cannot be reached: streams and sends report it */ }
  finally { isRefreshing = false; }
};

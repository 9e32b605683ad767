// The router of htmx's request events. A module registers what it does at some elements' requests:
//
//   route("#composer, .editor", { config({ ctx, source, event }) { … }, finished({ ctx }) { … } });
//
// The selector is of the element whose request it is, or "*" for all. Handlers of one event run in
// the order of registration, which is the order of the imports in main.js. The hooks, in order of
// time:
//   config    the request can be changed: ctx.request; event.preventDefault() cancels it
//   before    it is about to be sent: ctx.fetch can be replaced
//   swap      its response is about to be swapped in; event.preventDefault() leaves it out
//   response  its response has arrived: ctx.response, ctx.text
//   refused   its response has a status of 400 or more
//   failed    no response has arrived; not called for requests that the page aborted
//   swapped   the page has been changed
//   finished  the request is over in any case
const EVENTS = {
  config: "htmx:config:request",
  before: "htmx:before:request",
  swap: "htmx:before:swap",
  response: "htmx:after:request",
  refused: "htmx:response:error",
  failed: "htmx:error",
  swapped: "htmx:finally:swap",
  finished: "htmx:finally:request",
};
// hook -> [selector, handler]
const routes = new Map(Object.keys(EVENTS).map(hook => [hook, []]));

export const route = (selector, handlers) => {
  for (const [hook, handler] of Object.entries(handlers)) {
    routes.get(hook).push([selector, handler]);
  }
};
export const succeeded = ctx => ctx.response?.status < 400;
// Whether the response is the error with this code.
export const hasCode = (ctx, code) => Boolean(ctx.text?.includes(`data-code="${code}"`));
// Loads the conversation that a message was sent to, at its end.
export const openConversation = ctx => {
  location.assign(ctx.request.action.replace(/\/messages$/, ""));
};

// context -> the element whose request it is: after a swap, htmx names the element that replaced it
const sources = new WeakMap();

const dispatch = (hook, event) => {
  const { ctx, error } = event.detail;
  if (!ctx || error?.name === "AbortError") return;
  if (!sources.has(ctx)) sources.set(ctx, ctx.sourceElement);
  const source = sources.get(ctx);
  if (!source?.matches) return; // the document
  for (const [selector, handler] of routes.get(hook)) {
    if (selector !== "*" && !source.matches(selector)) continue;
    try {
      handler({ ctx, source, event });
    } catch (fault) { reportError(fault); } // the other handlers still run
  }
};
for (const [hook, name] of Object.entries(EVENTS)) {
  document.addEventListener(name, event => dispatch(hook, event));
}

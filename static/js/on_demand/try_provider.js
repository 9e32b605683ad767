// The results of Try as they come, while what was typed stays in its fields. Without this script
// the server's page has all of them.
import { $, $$, make, parse } from "../lib/dom.js";

const form = $("#provider-form"), button = $("[value=try]", form), cancel = $("#cancel-trial");
const results = $("#trial");
const LOST = "The results broke off. Try again.";
let running = null; // aborts the request of the trial that runs

const clearFault = () => {
  for (const place of $$(".field-fault, .fault, .note", form)) place.remove();
  for (const field of $$("[aria-invalid]", form)) field.removeAttribute("aria-invalid");
};

// An error of what was typed: below its field, else in place of the results.
const showFault = ({ message, field }) => {
  const place = $(`[name="${field === "headers" ? "header_name" : field}"]`, form);
  if (!place || place.type === "hidden") {
    results.append(make("li", { className: "end", textContent: message }));
    return;
  }
  const below = place.closest("fieldset")?.lastElementChild ?? place;
  const fault = make("p", { className: "field-fault", id: `fault-${field}`, textContent: message });
  below.after(fault);
  place.closest("details.rare")?.setAttribute("open", "");
  place.setAttribute("aria-invalid", "true");
  place.setAttribute("aria-describedby", [fault.id, place.getAttribute("aria-describedby")]
    .filter(Boolean).join(" "));
  place.focus();
};

// Calls `take` with the data of each event of the response, until its end.
const readEvents = async (response, take) => {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) take(event.slice(6));
  }
};

const run = async () => {
  running = new AbortController();
  const { signal } = running;
  let hasEnd = false;
  clearFault();
  results.replaceChildren(make("li", { className: "wait", textContent: "Trying…" }));
  const [wait] = results.children;
  try {
    const response = await fetch(button.formAction, {
      method: "POST", body: new URLSearchParams(new FormData(form, button)), signal,
      headers: { Accept: "text/event-stream" },
    });
    if (response.ok) {
      await readEvents(response, html => {
        const [item] = parse(html);
        hasEnd = item.matches(".end");
        wait.before(item);
        results.scrollIntoView({ block: "nearest" });
      });
    } else {
      showFault((await response.json()).error);
      hasEnd = true;
    }
  } catch { /* told below */ }
  wait.remove();
  const words = signal.aborted ? "Cancelled." : hasEnd ? "" : LOST;
  if (words) results.append(make("li", { className: "end", textContent: words }));
  running = null;
};

const show = isRunning => {
  cancel.hidden = !isRunning;
  button.setAttribute("aria-disabled", isRunning);
  if (!isRunning && document.activeElement === document.body) button.focus();
};

form.addEventListener("submit", async event => {
  if (event.submitter !== button) return;
  event.preventDefault();
  if (running) return;
  show(true);
  await run();
  show(false);
});
cancel.addEventListener("click", () => {
  running?.abort();
  button.focus();
});

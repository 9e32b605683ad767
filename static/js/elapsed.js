// Times that count up: how long the model has been silent, and how long a step takes.
import { $, $$ } from "./lib/dom.js";

const SILENT = 2; // seconds without a new event after which the page shows that the model is silent
const QUIET = 10; // seconds without a new event after which a Stop button appears beside it

const messages = $("#messages");
const two = number => String(number).padStart(2, "0");
const clock = seconds => {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return minutes ? `${minutes}:${two(seconds % 60)}` : `${seconds} s`;
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}`;
};

// An event of this stream has arrived.
export const markReceived = stream => {
  // fast lookup: an answer may have thousands of elements
  const silence = document.getElementById(`silence-${stream}`);
  if (!silence) return;
  silence.lastElementChild.since = performance.now();
  silence.hidden = true;
  if (!silence.classList.contains("first")) return;
  silence.classList.remove("first");
  silence.firstElementChild.textContent = "No text for";
};

setInterval(() => {
  // Only the last exchange can have a running answer.
  for (const elapsed of $$(".elapsed", messages.lastElementChild ?? messages)) {
    elapsed.since ??= performance.now() - 1000 * elapsed.dataset.age;
    const seconds = Math.floor((performance.now() - elapsed.since) / 1000);
    const around = elapsed.parentElement, isFirst = around.matches(".first");
    elapsed.textContent = `${isFirst ? "," : ""} ${clock(seconds)}`;
    if (!around.matches(".silence")) continue;
    around.hidden = !isFirst && seconds < SILENT;
    around.closest(".answer").classList.toggle("quiet", seconds >= QUIET);
  }
}, 250);

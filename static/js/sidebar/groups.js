// The headings of the list: pinned, and the days of last use in the browser's time zone. The server
// makes them in UTC.
import { $$, make } from "../lib/dom.js";
import { entries, isArchive, list } from "./entries.js";

const AGES = [[0, "Today"], [1, "Yesterday"], [7, "Last 7 days"], [30, "Last 30 days"]]; // in days
const LATE_MS = 50; // after midnight
const MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August",
  "September", "October", "November", "December"]; // `Intl` took 14 ms when a page opened

const midnight = (now, days) => new Date(
  now.getFullYear(), now.getMonth(), now.getDate() + days,
).getTime();

// A function from an entry to its heading.
const headingsOf = now => {
  const starts = AGES.map(([days, text]) => [midnight(now, -days), text]);
  return ({ dataset }) => {
    if ("pinned" in dataset && !isArchive()) return "Pinned";
    const ms = Number(dataset.at) * 1000, age = starts.find(([start]) => ms >= start);
    if (age) return age[1];
    const date = new Date(ms), year = date.getFullYear(), month = MONTHS[date.getMonth()];
    return year === now.getFullYear() ? month : `${month} ${year}`;
  };
};

export const group = () => {
  const headingOf = headingsOf(new Date()), kept = new Set();
  let last = "";
  const all = entries();
  list.classList.toggle("empty", !all.length && !list.ariaBusy);
  for (const entry of all) {
    const text = headingOf(entry);
    if (text === last) continue;
    last = text;
    let day = entry.previousElementSibling;
    if (!day?.matches(".day") || day.textContent.trim() !== text) {
      day = make("li", { className: "day" }, make("h2", { textContent: text }));
      entry.before(day);
    }
    kept.add(day);
  }
  for (const day of $$(":scope > .day", list)) if (!kept.has(day)) day.remove();
};

const groupAtMidnight = () => {
  const now = new Date();
  setTimeout(() => {
    group();
    groupAtMidnight();
  }, midnight(now, 1) - now + LATE_MS);
};
groupAtMidnight();
document.addEventListener("visibilitychange", group); // timers stop while a computer sleeps
group();

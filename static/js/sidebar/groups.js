// The headings of the list: pinned, and the days of last use in the browser's time zone. The server
// makes them in UTC.
import { $$, make } from "../lib/dom.js";
import { entries, isArchive, list } from "./entries.js";

const AGES = [[0, "Today"], [1, "Yesterday"], [7, "Last 7 days"], [30, "Last 30 days"]]; // in days
const LATE_MS = 50; // after midnight
const month = new Intl.DateTimeFormat("en", { month: "long" });
const monthOfYear = new Intl.DateTimeFormat("en", { month: "long", year: "numeric" });

const midnight = (now, days) => new Date(
  now.getFullYear(), now.getMonth(), now.getDate() + days,
).getTime();

// A function from an entry to its heading.
const headingsOf = now => {
  const starts = AGES.map(([days, text]) => [midnight(now, -days), text]), months = new Map();
  return ({ dataset }) => {
    if ("pinned" in dataset && !isArchive()) return "Pinned";
    const ms = Number(dataset.at) * 1000, age = starts.find(([start]) => ms >= start);
    if (age) return age[1];
    const date = new Date(ms), year = date.getFullYear(), key = year * 12 + date.getMonth();
    if (!months.has(key)) {
      months.set(key, (year === now.getFullYear() ? month : monthOfYear).format(date));
    }
    return months.get(key);
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

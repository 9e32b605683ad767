// Times in the browser's language and time zone.
import { $$ } from "../lib/dom.js";

const DAY_MS = 86_400_000;
const today = { hour: "numeric", minute: "2-digit" };
const thisWeek = { weekday: "short" };
const thisYear = { day: "numeric", month: "short" };
const older = { month: "short", year: "numeric" };
const whole = { dateStyle: "full", timeStyle: "short" };
const formats = new Map(); // options -> format; to make one takes milliseconds

const format = (date, options) => {
  if (!formats.has(options)) formats.set(options, new Intl.DateTimeFormat(undefined, options));
  return formats.get(options).format(date);
};

const optionsFor = date => {
  const now = new Date(), midnight = new Date(now).setHours(0, 0, 0, 0);
  if (date >= midnight) return today;
  if (date >= midnight - 6 * DAY_MS) return thisWeek;
  return date.getFullYear() === now.getFullYear() ? thisYear : older;
};
export const fillTimes = root => {
  for (const time of $$("time:empty", root)) {
    const date = new Date(time.dateTime);
    time.textContent = format(date, optionsFor(date));
    time.title = format(date, whole);
  }
};

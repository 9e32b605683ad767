// Times in the browser's language and time zone.
import { $$ } from "../lib/dom.js";

const DAY_MS = 86_400_000;
const format = options => new Intl.DateTimeFormat(undefined, options);
const today = format({ hour: "numeric", minute: "2-digit" });
const thisWeek = format({ weekday: "short" });
const thisYear = format({ day: "numeric", month: "short" });
const older = format({ month: "short", year: "numeric" });
const whole = format({ dateStyle: "full", timeStyle: "short" });

const formatOf = date => {
  const now = new Date(), midnight = new Date(now).setHours(0, 0, 0, 0);
  if (date >= midnight) return today;
  if (date >= midnight - 6 * DAY_MS) return thisWeek;
  return date.getFullYear() === now.getFullYear() ? thisYear : older;
};
export const fillTimes = root => {
  for (const time of $$("time:empty", root)) {
    const date = new Date(time.dateTime);
    time.textContent = formatOf(date).format(date);
    time.title = whole.format(date);
  }
};

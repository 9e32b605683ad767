// The search field: its results take the place of the list.
import { $, $$, make, setValue } from "../lib/dom.js";
import { route } from "../requests.js";
import { sidebar } from "./entries.js";

const query = $("#query"), hits = $("#hits");

query.addEventListener("input", () => {
  const isSearching = query.value.trim() !== "";
  sidebar.classList.toggle("searching", isSearching);
  if (!isSearching) hits.replaceChildren(); // the next search begins with no old results
});
if (query.value) setValue(query, query.value); // typed before this script ran

const fail = () => {
  const textContent = "The server could not be reached. Press Enter to search again.";
  hits.replaceChildren(make("p", { className: "fault", role: "alert", textContent }));
};
route("#search", {
  failed: fail,
  refused({ ctx }) { if (!ctx.response.headers.has("HX-Retarget")) fail(); },
});
// Down goes from the field into the results, Up back.
sidebar.addEventListener("keydown", event => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.closest("#query, #hits a")) return;
  const stops = [query, ...$$("a", hits)], next = stops[stops.indexOf(event.target) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
});

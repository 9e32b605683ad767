// Uploads of files, a few at a time.
import { isBusy } from "../activity.js";
import { $ } from "../lib/dom.js";

const AT_ONCE = 3;
// Over HTTP/1.1 a browser has six connections to a host: with all of them in use, Stop would wait.
const { nextHopProtocol } = performance.getEntriesByType("navigation")[0] ?? {};
const isMultiplexed = ["h2", "h3"].includes(nextHopProtocol);
const waiting = []; // functions that begin an upload
let running = 0;

const next = () => {
  const most = isMultiplexed || !isBusy() ? AT_ONCE : 1;
  while (waiting.length && running < most) waiting.shift()();
};
export const isUploading = () => running + waiting.length > 0;

// What the server says of the file, or { fault, again }: why there is none, and whether the same
// file may be taken later.
const outcome = ({ status, response }, name) => {
  if (status === 201) return response;
  const { message = "", retryable = status >= 500 } = response?.error ?? {};
  const fault = message.startsWith(`${name}: `) ? message.slice(name.length + 2) : message;
  return { fault: fault || `The server did not take it (${status}).`, again: retryable };
};
// A file can be gone or unreadable by now; so is a folder.
const withoutResponse = source => source.slice(0, 1).arrayBuffer().then(
  () => ({ fault: "The server could not be reached.", again: true }),
  () => ({ fault: "It cannot be read. Folders cannot be attached.", again: false }),
);
// Returns { done, abort }. `done` is a promise of the outcome, null after `abort`. `progress` is
// called with the part that is sent, from 0 to 1.
export const upload = (source, name, progress) => {
  const request = new XMLHttpRequest();
  let end;
  const done = new Promise(resolve => { end = resolve; });
  const begin = () => {
    running++;
    request.open("POST", `${$("#attach").dataset.url}?name=${encodeURIComponent(name)}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "json";
    request.upload.onprogress = ({ loaded, total }) => progress(total ? loaded / total : 1);
    request.onload = () => end(outcome(request, name));
    request.onerror = () => end(withoutResponse(source));
    request.onabort = () => end(null);
    request.onloadend = () => {
      running--;
      next();
    };
    request.send(source);
    progress(0);
  };
  waiting.push(begin);
  next();
  const abort = () => {
    const place = waiting.indexOf(begin);
    if (place >= 0) waiting.splice(place, 1);
    request.abort();
    end(null);
  };
  return { done, abort };
};
// Whether the server still has a file.
export const isThere = async ({ id }) => {
  const { status } = await fetch(`${$("#attach").dataset.url}/${id}/download`, { method: "HEAD" });
  return status !== 404;
};

addEventListener("beforeunload", event => { if (isUploading()) event.preventDefault(); });

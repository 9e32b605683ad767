// An answer over EventSource, and its Stop. For a page of Halt's own origin.
// A connection that is lost comes back by itself and goes on with the same answer.

let source;
let id;
const show = (name, text) => (document.getElementById(name).textContent = text);

function ask(prompt, options = {}) {
  source?.close();
  id = "page-" + crypto.randomUUID(); // our own choice, so that Stop can come at any time
  show("answer", "");
  show("state", "running");
  source = new EventSource("/stream?" + new URLSearchParams({ prompt, id, ...options }));
  source.onmessage = ({ data }) => {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.type === "content") document.getElementById("answer").append(event.content);
    if (!event.done) return;
    source.close(); // without this it would ask again
    show("state", event.error?.message ?? event.type);
  };
}

document.getElementById("form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  ask(document.getElementById("prompt").value);
});

document.getElementById("stop").addEventListener("click", () => {
  fetch(`/stop/${id}`, { method: "POST" });
});

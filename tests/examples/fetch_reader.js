// Reads POST /chat/stream with fetch. For a page of Halt's own origin.
//
//   const id = "page-" + crypto.randomUUID();
//   for await (const event of ask({ id, messages: [{ role: "user", content: "Count to ten." }] }))
//     if (event.type === "content") output.textContent += event.content;
//   ...
//   await stop(id);    // from a click, at any time, before the first byte too

/** The events of an answer as they come; the last one has `done`. Throws what Halt refuses. */
async function* ask(request) {
  const response = await fetch("/chat/stream", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const messages = buffer.split("\n\n");
    buffer = messages.pop(); // the beginning of the next one
    for (const message of messages) {
      const data = message.split("\n").find((line) => line.startsWith("data: "));
      if (data === undefined) continue; // a comment: the connection is alive
      if (data === "data: [DONE]") return;
      yield JSON.parse(data.slice(6));
    }
  }
}

/** Stop an answer; the receipt says whether the connection to the model was seen closed. */
async function stop(id) {
  return (await fetch(`/stop/${id}`, { method: "POST" })).json();
}

// Keeps actions from before the modules have run. Of the page's own scripts, this one alone is not
// deferred.
"use strict";
// Enter in the message field, Send and Stop are kept, and happen once when the page is complete.
// The browser would load another page for them.
{
  const touch = matchMedia("(pointer: coarse)"); // Enter makes a new line
  const kept = new Set(); // forms
  let isReady = false;
  const isEnter = ({ key, shiftKey, isComposing, target }) => (
    key === "Enter" && !shiftKey && !isComposing && target.id === "prompt" && !touch.matches
  );
  const keep = event => {
    const form = event.target.form ?? event.target;
    if (event.type === "keydown" ? !isEnter(event) : !form.hasAttribute("hx-post")) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    kept.add(form);
  };
  addEventListener("keydown", keep, true);
  addEventListener("submit", keep, true);
  document.addEventListener("halt:ready", () => { isReady = true; });
  addEventListener("DOMContentLoaded", () => { // on the window: htmx starts before this
    if (!isReady) { // a module is missing: nothing is sent that could not be stopped
      document.querySelector("#notice").innerHTML = '<p class="fault">A part of the page could not '
        + "be loaded. Copy your message, then reload the page.</p>";
      return;
    }
    removeEventListener("keydown", keep, true);
    removeEventListener("submit", keep, true);
    for (const form of kept) form.requestSubmit();
  });
}

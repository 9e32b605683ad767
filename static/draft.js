// What stands in the message field and was not sent is there again after a reload, in this tab alone.
"use strict";
(() => {
  const MOST = 200_000; // characters
  const prompt = document.querySelector("#prompt");
  let key = `halt.draft.${location.pathname}`; // a new conversation has no other name yet
  const take = () => { // a draft is in the field or kept, never both: what was sent is not kept
    try {
      const text = sessionStorage.getItem(key);
      sessionStorage.removeItem(key);
      return text ?? "";
    } catch { return ""; /* not allowed here */ }
  };
  const keep = () => {
    key = `halt.draft.${location.pathname}`;
    try { if (prompt.value.trim() && prompt.value.length <= MOST) sessionStorage.setItem(key, prompt.value); } catch { /* not allowed here, or full */ }
  };
  addEventListener("pagehide", keep);
  addEventListener("pageshow", take);
  document.addEventListener("visibilitychange", () => (document.hidden ? keep : take)());
  prompt.value ||= take();
  if (prompt.value) prompt.dispatchEvent(new Event("input", { bubbles: true })); // it grows
})();

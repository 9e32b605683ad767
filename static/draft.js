// Keeps the unsent text of the message field across a reload, for this tab only.
"use strict";
(() => {
  const MOST = 200_000; // characters
  const prompt = document.querySelector("#prompt");
  let key = `halt.draft.${location.pathname}`; // a new conversation has no other name yet
  const takeDraft = () => { // returns the draft and removes it from storage, so that a sent text is never restored
    try {
      const text = sessionStorage.getItem(key);
      sessionStorage.removeItem(key);
      return text ?? "";
    } catch { return ""; /* storage is not allowed */ }
  };
  const keepDraft = () => {
    key = `halt.draft.${location.pathname}`;
    try { if (prompt.value.trim() && prompt.value.length <= MOST) sessionStorage.setItem(key, prompt.value); } catch { /* storage is not allowed, or full */ }
  };
  addEventListener("pagehide", keepDraft);
  addEventListener("pageshow", takeDraft);
  document.addEventListener("visibilitychange", () => (document.hidden ? keepDraft : takeDraft)());
  prompt.value ||= takeDraft();
  if (prompt.value) prompt.dispatchEvent(new Event("input", { bubbles: true })); // resizes the field
})();

// The Copy buttons of answers and of code.
import { $, announce, make } from "./lib/dom.js";

const copyText = async text => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text }); // pages without TLS have no clipboard API
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
};
const TEXTS = {
  code: button => $("code", button.closest(".code")).textContent,
  answer: button => $(".source", button.closest(".answer")).content.textContent,
  id: button => button.previousElementSibling.textContent,
  prompt: button => $(".text", button.closest(".prompt")).textContent,
};
// Shows the result for a moment: by the button's icon, and as its word where it has one.
const showResult = (button, text) => {
  announce(text);
  const use = $("use", button), word = $("span", button), isOk = text === "Copied";
  use.setAttribute("href", isOk ? "#i-check" : "#i-x");
  if (word) word.textContent = text;
  setTimeout(() => {
    use.setAttribute("href", "#i-copy");
    if (word) word.textContent = "Copy";
  }, 1500);
};
document.addEventListener("click", async event => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  try {
    await copyText(TEXTS[button.dataset.copy](button));
    showResult(button, "Copied");
  } catch { showResult(button, "Copy failed"); }
});

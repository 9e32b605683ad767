// The Copy buttons of answers and of code.
import { $, make } from "./lib/dom.js";

export const copyText = async text => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", { value: text }); // pages without TLS have no clipboard API
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
};
const textOf = button => (
  button.dataset.copy === "code"
    ? $("code", button.closest(".code")).textContent
    : $(".source", button.closest(".answer")).content.textContent
);
document.addEventListener("click", async event => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  try {
    await copyText(textOf(button));
    button.textContent = "Copied";
  } catch { button.textContent = "Copy failed"; }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
});

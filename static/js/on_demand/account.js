// The Copy button of a new API token.
import { $, announce } from "../lib/dom.js";

const button = $("#copy-token");
button.addEventListener("click", () => {
  $("#token").select();
  // The field is selected: this works on pages without TLS too, which have no clipboard API.
  const text = document.execCommand("copy") ? "Copied" : "Copy failed";
  announce(text);
  $("span", button).textContent = text;
});

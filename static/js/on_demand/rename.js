// The dialog that renames the open chat. In the list a title is edited in its place.
import { openOnce } from "../lib/dialog.js";
import { $, iconButton, make, parse } from "../lib/dom.js";
import { fetchHtml } from "../lib/fetch_html.js";
import { head, titleOf } from "../sidebar/entries.js";
import { refreshChanged } from "../sidebar/list.js";

const build = title => {
  const field = make("input", {
    name: "title", value: title, maxLength: 200, dir: "auto", autocomplete: "off", required: true,
    ariaLabel: "Title",
  });
  const close = { type: "button", className: "close-dialog" };
  const cross = iconButton("x", "Close", "");
  cross.classList.add("close-dialog");
  const form = make(
    "form", { className: "dialog-form" },
    make(
      "div", { className: "dialog-head" },
      make("h2", { id: "rename-name", textContent: "Rename" }),
      cross,
    ),
    make("div", { className: "dialog-body" }, field),
    make(
      "div", { className: "dialog-foot" }, make("span"),
      make("button", { ...close, textContent: "Cancel" }),
      make("button", { type: "submit", className: "primary", textContent: "Save" }),
    ),
  );
  return { form, field };
};

const save = async (id, title) => {
  const body = new URLSearchParams({ title });
  const response = await fetchHtml(`/c/${id}/title`, { method: "POST", body });
  const [element] = parse(await response.text());
  if (response.ok) return titleOf(element);
  throw new Error(element?.textContent);
};

// `chat` is its entry in the list, or the head.
export const openRename = chat => {
  const { id } = chat.dataset, heading = $("h1", head);
  const { form, field } = build(chat === head ? heading.textContent : titleOf(chat));
  const dialog = make("dialog", { className: "small" }, form);
  dialog.setAttribute("aria-labelledby", "rename-name");
  form.addEventListener("submit", async event => {
    event.preventDefault();
    try {
      const title = await save(id, field.value);
      heading.textContent = title;
      document.title = `${title} · Halt`;
      dialog.close();
      refreshChanged();
    } catch (fault) {
      const offline = "The server could not be reached. Try again.";
      const textContent = fault instanceof TypeError ? offline : fault.message;
      $(".fault", form)?.remove();
      field.after(make("p", { className: "fault", role: "alert", textContent }));
    }
  });
  openOnce(dialog);
  field.select();
};

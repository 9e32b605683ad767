// The cards of attached files: pictures, and cards with a name for all others.
import { filesOf } from "../attach.js";
import { $, $$, iconButton, make } from "../lib/dom.js";

const { url } = $("#attach")?.dataset ?? {};
const cards = new WeakMap(); // file -> its <li>
const facts = new WeakMap(); // file -> { source, url, part, job, again } and { broken }

export const factsOf = file => facts.get(file) ?? {};
export const setFacts = (file, values) => {
  if (!facts.has(file)) facts.set(file, {});
  Object.assign(facts.get(file), values);
};

const isImage = file => (
  file.kind ? file.kind === "image" : factsOf(file).source?.type.startsWith("image/")
);
// The address of a picture of the file, "" for none. The page's own one is there at once. A browser
// does not show all kinds of images: for those there is the server's picture, once it is there.
const pictureOf = file => {
  if (file.fault || !isImage(file)) return "";
  const { source, broken = [] } = factsOf(file);
  if (source && !factsOf(file).url) setFacts(file, { url: URL.createObjectURL(source) });
  const addresses = [factsOf(file).url, file.id && `${url}/${file.id}/thumbnail`];
  return addresses.find(address => address && !broken.includes(address)) ?? "";
};
const release = file => {
  factsOf(file).job?.abort(); // it has no effect on one that has ended
  URL.revokeObjectURL(factsOf(file).url);
  if (facts.has(file)) setFacts(file, { url: "" });
};

const labelOf = ({ label, name }) => (
  label || name.match(/\.(\w{1,4})$/)?.[1].toUpperCase() || "FILE"
);
const stateOf = file => {
  const { part } = factsOf(file);
  if (part === undefined) return "Waiting…";
  return part < 1 ? "Uploading…" : "Reading…";
};
const bodyOf = file => {
  const { name, detail, fault, id } = file, picture = pictureOf(file);
  if (picture) {
    const img = make("img", { src: picture, alt: name });
    img.title = [name, detail].filter(Boolean).join(", ");
    img.addEventListener("error", () => {
      setFacts(file, { broken: [...factsOf(file).broken ?? [], picture] });
      drawFile(file);
    });
    return make("div", { className: "picture" }, img);
  }
  return make("div", { className: fault ? "card failed" : "card" },
    make("span", { className: "format", textContent: fault ? "!" : labelOf(file) }),
    make("span", { className: "title", dir: "auto", textContent: name, title: name }),
    make("small", { textContent: fault || (id ? detail : stateOf(file)) }));
};
export const showProgress = file => {
  const bar = $("progress", cards.get(file)), state = $("small", cards.get(file));
  if (bar) bar.value = factsOf(file).part;
  if (bar && state) state.textContent = stateOf(file);
};
// Its button stays the same: it may have the focus.
export const drawFile = file => {
  const card = cards.get(file), { name, id, fault } = file;
  if (!card) return;
  const body = bodyOf(file);
  if (!id && !fault) {
    const value = factsOf(file).part ?? 0;
    body.append(make("progress", { max: 1, value, ariaLabel: `Uploading ${name}` }));
  }
  $(":scope > div", card).replaceWith(body);
  if (fault && factsOf(file).again) {
    const again = make("button", { type: "button", textContent: "Try again" });
    again.addEventListener("click", () => factsOf(file).retry());
    body.append(again);
  }
};

// `remove` is called with a file whose button was pressed.
export const drawList = (form, remove) => {
  const list = $(".attached", form), files = filesOf(form);
  for (const card of $$(":scope > li", list)) {
    if (files.includes(card.file)) continue;
    release(card.file);
    card.remove();
  }
  files.forEach((file, n) => {
    if (!cards.has(file)) {
      const button = iconButton("x", "Remove", file.name, () => remove(file));
      button.className = "remove";
      cards.set(file, Object.assign(make("li", {}, make("div"), button), { file }));
    }
    const card = cards.get(file);
    if (list.children[n] === card) return;
    list.insertBefore(card, list.children[n] ?? null);
    drawFile(file);
  });
};
export const cardOf = file => cards.get(file);

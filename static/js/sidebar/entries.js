// Elements of the conversation list.
import { $, $$ } from "../lib/dom.js";

export const sidebar = $("#sidebar"), list = $("#conversations");
// The ID of the conversation in the address; "" for a new one.
export const shownConversation = () => location.pathname.match(/\/c\/([\w-]+)$/)?.[1] ?? "";
export const entryOf = id => document.getElementById(`c-${id}`);
// The head has the ID and the state of the open chat, as an entry has of its chat.
export const head = $(".head");
// The open chat's entry; the head where the loaded part of the list has none.
export const openChat = () => $(`#c-${CSS.escape(head.dataset.id)}:not([hidden])`) ?? head;
export const linkIn = entry => entry && $("a, button", entry);
export const titleOf = entry => $(".title", entry)?.textContent ?? "";
// The entries that can be seen, in order.
export const entries = () => $$(":scope > [data-id]:not([hidden])", list);
// Whether the list shows the archive.
export const isArchive = () => "archived" in list.dataset;
// Whether several entries are being selected; the bar's button ends it.
const bar = $("#selection");
export const isSelecting = () => !bar.hidden;
export const pressEndSelection = () => $("#end-selection").click();

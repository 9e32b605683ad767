// A right click, the menu key or a long press on an entry.
import { list, sidebar } from "./entries.js";

const LONG_MS = 500;
const CLICK_MS = 400; // in which a click or a menu may follow the release of a long press
const SLOP = 10; // pixels that a resting finger may move

// `act` gets the entry. It runs when the finger or button is up: an open menu closes on a release.
export const onPress = act => {
  let timer = 0, start = null, isDown = false, pressed = null, releasedAt = -CLICK_MS;
  const cancel = () => {
    clearTimeout(timer);
    start = null;
  };
  const release = ({ timeStamp, pointerType }) => {
    if (pressed && pointerType === "touch") releasedAt = timeStamp;
    cancel();
    isDown = false;
    const entry = pressed;
    pressed = null;
    if (entry) setTimeout(act, 0, entry);
  };
  const press = (entry, event) => {
    cancel();
    pressed = entry;
    if (!isDown) release(event);
  };
  list.addEventListener("pointerdown", event => {
    const entry = event.target.closest("[data-id]");
    isDown = true;
    releasedAt = -CLICK_MS;
    if (event.pointerType === "mouse" || !event.isPrimary || !entry) return;
    start = event;
    timer = setTimeout(press, LONG_MS, entry, event);
  });
  addEventListener("pointermove", ({ clientX, clientY }) => {
    if (start && Math.hypot(clientX - start.clientX, clientY - start.clientY) > SLOP) cancel();
  }, { passive: true });
  addEventListener("pointerup", release, true);
  addEventListener("pointercancel", release, true); // the finger scrolls
  list.addEventListener("contextmenu", event => {
    const entry = event.target.closest("[data-id]");
    if (!entry || event.target.matches("input")) return;
    event.preventDefault();
    if (event.timeStamp - releasedAt > CLICK_MS) press(entry, event); // else it was a long press
  });
  // No mouse events and no click follow: they would close the menu.
  list.addEventListener("touchend", event => {
    if (event.cancelable && event.timeStamp - releasedAt <= CLICK_MS) event.preventDefault();
  }, { passive: false });
  sidebar.addEventListener("click", event => { // before the list's other listeners
    if (!event.isTrusted || event.timeStamp - releasedAt > CLICK_MS) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
};

// A right click, the menu key or a long press on an entry.
import { list } from "./entries.js";

const LONG_MS = 500, CLICK_MS = 400; // a click may follow the release of a long press
const SLOP = 10; // pixels that a resting finger may move

// `act` gets the entry. It runs when the finger or button is up: an open menu closes on a release.
export const onPress = act => {
  let timer = 0, start = null, isDown = false, pressed = null, releasedAt = -CLICK_MS;
  const cancel = () => {
    clearTimeout(timer);
    start = null;
  };
  const release = () => {
    if (pressed) releasedAt = performance.now();
    cancel();
    isDown = false;
    const entry = pressed;
    pressed = null;
    if (entry) setTimeout(act, 0, entry);
  };
  const press = entry => {
    cancel();
    pressed = entry;
    if (!isDown) release();
  };
  list.addEventListener("pointerdown", event => {
    const entry = event.target.closest("[data-id]");
    isDown = true;
    if (event.pointerType === "mouse" || !event.isPrimary || !entry) return;
    start = event;
    timer = setTimeout(press, LONG_MS, entry);
  });
  addEventListener("pointermove", ({ clientX, clientY }) => {
    if (start && Math.hypot(clientX - start.clientX, clientY - start.clientY) > SLOP) cancel();
  }, { passive: true });
  addEventListener("pointerup", release, true);
  addEventListener("pointercancel", () => { // the finger scrolls, or the browser has its own menu
    if (!pressed) cancel();
    release();
  }, true);
  list.addEventListener("contextmenu", event => {
    const entry = event.target.closest("[data-id]");
    if (!entry || event.target.matches("input")) return;
    event.preventDefault();
    press(entry);
  });
  list.addEventListener("click", event => {
    if (!event.isTrusted || event.timeStamp - releasedAt > CLICK_MS) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
};

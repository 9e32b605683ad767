// The list of conversations: kept fresh, searched, renamed, deleted; a drawer where there is no room.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const shelf = $("#shelf"), list = $("#conversations"), opener = $("#open-shelf"), toast = $("#toast");
  const menu = $("#item-menu"), all = $("#all-menu"), query = $("#query"), panel = $("#settings");
  const here = () => location.pathname.match(/^\/c\/([\w-]+)$/)?.[1] ?? "";
  const item = id => document.getElementById(`c-${id}`);
  const link = li => li && $("a, button", li);

  // --- times, as this person's calendar says them --------------------------------------------------
  const DAY = 86_400_000;
  const formats = [{ hour: "numeric", minute: "2-digit" }, { weekday: "short" }, { day: "numeric", month: "short" }, { month: "short", year: "numeric" }]
    .map(each => new Intl.DateTimeFormat(undefined, each));
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });
  const tell = root => {
    const now = new Date(), today = new Date(now).setHours(0, 0, 0, 0);
    for (const time of root.querySelectorAll("time:empty")) {
      const date = new Date(time.dateTime);
      const format = date >= today ? 0 : date >= today - 6 * DAY ? 1 : date.getFullYear() === now.getFullYear() ? 2 : 3;
      time.textContent = formats[format].format(date);
      time.title = whole.format(date);
    }
  };
  // The list says how the conversation on the page is called by now.
  const name = () => {
    const title = $('[aria-current="page"] .title', list)?.textContent;
    if (title) document.title = `${title} · Halt`;
  };
  const drawn = new WeakMap(); // items -> as the server drew them
  for (const li of list.children) drawn.set(li, li.outerHTML);
  new MutationObserver(() => { tell(shelf); name(); }).observe(shelf, { childList: true, subtree: true });
  tell(shelf);

  // --- kept fresh: after what is done here, when the page is seen again, and while something runs ---
  const merge = html => {
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    const first = [...fresh.content.children], more = first.at(-1)?.matches(".further") ? first.pop() : null;
    const oldest = more ? Number(first.at(-1).dataset.at) : -Infinity; // what comes later was not asked for
    const focused = list.contains(document.activeElement) && document.activeElement;
    const back = focused && [focused.closest("li").id, focused.className];
    const wanted = first.map(li => {
      const old = document.getElementById(li.id), source = li.outerHTML;
      if (old && (drawn.get(old) === source || $("form", old))) return old;
      drawn.set(li, source);
      return li;
    });
    const later = [...list.children].filter(li => li.dataset.at < oldest && !wanted.some(each => each.id === li.id));
    const end = later.length ? $(":scope > .further", list) : more;
    const whole = [...wanted, ...later, ...(end ? [end] : [])];
    whole.forEach((li, index) => { if (list.children[index] !== li) list.insertBefore(li, list.children[index] ?? null); });
    while (list.children.length > whole.length) list.lastElementChild.remove();
    htmx.process(list);
    if (back && !focused.isConnected) (back[1] ? $(`.${back[1]}`, document.getElementById(back[0])) : link(document.getElementById(back[0])))?.focus({ preventScroll: true });
  };
  let timer = 0, looks = [], asked = 0, shown = "";
  const later = () => { // a title may be on its way after the first answer, so there are more looks
    clearTimeout(timer);
    const wait = $("[data-running]", list) ? 3000 : looks.shift();
    if (wait && !document.hidden) timer = setTimeout(refresh, wait);
  };
  const refresh = async () => {
    if (document.hidden) return;
    const turn = ++asked;
    clearTimeout(timer);
    try { // with low priority: a browser has six connections, and Stop must not wait for this
      const response = await fetch(`/conversations?current=${here()}`, { headers: { "HX-Request": "true" }, priority: "low" });
      const html = await response.text();
      if (turn !== asked) return;
      if (response.ok && html !== shown && !menu.matches(":popover-open")) { merge(html); shown = html; }
    } catch { /* the server is away: the page says so where it matters */ }
    if (turn === asked) later();
  };
  const changed = () => {
    looks = document.querySelectorAll(".exchange").length === 1 ? [1000, 2000, 5000, 10_000, 20_000] : [1000];
    shown = "";
    refresh();
  };
  document.addEventListener("visibilitychange", refresh);
  addEventListener("focus", refresh);
  document.addEventListener("halt:settled", changed);
  document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
    if (ctx.request.method === "POST" && ctx.response?.status < 400) changed();
  });
  later();

  // --- what can be done with one of them -------------------------------------------------------------
  let chosen = null; // the item whose menu is open
  list.addEventListener("click", event => {
    const button = event.target.closest(".more");
    if (!button) return;
    chosen = button.closest("li");
    for (const each of menu.querySelectorAll("[data-export]")) each.href = `/c/${chosen.dataset.id}/export?format=${each.dataset.export}`;
  }, true);
  if (menu.matches(":popover-open")) { // by the browser, before this script was here to see for which item
    menu.hidePopover(); // the focus goes back to the button that has opened it
    document.activeElement.closest(".more")?.click();
  }
  document.addEventListener("htmx:config:request", event => {
    const { ctx } = event.detail, source = ctx.sourceElement;
    if (source.matches(".rename-it")) {
      ctx.request.action = `/c/${chosen.dataset.id}/title`;
      ctx.target = `#c-${chosen.dataset.id}`; // which may be drawn anew in between
    } else if (source.matches(".delete-it")) {
      ctx.request.action = `/c/${chosen.dataset.id}/delete`;
    } else if (source.matches("#import") && source.file.files[0]?.size > source.dataset.most) {
      event.preventDefault(); // the server would hang up in the middle of it
      const fault = document.createElement("p");
      fault.className = "fault";
      fault.textContent = `The file is larger than ${Number(source.dataset.most).toLocaleString("en")} bytes (HALT_MAX_IMPORT_BYTES).`;
      toast.replaceChildren(fault);
      source.reset();
    }
  });
  for (const each of [menu, all]) each.addEventListener("click", event => {
    if (event.target.closest("a, button")) each.hidePopover();
  });
  document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
    const source = ctx.sourceElement;
    if (!(ctx.response?.status < 400)) return;
    if (source.matches(".delete-it")) {
      const gone = item(chosen.dataset.id);
      if (gone) gone.hidden = true; // until it is known to have gone, or is back
      $("button", toast)?.focus();
    } else if (source.matches(".undo")) {
      const undone = item(source.dataset.id);
      if (undone) undone.hidden = false;
      (link(undone) ?? $("#new-here")).focus();
    } else if (source.matches("#import")) {
      source.reset();
      all.hidePopover();
    }
  });

  // --- a new title, in its place: Enter takes it, Esc and an unchanged one leave it as it was ---------
  const field = event => event.target.matches?.(".rename input") ? event.target : null;
  list.addEventListener("focusin", event => field(event)?.select());
  list.addEventListener("focusout", event => {
    const input = field(event);
    if (!input?.isConnected || input.form.dataset.over) return;
    if (input.value.trim() && input.value !== input.defaultValue) input.form.requestSubmit();
    else leave(input, false);
  });
  const leave = async (input, focus) => {
    const li = input.closest("li");
    input.form.dataset.over = "";
    await htmx.ajax("GET", `/c/${li.dataset.id}/item?current=${here()}`, { source: li, target: `#${li.id}`, swap: "outerHTML" });
    if (focus) link(item(li.dataset.id))?.focus();
  };
  list.addEventListener("submit", event => {
    const input = $("input", event.target);
    if ("over" in event.target.dataset) { event.preventDefault(); event.stopImmediatePropagation(); return; }
    if (!input.value.trim() || input.value === input.defaultValue) {
      event.preventDefault();
      event.stopImmediatePropagation();
      leave(input, true);
      return;
    }
    const { id } = event.target.closest("li").dataset, focused = document.activeElement === input;
    event.target.dataset.over = ""; // leaving the field sends it no second time
    document.addEventListener("htmx:finally:swap", () => {
      if ($("form", item(id))) delete $("form", item(id)).dataset.over; // refused: to be corrected
      else if (focused) link(item(id))?.focus();
    }, { once: true });
  }, true);

  // --- searching -------------------------------------------------------------------------------------
  query.addEventListener("input", () => shelf.classList.toggle("searching", query.value.trim() !== ""));
  if (query.value) query.dispatchEvent(new Event("input", { bubbles: true }));

  // --- the drawer --------------------------------------------------------------------------------------
  const narrow = matchMedia("(width < 64rem)");
  const draw = yes => {
    document.body.classList.toggle("shelf-open", yes);
    opener.setAttribute("aria-expanded", yes);
    for (const each of document.querySelectorAll("body > :is(header, main, footer)")) each.inert = yes;
  };
  const isOpen = () => document.body.classList.contains("shelf-open");
  opener.addEventListener("click", () => { draw(true); $("#close-shelf").focus(); });
  const close = () => { draw(false); opener.focus(); };
  $("#close-shelf").addEventListener("click", close);
  $("#shelf-shade").addEventListener("click", close);
  narrow.addEventListener("change", () => draw(false));

  // --- keys: Esc closes what is open before it stops an answer; Ctrl+K searches -------------------------
  addEventListener("keydown", event => {
    const { target } = event;
    if (event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey) {
      event.preventDefault();
      if (narrow.matches) draw(true);
      query.focus();
      query.select();
    }
    if (event.key !== "Escape") return;
    if ($(":popover-open") || panel.open) event.stopPropagation(); // the browser closes it
    else if (target.matches?.(".rename input")) { event.stopPropagation(); leave(target, true); }
    else if (target === query && query.value) {
      event.stopPropagation();
      event.preventDefault();
      query.value = "";
      query.dispatchEvent(new Event("input", { bubbles: true }));
    }
    else if (isOpen()) { event.stopPropagation(); close(); }
  }, true);

  // --- the toast: some seconds, longer while somebody is at it -------------------------------------------
  let ends = 0;
  const clear = () => {
    if (toast.matches(":hover") || $(":focus-visible", toast)) ends = setTimeout(clear, 2000);
    else toast.replaceChildren();
  };
  const show = () => { clearTimeout(ends); if (toast.firstElementChild) ends = setTimeout(clear, 8000); };
  new MutationObserver(show).observe(toast, { childList: true });
  toast.addEventListener("click", event => { if (event.target.closest(".dismiss")) toast.replaceChildren(); });
  show();
  const url = new URL(location);
  if (url.searchParams.has("deleted")) { // said once
    for (const each of ["deleted", "stopped"]) url.searchParams.delete(each);
    history.replaceState(history.state, "", url);
  }

  // --- settings of the conversation on the page ------------------------------------------------------------
  $("#open-settings").addEventListener("click", async () => {
    const id = here(), model = encodeURIComponent($("#model").value);
    await htmx.ajax("GET", `${id ? `/c/${id}` : ""}/settings?model=${model}`, { source: panel, target: panel, swap: "innerHTML" });
    if ($("form", panel) && !panel.open) panel.showModal();
  });
  panel.addEventListener("click", event => {
    const prompt = $("#settings-prompt", panel);
    if (event.target.closest(".cancel") || event.target === panel) panel.close();
    else if (event.target.closest("#settings-reset")) { prompt.value = prompt.dataset.default; prompt.focus(); }
  });
  panel.addEventListener("close", () => panel.replaceChildren());
  document.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
    if (ctx.sourceElement.id === "settings-form") ctx.request.action = $("#composer").getAttribute("hx-post").replace(/messages$/, "settings");
  });
  document.addEventListener("htmx:after:request", ({ detail: { ctx } }) => {
    if (ctx.sourceElement.id === "settings-form" && ctx.response.status < 400) panel.close();
  });
})();

// The list of conversations: refresh, search, rename, delete, export; a drawer on narrow screens.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const sidebar = $("#sidebar"), list = $("#conversations"), opener = $("#open-sidebar"), toast = $("#toast");
  const menu = $("#item-menu"), all = $("#all-menu"), query = $("#query"), panel = $("#settings");
  const here = () => location.pathname.match(/^\/c\/([\w-]+)$/)?.[1] ?? "";
  const item = id => document.getElementById(`c-${id}`);
  const link = li => li && $("a, button", li);

  // --- times in the browser's language and time zone ------------------------------------------------
  const DAY = 86_400_000;
  const formats = [{ hour: "numeric", minute: "2-digit" }, { weekday: "short" }, { day: "numeric", month: "short" }, { month: "short", year: "numeric" }]
    .map(options => new Intl.DateTimeFormat(undefined, options));
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "short" });
  const fillTimes = root => {
    const now = new Date(), today = new Date(now).setHours(0, 0, 0, 0);
    for (const time of root.querySelectorAll("time:empty")) {
      const date = new Date(time.dateTime);
      const format = date >= today ? 0 : date >= today - 6 * DAY ? 1 : date.getFullYear() === now.getFullYear() ? 2 : 3;
      time.textContent = formats[format].format(date);
      time.title = whole.format(date);
    }
  };
  // The list has the current title of the conversation on the page.
  const name = () => {
    const title = $('[aria-current="page"] .title', list)?.textContent;
    if (title) document.title = `${title} · Halt`;
  };
  const drawn = new WeakMap(); // item -> its HTML as the server sent it
  for (const li of list.children) drawn.set(li, li.outerHTML);
  new MutationObserver(() => { fillTimes(sidebar); name(); }).observe(sidebar, { childList: true, subtree: true });
  fillTimes(sidebar);

  // --- refresh: after a change here, when the page becomes visible, and while an answer runs ---------
  const merge = html => {
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    const first = [...fresh.content.children], more = first.at(-1)?.matches(".further") ? first.pop() : null;
    const oldest = more ? Number(first.at(-1).dataset.at) : -Infinity; // older items are not in this response
    const focused = list.contains(document.activeElement) && document.activeElement;
    const back = focused && [focused.closest("li").id, focused.className];
    const wanted = first.map(li => {
      const old = document.getElementById(li.id), source = li.outerHTML;
      if (old && (drawn.get(old) === source || $("form", old))) return old;
      drawn.set(li, source);
      return li;
    });
    const laterItems = [...list.children].filter(li => li.dataset.at < oldest && !wanted.some(other => other.id === li.id));
    const end = laterItems.length ? $(":scope > .further", list) : more;
    const whole = [...wanted, ...laterItems, ...(end ? [end] : [])];
    whole.forEach((li, index) => { if (list.children[index] !== li) list.insertBefore(li, list.children[index] ?? null); });
    while (list.children.length > whole.length) list.lastElementChild.remove();
    htmx.process(list);
    if (back && !focused.isConnected) (back[1] ? $(`.${back[1]}`, document.getElementById(back[0])) : link(document.getElementById(back[0])))?.focus({ preventScroll: true });
  };
  let timer = 0, delays = [], requests = 0, shownHtml = "";
  const scheduleRefresh = () => { // after the first answer a title may still follow, so the list is refreshed more often
    clearTimeout(timer);
    const wait = $("[data-running]", list) ? 3000 : delays.shift();
    if (wait && !document.hidden) timer = setTimeout(refresh, wait);
  };
  const refresh = async () => {
    if (document.hidden) return;
    const turn = ++requests;
    clearTimeout(timer);
    try { // low priority: a browser has six connections to a host, and Stop must not wait for this request
      const response = await fetch(`/conversations?current=${here()}`, { headers: { "HX-Request": "true" }, priority: "low" });
      const html = await response.text();
      if (turn !== requests) return;
      if (response.ok && html !== shownHtml && !menu.matches(":popover-open")) { merge(html); shownHtml = html; }
    } catch { /* the server cannot be reached: streams and sends report it */ }
    if (turn === requests) scheduleRefresh();
  };
  const changed = () => {
    delays = document.querySelectorAll(".exchange").length === 1 ? [1000, 2000, 5000, 10_000, 20_000] : [1000];
    shownHtml = "";
    refresh();
  };
  document.addEventListener("visibilitychange", refresh);
  addEventListener("focus", refresh);
  document.addEventListener("halt:ended", changed);
  document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
    if (ctx.request.method === "POST" && ctx.response?.status < 400) changed();
  });
  scheduleRefresh();

  // --- the menu of one conversation ------------------------------------------------------------------
  let chosen = null; // the item whose menu is open
  list.addEventListener("click", event => {
    const button = event.target.closest(".more");
    if (!button) return;
    chosen = button.closest("li");
    for (const anchor of menu.querySelectorAll("[data-export]")) anchor.href = `/c/${chosen.dataset.id}/export?format=${anchor.dataset.export}`;
  }, true);
  if (menu.matches(":popover-open")) { // opened before this script was loaded, so its item is not known
    menu.hidePopover(); // returns the focus to the button that opened it
    document.activeElement.closest(".more")?.click();
  }
  document.addEventListener("htmx:config:request", event => {
    const { ctx } = event.detail, source = ctx.sourceElement;
    if (source.matches(".rename-it")) {
      ctx.request.action = `/c/${chosen.dataset.id}/title`;
      ctx.target = `#c-${chosen.dataset.id}`; // by ID: a refresh may replace the element meanwhile
    } else if (source.matches(".delete-it")) {
      ctx.request.action = `/c/${chosen.dataset.id}/delete`;
    } else if (source.matches("#import") && source.file.files[0]?.size > source.dataset.most) {
      event.preventDefault(); // the server would close the connection during the upload
      const fault = document.createElement("p");
      fault.className = "fault";
      fault.textContent = `The file is larger than ${Number(source.dataset.most).toLocaleString("en")} bytes (HALT_MAX_IMPORT_BYTES).`;
      toast.replaceChildren(fault);
      source.reset();
    }
  });
  for (const popover of [menu, all]) popover.addEventListener("click", event => {
    if (event.target.closest("a, button")) popover.hidePopover();
  });
  document.addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
    const source = ctx.sourceElement;
    if (!(ctx.response?.status < 400)) return;
    if (source.matches(".delete-it")) {
      const gone = item(chosen.dataset.id);
      if (gone) gone.hidden = true; // until a refresh removes it, or Undo shows it again
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

  // --- rename in place: Enter saves; Esc or an unchanged title cancels ---------------------------------
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
    event.target.dataset.over = ""; // focusout must not send it a second time
    document.addEventListener("htmx:finally:swap", () => {
      if ($("form", item(id))) delete $("form", item(id)).dataset.over; // refused: the title can be corrected
      else if (focused) link(item(id))?.focus();
    }, { once: true });
  }, true);

  // --- searching -------------------------------------------------------------------------------------
  query.addEventListener("input", () => sidebar.classList.toggle("searching", query.value.trim() !== ""));
  if (query.value) query.dispatchEvent(new Event("input", { bubbles: true }));

  // --- the drawer --------------------------------------------------------------------------------------
  const narrow = matchMedia("(width < 64rem)");
  const draw = yes => {
    document.body.classList.toggle("sidebar-open", yes);
    opener.setAttribute("aria-expanded", yes);
    for (const area of document.querySelectorAll("body > :is(header, main, footer)")) area.inert = yes;
  };
  const isOpen = () => document.body.classList.contains("sidebar-open");
  opener.addEventListener("click", () => { draw(true); $("#close-sidebar").focus(); });
  const close = () => { draw(false); opener.focus(); };
  $("#close-sidebar").addEventListener("click", close);
  $("#sidebar-shade").addEventListener("click", close);
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

  // --- the toast: 8 seconds, longer while the pointer or the focus is on it -------------------------------
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
  if (url.searchParams.has("deleted")) { // a reload must not show the message again
    for (const name of ["deleted", "stopped"]) url.searchParams.delete(name);
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

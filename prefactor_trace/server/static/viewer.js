// Makes the viewer's pages pleasant; each of them is complete without it.
//
// It asks for the same pages again and takes over the parts that have changed: elements with data-region as a whole,
// rows of a tbody with data-rows by their ids. All markup comes escaped from the server and is parsed as a document
// of its own, in which nothing runs. The script itself only ever writes text.
"use strict";

const collapsed = new Set(); // ids of rows whose children are folded away
const closed = new Set(); // keys of the detail sections that the reader has closed
const served = new Map(); // region or row id -> its markup as the server sent it, before we touched it

const main = () => document.getElementById("main");
const activity = () => document.querySelector(".activity");
const details = () => document.querySelector(".activity > .details");
const allRows = () => [...document.querySelectorAll(".spans tbody tr")];
const shownRows = () => allRows().filter((row) => !row.hidden);
const selectedRow = () => document.querySelector('.spans tr[aria-selected="true"]');
const level = (row) => Number(row.getAttribute("aria-level"));

// Taking over what the server sent

async function load(address, signal) {
  const response = await fetch(address, { signal, headers: { Accept: "text/html" } });
  if (!response.ok) throw new Error(`${address} answered ${response.status}`);
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

function parts(root) {
  return [...root.querySelectorAll("[data-region]")].filter((part) => part.dataset.region !== "details");
}

function shape(root) {
  const tables = root.querySelectorAll("tbody[data-rows]").length;
  return [...parts(root).map((part) => part.dataset.region), tables].join(" ");
}

function remember(root) {
  for (const part of root.querySelectorAll("[data-region]")) served.set(part.dataset.region, part.outerHTML);
  for (const row of root.querySelectorAll("tbody[data-rows] > tr")) served.set(row.id, row.outerHTML);
}

function merge(page) {
  const fresh = page.getElementById("main");
  document.title = page.title;
  const focused = document.activeElement && document.activeElement.id;
  if (shape(fresh) === shape(main())) {
    mergeParts(main(), fresh);
    mergeRows(main(), fresh);
    mergeDetails(fresh);
    if (fresh.dataset.refresh) main().dataset.refresh = fresh.dataset.refresh;
    else delete main().dataset.refresh;
  } else {
    remember(fresh);
    main().replaceWith(document.adoptNode(fresh));
    furnish();
  }
  arrangeRows();
  const lost = focused && document.activeElement === document.body && document.getElementById(focused);
  if (lost) lost.focus({ preventScroll: true });
}

function mergeParts(old, fresh) {
  const present = new Map(parts(old).map((part) => [part.dataset.region, part]));
  for (const part of parts(fresh)) {
    const key = part.dataset.region;
    if (served.get(key) === part.outerHTML) continue;
    served.set(key, part.outerHTML);
    present.get(key).replaceWith(document.adoptNode(part));
  }
}

function mergeRows(old, fresh) {
  const body = old.querySelector("tbody[data-rows]");
  if (!body) return;
  const present = new Map([...body.rows].map((row) => [row.id, row]));
  let place = body.firstElementChild;
  for (const row of [...fresh.querySelector("tbody[data-rows]").rows]) {
    const known = present.get(row.id);
    const markup = row.outerHTML;
    const isSame = known && served.get(row.id) === markup;
    present.delete(row.id);
    served.set(row.id, markup);
    const wanted = isSame ? known : document.adoptNode(row);
    if (known && !isSame) {
      if (known === place) place = wanted;
      known.replaceWith(wanted);
    }
    // Rows that stand where they should are not touched: they keep focus and animation.
    if (wanted === place) place = place.nextElementSibling;
    else body.insertBefore(wanted, place);
  }
  for (const [id, row] of present) {
    served.delete(id);
    row.remove();
  }
}

function mergeDetails(fresh) {
  const part = fresh.querySelector(".details");
  const shown = details();
  if (part && shown && part.dataset.span === shown.dataset.span) showDetails(part);
}

function showDetails(part) {
  const shown = details();
  if (shown && served.get("details") === part.outerHTML) return;
  served.set("details", part.outerHTML);
  const isSameSpan = shown && shown.dataset.span === part.dataset.span;
  const scrolled = isSameSpan ? shown.scrollTop : 0;
  const focused = shown && shown.contains(document.activeElement) && document.activeElement.closest("[data-section]");
  document.adoptNode(part);
  if (shown) shown.replaceWith(part);
  else activity().append(part);
  activity().classList.add("split");
  furnishDetails();
  part.scrollTop = scrolled;
  const section = focused && part.querySelector(`[data-section="${focused.dataset.section}"] > summary`);
  if (section) section.focus({ preventScroll: true });
}

// Live refresh

let timer = 0;

function schedule() {
  clearTimeout(timer);
  const wait = Number(main().dataset.refresh);
  if (wait) timer = setTimeout(refresh, wait);
}

async function refresh() {
  if (!document.hidden) {
    const asked = location.href;
    try {
      const page = await load(asked, AbortSignal.timeout(10_000));
      if (asked === location.href) merge(page); // else another span was selected meanwhile
      reached(true);
    } catch {
      reached(false);
    }
  }
  schedule();
}

const notice = document.createElement("span");
notice.setAttribute("role", "status");
notice.className = "lost";

function reached(isReached) {
  const text = isReached ? "" : "The platform does not answer. Trying again…";
  if (notice.textContent !== text) notice.textContent = text;
  document.documentElement.classList.toggle("stale", !isReached);
}

// Selecting a span

let asking = new AbortController();
let askLater = 0;

function select(row) {
  for (let above = parentOf(row); above; above = parentOf(above)) collapsed.delete(above.id);
  const before = selectedRow();
  if (before) before.setAttribute("aria-selected", "false");
  row.setAttribute("aria-selected", "true");
  arrangeRows();
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
  const id = row.id.slice("span-".length);
  point(id);
  asking.abort();
  asking = new AbortController();
  clearTimeout(askLater);
  // A key held down passes many rows; only the one it stops at is asked for.
  askLater = setTimeout(askDetails, 60, id, asking.signal);
}

async function askDetails(id, signal) {
  try {
    const page = await load(`${location.pathname}/spans/${id}`, signal);
    showDetails(page.querySelector(".details"));
    reached(true);
  } catch (error) {
    if (error.name !== "AbortError") reached(false);
  }
}

function closeDetails() {
  const row = selectedRow();
  asking.abort();
  clearTimeout(askLater);
  if (row) row.setAttribute("aria-selected", "false");
  if (details()) details().remove();
  activity().classList.remove("split");
  served.delete("details");
  point(null);
  if (row) row.focus({ preventScroll: true });
}

function point(spanId) {
  const address = new URL(location.href);
  address.hash = "";
  if (spanId) address.searchParams.set("span", spanId);
  else address.searchParams.delete("span");
  history.replaceState(null, "", address);
}

// The tree

function parentOf(row) {
  const own = level(row);
  let above = row.previousElementSibling;
  while (above && level(above) >= own) above = above.previousElementSibling;
  return above;
}

function arrangeRows() {
  let foldedAt = Infinity; // the level below which rows are hidden at this point
  const rows = allRows();
  for (const row of rows) {
    row.hidden = level(row) > foldedAt;
    if (!row.hidden) foldedAt = collapsed.has(row.id) ? level(row) : Infinity;
    if (row.hasAttribute("aria-expanded")) row.setAttribute("aria-expanded", String(!collapsed.has(row.id)));
    row.tabIndex = -1; // one row is reached with Tab, the others with the arrow keys
    for (const link of row.querySelectorAll("a")) link.tabIndex = -1;
  }
  const reachable = selectedRow() || rows[0];
  if (reachable) reachable.tabIndex = 0;
}

function fold(row, isFolded) {
  if (isFolded) collapsed.add(row.id);
  else collapsed.delete(row.id);
  arrangeRows();
}

function foldAll(isFolded) {
  for (const row of allRows()) {
    if (isFolded && row.hasAttribute("aria-expanded")) collapsed.add(row.id);
    else collapsed.delete(row.id);
  }
  arrangeRows();
}

const keys = {
  ArrowDown: (row) => move(row, 1),
  ArrowUp: (row) => move(row, -1),
  Home: () => select(shownRows()[0]),
  End: () => select(shownRows().at(-1)),
  Enter: (row) => select(row),
  Escape: () => closeDetails(),
  ArrowRight: (row) => {
    if (row.getAttribute("aria-expanded") === "false") fold(row, false);
    else if (row.hasAttribute("aria-expanded")) move(row, 1);
  },
  ArrowLeft: (row) => {
    if (row.getAttribute("aria-expanded") === "true") fold(row, true);
    else if (parentOf(row)) select(parentOf(row));
  },
};

function move(row, by) {
  const rows = shownRows();
  const next = rows[rows.indexOf(row) + by];
  if (next) select(next);
}

// Additions to the page that only make sense with a script

function button(text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", action);
  return made;
}

function furnish() {
  const table = document.querySelector(".spans");
  if (table) {
    const tools = document.createElement("div");
    const hint = document.createElement("span");
    tools.className = "tools";
    hint.textContent = "↑ ↓ select · ← → fold · Esc close";
    tools.append(button("Expand all", () => foldAll(false)), button("Collapse all", () => foldAll(true)), hint);
    table.before(tools);
  }
  furnishDetails();
}

function furnishDetails() {
  for (const section of document.querySelectorAll("details[data-section]")) {
    section.open = !closed.has(section.dataset.section);
    const text = section.querySelector("pre");
    if (text && navigator.clipboard) section.append(copyButton(text));
  }
}

function copyButton(text) {
  const copy = button("Copy", async () => {
    await navigator.clipboard.writeText(text.textContent);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1200);
  });
  copy.className = "copy";
  return copy;
}

// Events, caught once for the whole document since its parts come and go

document.addEventListener("click", (event) => {
  const isPlain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
  const { target } = event;
  if (!isPlain || !activity()) return;
  const row = target.closest(".spans tbody tr");
  const link = target.closest("a");
  if (target.closest(".twist") && row && row.hasAttribute("aria-expanded")) {
    fold(row, row.getAttribute("aria-expanded") === "true");
  } else if (row && (link || getSelection().isCollapsed)) {
    event.preventDefault();
    select(row);
  } else if (link && link.classList.contains("close") && details()) {
    event.preventDefault();
    closeDetails();
  } else if (link && link.dataset.select) {
    const named = document.getElementById(`span-${link.dataset.select}`);
    if (!named) return; // on another page of spans: follow the link
    event.preventDefault();
    select(named);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const row = event.target.closest(".spans tbody tr");
  if (row && keys[event.key]) {
    event.preventDefault();
    keys[event.key](row);
  } else if (event.key === "Escape" && details() && !event.target.closest("form")) {
    closeDetails();
  }
});

document.addEventListener(
  "toggle", // does not bubble
  (event) => {
    const key = event.target.dataset.section;
    if (!key) return;
    if (event.target.open) closed.delete(key);
    else closed.add(key);
  },
  true,
);

document.addEventListener("change", (event) => {
  const form = event.target.closest(".filters");
  if (form) form.requestSubmit();
});

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && main().dataset.refresh) refresh();
});

document.documentElement.classList.add("js");
document.querySelector(".top").append(notice);
remember(document);
furnish();
arrangeRows();
schedule();

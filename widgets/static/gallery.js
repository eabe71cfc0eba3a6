// The list of images: only the visible rows exist, and Python sends their names and thumbnails on request.

import { visibleRows } from "./geometry.js";
import { setText } from "./page.js";

const ROW_HEIGHT = 52;

export function createGallery({ h, s, send, uniqueId }) {
  const received = new Map();
  const idPrefix = uniqueId();
  const input = h("input", { type: "search", "aria-label": "Search images", placeholder: "Search images", oninput: search });
  const inner = h("div");
  const attributes = { role: "listbox", tabindex: 0, "aria-label": "Images", onscroll: sync, onkeydown: moveByKey };
  const list = h("div.gl-list", attributes, inner);
  const note = h("p.gl-note", { role: "status" });
  const el = h("div.gl-gallery", {}, input, list, note);
  let [requested, total, current] = ["", s.about.count, 0];
  const text = () => input.value.trim();

  function search() {
    received.clear();
    list.scrollTop = current = 0;
    sync();
  }
  function receive({ text: query, total: count, start, rows = [] }) {
    if (query !== text()) return;
    total = count;
    rows.forEach((row, i) => {
      received.set(start + i, row);
      if (row.image === s.image) current = start + i;
    });
  }
  function choose(row) {
    if (!received.has(row)) return;
    current = row;
    s.image = received.get(row).image;
    list.scrollTop = Math.min(Math.max(list.scrollTop, (row + 1) * ROW_HEIGHT - list.clientHeight), row * ROW_HEIGHT);
  }
  function moveByKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -total, End: total }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(Math.min(Math.max(current + step, 0), total - 1));
  }
  function option(row) {
    const { image, name = "…", detail = "", thumb } = received.get(row) ?? {};
    const rowAttributes = {
      id: `${idPrefix}-${row}`,
      role: "option",
      "aria-selected": String(image === s.image),
      "aria-posinset": row + 1,
      "aria-setsize": total,
      style: `top:${row * ROW_HEIGHT}px`,
      onclick: () => choose(row),
    };
    const picture = thumb ? h("img", { alt: "", src: thumb }) : h("i");
    return h("div", rowAttributes, picture, h("b", {}, name), h("small", {}, detail));
  }
  function sync() {
    el.hidden = s.about.count < 2;
    if (el.hidden) return;
    receive(s.listing);
    const [start, stop] = visibleRows(list.scrollTop, list.clientHeight, ROW_HEIGHT, total);
    const rows = Array.from({ length: stop - start }, (_, i) => start + i);
    const request = JSON.stringify([text(), start, stop]);
    if (request !== requested && !(rows.every((row) => received.has(row)) && s.listing.text === text())) {
      requested = request;
      send({ do: "list", text: text(), start, stop });
    }
    inner.style.height = `${total * ROW_HEIGHT}px`;
    inner.replaceChildren(...rows.map(option));
    list.setAttribute("aria-activedescendant", `${idPrefix}-${current}`);
    setText(note, text() ? `${total} of ${s.about.count} images` : `${total} images`);
  }
  return { el, sync };
}

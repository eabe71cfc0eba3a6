// The list of images: only the rows in sight exist, and Python is asked for their names and thumbnails.

import { rowsInSight } from "./geometry.js";
import { setText } from "./page.js";

const ROW = 52;

export function createGallery({ h, s, ask, unique }) {
  const known = new Map();
  const ids = unique();
  const input = h("input", { type: "search", "aria-label": "Search images", placeholder: "Search images", oninput: find });
  const inner = h("div");
  const attributes = { role: "listbox", tabindex: 0, "aria-label": "Images", onscroll: sync, onkeydown: keyed };
  const list = h("div.gl-list", attributes, inner);
  const note = h("p.gl-note", { role: "status" });
  const el = h("div.gl-gallery", {}, input, list, note);
  let [asked, total, current] = ["", s.about.count, 0];
  const text = () => input.value.trim();

  function find() {
    known.clear();
    list.scrollTop = current = 0;
    sync();
  }
  function take({ text: of, total: count, start, rows = [] }) {
    if (of !== text()) return;
    total = count;
    rows.forEach((row, i) => {
      known.set(start + i, row);
      if (row.image === s.image) current = start + i;
    });
  }
  function choose(row) {
    if (!known.has(row)) return;
    current = row;
    s.image = known.get(row).image;
    list.scrollTop = Math.min(Math.max(list.scrollTop, (row + 1) * ROW - list.clientHeight), row * ROW);
  }
  function keyed(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -total, End: total }[event.key];
    if (!step) return;
    event.preventDefault();
    choose(Math.min(Math.max(current + step, 0), total - 1));
  }
  function option(row) {
    const { image, name = "…", detail = "", thumb } = known.get(row) ?? {};
    const says = {
      id: `${ids}-${row}`,
      role: "option",
      "aria-selected": String(image === s.image),
      "aria-posinset": row + 1,
      "aria-setsize": total,
      style: `top:${row * ROW}px`,
      onclick: () => choose(row),
    };
    const picture = thumb ? h("img", { alt: "", src: thumb }) : h("i");
    return h("div", says, picture, h("b", {}, name), h("small", {}, detail));
  }
  function sync() {
    el.hidden = s.about.count < 2;
    if (el.hidden) return;
    take(s.listing);
    const [start, stop] = rowsInSight(list.scrollTop, list.clientHeight, ROW, total);
    const rows = Array.from({ length: stop - start }, (_, i) => start + i);
    const question = JSON.stringify([text(), start, stop]);
    if (question !== asked && !(rows.every((row) => known.has(row)) && s.listing.text === text())) {
      asked = question;
      ask({ do: "list", text: text(), start, stop });
    }
    inner.style.height = `${total * ROW}px`;
    inner.replaceChildren(...rows.map(option));
    list.setAttribute("aria-activedescendant", `${ids}-${current}`);
    setText(note, text() ? `${total} of ${s.about.count} images` : `${total} images`);
  }
  return { el, sync };
}

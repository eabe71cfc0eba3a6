// One pane: the photo with a map over it, its caption, and the value under the pointer or the keyboard's cross.

import { gradient, paint, tableOf } from "./colours.js";
import { contour } from "./contours.js";
import { fineGrid, inMap, mapTransform } from "./geometry.js";
import { isFlat, rangeOf, resample, shown, valueAt } from "./numbers.js";
import { replaced, setText } from "./page.js";

const FINE = 224;
const LEVELS = [0.2, 0.4, 0.6, 0.8];
const SIGNED_LEVELS = [0.1, 0.3, 0.7, 0.9];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// The colours of a map: the range that they span, their table, and whether both signs count.
export function lookOf(s, map) {
  const how = s.normalisation === "auto" ? (map.signed ? "symmetric" : "minmax") : s.normalisation;
  const symmetric = how === "symmetric";
  const colours = s.colours === "auto" ? (symmetric ? "blue-red" : "inferno") : s.colours;
  const range = rangeOf(map.values, how);
  const flat = isFlat(range);
  return {
    range: flat ? [range[0], range[0]] : range,
    symmetric,
    flat,
    table: tableOf(s._tables, s.about.tables, colours),
    display: s.display,
    opacity: s.display === "map" ? null : s.opacity,
  };
}

function drawMap(context, map, look, transform) {
  const [H, W] = fineGrid(map.h, map.w, FINE);
  const raster = document.createElement("canvas");
  [raster.width, raster.height] = [W, H];
  raster.getContext("2d").putImageData(new ImageData(paint(resample(map, H, W), look), W, H), 0, 0);
  context.setTransform(...transform);
  context.drawImage(raster, 0, 0, 1, 1);
  context.resetTransform();
}

// Each line twice: an edge, dark or bright, keeps it visible on any photo.
function drawContours(context, map, { range: [low, high], symmetric, table, flat }, transform) {
  const [h, w] = fineGrid(map.h, map.w, FINE / 2);
  const fine = { values: resample(map, h, w), h, w };
  const width = context.canvas.width / 320;
  for (const level of flat ? [] : symmetric ? SIGNED_LEVELS : LEVELS) {
    const path = new Path2D();
    for (const [x1, y1, x2, y2] of contour(fine, low + level * (high - low))) {
      path.moveTo(x1, y1);
      path.lineTo(x2, y2);
    }
    const laid = new Path2D();
    laid.addPath(path, new DOMMatrix(transform));
    const at = 3 * Math.round(level * 255);
    const colour = table.slice(at, at + 3);
    for (const [style, wide] of [[colour[1] < 128 ? "#fffc" : "#000a", 3], [`rgb(${colour})`, 1.5]]) {
      [context.strokeStyle, context.lineWidth] = [style, width * wide];
      context.stroke(laid);
    }
  }
}

// Draw photo and map on a canvas that is as wide as the whole photo.
function drawPane(context, { width: across, box }, photo, map, look) {
  const { width, height } = context.canvas;
  if (photo && look?.display !== "map") context.drawImage(photo, 0, 0, width, height);
  if (map) (look.display === "contours" ? drawContours : drawMap)(context, map, look, mapTransform(box, width / across));
}

export function createPane({ h, s, unique }, number, probe) {
  const caption = unique();
  const canvas = h("canvas", {
    tabindex: 0,
    role: "application",
    "aria-label": `Picture ${number + 1}: arrow keys read values`,
    "aria-describedby": caption,
    onpointermove: ({ clientX, clientY }) => {
      const { x, y, width } = canvas.getBoundingClientRect();
      const scale = s.scene.width / width;
      probe([(clientX - x) * scale, (clientY - y) * scale]);
    },
    onpointerleave: () => probe(null),
    onblur: () => probe(null),
    onkeydown: (event) => {
      if (!(event.key in ARROWS)) return;
      event.preventDefault();
      const { width, height } = s.scene;
      const step = Math.max(width, height) / (event.shiftKey ? 100 : 28);
      const at = pane.probe ?? [width / 2, height / 2];
      probe([width, height].map((most, i) => Math.min(Math.max(at[i] + step * ARROWS[event.key][i], 0), most)));
    },
  });
  const [cross, waiting, head] = [h("i.gl-cross"), h("p.gl-waiting"), h("div.gl-panehead")];
  const [words, value] = [h("span.gl-what", { id: caption }), h("output.gl-value")];
  const [low, strip, high] = [h("span"), h("i"), h("span")];
  const bar = h("div.gl-bar", {}, low, strip, high);
  const frame = h("div.gl-frame", {}, canvas, cross, waiting);
  const el = h("figure.gl-pane", {}, head, frame, bar, h("figcaption", {}, words, value));
  const pane = { el, head, canvas };

  pane.show = (photo, map, text, state) => {
    const { scene } = s;
    const look = map && lookOf(s, map);
    Object.assign(pane, { map, look, text });
    frame.style.setProperty("--shape", scene.width / scene.height);
    const width = Math.min(Math.round(canvas.clientWidth * devicePixelRatio), 1600) || 1;
    const height = Math.round((width * scene.height) / scene.width);
    // This also clears it.
    [canvas.width, canvas.height] = [width, height];
    drawPane(canvas.getContext("2d"), scene, photo, map, look);
    replaced(words, text, () => text.map((part, i) => h(i ? "span" : "b", {}, part)));
    bar.hidden = !look;
    if (look) {
      setText(low, look.flat ? "flat" : shown(look.range[0]));
      setText(high, shown(look.range[1]));
      strip.style.background = gradient(look.table);
    }
    waiting.hidden = !state;
    setText(waiting, state);
    pane.point(pane.probe);
  };
  pane.point = (at) => {
    const { box, width, height } = s.scene;
    pane.probe = at;
    cross.hidden = !at;
    if (!at) return setText(value, "");
    cross.style.cssText = `left:${(100 * at[0]) / width}%;top:${(100 * at[1]) / height}%`;
    const place = inMap(box, ...at);
    setText(value, place ? (pane.map ? shown(valueAt(pane.map, ...place)) : "") : "not seen");
  };
  return pane;
}

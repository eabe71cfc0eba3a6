// One pane: the photo with a map over it, its caption, and the value at the pointer or at the keyboard's cross.

import { cssGradient, paint, tableOf } from "./colours.js";
import { contour } from "./contours.js";
import { fineGrid, mapCoordinates, mapTransform } from "./geometry.js";
import { formatValue, isFlat, rangeOf, resample, valueAt } from "./numbers.js";
import { replaceChildren, setText } from "./page.js";

const GRID_SIDE = 224;
const LEVELS = [0.2, 0.4, 0.6, 0.8];
const SIGNED_LEVELS = [0.1, 0.3, 0.7, 0.9];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// How a map is drawn, by the display options: range and table of its colours, and whether 0 is their middle. picture.py
// does the same.
export function styleOf(s, map) {
  const normalisation = s.normalisation === "auto" ? (map.signed ? "symmetric" : "minmax") : s.normalisation;
  const symmetric = normalisation === "symmetric";
  const colours = s.colours === "auto" ? (symmetric ? "blue-red" : "inferno") : s.colours;
  const range = rangeOf(map.values, normalisation);
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

function drawMap(context, map, style, transform) {
  const [H, W] = fineGrid(map.h, map.w, GRID_SIDE);
  const raster = document.createElement("canvas");
  [raster.width, raster.height] = [W, H];
  raster.getContext("2d").putImageData(new ImageData(paint(resample(map, H, W), style), W, H), 0, 0);
  context.setTransform(...transform);
  context.drawImage(raster, 0, 0, 1, 1);
  context.resetTransform();
}

// Each line is drawn over an edge, dark or bright, which keeps it visible on any photo.
function drawContours(context, map, { range: [low, high], symmetric, table, flat }, transform) {
  const [h, w] = fineGrid(map.h, map.w, GRID_SIDE / 2);
  const fine = { values: resample(map, h, w), h, w };
  const width = context.canvas.width / 320;
  for (const level of flat ? [] : symmetric ? SIGNED_LEVELS : LEVELS) {
    const path = new Path2D();
    for (const [x1, y1, x2, y2] of contour(fine, low + level * (high - low))) {
      path.moveTo(x1, y1);
      path.lineTo(x2, y2);
    }
    const placed = new Path2D();
    placed.addPath(path, new DOMMatrix(transform));
    const offset = 3 * Math.round(level * 255);
    const colour = table.slice(offset, offset + 3);
    for (const [stroke, lineWidth] of [[colour[1] < 128 ? "#fffc" : "#000a", 3], [`rgb(${colour})`, 1.5]]) {
      [context.strokeStyle, context.lineWidth] = [stroke, width * lineWidth];
      context.stroke(placed);
    }
  }
}

// Draw photo and map on a canvas that shows the full photo.
function drawPane(context, { width: photoWidth, box }, photo, map, style) {
  const { width, height } = context.canvas;
  if (photo && style?.display !== "map") context.drawImage(photo, 0, 0, width, height);
  const draw = style?.display === "contours" ? drawContours : drawMap;
  if (map) draw(context, map, style, mapTransform(box, width / photoWidth));
}

export function createPane({ h, s, uniqueId }, number, probe) {
  const captionId = uniqueId();
  const canvas = h("canvas", {
    tabindex: 0,
    role: "application",
    "aria-label": `Picture ${number + 1}: arrow keys read values`,
    "aria-describedby": captionId,
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
      const point = pane.probe ?? [width / 2, height / 2];
      const moved = point.map((position, i) => position + step * ARROWS[event.key][i]);
      probe([Math.min(Math.max(moved[0], 0), width), Math.min(Math.max(moved[1], 0), height)]);
    },
  });
  const [cross, waiting, head] = [h("i.gl-cross"), h("p.gl-waiting"), h("div.gl-panehead")];
  const [captionText, value] = [h("span.gl-what", { id: captionId }), h("output.gl-value")];
  const [low, strip, high] = [h("span"), h("i"), h("span")];
  const bar = h("div.gl-bar", {}, low, strip, high);
  const frame = h("div.gl-frame", {}, canvas, cross, waiting);
  const el = h("figure.gl-pane", {}, head, frame, bar, h("figcaption", {}, captionText, value));
  const pane = { el, head, canvas };

  // message: why there is no map, or "".
  pane.draw = (photo, map, caption, message) => {
    const { scene } = s;
    const style = map && styleOf(s, map);
    Object.assign(pane, { map, caption });
    frame.style.setProperty("--shape", scene.width / scene.height);
    const width = Math.min(Math.round(canvas.clientWidth * devicePixelRatio), 1600) || 1;
    const height = Math.round((width * scene.height) / scene.width);
    // Setting the size also clears the canvas.
    [canvas.width, canvas.height] = [width, height];
    drawPane(canvas.getContext("2d"), scene, photo, map, style);
    replaceChildren(captionText, caption, () => caption.map((text, i) => h(i ? "span" : "b", {}, text)));
    bar.hidden = !style;
    if (style) {
      setText(low, style.flat ? "flat" : formatValue(style.range[0]));
      setText(high, formatValue(style.range[1]));
      strip.style.background = cssGradient(style.table);
    }
    waiting.hidden = !message;
    setText(waiting, message);
    pane.setProbe(pane.probe);
  };
  // Read the value at a point of the photo; null reads none.
  pane.setProbe = (point) => {
    const { box, width, height } = s.scene;
    pane.probe = point;
    cross.hidden = !point;
    if (!point) return setText(value, "");
    cross.style.cssText = `left:${(100 * point[0]) / width}%;top:${(100 * point[1]) / height}%`;
    const position = mapCoordinates(box, ...point);
    setText(value, position ? (pane.map ? formatValue(valueAt(pane.map, ...position)) : "") : "outside the input");
  };
  return pane;
}

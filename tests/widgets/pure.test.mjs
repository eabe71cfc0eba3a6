// The pure functions of the page, by node's own test runner.

import assert from "node:assert/strict";
import test from "node:test";

import { cssGradient, paint, tableOf } from "../../widgets/static/colours.js";
import { contour } from "../../widgets/static/contours.js";
import { fineGrid, mapCoordinates, mapTransform, visibleRows } from "../../widgets/static/geometry.js";
import { combine, decode, formatValue, isFlat, rangeOf, resample, termOf, unpack, valueAt } from "../../widgets/static/numbers.js";
import {
  extendedSpan, isViewerKey, mapKey, nextChoice, panesOf, resolutionRuns, spanKey, spanOf, weightsOf,
} from "../../widgets/static/state.js";

const close = (found, expected, error = 1e-6) => {
  assert.equal(found.length, expected.length);
  expected.forEach((value, i) => assert.ok(Math.abs(found[i] - value) <= error, `${i}: ${found[i]} is not ${value}`));
};

test("a delivery is unpacked from the middle of a larger buffer", () => {
  const parts = [{ image: 3, target: "ö", meta: "off", lr: 0, maps: [["m", 1, 1, 2, -1, 3], ["m", 2, 2, 1, 0, 1]] }];
  const header = new TextEncoder().encode(JSON.stringify({ parts }));
  const buffer = new ArrayBuffer(9 + 4 + header.length + 4);
  const view = new DataView(buffer, 9);
  view.setUint32(0, header.length, true);
  new Uint8Array(buffer).set(header, 13);
  new Uint8Array(buffer).set([0, 255, 51, 7], 13 + header.length);
  const [part] = unpack(view);
  assert.equal(part.target, "ö");
  assert.deepEqual(part.maps.map(({ method, layer, h, w }) => [method, layer, h, w]), [["m", 1, 1, 2], ["m", 2, 2, 1]]);
  assert.deepEqual([...part.maps[1].bytes], [51, 7]);
  close(decode(part.maps[0]), [-1, 3]);
  close(decode(part.maps[1]), [0.04, (7 / 255) ** 2]);
});

test("ranges", () => {
  const values = Float32Array.from({ length: 101 }, (_, i) => i - 20);
  assert.deepEqual(rangeOf(values, "minmax"), [-20, 80]);
  assert.deepEqual(rangeOf(values, "percentile"), [-19, 79]);
  assert.deepEqual(rangeOf(values, "symmetric"), [-80, 80]);
  assert.equal(values[0], -20);
  assert.ok(isFlat([2, 2]) && isFlat([0, 0]) && isFlat([1, 1 + 1e-8]));
  assert.ok(!isFlat([0, 1e-12]) && !isFlat([1, 1.001]));
});

test("resampling is torch's: half-pixel centres, clamped borders", () => {
  // torch.nn.functional.interpolate([[[0, 1], [2, 3]]], (4, 4), mode="bilinear", align_corners=False)
  const expected = [0, 0.25, 0.75, 1, 0.5, 0.75, 1.25, 1.5, 1.5, 1.75, 2.25, 2.5, 2, 2.25, 2.75, 3];
  close(resample({ values: [0, 1, 2, 3], h: 2, w: 2 }, 4, 4), expected);
  close(resample({ values: [1, 2, 3, 4, 5, 6], h: 2, w: 3 }, 2, 3), [1, 2, 3, 4, 5, 6]);
  // (3,) -> (5,)
  close(resample({ values: [0, 3, 9], h: 1, w: 3 }, 1, 5), [0, 1.2, 3, 6.6, 9], 1e-5);
});

test("the value at a position is that of the resampled map there", () => {
  const map = { values: [0, 1, 2, 3, 5, 8], h: 2, w: 3 };
  const fine = resample(map, 8, 12);
  for (const [row, column] of [[0, 0], [3, 5], [7, 11], [4, 2]]) {
    const value = valueAt(map, (column + 0.5) / 12, (row + 0.5) / 8);
    assert.ok(Math.abs(value - fine[row * 12 + column]) < 1e-6);
  }
  assert.equal(valueAt(map, 1, 1), 8);
});

test("layers are combined as the paper does", () => {
  const [a, b] = [Float32Array.of(0, 0.5, 1), Float32Array.of(1, 0.25, 1)];
  close(combine([a, b], [1, 3], "sum"), [0.75, 0.3125, 1]);
  close(combine([a, b], [1, 3], "product"), [0, 0.5 ** 0.25 * 0.25 ** 0.75, 1]);
  close(combine([a, b], [0, 2], "product"), [1, 0.25, 1]);
  close(combine([a, b], [0, 0], "sum"), [0, 0, 0]);
  const logs = new WeakMap();
  close(combine([a, b], [1, 3], "product", logs), combine([a, b], [1, 3], "product", logs));
});

test("a term runs from 0 to 1, and a flat one is zeros", () => {
  close(termOf({ values: [-2, 2], h: 1, w: 2 }, 1, 2), [0, 1]);
  close(termOf({ values: [7, 7], h: 1, w: 2 }, 2, 2), [0, 0, 0, 0]);
});

test("values are formatted", () => {
  assert.deepEqual([0, 0.123456, -12345.6, 1e-7, 2.5e9, null, NaN].map(formatValue), [
    "0", "0.123", "-12300", "1.00e-7", "2.50e+9", "–", "–",
  ]);
});

const table = Uint8Array.from({ length: 768 }, (_, i) => Math.floor(i / 3));

test("colours", () => {
  const look = { range: [0, 1], table, symmetric: false, opacity: null };
  const alone = paint([0, 0.5, 1, 7, -7], look);
  assert.deepEqual([...alone], [0, 0, 0, 255, 128, 128, 128, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 255]);
  const laid = paint([0, 1], { ...look, opacity: 0.5 });
  assert.deepEqual([laid[3], laid[7]], [0, 128]);
  const signed = paint([-1, 0, 1], { range: [-1, 1], table, symmetric: true, opacity: 1 });
  assert.ok(signed[3] === 255 && signed[7] < 4 && signed[11] === 255);
  assert.equal(paint([5, 5], { ...look, range: [5, 5] })[4], 0);
  assert.equal(paint([0], { range: [0, 0], table, symmetric: true, opacity: null })[0], 128);
  const tables = new DataView(Uint8Array.of(9, ...table, ...table.map((value) => 255 - value)).buffer, 1);
  assert.equal(tableOf(tables, ["up", "down"], "down")[0], 255);
  assert.equal(tableOf(tables, ["up", "down"], "none")[0], 0);
  assert.match(cssGradient(table), /^linear-gradient\(to right, rgb\(0,0,0\),.*rgb\(255,255,255\)\)$/);
});

test("a contour lies where the value is crossed", () => {
  const values = Float32Array.from({ length: 25 }, (_, i) => i % 5);
  const lines = contour({ values, h: 5, w: 5 }, 1.25);
  assert.equal(lines.length, 4);
  for (const [x1, , x2] of lines) close([x1, x2], [1.75 / 5, 1.75 / 5]);
  const peak = Float32Array.from({ length: 9 }, (_, i) => (i === 4 ? 1 : 0));
  const ring = contour({ values: peak, h: 3, w: 3 }, 0.5);
  assert.equal(ring.length, 4);
  assert.deepEqual(contour({ values: peak, h: 3, w: 3 }, 2), []);
  // A saddle: two lines through one cell.
  assert.equal(contour({ values: [1, 0, 0, 1], h: 2, w: 2 }, 0.5).length, 2);
});

test("where a map lies in its photo", () => {
  const apply = ([a, , , d, e, f], u, v) => [a * u + e, d * v + f];
  assert.deepEqual(apply(mapTransform([10, 20, 30, 60], 2), 0, 0), [20, 40]);
  assert.deepEqual(apply(mapTransform([10, 20, 30, 60], 2), 1, 1), [60, 120]);
  assert.deepEqual(apply(mapTransform([30, 0, 10, 8], 1), 0, 0), [30, 0]);
  assert.deepEqual(mapCoordinates([10, 20, 30, 60], 15, 30), [0.25, 0.25]);
  assert.deepEqual(mapCoordinates([30, 0, 10, 8], 25, 2), [0.25, 0.25]);
  assert.equal(mapCoordinates([10, 20, 30, 60], 9, 30), null);
  assert.deepEqual(fineGrid(7, 14, 224), [112, 224]);
  assert.deepEqual(fineGrid(300, 300, 224), [300, 300]);
});

test("only the visible rows", () => {
  assert.deepEqual(visibleRows(0, 500, 50, 10_000), [0, 14]);
  assert.deepEqual(visibleRows(5000, 500, 50, 10_000), [96, 114]);
  assert.deepEqual(visibleRows(1e9, 500, 50, 20), [20, 20]);
});

const state = { target: "dog", method: "a", layer: "l", meta: "off", combine: "off", compare: "off", others: [] };

test("panes", () => {
  assert.equal(panesOf(state).length, 1);
  const methods = panesOf({ ...state, compare: "method", others: ["b", "c", "d", "e"] });
  assert.deepEqual(methods.map(({ method }) => method), ["a", "b", "c", "d"]);
  const layers = panesOf({ ...state, combine: "sum", compare: "layer", others: ["k"] });
  assert.deepEqual(layers.map(({ layer, combine: how }) => [layer, how]), [["l", "sum"], ["k", "off"]]);
  assert.equal(nextChoice(["a", "b", "c"], ["b"]), "c");
  assert.equal(nextChoice(["a", "b", "c"], ["b", "c"]), "a");
  assert.equal(nextChoice(["a"], ["a"]), null);
  assert.equal(mapKey(0, "x", "off", 0.1), mapKey(0, "x", "off", 0.2));
  assert.notEqual(mapKey(0, "x", "ascent", 0.1), mapKey(0, "x", "ascent", 0.2));
});

test("weights", () => {
  assert.deepEqual(weightsOf(["a", "b"], "linear", {}), [0.5, 1]);
  assert.deepEqual(weightsOf(["a", "b"], "uniform", { b: 0 }), [1, 0]);
});

test("words of a sentence", () => {
  const words = ["a", "red", "star"];
  assert.equal(spanKey(words, 1, 3), "a [red star]");
  assert.equal(spanKey(words, 0, 3), "a red star");
  assert.equal(spanKey(["a"], 0, 1), "[a]");
  assert.deepEqual(spanOf("a [red star]"), { words, isCaption: false, start: 1, stop: 3 });
  assert.deepEqual(spanOf("a red star"), { words, isCaption: true, start: 0, stop: 3 });
  assert.deepEqual(spanOf("[a]"), { words: ["a"], isCaption: false, start: 0, stop: 1 });
  for (let start = 0; start < 3; start++) {
    for (let stop = start + 1; stop <= 3; stop++) {
      const span = spanOf(spanKey(words, start, stop));
      assert.deepEqual([span.start, span.stop], [start, stop]);
    }
  }
  const current = { start: 2, stop: 4, isCaption: false };
  assert.deepEqual(extendedSpan(current, 5, true), [2, 6]);
  assert.deepEqual(extendedSpan(current, 0, true), [0, 4]);
  assert.deepEqual(extendedSpan(current, 5, false), [5, 6]);
  assert.deepEqual(extendedSpan({ ...current, isCaption: true }, 5, true), [5, 6]);
});

test("the ruler of resolutions", () => {
  const layers = [[8, 8], [8, 8], [4, 6], [8, 8]].map((size) => ({ size }));
  assert.deepEqual(resolutionRuns(layers), [["8²", 2], ["4×6", 1], ["8²", 1]]);
});

test("which keys are kept from the host", () => {
  const kept = (key, more = {}) => isViewerKey({ key, ...more });
  assert.ok(kept("b") && kept("ArrowUp") && kept("Enter") && kept("M", { shiftKey: true }));
  assert.ok(!kept("Tab") && !kept("Escape") && !kept("s", { ctrlKey: true }) && !kept("k", { metaKey: true }));
  assert.ok(!kept("Enter", { shiftKey: true }));
});

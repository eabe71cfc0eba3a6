// The maps that have arrived, found by image, target, step, method and layer.

import { combine, decode, termOf, unpack } from "./numbers.js";
import { partKey } from "./state.js";

// Combinations are made on a grid of this side: as fine as what is sent of any map.
const GRID = 112;
const MOST_PARTS = 80;

export function createStore() {
  const parts = new Map();
  const logs = new WeakMap();

  function add(view) {
    if (!view.byteLength) return;
    for (const { image, target, meta, lr, maps } of unpack(view)) {
      const key = partKey(image, target, meta, lr);
      const part = parts.get(key) ?? {};
      // Put last: the oldest go first when there are many.
      parts.delete(key);
      parts.set(key, part);
      for (const map of maps) {
        const method = (part[map.method] ??= { maps: [] });
        // Where any layer's map goes below zero, all are shown from minus to plus.
        method.signed ||= map.low < 0;
        method.maps[map.layer] = map;
      }
    }
    for (const key of parts.keys()) if (parts.size > MOST_PARTS) parts.delete(key);
  }
  const find = (key, method) => parts.get(key)?.[method];

  function map(key, method, layer) {
    const { maps, signed } = find(key, method) ?? {};
    const found = maps?.[layer];
    return found && Object.assign(found, { signed, values: found.values ?? decode(found) });
  }
  function combined(key, method, layers, weights, how) {
    // Some methods are defined at some layers only.
    const found = layers.map((layer, i) => [map(key, method, layer), weights[i]]).filter(([each]) => each);
    if (!found.length) return undefined;
    const terms = found.map(([each]) => (each.term ??= termOf(each, GRID, GRID)));
    return { values: combine(terms, found.map(([, weight]) => weight), how, logs), h: GRID, w: GRID };
  }
  const has = (key, method) => Boolean(find(key, method));
  const steps = () => new Set([...parts.keys()].map((key) => JSON.parse(key)[2])).size;
  return { add, map, has, combined, steps };
}

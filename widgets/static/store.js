// The maps that Python has sent, by image, target, inner step, method and layer.

import { combine, decode, termOf, unpack } from "./numbers.js";
import { mapKey } from "./state.js";

// The side of the grid of combinations: Python sends no map on a finer grid.
const GRID = 112;
const MAX_KEYS = 80;

export function createStore() {
  const mapsByKey = new Map();
  const logs = new WeakMap();

  function add(view) {
    if (!view.byteLength) return;
    for (const { image, target, meta, lr, maps } of unpack(view)) {
      const key = mapKey(image, target, meta, lr);
      const methods = mapsByKey.get(key) ?? {};
      // Moved to the end: the oldest are dropped first.
      mapsByKey.delete(key);
      mapsByKey.set(key, methods);
      for (const map of maps) {
        const method = (methods[map.method] ??= { maps: [] });
        // One layer's map with negative values makes all maps of its method signed.
        method.signed ||= map.low < 0;
        method.maps[map.layer] = map;
      }
    }
    for (const key of mapsByKey.keys()) if (mapsByKey.size > MAX_KEYS) mapsByKey.delete(key);
  }
  const find = (key, method) => mapsByKey.get(key)?.[method];

  function map(key, method, layer) {
    const { maps, signed } = find(key, method) ?? {};
    const packed = maps?.[layer];
    return packed && Object.assign(packed, { signed, values: packed.values ?? decode(packed) });
  }
  function combined(key, method, layers, weights, how) {
    // Some methods are defined at some layers only.
    const weighted = layers.map((layer, i) => [map(key, method, layer), weights[i]]).filter(([layerMap]) => layerMap);
    if (!weighted.length) return undefined;
    const terms = weighted.map(([layerMap]) => (layerMap.term ??= termOf(layerMap, GRID, GRID)));
    return { values: combine(terms, weighted.map(([, weight]) => weight), how, logs), h: GRID, w: GRID };
  }
  const has = (key, method) => Boolean(find(key, method));
  const steps = () => new Set([...mapsByKey.keys()].map((key) => JSON.parse(key)[2])).size;
  return { add, map, has, combined, steps };
}

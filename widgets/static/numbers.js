// The numbers of a map: unpacking a delivery, ranges, resampling, combining layers. Pure.

const ROUNDING = 1e-6;

// A delivery: uint32 length of its header, the header (JSON), then the maps' bytes one after another, in the header's
// order. A host may hand over a view into a larger buffer, hence byteOffset.
export function unpack(view) {
  const length = view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + 4, length)));
  let at = view.byteOffset + 4 + length;
  return header.parts.map((part) => ({
    ...part,
    maps: part.maps.map(([method, layer, h, w, low, high]) => {
      const bytes = new Uint8Array(view.buffer, at, h * w);
      at += h * w;
      return { method, layer, h, w, low, high, bytes };
    }),
  }));
}

// Bytes lie on the square-root scale between low and high, so that small values keep their differences.
export function decode({ bytes, low, high }) {
  const squares = Float32Array.from({ length: 256 }, (_, q) => low + (q / 255) ** 2 * (high - low));
  return Float32Array.from(bytes, (q) => squares[q]);
}

// The values that become the two ends of the colours. how: "minmax", "percentile" (1st and 99th), "symmetric".
export function rangeOf(values, how) {
  if (how === "percentile") {
    const sorted = Float32Array.from(values).sort();
    return [0.01, 0.99].map((part) => sorted[Math.round(part * (sorted.length - 1))]);
  }
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const most = Math.max(-low, high);
  return how === "symmetric" ? [-most, most] : [low, high];
}

// The same value everywhere, but for rounding: nothing to show.
export function isFlat([low, high]) {
  return !(high - low > ROUNDING * Math.max(Math.abs(low), Math.abs(high)));
}

// The two of `cells` cells around a place (0 = the centre of the first), and how much of the second; borders hold on.
function around(place, cells) {
  const at = Math.min(Math.max(place, 0), cells - 1);
  const first = Math.floor(at);
  return [first, Math.min(first + 1, cells - 1), at - first];
}

// Bilinear, half-pixel centres, as torch's interpolate(align_corners=False): h × w values to H × W.
export function resample({ values, h, w }, H, W) {
  const places = (from, to) => Array.from({ length: to }, (_, i) => around(((i + 0.5) * from) / to - 0.5, from));
  const out = new Float32Array(H * W);
  const columns = places(w, W);
  const row = new Float32Array(w);
  places(h, H).forEach(([above, below, part], y) => {
    for (let x = 0; x < w; x++) row[x] = values[above * w + x] * (1 - part) + values[below * w + x] * part;
    for (let x = 0; x < W; x++) {
      const [left, right, share] = columns[x];
      out[y * W + x] = row[left] * (1 - share) + row[right] * share;
    }
  });
  return out;
}

// The value at u, v (0…1 from the left and the top), interpolated.
export function valueAt({ values, h, w }, u, v) {
  const [left, right, share] = around(u * w - 0.5, w);
  const [above, below, part] = around(v * h - 0.5, h);
  const line = (row) => values[row * w + left] * (1 - share) + values[row * w + right] * share;
  return line(above) * (1 - part) + line(below) * part;
}

// A layer's map as a term of a combination: brought to H × W and to 0…1; a flat one becomes zeros.
export function termOf(map, H, W) {
  const term = resample(map, H, W);
  const range = rangeOf(term, "minmax");
  const span = isFlat(range) ? Infinity : range[1] - range[0];
  return term.map((value) => (value - range[0]) / span);
}

// Join terms of one size: Σ γ·m ("sum") or Π m^γ ("product"), the weights γ divided by their sum. A layer of weight 0
// takes no part. `logs` remembers the logarithms of terms, so that dragging a weight stays smooth.
export function combine(terms, weights, how, logs = new WeakMap()) {
  const total = weights.reduce((sum, weight) => sum + weight, 0) || 1;
  const out = new Float32Array(terms[0].length);
  const log = (term) => logs.get(term) ?? logs.set(term, term.map(Math.log)).get(term);
  terms.forEach((term, number) => {
    const share = weights[number] / total;
    if (share === 0) return;
    const added = how === "product" ? log(term) : term;
    for (let i = 0; i < out.length; i++) out[i] += share * added[i];
  });
  return how === "product" ? out.map(Math.exp) : out;
}

// A value for people: three digits that count.
export function shown(value) {
  if (!value) return value === 0 ? "0" : "–";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

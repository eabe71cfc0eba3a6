// The values of maps: unpacking a delivery, ranges, resampling, combining layers. Pure functions.

const ROUNDING = 1e-6;

// Unpack a delivery of payload.py: a uint32 (length of the header), the header (JSON), then the bytes of each map in the
// header's order. A host may pass a view into a larger buffer, hence byteOffset.
export function unpack(view) {
  const length = view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(view.buffer, view.byteOffset + 4, length)));
  let offset = view.byteOffset + 4 + length;
  return header.parts.map((entry) => ({
    ...entry,
    maps: entry.maps.map(([method, layer, h, w, low, high]) => {
      const bytes = new Uint8Array(view.buffer, offset, h * w);
      offset += h * w;
      return { method, layer, h, w, low, high, bytes };
    }),
  }));
}

// Bytes to values: the bytes are on a square-root scale from low to high, which keeps differences between small values.
export function decode({ bytes, low, high }) {
  const squares = Float32Array.from({ length: 256 }, (_, q) => low + (q / 255) ** 2 * (high - low));
  return Float32Array.from(bytes, (q) => squares[q]);
}

// The range [low, high] that the colours span, by the normalisation "minmax", "percentile" (1st to 99th) or "symmetric".
export function rangeOf(values, normalisation) {
  if (normalisation === "percentile") {
    const sorted = Float32Array.from(values).sort();
    return [0.01, 0.99].map((share) => sorted[Math.round(share * (sorted.length - 1))]);
  }
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const largest = Math.max(-low, high);
  return normalisation === "symmetric" ? [-largest, largest] : [low, high];
}

// Whether all values are equal up to rounding.
export function isFlat([low, high]) {
  return !(high - low > ROUNDING * Math.max(Math.abs(low), Math.abs(high)));
}

// The two cells next to a position (0 is the centre of the first cell) and the share of the second one; positions beyond
// the outer centres are clamped.
function neighbours(position, cells) {
  const clamped = Math.min(Math.max(position, 0), cells - 1);
  const first = Math.floor(clamped);
  return [first, Math.min(first + 1, cells - 1), clamped - first];
}

// Resample h × w values to H × W: bilinear with half-pixel centres, as torch's interpolate(align_corners=False).
export function resample({ values, h, w }, H, W) {
  const samples = (from, to) => Array.from({ length: to }, (_, i) => neighbours(((i + 0.5) * from) / to - 0.5, from));
  const out = new Float32Array(H * W);
  const columns = samples(w, W);
  const row = new Float32Array(w);
  samples(h, H).forEach(([above, below, share], y) => {
    for (let x = 0; x < w; x++) row[x] = values[above * w + x] * (1 - share) + values[below * w + x] * share;
    for (let x = 0; x < W; x++) {
      const [left, right, rightShare] = columns[x];
      out[y * W + x] = row[left] * (1 - rightShare) + row[right] * rightShare;
    }
  });
  return out;
}

// The interpolated value at u, v (0…1 from the left and from the top).
export function valueAt({ values, h, w }, u, v) {
  const [left, right, rightShare] = neighbours(u * w - 0.5, w);
  const [above, below, belowShare] = neighbours(v * h - 0.5, h);
  const inRow = (row) => values[row * w + left] * (1 - rightShare) + values[row * w + right] * rightShare;
  return inRow(above) * (1 - belowShare) + inRow(below) * belowShare;
}

// A layer's map as a term of a combination: resampled to H × W and scaled to 0…1; a flat map becomes zeros.
export function termOf(map, H, W) {
  const term = resample(map, H, W);
  const range = rangeOf(term, "minmax");
  const span = isFlat(range) ? Infinity : range[1] - range[0];
  return term.map((value) => (value - range[0]) / span);
}

// Combine terms m of one size: Σ γ·m ("sum") or Π m^γ ("product"), with the weights γ divided by their sum. A layer of
// weight 0 is left out. `logs` caches the logarithms of terms, which keeps the dragging of a weight fast.
export function combine(terms, weights, how, logs = new WeakMap()) {
  const total = weights.reduce((sum, weight) => sum + weight, 0) || 1;
  const out = new Float32Array(terms[0].length);
  const log = (term) => logs.get(term) ?? logs.set(term, term.map(Math.log)).get(term);
  terms.forEach((term, i) => {
    const share = weights[i] / total;
    if (share === 0) return;
    const summand = how === "product" ? log(term) : term;
    for (let k = 0; k < out.length; k++) out[k] += share * summand[k];
  });
  return how === "product" ? out.map(Math.exp) : out;
}

// Format a value with three significant digits.
export function formatValue(value) {
  if (!value) return value === 0 ? "0" : "–";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
}

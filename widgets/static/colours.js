// Values to colours. Pure functions.

// A CSS gradient of sixteen colours of a table (256 colours, bytes r, g, b).
export function cssGradient(table) {
  const stops = Array.from({ length: 16 }, (_, i) => `rgb(${table.slice(51 * i, 51 * i + 3)})`);
  return `linear-gradient(to right, ${stops.join(",")})`;
}

// The bytes of one of the concatenated colour tables.
export function tableOf(view, names, name) {
  return new Uint8Array(view.buffer, view.byteOffset + 768 * Math.max(names.indexOf(name), 0), 768);
}

// Values to pixels (r, g, b, a). In an overlay a location is as opaque as it is strong (far from the low end, or from the
// middle of a symmetric range); with an opacity of null all locations are opaque. picture.py does the same.
export function paint(values, { range: [low, high], table, symmetric, opacity }) {
  const steps = Uint32Array.from({ length: 256 }, (_, i) => {
    const strength = symmetric ? Math.abs(i / 127.5 - 1) : i / 255;
    const opaque = symmetric ? Math.min(1.5 * strength, 1) : Math.sqrt(strength);
    const alpha = opacity === null ? 255 : Math.round(255 * opacity * opaque);
    return (alpha << 24) | (table[3 * i + 2] << 16) | (table[3 * i + 1] << 8) | table[3 * i];
  });
  const [scale, bottom] = high > low ? [255 / (high - low), 0] : [0, symmetric ? 128 : 0];
  const step = (value) => Math.min(Math.max(Math.round((value - low) * scale), bottom), 255);
  return new Uint8ClampedArray(Uint32Array.from(values, (value) => steps[step(value)]).buffer);
}

// Lines of equal value, by marching squares. A pure function.

// The sides of a cell that a line connects, by the corners above the level (1 top left, 2 top right, 4 bottom right,
// 8 bottom left). Sides: 0 top, 1 right, 2 bottom, 3 left.
const SIDES = [
  [], [[3, 0]], [[0, 1]], [[3, 1]], [[1, 2]], [[3, 0], [1, 2]], [[0, 2]], [[3, 2]],
  [[2, 3]], [[0, 2]], [[0, 1], [2, 3]], [[1, 2]], [[1, 3]], [[0, 1]], [[0, 3]], [],
];

// Segments [x1, y1, x2, y2] where the values of a map cross a level, in 0…1 over the map; cell centres as in `resample`.
export function contour({ values, h, w }, level) {
  const segments = [];
  const cross = (a, b) => (level - a) / (b - a);
  for (let y = 0; y + 1 < h; y++) {
    for (let x = 0; x + 1 < w; x++) {
      const [a, b] = [values[y * w + x], values[y * w + x + 1]];
      const [d, c] = [values[(y + 1) * w + x], values[(y + 1) * w + x + 1]];
      const pattern = (a > level) | ((b > level) << 1) | ((c > level) << 2) | ((d > level) << 3);
      if (pattern === 0 || pattern === 15) continue;
      const points = [[cross(a, b), 0], [1, cross(b, c)], [cross(d, c), 1], [0, cross(a, d)]];
      for (const [from, to] of SIDES[pattern]) {
        const [[x1, y1], [x2, y2]] = [points[from], points[to]];
        segments.push([(x + x1 + 0.5) / w, (y + y1 + 0.5) / h, (x + x2 + 0.5) / w, (y + y2 + 0.5) / h]);
      }
    }
  }
  return segments;
}

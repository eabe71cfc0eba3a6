// Where a map lies in its photo. The box [left, top, right, bottom] is what the network saw, in the photo's pixels; it
// reaches beyond the photo where the pixels were padded, and right < left where they were mirrored. Pure.

// Bring a canvas' coordinates to those of the map, 0…1 both ways, where the photo is `scale` times its size.
export function mapTransform([left, top, right, bottom], scale) {
  return [(right - left) * scale, 0, 0, (bottom - top) * scale, left * scale, top * scale];
}

// A point of the photo as u, v in the map (0…1), or null where the network saw nothing.
export function inMap([left, top, right, bottom], x, y) {
  const u = (x - left) / (right - left);
  const v = (y - top) / (bottom - top);
  return u >= 0 && u <= 1 && v >= 0 && v <= 1 ? [u, v] : null;
}

// The grid to colour a map on: as fine as `side` on its longer edge, and never coarser than the map.
export function fineGrid(h, w, side) {
  const scale = Math.max(side / Math.max(h, w), 1);
  return [Math.round(h * scale), Math.round(w * scale)];
}

// Which rows of a list are in sight, with a few more on both sides.
export function rowsInSight(scrolled, height, rowHeight, total, more = 4) {
  const first = Math.max(Math.floor(scrolled / rowHeight) - more, 0);
  const last = Math.min(Math.ceil((scrolled + height) / rowHeight) + more, total);
  return [Math.min(first, last), last];
}

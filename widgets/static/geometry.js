// Where a map lies in its photo. The box [left, top, right, bottom] is the network's input in pixels of the photo; it
// extends beyond the photo where the input was padded, and right < left where it was mirrored. Pure functions.

// The canvas transform from coordinates of the map (0…1) to those of the photo, drawn at `scale` times its size.
export function mapTransform([left, top, right, bottom], scale) {
  return [(right - left) * scale, 0, 0, (bottom - top) * scale, left * scale, top * scale];
}

// A point of the photo as u, v in the map (0…1), or null outside the network's input.
export function mapCoordinates([left, top, right, bottom], x, y) {
  const u = (x - left) / (right - left);
  const v = (y - top) / (bottom - top);
  return u >= 0 && u <= 1 && v >= 0 && v <= 1 ? [u, v] : null;
}

// The grid on which a map is coloured: `side` cells on its longer edge, and never coarser than the map.
export function fineGrid(h, w, side) {
  const scale = Math.max(side / Math.max(h, w), 1);
  return [Math.round(h * scale), Math.round(w * scale)];
}

// The visible rows of a scrolled list [first, last), with a few more on both sides.
export function visibleRows(scrolled, height, rowHeight, total, more = 4) {
  const first = Math.max(Math.floor(scrolled / rowHeight) - more, 0);
  const last = Math.min(Math.ceil((scrolled + height) / rowHeight) + more, total);
  return [Math.min(first, last), last];
}

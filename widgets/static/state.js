// What the panes show, derived from the widget's traits. Pure functions.

export const MAX_PANES = 4;

// The key of the maps of an image, target and inner step.
export function mapKey(image, target, meta, lr) {
  return JSON.stringify([image, target, meta, meta === "off" ? 0 : lr]);
}

// The panes: the first shows what the controls say, the others differ in the compared option. Beside a combination,
// single layers can be compared. payload.py does the same.
export function panesOf({ target, method, layer, meta, combine, compare, others }) {
  const first = { target, method, layer, meta, combine };
  if (compare === "off") return [first];
  const rest = others.slice(0, MAX_PANES - 1).map((value) => {
    const pane = { ...first, [compare]: value };
    return compare === "layer" ? { ...pane, combine: "off" } : pane;
  });
  return [first, ...rest];
}

// The value of a further pane: the next choice after the last displayed one that no pane shows yet, or null.
export function nextChoice(choices, present) {
  const start = choices.indexOf(present.at(-1)) + 1;
  const rotated = [...choices.slice(start), ...choices.slice(0, start)];
  return rotated.find((choice) => !present.includes(choice)) ?? null;
}

// The weight of each layer, 0…1: as chosen, else j/J from shallow to deep ("linear") or 1 ("uniform").
export function weightsOf(layers, weighting, chosen) {
  return layers.map((layer, j) => chosen[layer] ?? (weighting === "linear" ? (j + 1) / layers.length : 1));
}

// Parse a caption target, "a [red star] above": its words, and the span in brackets (all words without brackets).
export function spanOf(key) {
  const words = key.split(" ").filter(Boolean);
  const open = words.findIndex((word) => word.startsWith("["));
  const close = words.findIndex((word) => word.endsWith("]"));
  const marked = open >= 0 && close >= open;
  return {
    words: marked ? words.map((w, i) => w.slice(i === open ? 1 : 0, i === close ? -1 : undefined)) : words,
    isCaption: !marked,
    start: marked ? open : 0,
    stop: marked ? close + 1 : words.length,
  };
}

// The target of the words start … stop (exclusive); for all of several words, the caption itself.
export function spanKey(words, start, stop) {
  if (stop - start === words.length && stop > 1) return words.join(" ");
  const marked = words.map((word, i) => (i === start ? "[" : "") + word + (i === stop - 1 ? "]" : ""));
  return marked.join(" ");
}

// The span after a click on a word: the word itself, or with Shift the current span extended to it.
export function extendedSpan({ start, stop, isCaption }, word, withShift) {
  if (!withShift || isCaption) return [word, word + 1];
  return word < start ? [word, stop] : [start, word + 1];
}

// Runs of consecutive layers of one resolution, [label, count], for the ruler under the slider.
export function resolutionRuns(layers) {
  const runs = [];
  for (const { size } of layers) {
    const label = size[0] === size[1] ? `${size[0]}²` : size.join("×");
    const last = runs.at(-1);
    if (last?.[0] === label) last[1] += 1;
    else runs.push([label, 1]);
  }
  return runs;
}

// Whether a key is kept from the host: JupyterLab would take keys without modifiers for its own shortcuts. Tab, Escape,
// keys with Ctrl, Alt or Meta, and Shift+Enter, which runs a cell, reach the host.
export function isViewerKey({ key, ctrlKey, altKey, metaKey, shiftKey }) {
  return !(ctrlKey || altKey || metaKey || key === "Tab" || key === "Escape" || (shiftKey && key === "Enter"));
}

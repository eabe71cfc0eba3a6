// What is on show, derived from the widget's traits. Pure.

export const MOST_PANES = 4;

// What one delivery of maps is found by.
export function partKey(image, target, meta, lr) {
  return JSON.stringify([image, target, meta, meta === "off" ? 0 : lr]);
}

// One entry per pane. The first shows what the controls say; the others differ in the one thing that is compared.
// A combination takes the place of the layer, but beside it single layers can be compared.
export function panesOf({ target, method, layer, meta, combine, compare, others }) {
  const first = { target, method, layer, meta, combine };
  if (compare === "off") return [first];
  const rest = others.slice(0, MOST_PANES - 1).map((value) => {
    const pane = { ...first, [compare]: value };
    return compare === "layer" ? { ...pane, combine: "off" } : pane;
  });
  return [first, ...rest];
}

// What another pane should show: the choice after the last one on show that is not there yet, or null.
export function another(choices, present) {
  const start = choices.indexOf(present.at(-1)) + 1;
  const turned = [...choices.slice(start), ...choices.slice(0, start)];
  return turned.find((choice) => !present.includes(choice)) ?? null;
}

// The weight of each layer, 0…1: the chosen ones, and for the others j/J from shallow to deep ("linear") or all alike.
export function weightsOf(layers, weighting, chosen) {
  return layers.map((layer, j) => chosen[layer] ?? (weighting === "linear" ? (j + 1) / layers.length : 1));
}

// The words of a caption target: "a [red star] above" -> words, and which of them are asked (all, if none is marked).
export function spanOf(key) {
  const words = key.split(" ").filter(Boolean);
  const open = words.findIndex((word) => word.startsWith("["));
  const close = words.findIndex((word) => word.endsWith("]"));
  const marked = open >= 0 && close >= open;
  return {
    words: marked ? words.map((w, i) => w.slice(i === open ? 1 : 0, i === close ? -1 : undefined)) : words,
    whole: !marked,
    start: marked ? open : 0,
    stop: marked ? close + 1 : words.length,
  };
}

// The target that asks for the words start … stop (exclusive); for all of several, the caption itself.
export function spanKey(words, start, stop) {
  if (stop - start === words.length && stop > 1) return words.join(" ");
  const marked = words.map((word, i) => (i === start ? "[" : "") + word + (i === stop - 1 ? "]" : ""));
  return marked.join(" ");
}

// The words that a click on one of them asks for: itself, or with Shift all from those asked before.
export function extended({ start, stop, whole }, number, more) {
  if (!more || whole) return [number, number + 1];
  return number < start ? [number, stop] : [start, number + 1];
}

// Neighbouring layers of one resolution, [label, count], for the ruler under the slider.
export function stretches(layers) {
  const found = [];
  for (const { size } of layers) {
    const label = size[0] === size[1] ? `${size[0]}²` : size.join("×");
    const last = found.at(-1);
    if (last?.[0] === label) last[1] += 1;
    else found.push([label, 1]);
  }
  return found;
}

// Keys that a host (JupyterLab) would take for its own shortcuts: those pressed alone. Tab, Escape and everything with
// Ctrl, Alt or Meta pass, and so does Shift+Enter, which runs a cell.
export function isOurs({ key, ctrlKey, altKey, metaKey, shiftKey }) {
  return !(ctrlKey || altKey || metaKey || key === "Tab" || key === "Escape" || (shiftKey && key === "Enter"));
}

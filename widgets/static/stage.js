// The panes side by side, and the map that each of them shows.

import { dropDown, replaceChildren } from "./page.js";
import { createPane } from "./pane.js";
import { mapKey, MAX_PANES, nextChoice, panesOf, weightsOf } from "./state.js";

// The choices of the compared option: [value, text] of each.
function choicesOf({ about, scene }, option) {
  if (option === "layer") return about.layers.map(({ name }) => [name, name]);
  if (option === "target") return scene.choices.map(({ key, label }) => [key, label]);
  return about.options[option];
}

export function createStage(page) {
  const { h, s, store } = page;
  const panes = [];
  const el = h("div.gl-panes");
  const probe = (point) => panes.forEach((pane) => pane.setProbe(point));

  function addHead(pane, number) {
    const option = s.compare;
    const change = (values) => s.others.flatMap((value, i) => (i === number - 1 ? values : value));
    const value = () => (number ? s.others[number - 1] : s[option]);
    const pick = (picked) => (number ? (s.others = change(picked)) : (s[option] = picked));
    pane.list = dropDown(page, { label: `Pane ${number + 1}` }, () => choicesOf(s, option), value, pick);
    const attributes = { "aria-label": `Remove pane ${number + 1}`, onclick: () => (s.others = change([])) };
    pane.head.append(pane.list.el, ...(number && s.others.length > 1 ? [h("button", attributes, "×")] : []));
  }
  function build(count) {
    replaceChildren(el, [s.compare, count], () => {
      panes.splice(0, panes.length, ...Array.from({ length: count }, (_, i) => createPane(page, i, probe)));
      if (count > 1) panes.forEach(addHead);
      return panes.map((pane) => pane.el);
    });
    el.dataset.count = count;
  }
  function mapOf(key, { method, layer, combine }) {
    const { layers } = s.about;
    if (combine === "off") return store.map(key, method, layers.findIndex(({ name }) => name === layer));
    const numbers = [...layers.keys()].filter((i) => !layers[i].combined);
    const weights = weightsOf(numbers.map((i) => layers[i].name), s.weighting, s.weights);
    return store.combined(key, method, numbers, weights, combine);
  }
  function captionOf({ target, method, layer, meta, combine }) {
    const size = s.about.layers.find(({ name }) => name === layer)?.size ?? [];
    const where = combine === "off" ? `${layer} (${size.join("×")})` : `${combine} of all layers`;
    const label = s.scene.choices.find(({ key }) => key === target)?.label ?? target;
    return [label, method, where, ...(meta === "off" ? [] : [`${meta} step ${s.lr}`])];
  }
  // Draw every pane; return those whose maps Python has not sent.
  function sync(photo) {
    const specs = panesOf(s);
    build(specs.length);
    return specs.filter((spec, i) => {
      const key = mapKey(s.scene.image, spec.target, spec.meta, s.lr);
      const received = store.has(key, spec.method) || !s.scene.choices.length;
      const map = mapOf(key, spec);
      const message = map ? "" : received ? "No such map here" : page.waitingText();
      panes[i].list?.sync();
      panes[i].draw(photo, map, captionOf(spec), message);
      return !received;
    });
  }
  return { el, sync, panes };
}

// The list of options that can be compared, and a button for a further pane.
export function createCompare(page) {
  const { h, s, store } = page;
  const values = (option) => choicesOf(s, option).map(([value]) => value);
  const several = (option) => (option === "meta" ? page.isLive() || store.steps() > 1 : values(option).length > 1);
  const possible = ([option]) => option === "off" || option === s.compare || several(option);
  const next = () => (s.compare === "off" ? null : nextChoice(values(s.compare), [s[s.compare], ...s.others]));
  const pick = (option) => {
    s.compare = option;
    s.others = option === "off" ? [] : [nextChoice(values(option), [s[option]])];
  };
  const choices = () => s.about.options.compare.filter(possible);
  const list = dropDown(page, s.about.controls.compare, choices, () => s.compare, pick);
  const add = h("button", { onclick: () => (s.others = [...s.others, next()]) }, "Add a pane");
  const sync = () => {
    list.sync();
    add.hidden = s.others.length + 1 >= MAX_PANES || next() === null;
  };
  return { el: h("div.gl-row", {}, list.el, add), sync };
}

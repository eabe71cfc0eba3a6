// The panes side by side, and what each of them has to show.

import { dropDown, replaced } from "./page.js";
import { createPane } from "./pane.js";
import { another, MOST_PANES, panesOf, partKey, weightsOf } from "./state.js";

// The choices of the thing that is compared: [value, text] of each.
function choicesOf({ about, scene }, what) {
  if (what === "layer") return about.layers.map(({ name }) => [name, name]);
  if (what === "target") return scene.choices.map(({ key, label }) => [key, label]);
  return about.options[what];
}

export function createStage(page) {
  const { h, s, store } = page;
  const panes = [];
  const el = h("div.gl-panes");
  const probe = (at) => panes.forEach((pane) => pane.point(at));

  function addHead(pane, number) {
    const what = s.compare;
    const change = (value) => s.others.flatMap((other, i) => (i === number - 1 ? value : other));
    const value = () => (number ? s.others[number - 1] : s[what]);
    const pick = (chosen) => (number ? (s.others = change(chosen)) : (s[what] = chosen));
    pane.list = dropDown(page, `Pane ${number + 1}`, () => choicesOf(s, what), value, pick);
    const away = h("button", { "aria-label": `Remove pane ${number + 1}`, onclick: () => (s.others = change([])) }, "×");
    pane.head.append(pane.list.el, ...(number && s.others.length > 1 ? [away] : []));
  }
  function build(count) {
    replaced(el, [s.compare, count], () => {
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
  function textOf({ target, method, layer, meta, combine }) {
    const size = s.about.layers.find(({ name }) => name === layer)?.size ?? [];
    const where = combine === "off" ? `${layer} (${size.join("×")})` : `${combine} of all layers`;
    const label = s.scene.choices.find(({ key }) => key === target)?.label ?? target;
    return [label, method, where, ...(meta === "off" ? [] : [`${meta} step ${s.lr}`])];
  }
  // Draw every pane; give those whose maps are not here.
  function sync(photo) {
    const all = panesOf(s);
    build(all.length);
    const missing = all.filter((wanted, i) => {
      const key = partKey(s.scene.image, wanted.target, wanted.meta, s.lr);
      const here = store.has(key, wanted.method) || !s.scene.choices.length;
      const map = mapOf(key, wanted);
      panes[i].list?.sync();
      panes[i].show(photo, map, textOf(wanted), map ? "" : here ? "No such map here" : page.waiting());
      return !here;
    });
    return missing;
  }
  return { el, sync, panes };
}

// Comparing: what, and one pane more.
export function createCompare(page) {
  const { h, s, store } = page;
  const values = (what) => choicesOf(s, what).map(([value]) => value);
  const several = (what) => (what === "meta" ? page.live() || store.steps() > 1 : values(what).length > 1);
  const possible = ([what]) => what === "off" || what === s.compare || several(what);
  const next = () => (s.compare === "off" ? null : another(values(s.compare), [s[s.compare], ...s.others]));
  const pick = (what) => {
    s.compare = what;
    s.others = what === "off" ? [] : [another(values(what), [s[what]])];
  };
  const list = dropDown(page, "Compare", () => s.about.options.compare.filter(possible), () => s.compare, pick);
  const more = h("button", { onclick: () => (s.others = [...s.others, next()]) }, "Add a pane");
  const sync = () => {
    list.sync();
    more.hidden = s.others.length + 1 >= MOST_PANES || next() === null;
  };
  return { el: h("div.gl-row", {}, list.el, more), sync };
}

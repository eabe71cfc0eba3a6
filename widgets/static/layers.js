// The slider over layers with its ruler, and the weights of a combination as bars that can be dragged.

import { replaced, setText } from "./page.js";
import { stretches, weightsOf } from "./state.js";

export function createSlider({ h, s, unique }) {
  const id = unique();
  const input = h("input", { id, type: "range", min: 0, oninput: () => (s.layer = s.about.layers[input.value].name) });
  const name = h("output", { for: id });
  const ruler = h("div.gl-ruler", { "aria-hidden": true });
  const head = h("div.gl-sliderhead", {}, h("label", { for: id }, "Layer"), name);
  const el = h("div.gl-slider", {}, head, input, ruler);

  function sync() {
    const { layers } = s.about;
    const at = Math.max(layers.findIndex((layer) => layer.name === s.layer), 0);
    const layer = layers[at];
    el.hidden = s.combine !== "off" && s.compare !== "layer";
    [input.max, input.value] = [layers.length - 1, at];
    input.setAttribute("aria-valuetext", `${layer.name}, ${layer.size.join(" by ")}, ${at + 1} of ${layers.length}`);
    setText(name, `${layer.name} · ${layer.size.join("×")}`);
    replaced(ruler, layers.length, () =>
      stretches(layers).map(([label, count]) =>
        h("span", { style: `flex-grow:${count}`, title: label }, count / layers.length > 0.04 ? label : ""),
      ),
    );
  }
  return { el, sync };
}

export function createWeights({ h, s }) {
  const bars = h("div.gl-bars", { role: "group", "aria-label": "Weights" });
  const presets = s.about.options.weighting.map(([value, text]) => {
    const onclick = () => Object.assign(s, { weighting: value, weights: {} });
    return h("button", { onclick }, text);
  });
  const name = h("output");
  const head = h("div.gl-sliderhead", {}, h("span", {}, "Weights"), name);
  const el = h("div.gl-weights", {}, head, bars, h("div.gl-row", {}, ...presets));

  function bar(layer) {
    const tell = () => setText(name, `${layer} · ${range.value}`);
    const oninput = () => {
      s.weights = { ...s.weights, [layer]: Number(range.value) };
      tell();
    };
    const listeners = { oninput, onfocus: tell, onpointerenter: tell };
    const range = h("input", { type: "range", max: 1, step: 0.01, "aria-label": `Weight of ${layer}`, ...listeners });
    return range;
  }
  function sync() {
    el.hidden = s.combine === "off";
    const names = el.hidden ? [] : s.about.layers.filter((layer) => !layer.combined).map((layer) => layer.name);
    replaced(bars, names, () => names.map(bar));
    weightsOf(names, s.weighting, s.weights).forEach((weight, i) => {
      const range = bars.children[i];
      range.value = weight;
      range.style.setProperty("--part", `${weight * 100}%`);
    });
  }
  return { el, sync };
}

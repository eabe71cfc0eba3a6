// The slider over the layers with its ruler, and the weights of a combination as bars that can be dragged.

import { replaceChildren, setText } from "./page.js";
import { resolutionRuns, weightsOf } from "./state.js";

export function createSlider({ h, s, uniqueId }) {
  const { label: caption, help } = s.about.controls.layer;
  const id = uniqueId();
  const input = h("input", { id, type: "range", min: 0, oninput: () => (s.layer = s.about.layers[input.value].name) });
  const name = h("output", { for: id });
  const ruler = h("div.gl-ruler", { "aria-hidden": true });
  const head = h("div.gl-sliderhead", {}, h("label", { for: id }, caption), name);
  const el = h("div.gl-slider", { title: help }, head, input, ruler);

  function sync() {
    const { layers } = s.about;
    const index = Math.max(layers.findIndex((layer) => layer.name === s.layer), 0);
    const layer = layers[index];
    el.hidden = s.combine !== "off" && s.compare !== "layer";
    [input.max, input.value] = [layers.length - 1, index];
    input.setAttribute("aria-valuetext", `${layer.name}, ${layer.size.join(" by ")}, ${index + 1} of ${layers.length}`);
    setText(name, `${layer.name} · ${layer.size.join("×")}`);
    replaceChildren(ruler, layers.length, () =>
      resolutionRuns(layers).map(([label, count]) =>
        h("span", { style: `flex-grow:${count}`, title: label }, count / layers.length > 0.04 ? label : ""),
      ),
    );
  }
  return { el, sync };
}

export function createWeights({ h, s }) {
  const { label, help, min, max } = s.about.controls.weights;
  const bars = h("div.gl-bars", { role: "group", "aria-label": label });
  const presets = s.about.options.weighting.map(([value, text]) => {
    const onclick = () => Object.assign(s, { weighting: value, weights: {} });
    return h("button", { onclick }, text);
  });
  const name = h("output");
  const head = h("div.gl-sliderhead", {}, h("span", {}, label), name);
  const el = h("div.gl-weights", { title: help }, head, bars, h("div.gl-row", {}, ...presets));

  function bar(layer) {
    const showName = () => setText(name, `${layer} · ${range.value}`);
    const oninput = () => {
      s.weights = { ...s.weights, [layer]: Number(range.value) };
      showName();
    };
    const listeners = { oninput, onfocus: showName, onpointerenter: showName };
    const range = h("input", { type: "range", min, max, step: 0.01, "aria-label": `Weight of ${layer}`, ...listeners });
    return range;
  }
  function sync() {
    el.hidden = s.combine === "off";
    const names = el.hidden ? [] : s.about.layers.filter((layer) => !layer.combined).map((layer) => layer.name);
    replaceChildren(bars, names, () => names.map(bar));
    weightsOf(names, s.weighting, s.weights).forEach((weight, i) => {
      const range = bars.children[i];
      range.value = weight;
      range.style.setProperty("--fill", `${weight * 100}%`);
    });
  }
  return { el, sync };
}

// The controls beside the picture: inner step, combination, look; what can be saved; what is going on.

import { field, setText, traitList, traitSwitch } from "./page.js";

export function createLook(page) {
  const { h, s } = page;
  const list = (label, name) => traitList(page, label, name);
  const controls = [traitSwitch(page, "Display", "display"), list("Colours", "colours"), list("Range", "normalisation")];
  const opacity = h("input", { type: "range", max: 1, step: 0.05, oninput: () => (s.opacity = Number(opacity.value)) });
  const el = h("div.gl-group", {}, ...controls.map((control) => control.el), field(page, "Opacity", opacity));
  const sync = () => {
    controls.forEach((control) => control.sync());
    opacity.value = s.opacity;
    opacity.disabled = s.display !== "overlay";
  };
  return { el, sync };
}

export function createCombination(page) {
  const { el, sync } = traitSwitch(page, "Combination", "combine");
  el.hidden = page.s.about.layers.filter(({ combined }) => !combined).length < 2;
  return { el, sync };
}

export function createStep(page) {
  const { h, s } = page;
  const control = traitSwitch(page, "Meta-saliency", "meta");
  const onchange = () => rate.checkValidity() && rate.value && (s.lr = Number(rate.value));
  const rate = h("input", { type: "number", min: 0, step: "any", onchange });
  const rates = field(page, "Learning rate", rate);
  const el = h("div.gl-group", {}, control.el, rates);
  const sync = () => {
    control.sync();
    el.hidden = !page.live();
    rates.hidden = s.meta === "off" && s.compare !== "meta";
    if (!rate.matches(":focus")) rate.value = s.lr;
  };
  return { el, sync };
}

// Pictures are made in the page; files of maps and pages by Python, which says where it put them.
export function createExports({ h, s, ask }, panes) {
  // Named by the whole sentence, of which only the last word is shown.
  const button = (label, onclick) => h("button", { "aria-label": label, onclick }, label.split(" ").at(-1));
  const png = () => {
    const url = sheet(panes).toDataURL();
    h("a", { href: url, download: `${s.scene.name}.png` }).click();
    // Some hosts ignore downloads, so Python is given the bytes too.
    ask({ do: "picture", png: url.split(",")[1] });
  };
  const kept = [
    button("Save the maps as HDF5", () => ask({ do: "save", as: "h5" })),
    button("Save the viewer as HTML", () => ask({ do: "save", as: "html" })),
  ];
  const el = h("div.gl-row", { role: "group", "aria-label": "Save" }, button("Save the picture as PNG", png), ...kept);
  const sync = () => kept.forEach((each) => (each.hidden = !s.about.kernel));
  return { el, sync };
}

// All panes on one canvas, each with its caption.
function sheet(panes) {
  const [{ width, height }, gap, line] = [panes[0].canvas, 12, 24];
  const paper = document.createElement("canvas");
  [paper.width, paper.height] = [panes.length * (width + gap) - gap, height + 3 * line];
  const context = paper.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, paper.width, paper.height);
  context.fillStyle = "#111";
  panes.forEach(({ canvas, text: [first, ...rest] }, i) => {
    const left = i * (width + gap);
    context.drawImage(canvas, left, 0, width, height);
    context.font = "16px sans-serif";
    [first, rest.join(" · ")].forEach((words, row) => {
      context.fillText(words, left + 4, height + (row + 1) * line, width - 8);
    });
  });
  return paper;
}

// Progress and a way out of it, an error, or where a file was put.
export function createStatus({ h, s, ask }) {
  const text = h("span", { role: "status" });
  const bar = h("progress", { "aria-label": "Progress" });
  const stop = h("button", { onclick: () => ask({ do: "cancel" }) }, "Cancel");
  const el = h("div.gl-status", {}, bar, text, stop);
  const sync = () => {
    const { state, text: said = "", part = 0 } = s.work;
    el.dataset.state = state;
    el.hidden = !said;
    bar.hidden = stop.hidden = state !== "busy";
    bar.value = part;
    setText(text, said);
  };
  return { el, sync };
}

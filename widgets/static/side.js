// The controls beside the picture: inner step, combination, display; what can be saved; the progress of Python.

import { field, numberInput, setText, traitList, traitSwitch } from "./page.js";

export function createDisplay(page) {
  const { h, s } = page;
  const controls = [traitSwitch(page, "display"), traitList(page, "colours"), traitList(page, "normalisation")];
  const opacity = numberInput(page, "opacity", "range", 0.05);
  const opacityField = field(page, s.about.controls.opacity, opacity);
  const el = h("div.gl-group", {}, ...controls.map((control) => control.el), opacityField);
  const sync = () => {
    controls.forEach((control) => control.sync());
    opacity.value = s.opacity;
    opacity.disabled = s.display !== "overlay";
  };
  return { el, sync };
}

export function createCombination(page) {
  const { el, sync } = traitSwitch(page, "combine");
  el.hidden = page.s.about.layers.filter(({ combined }) => !combined).length < 2;
  return { el, sync };
}

export function createStep(page) {
  const { h, s } = page;
  const direction = traitSwitch(page, "meta");
  const rate = numberInput(page, "lr", "number", "any");
  const rateField = field(page, s.about.controls.lr, rate);
  const el = h("div.gl-group", {}, direction.el, rateField);
  const sync = () => {
    direction.sync();
    el.hidden = !page.isLive();
    rateField.hidden = s.meta === "off" && s.compare !== "meta";
    if (!rate.matches(":focus")) rate.value = s.lr;
  };
  return { el, sync };
}

// The page saves pictures itself; Python saves files of maps and pages, and reports their paths.
export function createExports({ h, s, send }, panes) {
  // The accessible name is the sentence, of which the button shows the last word.
  const button = (label, onclick) => h("button", { "aria-label": label, onclick }, label.split(" ").at(-1));
  const savePicture = () => {
    const url = drawSheet(panes).toDataURL();
    h("a", { href: url, download: `${s.scene.name}.png` }).click();
    // Some hosts ignore downloads, so Python receives the bytes too.
    send({ do: "picture", png: url.split(",")[1] });
  };
  const files = [
    button("Save the maps as HDF5", () => send({ do: "save", as: "h5" })),
    button("Save the viewer as HTML", () => send({ do: "save", as: "html" })),
  ];
  const picture = button("Save the picture as PNG", savePicture);
  const el = h("div.gl-row", { role: "group", "aria-label": "Save" }, picture, ...files);
  const sync = () => files.forEach((file) => (file.hidden = !s.about.kernel));
  return { el, sync };
}

// All panes on one canvas, each with its caption.
function drawSheet(panes) {
  const [{ width, height }, gap, line] = [panes[0].canvas, 12, 24];
  const paper = document.createElement("canvas");
  [paper.width, paper.height] = [panes.length * (width + gap) - gap, height + 3 * line];
  const context = paper.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, paper.width, paper.height);
  context.fillStyle = "#111";
  panes.forEach(({ canvas, caption: [target, ...details] }, i) => {
    const left = i * (width + gap);
    context.drawImage(canvas, left, 0, width, height);
    context.font = "16px sans-serif";
    [target, details.join(" · ")].forEach((text, row) => {
      context.fillText(text, left + 4, height + (row + 1) * line, width - 8);
    });
  });
  return paper;
}

// Progress with a button that cancels, an error, or the path of a saved file.
export function createStatus({ h, s, send }) {
  const message = h("span", { role: "status" });
  const bar = h("progress", { "aria-label": "Progress" });
  const cancel = h("button", { onclick: () => send({ do: "cancel" }) }, "Cancel");
  const el = h("div.gl-status", {}, bar, message, cancel);
  const sync = () => {
    const { state, text = "", part: progress = 0 } = s.work;
    el.dataset.state = state;
    el.hidden = !text;
    bar.hidden = cancel.hidden = state !== "busy";
    bar.value = progress;
    setText(message, text);
  };
  return { el, sync };
}

// The viewer: assembles the controls, draws at most once per frame, and removes all its listeners at the end.

import { createGallery } from "./gallery.js";
import { createSlider, createWeights } from "./layers.js";
import { createPage, setText, traitList } from "./page.js";
import { createCombination, createDisplay, createExports, createStatus, createStep } from "./side.js";
import { createCompare, createStage } from "./stage.js";
import { isViewerKey } from "./state.js";
import { createStore } from "./store.js";
import { createClasses, createSentence } from "./targets.js";

// Python's silence for this many milliseconds is reported.
const SILENCE = 3000;

function render({ model, el }) {
  const page = createPage(model, createStore());
  const { h, s, listen, store } = page;
  let [photo, requested, requestedAt, frame, drawnFrames] = [null, "", 0, 0, 0];
  page.isLive = () => s.about.live;
  const isComputing = () => performance.now() - requestedAt < SILENCE || s.work.state === "busy";
  page.waitingText = () => (isComputing() ? "Computing …" : "No answer: is the kernel running?");

  const createMethod = () => traitList(page, "method");
  const stage = createStage(page);
  const [title, name] = [h("b"), h("span")];
  const [compare, exports] = [createCompare(page), createExports(page, stage.panes)];
  const make = (...creators) => creators.map((create) => create(page));
  const [gallery, sentence, slider, weights] = make(createGallery, createSentence, createSlider, createWeights);
  const side = make(createClasses, createMethod, createStep, createCombination, createDisplay);
  const status = createStatus(page);
  const controls = [compare, exports, gallery, sentence, slider, weights, ...side, status];
  const onkeydown = (event) => isViewerKey(event) && event.stopPropagation();
  const root = h(
    "section.gradlight",
    { "aria-label": "Saliency viewer", onkeydown },
    h("header", {}, h("div.gl-title", {}, title, name), compare.el, exports.el),
    h(
      "div.gl-body",
      {},
      gallery.el,
      h("div.gl-centre", {}, sentence.el, stage.el, slider.el, weights.el),
      h("div.gl-side", {}, ...side.map((control) => control.el)),
    ),
    status.el,
  );

  function draw() {
    frame = 0;
    root.dataset.theme = s.theme;
    setText(title, s.about.title);
    setText(name, s.scene.name);
    controls.forEach((control) => control.sync());
    const missing = stage.sync(photo);
    requestMaps(missing.length ? JSON.stringify([missing, s.lr, s.scene.image]) : "");
    root.dataset.shown = [s.target, s.method, s.layer, s.meta, s.scene.image].join(" | ");
    root.dataset.missing = missing.length + (s._photo.byteLength && !photo ? 1 : 0);
    root.dataset.drawn = drawnFrames += 1;
  }
  // Request missing maps from Python, once for each change, and report where it stays silent.
  function requestMaps(missing) {
    if (missing === requested) return;
    [requested, requestedAt] = [missing, performance.now()];
    if (!missing) return;
    page.send({ do: "want" });
    setTimeout(refresh, SILENCE + 50);
  }
  function refresh() {
    if (!page.signal.aborted) frame ||= requestAnimationFrame(draw);
  }
  function receiveMaps() {
    store.add(s._maps);
    refresh();
  }
  async function receivePhoto() {
    const view = s._photo;
    const bitmap = view.byteLength ? await createImageBitmap(new Blob([view])).catch(() => null) : null;
    if (page.signal.aborted || view !== s._photo) return bitmap?.close();
    photo?.close();
    photo = bitmap;
    refresh();
  }

  for (const trait of s.about.traits) listen(trait, refresh);
  listen("_maps", receiveMaps);
  listen("_photo", receivePhoto);
  const resized = new ResizeObserver(refresh);
  resized.observe(root);
  el.append(root);
  receiveMaps();
  receivePhoto();

  return () => {
    cancelAnimationFrame(frame);
    resized.disconnect();
    page.dispose();
    photo?.close();
    root.remove();
  };
}

export default { render };

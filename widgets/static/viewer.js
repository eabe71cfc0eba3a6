// The viewer: puts the parts together, draws once per frame, and leaves nothing behind.

import { createGallery } from "./gallery.js";
import { createSlider, createWeights } from "./layers.js";
import { createPage, setText, traitList } from "./page.js";
import { createCombination, createExports, createLook, createStatus, createStep } from "./side.js";
import { createCompare, createStage } from "./stage.js";
import { isOurs } from "./state.js";
import { createStore } from "./store.js";
import { createClasses, createSentence } from "./targets.js";

const SILENCE = 3000;

function render({ model, el }) {
  const page = createPage(model, createStore());
  const { h, s, hear, store } = page;
  let [photo, asked, since, frame, drawn] = [null, "", 0, 0, 0];
  page.live = () => s.about.live;
  const patient = () => performance.now() - since < SILENCE || s.work.state === "busy";
  page.waiting = () => (patient() ? "Computing …" : "No answer: is the kernel running?");

  const createMethod = () => traitList(page, "Method", "method");
  const stage = createStage(page);
  const [title, name] = [h("b"), h("span")];
  const [compare, exports] = [createCompare(page), createExports(page, stage.panes)];
  const make = (...creators) => creators.map((create) => create(page));
  const [gallery, sentence, slider, weights] = make(createGallery, createSentence, createSlider, createWeights);
  const side = make(createClasses, createMethod, createStep, createCombination, createLook);
  const status = createStatus(page);
  const parts = [compare, exports, gallery, sentence, slider, weights, ...side, status];
  // A host must not take the keys that are ours for its shortcuts.
  const onkeydown = (event) => isOurs(event) && event.stopPropagation();
  const root = h(
    "section.gradlight",
    { "aria-label": "Saliency viewer", onkeydown },
    h("header", {}, h("div.gl-title", {}, title, name), compare.el, exports.el),
    h(
      "div.gl-body",
      {},
      gallery.el,
      h("div.gl-centre", {}, sentence.el, stage.el, slider.el, weights.el),
      h("div.gl-side", {}, ...side.map((part) => part.el)),
    ),
    status.el,
  );

  function draw() {
    frame = 0;
    root.dataset.theme = s.theme;
    setText(title, s.about.title);
    setText(name, s.scene.name);
    parts.forEach((part) => part.sync());
    const missing = stage.sync(photo);
    want(missing.length ? JSON.stringify([missing, s.lr, s.scene.image]) : "");
    root.dataset.shown = [s.target, s.method, s.layer, s.meta, s.scene.image].join(" | ");
    root.dataset.missing = missing.length + (s._photo.byteLength && !photo ? 1 : 0);
    root.dataset.drawn = drawn += 1;
  }
  // Ask Python for what is on show and not here, once for each change; say so where it stays silent.
  function want(missing) {
    if (missing === asked) return;
    [asked, since] = [missing, performance.now()];
    if (!missing) return;
    page.ask({ do: "want" });
    setTimeout(refresh, SILENCE + 50);
  }
  function refresh() {
    if (!page.signal.aborted) frame ||= requestAnimationFrame(draw);
  }
  function takeMaps() {
    store.add(s._maps);
    refresh();
  }
  async function takePhoto() {
    const view = s._photo;
    const found = view.byteLength ? await createImageBitmap(new Blob([view])).catch(() => null) : null;
    if (page.signal.aborted || view !== s._photo) return found?.close();
    photo?.close();
    photo = found;
    refresh();
  }

  for (const trait of s.about.traits) hear(trait, refresh);
  hear("_maps", takeMaps);
  hear("_photo", takePhoto);
  const resized = new ResizeObserver(refresh);
  resized.observe(root);
  el.append(root);
  takeMaps();
  takePhoto();

  return () => {
    cancelAnimationFrame(frame);
    resized.disconnect();
    page.leave();
    photo?.close();
    root.remove();
  };
}

export default { render };

// The targets: the words of a caption, or classes with their scores and a search.

import { formatValue } from "./numbers.js";
import { checkRadio, replaceChildren, setText } from "./page.js";
import { extendedSpan, spanKey, spanOf } from "./state.js";

// The caption as a row of buttons: the caption, then each word; with Shift, all words from the one chosen before.
export function createSentence(page) {
  const { h, s } = page;
  const el = h("div.gl-sentence", { role: "group", "aria-label": "Caption" });
  const words = () => s.scene.sentence;

  function build() {
    const choose = (word, withShift) => {
      s.target = spanKey(words(), ...extendedSpan(spanOf(s.target), word, withShift));
    };
    const caption = h("button.gl-all", { onclick: () => (s.target = words().join(" ")) }, "Whole caption");
    const single = words().map((word, i) => h("button", { onclick: ({ shiftKey }) => choose(i, shiftKey) }, word));
    return [caption, ...single, h("small", {}, "Shift: several words")];
  }
  function sync() {
    const { choices } = s.scene;
    el.hidden = !words().length;
    replaceChildren(el, words(), build);
    const { start, stop, isCaption } = spanOf(s.target);
    [...el.children].slice(0, -1).forEach((button, i) => {
      const key = i ? spanKey(words(), i - 1, i) : words().join(" ");
      const explained = choices.find((choice) => choice.key === key);
      button.ariaPressed = i ? !isCaption && i > start && i <= stop : isCaption;
      button.disabled = !page.isLive() && !explained;
      button.title = explained ? `log-probability ${formatValue(explained.score)}` : "";
    });
  }
  return { el, sync };
}

function formatPercent(probability) {
  return probability === null ? "" : `${(100 * probability).toFixed(probability < 0.1 ? 1 : 0)} %`;
}

// The most probable classes as radio buttons, and a search over all labels, which Python answers.
export function createClasses(page) {
  const { h, s } = page;
  const list = h("div.gl-classes");
  const search = createSearch(page);
  const el = h("fieldset.gl-targets", {}, h("legend", {}, s.about.controls.target.label), list, search.el);
  const group = page.uniqueId();

  function row({ key, label, score, probability }) {
    const radio = h("input", { type: "radio", name: group, value: key, onchange: () => (s.target = key) });
    const bar = probability === null ? "" : h("i.gl-meter", { style: `--fill:${100 * probability}%` });
    return h("label", {}, radio, h("span", {}, label), bar, h("small", {}, formatPercent(probability) || formatValue(score)));
  }
  function sync() {
    const choices = s.scene.sentence.length ? [] : s.scene.choices;
    el.hidden = !choices.length && !s.about.search;
    replaceChildren(list, choices, () => choices.map(row));
    checkRadio(list, s.target);
    search.sync();
  }
  return { el, sync };
}

function createSearch({ h, s, send }) {
  const hits = h("ul");
  const note = h("p.gl-note", { role: "status" });
  const input = h("input", {
    type: "search",
    oninput: () => query() && s.about.search === "classes" && send({ do: "find", text: query() }),
    onkeydown: (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      if (s.about.search === "captions") send({ do: "target", text: query() });
      else hits.querySelector("button")?.click();
    },
  });
  const el = h("div.gl-search", {}, input, hits, note);
  const query = () => input.value.trim();

  function hit({ key, label, probability }) {
    const onclick = () => {
      s.target = key;
      input.value = "";
      input.focus();
    };
    return h("li", {}, h("button", { onclick }, h("span", {}, label), h("small", {}, formatPercent(probability))));
  }
  function sync() {
    const { search, prompt } = s.about;
    el.hidden = !search;
    input.placeholder = input.ariaLabel = prompt;
    const answer = s.found;
    const isCurrent = query() && answer.text === query();
    const choices = isCurrent ? answer.hits : [];
    replaceChildren(hits, choices, () => choices.map(hit));
    setText(note, isCurrent ? answer.note : "");
  }
  return { el, sync };
}

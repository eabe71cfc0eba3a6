// What is asked: the words of a sentence, or classes with their scores and a search.

import { shown } from "./numbers.js";
import { check, replaced, setText } from "./page.js";
import { extended, spanKey, spanOf } from "./state.js";

// The sentence as a row of buttons: the whole, then each word; with Shift, all words from the one chosen before.
export function createSentence(page) {
  const { h, s } = page;
  const el = h("div.gl-sentence", { role: "group", "aria-label": "Caption" });
  const words = () => s.scene.sentence;

  function build() {
    const choose = (number, more) => (s.target = spanKey(words(), ...extended(spanOf(s.target), number, more)));
    const all = h("button.gl-all", { onclick: () => (s.target = words().join(" ")) }, "Whole caption");
    const each = words().map((word, i) => h("button", { onclick: ({ shiftKey }) => choose(i, shiftKey) }, word));
    return [all, ...each, h("small", {}, "Shift: several words")];
  }
  function sync() {
    const { choices } = s.scene;
    el.hidden = !words().length;
    replaced(el, words(), build);
    const { start, stop, whole } = spanOf(s.target);
    [...el.children].slice(0, -1).forEach((button, i) => {
      const key = i ? spanKey(words(), i - 1, i) : words().join(" ");
      const known = choices.find((choice) => choice.key === key);
      button.ariaPressed = i ? !whole && i > start && i <= stop : whole;
      button.disabled = !page.live() && !known;
      button.title = known ? `log-probability ${shown(known.score)}` : "";
    });
  }
  return { el, sync };
}

function percent(probability) {
  return probability === null ? "" : `${(100 * probability).toFixed(probability < 0.1 ? 1 : 0)} %`;
}

// Classes, most probable first, as radio buttons; and a search over all labels, answered by Python.
export function createClasses(page) {
  const { h, s } = page;
  const list = h("div.gl-classes");
  const search = createSearch(page);
  const el = h("fieldset.gl-targets", {}, h("legend", {}, "Target"), list, search.el);
  const group = page.unique();

  function row({ key, label, score, probability }) {
    const radio = h("input", { type: "radio", name: group, value: key, onchange: () => (s.target = key) });
    const bar = probability === null ? "" : h("i.gl-meter", { style: `--part:${100 * probability}%` });
    return h("label", {}, radio, h("span", {}, label), bar, h("small", {}, percent(probability) || shown(score)));
  }
  function sync() {
    const choices = s.scene.sentence.length ? [] : s.scene.choices;
    el.hidden = !choices.length && !s.about.search;
    replaced(list, choices, () => choices.map(row));
    check(list, s.target);
    search.sync();
  }
  return { el, sync };
}

function createSearch({ h, s, ask }) {
  const hits = h("ul");
  const note = h("p.gl-note", { role: "status" });
  const input = h("input", {
    type: "search",
    oninput: () => wanted() && s.about.search === "classes" && ask({ do: "find", text: wanted() }),
    onkeydown: (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      if (s.about.search === "captions") ask({ do: "target", text: wanted() });
      else hits.querySelector("button")?.click();
    },
  });
  const el = h("div.gl-search", {}, input, hits, note);
  const wanted = () => input.value.trim();

  function hit({ key, label, probability }) {
    const onclick = () => {
      s.target = key;
      input.value = "";
      input.focus();
    };
    return h("li", {}, h("button", { onclick }, h("span", {}, label), h("small", {}, percent(probability))));
  }
  function sync() {
    const { search, prompt } = s.about;
    el.hidden = !search;
    input.placeholder = input.ariaLabel = prompt;
    const { text, hits: found = [], note: said } = s.found;
    const fits = wanted() && text === wanted();
    replaced(hits, fits ? found : [], () => (fits ? found.map(hit) : []));
    setText(note, fits ? said : "");
  }
  return { el, sync };
}

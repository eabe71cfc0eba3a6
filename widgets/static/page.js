// What every part of the page stands on: the traits as `s`, elements that clean up after themselves, and questions to
// Python.

const ECHO = 80;

export function createPage(model, store) {
  const gone = new AbortController();
  const page = `gl${Math.random()}`;
  const heard = [];
  let [saving, ids] = [0, 0];

  function flush() {
    if (saving) model.save_changes();
    clearTimeout(saving);
    saving = 0;
  }
  // s.layer reads a trait; s.layer = "…" changes it: every display sees it at once, Python when the hand rests.
  const s = new Proxy({}, {
    get: (_, name) => model.get(name),
    set: (_, name, value) => {
      model.set(name, value);
      clearTimeout(saving);
      saving = setTimeout(flush, ECHO);
      return true;
    },
  });
  // A question is asked after what it stands on has been told.
  function ask(question) {
    flush();
    model.send(question);
  }
  function hear(name, then) {
    model.on(`change:${name}`, then);
    heard.push(() => model.off(`change:${name}`, then));
  }
  // h("p.gl-note", { title: "…", onclick: f }, "text"): on… are listeners, false and null leave an attribute out.
  function h(kind, attributes = {}, ...children) {
    const [tag, style] = kind.split(".");
    const node = document.createElement(tag);
    if (style) node.className = style;
    if (tag === "button") node.type = tag;
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value, { signal: gone.signal });
      else if (value !== false && value !== null) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }
  function leave() {
    flush();
    gone.abort();
    heard.forEach((off) => off());
  }
  const unique = () => `${page}-${(ids += 1)}`;
  return { s, ask, hear, h, unique, leave, store, signal: gone.signal };
}

// Replace an element's children only where they differ, so that what has the focus keeps it.
export function replaced(node, key, children) {
  const text = JSON.stringify(key);
  if (node.dataset.key !== text) node.replaceChildren(...children());
  node.dataset.key = text;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Check the radio button that has a value.
export function check(node, value) {
  for (const radio of node.querySelectorAll("[type=radio]")) radio.checked = radio.value === value;
}

// A labelled control.
export function field({ h, unique }, label, control) {
  control.id = unique();
  return h("div.gl-field", {}, h("label", { for: control.id }, label), control);
}

// A drop-down. options(): [value, text] of each.
export function dropDown(page, label, options, value, pick) {
  const { h } = page;
  const select = h("select", { onchange: () => pick(select.value) });
  const sync = () => {
    const found = options();
    replaced(select, found, () => found.map(([name, text]) => h("option", { value: name }, text)));
    select.value = value();
  };
  return { el: field(page, label, select), sync };
}

// The drop-down of a trait that has a few known values.
export function traitList(page, label, name) {
  const { s } = page;
  return dropDown(page, label, () => s.about.options[name], () => s[name], (value) => (s[name] = value));
}

// The same as a row of radio buttons that looks like one switch.
export function traitSwitch({ h, s, unique }, legend, name) {
  const group = unique();
  const row = h("div");
  const el = h("fieldset.gl-switch", {}, h("legend", {}, legend), row);
  const one = ([value, text]) => {
    const radio = h("input", { type: "radio", name: group, value, onchange: () => (s[name] = value) });
    return h("label", {}, radio, h("span", {}, text));
  };
  const sync = () => {
    replaced(row, 0, () => s.about.options[name].map(one));
    check(row, s[name]);
  };
  return { el, sync };
}

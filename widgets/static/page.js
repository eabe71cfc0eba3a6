// What all controls share: the traits as `s`, elements whose listeners are removed together, and messages to Python.

// A series of changes is sent to Python once it pauses for this many milliseconds.
const SAVE_DELAY = 80;

export function createPage(model, store) {
  const lifetime = new AbortController();
  const prefix = `gl${Math.random()}`;
  const removers = [];
  let [saving, ids] = [0, 0];

  function flush() {
    if (saving) model.save_changes();
    clearTimeout(saving);
    saving = 0;
  }
  // s.layer reads a trait; s.layer = "…" changes it: in every display at once, in Python after SAVE_DELAY.
  const s = new Proxy({}, {
    get: (_, name) => model.get(name),
    set: (_, name, value) => {
      model.set(name, value);
      clearTimeout(saving);
      saving = setTimeout(flush, SAVE_DELAY);
      return true;
    },
  });
  // Python receives pending changes before the message, which may depend on them.
  function send(message) {
    flush();
    model.send(message);
  }
  function listen(name, listener) {
    model.on(`change:${name}`, listener);
    removers.push(() => model.off(`change:${name}`, listener));
  }
  // h("p.gl-note", { title: "…", onclick: f }, "text"): on… adds a listener, false and null leave an attribute out.
  function h(kind, attributes = {}, ...children) {
    const [tag, style] = kind.split(".");
    const node = document.createElement(tag);
    if (style) node.className = style;
    if (tag === "button") node.type = tag;
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value, { signal: lifetime.signal });
      else if (value !== false && value !== null) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }
  function dispose() {
    flush();
    lifetime.abort();
    removers.forEach((remove) => remove());
  }
  const uniqueId = () => `${prefix}-${(ids += 1)}`;
  return { s, send, listen, h, uniqueId, dispose, store, signal: lifetime.signal };
}

// Replace the children of an element only when `key` has changed, which keeps the focus inside.
export function replaceChildren(node, key, children) {
  const text = JSON.stringify(key);
  if (node.dataset.key !== text) node.replaceChildren(...children());
  node.dataset.key = text;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Check the radio button that has a value.
export function checkRadio(node, value) {
  for (const radio of node.querySelectorAll("[type=radio]")) radio.checked = radio.value === value;
}

// A control with a label; options.py has the labels and the tooltips of traits.
export function field({ h, uniqueId }, { label, help = null }, control) {
  control.id = uniqueId();
  return h("div.gl-field", { title: help }, h("label", { for: control.id }, label), control);
}

// A drop-down list. choices(): [value, text] of each.
export function dropDown(page, caption, choices, value, pick) {
  const { h } = page;
  const select = h("select", { onchange: () => pick(select.value) });
  const sync = () => {
    const pairs = choices();
    replaceChildren(select, pairs, () => pairs.map(([name, text]) => h("option", { value: name }, text)));
    select.value = value();
  };
  return { el: field(page, caption, select), sync };
}

// The drop-down list of a trait that has a list of allowed values.
export function traitList(page, name) {
  const { s } = page;
  const pick = (value) => (s[name] = value);
  return dropDown(page, s.about.controls[name], () => s.about.options[name], () => s[name], pick);
}

// The same as a row of radio buttons, styled as one switch.
export function traitSwitch({ h, s, uniqueId }, name) {
  const { label, help } = s.about.controls[name];
  const group = uniqueId();
  const row = h("div");
  const el = h("fieldset.gl-switch", { title: help }, h("legend", {}, label), row);
  const button = ([value, text]) => {
    const radio = h("input", { type: "radio", name: group, value, onchange: () => (s[name] = value) });
    return h("label", {}, radio, h("span", {}, text));
  };
  const sync = () => {
    replaceChildren(row, 0, () => s.about.options[name].map(button));
    checkRadio(row, s[name]);
  };
  return { el, sync };
}

// The input of a trait that is a number, within the bounds of the trait. type: "range" or "number".
export function numberInput({ h, s }, name, type, step) {
  const { min, max = null } = s.about.controls[name];
  const change = () => input.value && input.checkValidity() && (s[name] = Number(input.value));
  const input = h("input", { type, min, max, step, [type === "range" ? "oninput" : "onchange"]: change });
  return input;
}

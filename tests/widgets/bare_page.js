// Stands in for a notebook: shows the real program of a viewer, any number of times, with the real Python widget behind.
const viewOf = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const traits = {};
const heard = {};
const dirty = new Set();
const leavers = [];
const emit = (name) => (heard[name] ?? []).slice().forEach((then) => then());
const take = ({ state, bytes }) => {
  Object.assign(traits, state);
  for (const name in bytes) traits[name] = viewOf(bytes[name]);
  [...Object.keys(state), ...Object.keys(bytes)].forEach((name) => emit(`change:${name}`));
};
const model = {
  get: (name) => traits[name],
  set(name, value) {
    if (traits[name] === value) return;
    traits[name] = value;
    dirty.add(name);
    emit(`change:${name}`);
  },
  save_changes() {
    const state = Object.fromEntries([...dirty].map((name) => [name, traits[name]]));
    dirty.clear();
    window.toPython({ state });
  },
  send: (message) => window.toPython({ message }),
  on: (name, then) => (heard[name] ??= []).push(then),
  off: (name, then) => (heard[name] = heard[name].filter((other) => other !== then)),
};
window.host = {
  take,
  set: (name, value) => (model.set(name, value), model.save_changes()),
  listeners: () => Object.values(heard).flat().length,
  async show(program) {
    const url = URL.createObjectURL(new Blob([program], { type: "text/javascript" }));
    const module = (await import(url)).default;
    const el = document.createElement("div");
    document.body.append(el);
    leavers.push(await module.render({ model, el }));
  },
  close: (number) => leavers[number](),
};

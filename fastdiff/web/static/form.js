// A form made of data: one control for each field that the server describes.

import { $, make } from "./dom.js";

const controls = new Map(); // name -> { field, read(), write(value), element }

/** Show the controls of an operation, with their defaults; the seed stays. */
export function build(fields) {
  controls.clear();
  const few = [], rest = [];
  for (const field of fields) {
    const control = field.name === "seed" ? seedControl(field) : MAKERS[field.kind](field);
    controls.set(field.name, { field, ...control });
    if (field.name === "seed") continue;
    control.write(field.default);
    (field.few ? few : rest).push(control.row);
  }
  $("few").replaceChildren(...paired(few));
  $("rest").replaceChildren(...paired(rest));
  $("more").hidden = rest.length === 0;
}

/** Name -> value of every control; an empty one is null. */
export function values() {
  return Object.fromEntries([...controls].map(([name, control]) => [name, control.read()]));
}

/** Put values into the controls; the others take their defaults. */
export function fill(given) {
  for (const [name, { field, write }] of controls) write(name in given ? given[name] : field.default);
}

/** Mark the control that an error begins with the name of, and go there. */
export function point(message) {
  for (const [name, { element }] of controls) {
    const bad = message.startsWith(`${name} `) || message.startsWith(`unknown ${name} `);
    element.setAttribute("aria-invalid", bad);
    if (!bad) continue;
    element.closest("details")?.setAttribute("open", "");
    element.focus();
  }
}

function paired(rows) {
  const pairs = [];
  for (const row of rows) {
    const half = controls.get(row.dataset.name).field.half, last = pairs.at(-1);
    if (half && last?.className === "pair" && last.children.length === 1) last.append(row);
    else pairs.push(half ? make("div", { class: "pair" }, row) : row);
  }
  return pairs;
}

function labelled(field, element, shown = element) {
  element.id = `field-${field.name}`;
  const hint = field.hint ? [make("p", { class: "hint", id: `hint-${field.name}` }, field.hint)] : [];
  if (field.hint) element.setAttribute("aria-describedby", `hint-${field.name}`);
  return make("div", { class: "field", "data-name": field.name },
    make("label", { for: element.id }, field.label), shown, ...hint);
}

const numeric = (element) => ({
  element,
  read: () => (element.value.trim() === "" ? null : Number(element.value)),
  write: (value) => { element.value = value ?? ""; element.dispatchEvent(new Event("input")); },
});

function number(field) {
  const whole = field.kind === "integer";
  const attributes = { name: field.name, min: field.low, max: field.high, step: field.step, autocomplete: "off" };
  if (field.slider) {
    const element = make("input", { type: "range", ...attributes });
    const output = make("output", { for: `field-${field.name}` });
    element.addEventListener("input", () => { output.textContent = element.value; });
    return { ...numeric(element), row: labelled(field, element, make("div", { class: "sliding" }, element, output)) };
  }
  const element = make("input", {
    type: "number", ...attributes, inputmode: whole ? "numeric" : "decimal",
    placeholder: field.default === null ? field.empty : null,
  });
  return { ...numeric(element), row: labelled(field, element) };
}

function seedControl(field) {
  const element = $("field-seed");
  element.max = field.high;
  element.value ||= field.default;
  return numeric(element);
}

function flag(field) {
  const element = make("input", { type: "checkbox", name: field.name, id: `field-${field.name}` });
  const row = make("div", { class: "field", "data-name": field.name },
    make("label", { class: "check" }, element, field.label),
    ...(field.hint ? [make("p", { class: "hint" }, field.hint)] : []));
  return { element, row, read: () => element.checked, write: (value) => { element.checked = value === true; } };
}

function text(field) {
  const element = make("input", { type: "text", name: field.name, maxlength: 1000, autocomplete: "off" });
  const read = () => element.value.trim() || null;
  return { element, row: labelled(field, element), read, write: (value) => { element.value = value ?? ""; } };
}

function choice(field) {
  const options = field.choices.map((name) => make("option", { value: name }, name.replaceAll("_", " ")));
  if (field.default === null) options.unshift(make("option", { value: "" }, field.empty));
  const element = make("select", { name: field.name }, ...options);
  return {
    element, row: labelled(field, element), read: () => element.value || null,
    write: (value) => { element.value = value ?? ""; if (element.selectedIndex < 0) element.selectedIndex = 0; },
  };
}

function choices(field) {
  const boxes = field.choices.map((name) => make("input", { type: "checkbox", value: name, name: field.name }));
  const chips = boxes.map((box) => make("label", {}, box, make("span", {}, box.value.replaceAll("_", " "))));
  const row = make("fieldset", { class: "field", "data-name": field.name },
    make("legend", {}, field.label), make("div", { class: "chips" }, ...chips));
  return {
    element: boxes[0], row,
    read: () => boxes.filter((box) => box.checked).map((box) => box.value),
    write: (value) => { for (const box of boxes) box.checked = (value ?? []).includes(box.value); },
  };
}

const MAKERS = { integer: number, number, flag, text, choice, choices };

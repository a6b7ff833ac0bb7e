// The few things every part of the page needs of the document.

export const $ = (id) => document.getElementById(id);

/** An element: make("button", { type: "button", "aria-label": "Close" }, "×"). Properties begin with a dot. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith(".")) element[name.slice(1)] = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

let fading = 0;

/** Tell, politely. quiet: to screen readers alone. action: [label, what it does], a button beside the text. */
export function notice(text, { quiet = false, action = null } = {}) {
  clearTimeout(fading);
  const box = $("notice");
  box.className = quiet ? "quiet-note" : "";
  box.replaceChildren(text);
  if (action) box.append(make("button", { type: "button", onclick: () => { notice(""); action[1](); } }, action[0]));
  if (text) fading = setTimeout(() => box.replaceChildren(), action ? 15000 : 6000);
}

/** Say what went wrong, until it is closed or something works. */
export function fail(text) {
  const box = $("error");
  box.replaceChildren(text);
  if (text) box.append(make("button", { type: "button", onclick: () => fail("") }, "Close"));
}

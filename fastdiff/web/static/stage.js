// The large picture and its views: the result, before and after, the mask, the preview of a running job.

import { $, make } from "./dom.js";

const frame = $("frame"), picture = $("picture"), before = $("before"), slider = $("slider");
const TITLES = { result: "Result", compare: "Before / after", input: "Picture", mask: "Mask" };
let shown = {}; // what there is to show
let view = "result";

/** Show one of { result, before, input: { address, width, height, name } }; masking: the input carries the mask. */
export function offer(what) {
  shown = what;
  draw();
}

/** What the next `offer` shows, if it can: "result", "compare" (with before), "input" or "mask". */
export function prefer(name) {
  view = name;
}

/** A preview takes the place of everything until the next `offer`. */
export function preview(image) {
  frame.hidden = false;
  $("empty").hidden = true;
  frame.className = "previewing";
  for (const part of [before, $("mask"), $("cut"), $("compare"), $("brush"), $("download"), $("use")]) part.hidden = true;
  $("views").replaceChildren();
  $("results").replaceChildren();
  $("caption").textContent = "Preview";
  picture.onload = () => ratio(picture.naturalWidth, picture.naturalHeight);
  picture.alt = "Preview";
  picture.src = image;
}

function possible() {
  return [
    ...(shown.result ? ["result"] : []),
    ...(shown.result && shown.before ? ["compare"] : []),
    ...(shown.input ? [shown.masking ? "mask" : "input"] : []),
  ];
}

function draw() {
  const views = possible();
  if (!views.includes(view)) view = views[0] ?? "result";
  const now = view === "mask" || view === "input" ? shown.input : shown.result;
  frame.hidden = !now;
  $("empty").hidden = Boolean(now);
  $("brush").hidden = !(now && view === "mask");
  $("mask").hidden = !(now && view === "mask");
  const comparing = Boolean(now) && view === "compare";
  for (const part of [before, $("cut"), $("compare")]) part.hidden = !comparing;
  frame.className = comparing ? "comparing" : "";
  if (comparing) before.src = shown.before.address;
  if (now) {
    picture.onload = null;
    picture.src = now.address;
    picture.alt = now.name;
    ratio(now.width, now.height);
  }
  $("views").replaceChildren(...(views.length > 1 ? views : []).map((name) =>
    make("button", { type: "button", "aria-pressed": name === view, onclick: () => focusOn(name) }, TITLES[name])));
}

function focusOn(name) {
  prefer(name);
  draw();
  [...$("views").children].find((button) => button.textContent === TITLES[name])?.focus();
}

function ratio(width, height) {
  frame.style.setProperty("--ratio", width / height);
}

function cut() {
  frame.style.setProperty("--cut", `${slider.value}%`);
  slider.setAttribute("aria-valuetext", `${slider.value} % before`);
}
slider.addEventListener("input", cut);
for (const kind of ["pointerdown", "pointermove"]) {
  frame.addEventListener(kind, (event) => {
    if (!frame.classList.contains("comparing") || !(event.buttons & 1)) return;
    if (kind === "pointerdown") frame.setPointerCapture(event.pointerId);
    const box = frame.getBoundingClientRect();
    slider.value = ((event.clientX - box.left) / box.width) * 100;
    cut();
    event.preventDefault();
  });
}
picture.draggable = before.draggable = false;
$("crisp").addEventListener("change", () => { $("stage").classList.toggle("crisp", $("crisp").checked); });
cut();

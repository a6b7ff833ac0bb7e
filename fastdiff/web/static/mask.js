// The mask brush: a canvas over the picture, one of its pixels for one of the picture's; painted is what is made anew.

import { $ } from "./dom.js";

const canvas = $("mask"), size = $("brush-size");
const context = canvas.getContext("2d", { willReadFrequently: true });
const UNDO = 20;
let past = [], erasing = false, last = null, cursor = null, keyboard = false, marked = null;

const colour = () => `rgb(${getComputedStyle(document.documentElement).getPropertyValue("--mask")})`;
const radius = () => Math.max(0.5, (size.value / 200) * Math.min(canvas.width, canvas.height));

/** A mask for a picture of this size: empty, unless it already is of this size and `keep` is set. */
export function fit(width, height, keep = false) {
  if (keep && canvas.width === width && canvas.height === height) return;
  canvas.width = width;
  canvas.height = height;
  past = [];
  marked = null;
  cursor = { x: width / 2, y: height / 2 };
}

/** Whether nothing is painted. */
export function empty() {
  unmark();
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 3; i < data.length; i += 4) if (data[i] > 127) return false;
  return true;
}

/** The mask as a PNG: white where painted, on black. */
export function png() {
  unmark();
  const { width, height } = canvas;
  const image = context.getImageData(0, 0, width, height);
  for (let i = 0; i < image.data.length; i += 4) {
    image.data.fill(image.data[i + 3], i, i + 3);
    image.data[i + 3] = 255;
  }
  const flat = new OffscreenCanvas(width, height);
  flat.getContext("2d").putImageData(image, 0, 0);
  return flat.convertToBlob({ type: "image/png" });
}

/** Paint what a mask picture shows. */
export async function load(address) {
  const bitmap = await createImageBitmap(await (await fetch(address)).blob());
  fit(bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  const [r, g, b] = getComputedStyle(document.documentElement).getPropertyValue("--mask").trim().split(" ").map(Number);
  for (let i = 0; i < image.data.length; i += 4) {
    image.data[i + 3] = image.data[i];
    image.data.set([r, g, b], i);
  }
  context.putImageData(image, 0, 0);
}

function remember() {
  unmark();
  past.push(context.getImageData(0, 0, canvas.width, canvas.height));
  if (past.length > UNDO) past.shift();
}

function stroke(from, to) {
  context.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  context.strokeStyle = context.fillStyle = colour();
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = radius() * 2;
  context.beginPath();
  context.moveTo(from.x, from.y);
  context.lineTo(to.x + 0.01, to.y);
  context.stroke();
  context.globalCompositeOperation = "source-over";
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * canvas.width,
    y: ((event.clientY - box.top) / box.height) * canvas.height,
  };
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  remember();
  keyboard = false;
  last = place(event);
  stroke(last, last);
});
canvas.addEventListener("pointermove", (event) => {
  if (!last) return;
  for (const part of event.getCoalescedEvents?.() ?? [event]) {
    const here = place(part);
    stroke(last, here);
    last = here;
  }
});
for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => { last = null; });

// The keyboard's brush is drawn as a ring on the mask itself and taken off again before anything reads it.
function mark() {
  unmark();
  marked = context.getImageData(0, 0, canvas.width, canvas.height);
  for (const [width, style] of [[3, "#000"], [1.5, "#fff"]]) {
    context.lineWidth = (width * canvas.width) / Math.max(1, canvas.getBoundingClientRect().width);
    context.strokeStyle = style;
    context.beginPath();
    context.arc(cursor.x, cursor.y, radius(), 0, 2 * Math.PI);
    context.stroke();
  }
}

function unmark() {
  if (marked) context.putImageData(marked, 0, 0);
  marked = null;
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const move = MOVES[event.key];
  if (move) {
    const far = Math.max(1, (event.shiftKey ? 0.1 : 0.025) * Math.max(canvas.width, canvas.height));
    cursor.x = Math.min(canvas.width, Math.max(0, cursor.x + move[0] * far));
    cursor.y = Math.min(canvas.height, Math.max(0, cursor.y + move[1] * far));
  } else if (event.key === " ") {
    remember();
    stroke(cursor, cursor);
  } else if (event.key === "e" || event.key === "E") toggle();
  else if (event.key === "[" || event.key === "]") size.value = Number(size.value) + (event.key === "]" ? 3 : -3);
  else return;
  event.preventDefault();
  keyboard = true;
  mark();
});
canvas.addEventListener("blur", () => { if (keyboard) unmark(); });

function toggle() {
  erasing = !erasing;
  $("erase").setAttribute("aria-pressed", erasing);
}
$("erase").addEventListener("click", toggle);
$("undo").addEventListener("click", () => {
  unmark();
  const before = past.pop();
  if (before) context.putImageData(before, 0, 0);
});
$("clear").addEventListener("click", () => {
  remember();
  context.clearRect(0, 0, canvas.width, canvas.height);
});
$("invert").addEventListener("click", () => {
  remember();
  context.globalCompositeOperation = "xor";
  context.fillStyle = colour();
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
});

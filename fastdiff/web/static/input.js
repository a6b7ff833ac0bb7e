// Pictures that come in: opened, dropped, pasted, or taken from a result; and the settings that PNGs carry.

import { $, fail, notice } from "./dom.js";
import * as api from "./api.js";

let current = null; // { id, width, height, name, address, file }
let changed = () => {}, restored = () => {};
let most = Infinity;

/** onchange: another picture is there. onrestore: (recipe, picture) settings came with a PNG. */
export function listen({ onchange, onrestore, limit }) {
  changed = onchange;
  restored = onrestore;
  most = limit;
}

export const picture = () => current;

/** Work on a picture that the server has: an upload, a result, or the input of a job. */
export function use(picture, file = null) {
  current = picture && { ...picture, address: api.address(picture.id), file };
  const image = $("well-picture");
  image.hidden = !current;
  if (current) image.src = current.address;
  $("well-text").textContent = current ? `${current.name}, ${current.width} × ${current.height}`
    : "or drop one here, or paste it";
  changed();
}

/** Upload a file. restore: take the settings it carries, if any. The answer is whether it went well. */
export async function take(file, { restore = false, only = false } = {}) {
  fail("");
  if (!file) return;
  if (file.size > most) {
    fail(`${file.name} is ${(file.size / 2 ** 20).toFixed(1)} MiB: at most ${most / 2 ** 20} MiB is taken`);
    return;
  }
  let arrived;
  try {
    arrived = await api.upload(file, $("side").value);
  } catch (error) {
    fail(`${file.name ?? "picture"}: ${error.message}`);
    return;
  }
  arrived.name = file.name ?? "pasted picture";
  if (restore && arrived.recipe) restored(arrived.recipe, arrived, () => use(arrived, file));
  else if (only) fail(`${arrived.name}: ${arrived.problem || "it carries no recipe of fastdiff"}`);
  else {
    use(arrived, file);
    notice(`${arrived.name} is there, ${arrived.width} × ${arrived.height}`);
  }
}

$("open").addEventListener("change", () => { take($("open").files[0]).then(() => { $("open").value = ""; }); });
$("restore").addEventListener("change", () => {
  take($("restore").files[0], { restore: true, only: true }).then(() => { $("restore").value = ""; });
});
$("side").addEventListener("change", () => { if (current?.file) take(current.file); });

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let depth = 0;
addEventListener("dragenter", (event) => {
  if (!carriesFiles(event)) return;
  depth += 1;
  $("drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!carriesFiles(event)) return;
  depth = Math.max(0, depth - 1);
  if (!depth) $("drop").hidden = true;
});
addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  $("well").classList.toggle("over", $("well").contains(event.target));
});
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  $("well").classList.remove("over");
  take(event.dataTransfer.files[0], { restore: !$("well").contains(event.target) });
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (file) take(file);
});

// What was made in this visit: a row of pictures, newest first; a click brings one back with its settings.

import { $, make } from "./dom.js";
import { address } from "./api.js";

let jobs = new Map(); // id -> job that is done, oldest first
let onchoice = () => {};

export const choose = (callback) => { onchoice = callback; };
export const job = (id) => jobs.get(id);

/** Everything that the server remembers. */
export function sync(all) {
  jobs = new Map(all.filter((job) => job.status === "done").map((job) => [job.id, job]));
  draw();
}

export function add(job) {
  jobs.set(job.id, job);
  draw();
}

export function forget(id) {
  jobs.delete(id);
  draw();
}

/** Mark the one that is shown. */
export function mark(id) {
  for (const button of document.querySelectorAll("#past button")) {
    button.setAttribute("aria-current", button.dataset.job === id);
  }
}

function draw() {
  const known = new Set([...document.querySelectorAll("#past button")].map((button) => button.dataset.job));
  if (known.size === jobs.size && [...jobs.keys()].every((id) => known.has(id))) return;
  $("no-history").hidden = jobs.size > 0;
  $("past").replaceChildren(...[...jobs.values()].reverse().map((job) => {
    const words = title(job);
    const image = make("img", { src: address(job.results[0].id), alt: "", loading: "lazy" });
    return make("li", {}, make("button",
      { type: "button", "data-job": job.id, title: words, "aria-label": words, onclick: () => onchoice(job.id) }, image));
  }));
}

/** One line that tells jobs apart. */
export function title(job) {
  const fields = job.fields;
  const what = [fields.prompts, fields.prompt].flat().filter(Boolean).map((name) => name.replaceAll("_", " "));
  const few = what.length > 3 ? `${what.length} kinds` : what.join(", ");
  const many = job.results.length > 1 ? `${job.results.length} pictures` : "";
  const seed = fields.seed === undefined || fields.seed === null ? "" : `seed ${fields.seed}`;
  const steps = fields.steps ? `${fields.steps} steps` : "";
  return [job.operation, few, many, seed, steps, `${job.seconds.toFixed(1)} s`].filter(Boolean).join(" · ");
}

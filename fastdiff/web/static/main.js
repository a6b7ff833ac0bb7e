// The page: which operation is open, which job runs, what is on the stage.

import { $, fail, make, notice } from "./dom.js";
import * as api from "./api.js";
import * as form from "./form.js";
import * as history from "./history.js";
import * as input from "./input.js";
import * as mask from "./mask.js";
import * as stage from "./stage.js";

let about, operation;
let running = null; // the job on its way: { id, quarter, began }
let chosen = { job: null, index: 0 }; // the result on the stage
let found = null; // a picture whose settings were restored: it is on the stage until something else is
const typed = {}; // operation -> its values when it was left

function open(name, fields = null) {
  if (operation) typed[operation.name] = form.values();
  const other = operation?.name !== name;
  operation = about.operations.find((one) => one.name === name) ?? about.operations[0];
  form.build(operation.fields);
  if (fields) form.fill(fields);
  else if (other && typed[name]) form.fill({ ...typed[name], seed: form.values().seed });
  for (const tab of $("tabs").children) {
    const here = tab.dataset.name === operation.name;
    tab.setAttribute("aria-selected", here);
    tab.tabIndex = here ? 0 : -1;
  }
  $("about").textContent = operation.about;
  $("well").hidden = !operation.picture;
  $("seeds").hidden = !operation.fields.some((field) => field.name === "seed");
  $("run").textContent = operation.verb;
  show(other && operation.picture ? (operation.mask ? "mask" : "input") : null);
}

function show(view = null) {
  const job = found ? null : history.job(chosen.job);
  const result = found ?? job?.results[chosen.index];
  const picture = operation.picture ? input.picture() : null;
  const compared = job?.before;
  if (picture && operation.mask) mask.fit(picture.width, picture.height, true);
  if (view) stage.prefer(view);
  if (!running?.previewed) {
    stage.offer({
      result: result && { ...result, address: api.address(result.id) },
      before: compared && { ...compared, address: api.address(compared.id) },
      input: picture, masking: operation.mask,
    });
  }
  $("empty").textContent = operation.picture ? "Open a picture to begin: with the button, by dropping it, or by pasting it."
    : `${operation.verb} to see a picture here.`;
  $("download").hidden = !result;
  $("use").hidden = !result || !about.operations.some((one) => one.picture);
  if (result) {
    $("download").href = `${api.address(result.id)}?download`;
    $("download").download = `${result.name.replace(/\.png$/i, "")}.png`;
  }
  $("caption").textContent = result ? `${result.width} × ${result.height}${job ? ` · ${history.title(job)}` : ` · ${result.name}`}` : "";
  history.mark(job?.id);
  results(job);
}

function results(job) {
  const many = job && job.results.length > 1 ? job.results : [];
  $("results").replaceChildren(...many.map((result, index) => make("li", {}, make("button", {
    type: "button", "aria-current": index === chosen.index,
    "aria-label": `Picture ${index + 1}${result.prompt ? `, ${result.prompt}` : ""}, seed ${result.seed}`,
    onclick: () => { chosen.index = index; show("result"); $("results").children[index].firstChild.focus(); },
  }, make("img", { src: api.address(result.id), alt: "" })))));
}

async function run() {
  if (running) return;
  fail("");
  form.point("");
  if (!$("lock").checked && !$("seeds").hidden) dice();
  const job = { operation: operation.name, fields: form.values() };
  running = { id: null, quarter: 0, began: performance.now() };
  busy(true);
  try {
    if (operation.picture) job.picture = input.picture()?.id;
    if (operation.mask && job.picture) {
      if (mask.empty()) throw new Error("the mask is empty: paint over what is to be made anew");
      job.mask = (await api.upload(await mask.png(), about.limits.side)).id;
    }
    const begun = await api.begin(job);
    if (running) running.id = begun.id;
    if (running?.stop) cancel();
    notice(`${operation.title} has begun`, { quiet: true });
    if (matchMedia("(max-width: 52rem)").matches) $("stage").scrollIntoView();
  } catch (error) {
    over();
    fail(error.message);
    form.point(error.message);
  }
}

function cancel() {
  if (!running) return;
  running.stop = true;
  $("step").textContent = "Cancelling…";
  if (running.id) api.cancel(running.id).catch((error) => { over(); fail(error.message); });
}

function busy(is) {
  const focused = document.activeElement;
  $("run").hidden = is;
  $("cancel").hidden = !is;
  $("running").hidden = !is;
  $("progress").removeAttribute("value");
  $("step").textContent = is ? "Waiting…" : "";
  if (is && focused === $("run")) $("cancel").focus();
  if (!is && focused === $("cancel")) $("run").focus();
}

function over() {
  running = null;
  busy(false);
}

const hearing = {
  state({ jobs }) {
    history.sync(jobs);
    const mine = jobs.find((job) => ["queued", "running"].includes(job.status));
    if (running?.id) {
      const job = jobs.find((one) => one.id === running.id);
      if (job) hearing.job(job);
      else over();
    } else if (!running && mine) {
      running = { id: mine.id, quarter: 0, began: performance.now() };
      busy(true);
    }
    if (!chosen.job && jobs.length) chosen = { job: jobs.filter((job) => job.status === "done").at(-1)?.id, index: 0 };
    show();
  },
  job(job) {
    if (job.status === "done") history.add(job);
    if (running?.id === null && job.status === "queued") running.id = job.id;
    if (running?.id !== job.id || ["queued", "running"].includes(job.status)) return;
    over();
    if (job.status === "done") {
      found = null;
      chosen = { job: job.id, index: 0 };
      notice(`Done in ${job.seconds.toFixed(1)} seconds`, { quiet: true });
    } else if (job.status === "failed") fail(job.message);
    else notice(`Cancelled after ${job.step} of ${job.steps ?? "?"} steps`);
    show(job.status !== "done" ? null : job.before ? "compare" : "result");
  },
  progress({ id, step, steps }) {
    if (running?.id !== id) return;
    if (steps) Object.assign($("progress"), { max: steps, value: step });
    const seconds = ((performance.now() - running.began) / 1000).toFixed(1);
    if (!running.stop) $("step").textContent = `Step ${step}${steps ? ` of ${steps}` : ""} · ${seconds} s`;
    const quarter = steps ? Math.floor((4 * step) / steps) : 0;
    if (quarter > running.quarter && quarter < 4) notice(`${quarter * 25} percent`, { quiet: true });
    running.quarter = quarter;
  },
  preview({ id, image }) {
    if (running?.id !== id) return;
    running.previewed = true;
    stage.preview(image);
  },
  forgotten({ id }) { history.forget(id); },
  ended() {
    over();
    fail("The server has stopped, or this visit has ended. Start fastdiff ui again, then load this page again.");
  },
};

function dice() {
  $("field-seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 10 ** 8;
}

function recall(id) {
  const job = history.job(id);
  if (!job) return;
  found = null;
  chosen = { job: id, index: 0 };
  $("lock").checked = true; // so that it makes the same picture again
  open(job.operation, job.fields);
  if (job.inputs.picture) input.use(job.inputs.picture);
  if (job.inputs.mask) mask.load(api.address(job.inputs.mask.id));
  show(job.before ? "compare" : "result");
  notice("Its settings are back");
}

function restore(recipe, picture, asInput) {
  found = picture;
  $("lock").checked = true;
  open(recipe.operation, recipe.fields);
  const wanted = operation.picture && recipe.inputs.picture && input.picture()?.digest !== recipe.inputs.picture;
  show("result");
  if (recipe.notes.length) fail(recipe.notes.join("; "));
  const more = wanted ? " Open the picture that it was made from, too." : "";
  notice(`Settings of ${picture.name} restored.${more}`, { action: ["Edit it instead", () => edit(asInput)] });
}

/** Go to an operation that starts from a picture, and let `give` give it one. */
function edit(give) {
  if (!operation.picture) open((about.operations.find((one) => one.picture) ?? operation).name);
  found = null;
  give();
  show(operation.mask ? "mask" : "input");
}

function tabs() {
  $("tabs").replaceChildren(...about.operations.map((one) => make("button", {
    type: "button", role: "tab", "data-name": one.name, "aria-controls": "panel", onclick: () => open(one.name),
  }, one.title)));
  $("tabs").addEventListener("keydown", (event) => {
    const all = [...$("tabs").children], at = all.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined || at < 0) return;
    event.preventDefault();
    const next = all[(to + all.length) % all.length];
    open(next.dataset.name);
    next.focus();
  });
}

function wire() {
  $("panel").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("cancel").addEventListener("click", cancel);
  $("dice").addEventListener("click", dice);
  $("reset").addEventListener("click", () => form.fill({ seed: form.values().seed }));
  $("use").addEventListener("click", () => {
    const result = found ?? history.job(chosen.job)?.results[chosen.index];
    if (result) edit(() => input.use(result));
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  });
  history.choose(recall);
  input.listen({
    limit: about.limits.upload_bytes, onrestore: restore,
    onchange: () => {
      if (operation.picture) show(operation.mask ? "mask" : "input");
      else if (input.picture() && about.operations.some((one) => one.picture)) edit(() => {});
    },
  });
}

try {
  about = await api.about();
  $("more").open = false;
  tabs();
  wire();
  open(about.operations[0].name);
  await api.visit((kind, data) => hearing[kind](data));
  document.body.dataset.ready = "";
} catch (error) {
  fail(error.message);
}

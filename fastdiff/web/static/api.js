// The server, as functions. Every failure is an Error whose message is the server's one line.

let base = "";

async function ask(method, path, { json, body, type } = {}) {
  const headers = json !== undefined ? { "content-type": "application/json" } : type ? { "content-type": type } : {};
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: json !== undefined ? JSON.stringify(json) : body });
  } catch {
    throw new Error("the server does not answer: is fastdiff ui still running?");
  }
  const text = await answer.text();
  const data = text ? JSON.parse(text) : null;
  if (!answer.ok) throw new Error(data?.error ?? `the server answered ${answer.status}`);
  return data;
}

export const about = () => ask("GET", "/api/about");

/** Go on with the visit of before a reload, or begin one; `listen` is called with (kind, data) from then on. */
export async function visit(listen) {
  const again = encodeURIComponent(sessionStorage.getItem("visit") ?? "");
  const { visit: name } = await ask("POST", `/api/visits?again=${again}`);
  sessionStorage.setItem("visit", name);
  base = `/api/visits/${name}`;
  const events = new EventSource(`${base}/events`);
  for (const kind of ["state", "job", "progress", "preview", "forgotten"]) {
    events.addEventListener(kind, (event) => listen(kind, JSON.parse(event.data)));
  }
  events.addEventListener("ended", () => { events.close(); listen("ended", {}); });
  events.addEventListener("error", () => { if (events.readyState === EventSource.CLOSED) listen("ended", {}); });
  return name;
}

export const upload = (blob, side) =>
  ask("POST", `${base}/pictures?side=${side}`, { body: blob, type: blob.type || "application/octet-stream" });
export const begin = (job) => ask("POST", `${base}/jobs`, { json: job });
export const cancel = (job) => ask("DELETE", `${base}/jobs/${job}`);
export const address = (picture) => `${base}/pictures/${picture}.png`;

// Requests to this page's server, with the token that came in the address once.
import { notice } from "./dom.js";
import { language, t } from "./words.js";

const TOKEN = "aift-token";
function takeToken() {
  if (!location.hash.startsWith("#token=")) return false;
  localStorage.setItem(TOKEN, location.hash.slice(7));
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}
takeToken();
// The new address of a server, put into the tab that is open: to the browser it is the same page.
window.addEventListener("hashchange", () => takeToken() && location.reload());
const headers = (more) => ({ "x-aift-token": localStorage.getItem(TOKEN) ?? "", ...more });

// A request that was refused: its message is for people, `kind` and `problems` are for the screen.
export class Refused extends Error {
  constructor(status, told) {
    super(told?.[language] ?? t("refused", { status }));
    this.status = status;
    this.kind = told?.kind;
    this.problems = (told?.problems ?? []).map((one) => ({ key: one.key, text: one[language] }));
  }
}

async function request(path, options) {
  const response = await fetch(path, { cache: "no-store", ...options, headers: headers(options?.headers) });
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  if (response.status === 401) notice(t("no_token"));
  throw new Refused(response.status, told?.error);
}

export const get = async (path, signal) => (await request(path, { signal })).json();

export const post = async (path, value = {}, signal) => (await request(path, {
  method: "POST", body: JSON.stringify(value), headers: { "content-type": "application/json" }, signal,
})).json();

// A body as it is, such as a file.
export const send = async (path, body, more, signal) =>
  (await request(path, { method: "POST", body, headers: more, signal })).json();

// A POST whose answer is lines of JSON, each handed on as it comes.
export async function stream(path, value, onLine, signal) {
  const response = await request(path, { method: "POST", body: JSON.stringify(value), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value: part } = await reader.read();
    if (done) break;
    const lines = (rest + part).split("\n");
    rest = lines.pop();
    lines.filter(Boolean).forEach((line) => onLine(JSON.parse(line)));
  }
  if (rest) onLine(JSON.parse(rest));
}

// Says what was refused at the top of the screen, unless the screen took it back itself.
export function complain(error) {
  if (error.name === "AbortError" || error.status === 401) return;
  notice(error instanceof Refused ? error.message : t("no_server"));
}

// Calls a function again and again, `ms` after it has ended; every 10 s while the page is hidden, up to every 5 s while
// the server is away; at once when the page is seen again. It ends when the function returns false. Without a valid token
// it stands still until another tab has brought one. Returns a function that ends it.
export function poll(work, ms) {
  let timer = null, away = 0, ended = false, busy = false, barred = false;
  const turn = async () => {
    clearTimeout(timer);
    if (ended || busy) return;
    busy = true;
    try {
      if ((await work()) === false) ended = true;
      if (away || barred) notice(null);
      away = 0;
      barred = false;
    } catch (error) {
      if (error.status === 401) barred = true;
      else if (error instanceof Refused) complain(error);
      else if (++away > 1) notice(t("no_server"));
    }
    busy = false;
    const next = away ? Math.min(5000, 500 * 2 ** away) : ms;
    if (!ended && !barred) timer = setTimeout(turn, document.hidden ? 10000 : next);
  };
  document.addEventListener("visibilitychange", () => document.hidden || barred || turn());
  window.addEventListener("storage", (event) => event.key === TOKEN && turn());
  turn();
  return () => { ended = true; clearTimeout(timer); };
}

// データ, 一括回答: sends a file; `onPart` hears how much of it has gone, from 0 to 1.
export function upload(path, file, onPart, signal) {
  return new Promise((resolve, reject) => {
    const asked = new XMLHttpRequest();
    asked.open("POST", path);
    const own = headers({ "content-type": "application/octet-stream", "x-aift-name": encodeURIComponent(file.name) });
    for (const [name, value] of Object.entries(own)) asked.setRequestHeader(name, value);
    asked.responseType = "json";
    asked.upload.onprogress = (event) => onPart?.(event.loaded / Math.max(1, event.total));
    asked.onload = () => {
      if (asked.status === 200) return resolve(asked.response);
      if (asked.status === 401) notice(t("no_token"));
      reject(new Refused(asked.status, asked.response?.error));
    };
    asked.onerror = () => reject(new TypeError("network"));
    asked.onabort = () => reject(new DOMException("", "AbortError"));
    signal?.addEventListener("abort", () => asked.abort());
    asked.send(file);
  });
}

// 書き出し: each kind is a job; what it wrote and measured stands below, found again by its folder. So is an API.
import { complain, get, poll, post } from "./api.js";
import { $, badge, command, copying, h, labelled, line, notice, replace } from "./dom.js";
import { ago, bytes, number, t } from "./words.js";

const address = new URLSearchParams(location.search);
let choices = [], apis = [];
const cards = new Map(); // id -> { told, node }

const chosen = () => choices.find((one) => `${one.by}=${one.id}` === $("model").value);

async function prepare() {
  const found = await get("/api/export/choices");
  choices = found.choices;
  $("folder").textContent = t("into", { folder: found.folder });
  if (!choices.length) notice(t("no_model"), "warn");
  const group = (by, label) => choices.some((one) => one.by === by) && h("optgroup", { label },
    choices.filter((one) => one.by === by).map((one) => h("option", { value: `${one.by}=${one.id}` }, labelled(one))));
  replace($("model"), group("run", t("of_runs")), group("model", t("of_models")));
  const wanted = ["run", "model"].filter((by) => address.get(by)).map((by) => `${by}=${address.get(by)}`)[0];
  const there = choices.some((one) => `${one.by}=${one.id}` === wanted);
  if (wanted && !there) { // no other model takes its place unasked
    $("model").prepend(h("option", { value: "" }, t("choose_one")));
    notice(t("not_here"), "warn");
  }
  if (wanted) $("model").value = there ? wanted : "";
  show();
}

function show() {
  const one = chosen();
  for (const card of document.querySelectorAll("[data-kind]")) {
    const not = one && card.dataset.kind === "merge" && one.kind !== "adapter";
    card.querySelector("button").disabled = !one || not;
    card.querySelector(".reason").textContent = not ? t("only_adapters") : "";
  }
  showServe();
  if (one) command(["aift", ...(one.kind === "adapter" ? ["merge", one.name, "--out", `models/${one.label}-merged`] : ["bundle", one.name, "--out", `models/${one.label}-bundle`])]);
}

const atWork = (job) => ["running", "waiting"].includes(job.status);

function showServe() {
  const one = chosen();
  const taken = one && apis.some((api) => atWork(api) && api.of.by === one.by && api.of.id === one.id);
  $("serve").disabled = !one || taken;
  $("serve_reason").textContent = taken ? t("serve_taken") : "";
}

const copier = (label, text, kind = null) => copying(h("button", { type: "button", class: kind }, label), () => text);

$("model").addEventListener("change", () => {
  const one = chosen();
  if (one) history.replaceState(null, "", `/export?${one.by}=${one.id}`);
  show();
});
$("serve").addEventListener("click", () => serve(chosen()));
for (const card of document.querySelectorAll("[data-kind]")) {
  const button = card.querySelector("button");
  button.addEventListener("click", async () => {
    const one = chosen();
    button.disabled = true;
    notice(null);
    try {
      await post("/api/export", { kind: card.dataset.kind, [one.by]: one.id, bits: Number($("bits").value), type: $("type").value });
      await list();
      $("h_made").scrollIntoView({ block: "start" });
    } catch (error) {
      complain(error);
    }
    button.disabled = false;
  });
}

async function serve(one) {
  $("serve").disabled = true;
  notice(null);
  try {
    await post("/api/export/serve", { [one.by]: one.id });
    await list();
    $("h_apis").scrollIntoView({ block: "start" });
  } catch (error) {
    complain(error);
  }
  showServe();
}

async function list() {
  const { jobs, older, apis: served } = await get("/api/export");
  $("older").textContent = older.count ? t("older_jobs", older) : "";
  apis = served;
  $("none").hidden = jobs.length > 0;
  for (const job of [...jobs].reverse()) showJob(job, $("jobs"), card); // the newest comes first
  for (const api of [...apis].reverse()) showJob(api, $("apis"), apiCard);
  const known = new Set([...jobs, ...apis].map((one) => one.id));
  for (const [id, { node }] of cards) if (!known.has(id)) (node.remove(), cards.delete(id));
  $("apis_part").hidden = !apis.length;
  showServe();
}

// A card is made anew only when its job has something new to tell: its folds stay as they are, and so do the others.
function showJob(job, place, make) {
  const told = JSON.stringify(job), before = cards.get(job.id);
  if (before?.told === told) return;
  const node = make(job);
  for (const one of node.querySelectorAll("details")) one.open = before?.node.querySelector(`[data-of="${one.dataset.of}"]`)?.open ?? false;
  before ? before.node.replaceWith(node) : place.prepend(node);
  cards.set(job.id, { told, node });
}

function apiCard(api) {
  const { id, of, status, ready, reason, log } = api;
  const state = ready ? ["good", t("api_ready")] : status === "running" ? ["running", t("api_preparing")] : status === "completed" ? ["stopped", t("api_ended")] : [status];
  const stop = () => post(`/api/export/serve/${id}/stop`).then(list).catch(complain);
  return h("article", { class: "card", "aria-label": `${t("kind_serve")} ${of.label}` },
    h("div", { class: "row apart" }, h("h3", {}, of.label), h("span", { class: "row" }, h("span", { class: "small soft" }, ago(api.made_at)), badge(...state))),
    status === "waiting" && h("p", { class: "small soft" }, t("waits")),
    status === "running" && !ready && h("p", { class: "small soft" }, t("api_loads")),
    status === "failed" && h("p", { class: "notice bad" }, t("failed_why", { why: (reason ?? "").replace(/^\w+Error: /, "") })),
    status === "completed" && h("p", { class: "notice warn" }, t("api_ended_why")),
    ready && reached(id, ready),
    log.length > 0 && h("details", { "data-of": `${id}-log` }, h("summary", {}, t("log")), h("pre", { class: "log", tabindex: "0", "aria-label": t("log") }, log.join("\n"))),
    h("div", { class: "actions" },
      atWork(api) ? h("button", { type: "button", onclick: stop }, t("stop")) : h("button", { type: "button", class: "primary", onclick: () => serve(of) }, t("retry")),
      h("button", { type: "button", class: "quiet", onclick: () => command(api.command) }, t("same_command"))));
}

// Where it answers, and the same question by curl and by OpenAI's library.
function reached(id, { base_url: url, model, key }) {
  const messages = [{ role: "user", content: t("api_question") }];
  const curl = line(["curl", `${url}/chat/completions`, "-H", `Authorization: Bearer ${key}`, "-H", "Content-Type: application/json", "-d", JSON.stringify({ model, messages })]);
  const python = [`from openai import OpenAI`, ``, `client = OpenAI(base_url=${JSON.stringify(url)}, api_key=${JSON.stringify(key)})`,
    `answer = client.chat.completions.create(model=${JSON.stringify(model)}, messages=${JSON.stringify(messages)})`, `print(answer.choices[0].message.content)`].join("\n");
  const fact = (name, value) => [h("dt", {}, t(name)), h("dd", {}, h("code", {}, value), " ", copier(t("copy"), value, "quiet"))];
  const example = (name, text) => h("details", { "data-of": `${id}-${name}` }, h("summary", {}, t(name)),
    h("pre", { class: "log", tabindex: "0", "aria-label": t(name) }, text), h("p", {}, copier(t("copy"), text)));
  return [h("dl", { class: "facts export-facts" }, fact("api_address", url), fact("api_model", model), fact("api_key", key)),
    h("p", { class: "small soft" }, t("api_holds")), example("api_curl", curl), example("api_python", python)];
}

function card(job) {
  const { status, about, commands, done } = job;
  const act = (path) => () => post(`/api/export/${job.id}/${path}`).then(list).catch(complain);
  const busy = atWork(job);
  const step = commands[Math.min(done, commands.length - 1)];
  return h("article", { class: "card", "aria-label": `${t(`kind_${about.kind}`)} ${about.of.label}` },
    h("div", { class: "row apart" }, h("h3", {}, about.of.label + t("dot") + t(`kind_${about.kind}`)),
      h("span", { class: "row" }, h("span", { class: "small soft" }, ago(job.made_at)), badge(status))),
    busy && h("progress", { max: commands.length, value: status === "running" ? done + 0.5 : 0, "aria-label": t(`kind_${about.kind}`) }),
    busy && h("p", { class: "small soft" }, status === "waiting" ? t("waits") : t("step_of", { step: done + 1, total: commands.length, command: `aift ${step[1]}` })),
    status === "failed" && h("p", { class: "notice bad" }, t("failed_why", { why: (job.reason ?? "").replace(/^\w+Error: /, "") })),
    status === "stopped" && h("p", { class: "notice warn" }, t("stopped_at")),
    job.made.length > 0 && h("ul", { class: "batch-list" }, job.made.map((one) => h("li", {},
      h("div", { class: "row apart" }, h("span", {}, h("strong", {}, t(`made_${one.what}`)), " ", h("span", { class: "small soft" }, bytes(one.size))),
        copier(t("copy_path"), one.path)),
      h("code", { class: "export-path" }, one.path)))),
    (job.merged || job.verdict) && h("dl", { class: "facts export-facts" }, job.merged && measured(job.merged), job.verdict && verdict(job.verdict)),
    job.verdict && checks(job),
    job.log.length > 0 && h("details", { "data-of": `${job.id}-log` }, h("summary", {}, t("log")), h("pre", { class: "log", tabindex: "0" }, job.log.join("\n"))),
    h("div", { class: "actions" },
      busy && h("button", { type: "button", onclick: act("stop") }, t("stop")),
      ["failed", "stopped"].includes(status) && h("button", { type: "button", class: "primary", onclick: act("resume") }, t(status === "failed" ? "retry" : "resume")),
      h("button", { type: "button", class: "quiet", onclick: () => ($("command").textContent = commands.map(line).join(" && ")) }, t("same_command"))));
}

const measured = ({ kl, top1, limits }) => [h("dt", {}, t("difference")), h("dd", {}, h("span", { class: "badge good" }, t("merge_good")), " ",
  t("same_token", { share: number(100 * top1, 1) }), t("dot"), t("kl", { kl: number(kl, 4), limit: number(limits.kl, 2) }))];

const GRADES = { close: "good", usable: "warn", poor: "bad", "not quantized": "bad" };
const ratio = (name, value) => value !== null && [h("dt", {}, t(`ratio_${name}`)), h("dd", {}, t("of_before", { share: number(100 * value, 1) }))];
const verdict = (told) => [
  h("dt", {}, t("verdict")), h("dd", {}, h("span", { class: `badge ${GRADES[told.grade]}` }, t(`grade_${told.grade}`))),
  ratio("disk", told.disk_ratio), ratio("memory", told.memory_ratio), ratio("perplexity", told.perplexity_ratio)];

const checks = ({ id, verdict: told }) =>
  h("details", { "data-of": `${id}-checks` }, h("summary", {}, t("checks")), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("checks") }, h("table", {},
      h("thead", {}, h("tr", {}, ["check", "value", "limit", "holds"].map((name) => h("th", { scope: "col" }, t(name))))),
      h("tbody", {}, told.checks.map((one) => h("tr", {}, h("th", { scope: "row" }, t(`check_${one.name}`)), h("td", {}, number(one.value, Number.isInteger(one.value) ? 0 : 4)),
        h("td", {}, one.limit), h("td", {}, h("span", { class: `badge ${one.holds ? "good" : "bad"}` }, t(one.holds ? "yes" : "no")))))))));

command(["aift", "export"]);
prepare().catch(complain);
poll(list, 1500);

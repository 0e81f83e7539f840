// 書き出し: each kind is a job; what it wrote and measured stands below, found again by its folder.
import { complain, get, poll, post } from "./api.js";
import { $, badge, command, copying, h, labelled, notice, replace } from "./dom.js";
import { ago, bytes, number, t } from "./words.js";

const address = new URLSearchParams(location.search);
let choices = [];
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
  if (choices.some((one) => `${one.by}=${one.id}` === wanted)) $("model").value = wanted;
  show();
}

function show() {
  const one = chosen();
  for (const card of document.querySelectorAll("[data-kind]")) {
    const not = one && card.dataset.kind === "merge" && one.kind !== "adapter";
    card.querySelector("button").disabled = !one || not;
    card.querySelector(".reason").textContent = not ? t("only_adapters") : "";
  }
  $("serve").textContent = one ? line(["aift", "serve", one.name, "--alias", one.label.replace(/[^\w.-]+/g, "-")]) : "";
  if (one) command(["aift", ...(one.kind === "adapter" ? ["merge", one.name, "--out", `models/${one.label}-merged`] : ["bundle", one.name, "--out", `models/${one.label}-bundle`])]);
}

// As the foot shows a command.
function line(words) {
  return words.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`)).join(" ");
}

const copier = (label, text) => copying(h("button", { type: "button" }, label), () => text);

$("model").addEventListener("change", () => {
  const one = chosen();
  if (one) history.replaceState(null, "", `/export?${one.by}=${one.id}`);
  show();
});
copying($("copy_serve"), () => $("serve").textContent);
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

async function list() {
  const { jobs } = await get("/api/export");
  $("none").hidden = jobs.length > 0;
  for (const job of [...jobs].reverse()) showJob(job); // the newest comes first
}

// A card is made anew only when its job has something new to tell: its folds stay as they are, and so do the others.
function showJob(job) {
  const told = JSON.stringify(job), before = cards.get(job.id);
  if (before?.told === told) return;
  const node = card(job);
  for (const one of node.querySelectorAll("details")) one.open = before?.node.querySelector(`[data-of="${one.dataset.of}"]`)?.open ?? false;
  before ? before.node.replaceWith(node) : $("jobs").prepend(node);
  cards.set(job.id, { told, node });
}

function card(job) {
  const { status, about, commands, done } = job;
  const act = (path) => () => post(`/api/export/${job.id}/${path}`).then(list).catch(complain);
  const busy = ["running", "waiting"].includes(status);
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

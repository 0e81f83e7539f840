// 比較, 同じ質問をする: one POST brings the answers of all runs; pieces are appended to what stands in their columns.
import { complain, stream } from "./api.js";
import { $, announce, h, line, notice, replace } from "./dom.js";
import { language, t } from "./words.js";

const NUMBERS = ["max_new_tokens", "temperature", "top_p", "top_k"];
const KEPT = 20; // questions that a reload finds again
let ids = [], runs = [], names = {}, turns = [], running = null, asked = "";

const place = () => `aift-compare-${ids.join()}`;
const system = (run) => $(`system-${run.id}`).value;

export function showAsking({ runs: compared, ask }) {
  const now = compared.map((run) => run.id);
  names = Object.fromEntries(compared.map((run) => [run.id, run.name]));
  runs = ask.runs;
  const why = Object.entries(ask.not).map(([id, told]) => `${names[id]}: ${told[language]}`);
  replace($("ask-hint"), [runs.length && t(ask.turns.length > 1 ? "in_turns" : "in_one"), ...why].filter(Boolean).map((text) => h("span", { class: "block" }, text)));
  if (now.join() !== ids.join()) {
    keepPart();
    running?.abort();
    ids = now;
    turns = [];
    replace($("asked"));
    JSON.parse(sessionStorage.getItem(place()) ?? "[]").forEach(restore);
  }
  const these = JSON.stringify(runs);
  if (these !== asked) replace($("ask-systems"), runs.map((run) => h("p", {}, h("label", { for: `system-${run.id}` }, t("system_of", { name: names[run.id] })),
    h("textarea", { id: `system-${run.id}`, rows: "2", value: run.system ?? "" }))));
  asked = these;
  after();
}

// A question with a column for each run, the newest on top.
function begin(told) {
  const turn = { text: {}, ends: {}, ...told, columns: {} };
  const column = (id) => {
    const text = document.createTextNode(turn.text[id] ?? ""), ends = h("p", { class: "hint talk-end" });
    turn.text[id] ??= "";
    turn.columns[id] = { text, ends };
    return h("article", { class: "talk-column", "aria-label": turn.names[id] }, h("p", { class: "talk-name" }, turn.names[id]), h("p", { class: "talk-answer" }, text), ends);
  };
  turn.node = h("div", { class: "talk-turn ask-turn" }, h("p", { class: "ask-question" }, turn.question), h("div", { class: "ask-columns" }, Object.keys(turn.names).map(column)));
  turns.unshift(turn);
  $("asked").prepend(turn.node);
  return turn;
}

function restore(told) {
  const turn = begin(told);
  Object.keys(turn.columns).forEach((id) => mark(turn, id));
}

// How an answer ended, below it.
function mark(turn, id) {
  const { end, refused } = turn.ends[id] ?? {};
  const words = end === "stopped" ? t("mark_stopped") : ["length", "positions", "loop"].includes(end) ? t(`end_${end}`) : !turn.text[id] ? t("empty_answer") : "";
  replace(turn.columns[id].ends, refused ? h("span", { class: "error" }, refused) : words);
}

function heard(turn, told) {
  const say = (id, key) => replace(turn.columns[id].ends, t(key));
  if (told.state) {
    for (const id of told.ids) say(id, told.state === "loading" ? "loading_model" : "thinking");
    $("ask-state").textContent = told.state === "loading" ? t("loading_model") : t("asking", { names: told.ids.map((id) => turn.names[id]).join(t("comma")) });
  } else if (told.t !== undefined) {
    if (!turn.text[told.id]) replace(turn.columns[told.id].ends);
    turn.text[told.id] += told.t;
    turn.columns[told.id].text.appendData(told.t);
  } else if (told.id) {
    turn.ends[told.id] = { end: told.end, refused: told.refused?.[language] };
    mark(turn, told.id);
  }
}

async function send() {
  const question = $("ask-text").value.trim();
  if (!question || running || !runs.length) return;
  notice(null);
  const systems = Object.fromEntries(runs.map((run) => [run.id, system(run)]));
  const options = { ...Object.fromEntries(NUMBERS.map((name) => [name, Number($(name).value)])), do_sample: !$("greedy").checked };
  const turn = begin({ question, names: Object.fromEntries(runs.map((run) => [run.id, names[run.id]])) });
  Object.values(turn.columns).forEach(({ ends }) => replace(ends, t("in_line")));
  tell(question);
  running = new AbortController();
  const mine = running;
  after();
  let failed = false, stopped = false;
  try {
    await stream("/api/compare/answer", { ids, question, systems, options }, (told) => heard(turn, told), mine.signal);
  } catch (error) {
    stopped = error.name === "AbortError";
    failed = !stopped;
    if (failed) complain(error);
  }
  if (running === mine) running = null;
  if (turns.includes(turn)) close(turn, stopped, failed);
  after();
}

function close(turn, stopped, failed) {
  if (failed && !Object.values(turn.text).some(Boolean)) {
    turns.splice(turns.indexOf(turn), 1);
    turn.node.remove();
    return ($("ask-state").textContent = "");
  }
  for (const id of Object.keys(turn.columns)) {
    turn.ends[id] ??= { end: "stopped" };
    mark(turn, id);
  }
  $("ask-text").value = "";
  $("ask-state").textContent = t(stopped ? "stopped" : "answered");
  announce($("ask-state").textContent);
}

// What a reload finds again; of an answer that is being made what there is of it.
function keepPart() {
  if (!ids.length) return;
  const kept = turns.slice(0, KEPT).map(({ question, names: all, text, ends }) => ({ question, names: all, text,
    ends: Object.fromEntries(Object.keys(all).map((id) => [id, ends[id] ?? { end: "stopped" }])) }));
  try {
    sessionStorage.setItem(place(), JSON.stringify(kept.reverse()));
  } catch { /* full: nothing is kept */ }
}

function after() {
  $("ask-send").hidden = Boolean(running);
  $("ask-stop").hidden = !running;
  $("ask-send").disabled = !runs.length;
  $("temperature").disabled = $("top_p").disabled = $("top_k").disabled = $("greedy").checked;
  if (!running) keepPart();
}

// The same as commands, with the settings as they are.
function tell(question) {
  const value = (name) => ["--" + name.replaceAll("_", "-"), $(name).value];
  const how = $("greedy").checked ? ["--greedy"] : NUMBERS.slice(1).flatMap(value);
  const words = runs.map((run) => ["aift", "generate", run.name, question, ...value("max_new_tokens"), ...how,
    ...(system(run) !== (run.system ?? "") ? ["--system", system(run)] : [])]);
  $("command").textContent = words.map(line).join(" && ");
}

$("greedy").addEventListener("input", after);
$("ask-text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229 || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  send();
});
$("ask-box").addEventListener("submit", (event) => (event.preventDefault(), send()));
$("ask-stop").addEventListener("click", () => running?.abort());
addEventListener("pagehide", keepPart);

// 会話: one POST brings both columns; pieces are appended to what stands there, and nothing is drawn anew.
import { complain, get, poll, post, stream } from "./api.js";
import { $, announce, ask, command, h, labelled, notice, replace } from "./dom.js";
import { language, number, t } from "./words.js";

const address = new URLSearchParams(location.search);
const NUMBERS = ["max_new_tokens", "temperature", "top_p", "top_k"];
const DEFAULTS = Object.fromEntries(NUMBERS.map((name) => [name, $(name).value]));
let choice = null, sides = ["tuned"], running = null, turns = [], told = false;

const where = () => ({ [choice.by]: choice.id });
const place = () => `aift-chat-${choice.by}-${choice.id}`;

// ---- which model
async function choose() {
  const { choices } = await get("/api/chat/choices");
  if (!choices.length) return notice(t("nothing"), "warn");
  const option = (one) => h("option", { value: `${one.by}=${one.id}` }, labelled(one));
  const group = (by, label) => choices.some((one) => one.by === by) &&
    h("optgroup", { label }, choices.filter((one) => one.by === by).map(option));
  replace($("model"), h("option", { value: "" }, t("choose")), group("run", t("of_runs")), group("model", t("of_models")));
  const wanted = ["run", "model"].filter((by) => address.get(by)).map((by) => `${by}=${address.get(by)}`)[0];
  const first = choices.find((one) => `${one.by}=${one.id}` === wanted) ?? (wanted ? null : choices[0]);
  if (wanted && !first) notice(t("not_here"), "warn");
  show(first ?? null);
  $("model").addEventListener("change", () => {
    const one = choices.find((found) => `${found.by}=${found.id}` === $("model").value);
    if (!one) return;
    keepPart();
    running?.abort();
    history.replaceState(null, "", `/chat?${one.by}=${one.id}`);
    show(one);
  });
}

function show(one) {
  choice = one;
  $("send").disabled = !one;
  if (!one) return;
  $("model").value = `${one.by}=${one.id}`;
  $("system").value = one.system ?? "";
  sides = one.kind === "adapter" ? ["base", "tuned"] : ["tuned"];
  turns = [];
  replace($("turns"));
  $("state").textContent = "";
  const kept = JSON.parse(sessionStorage.getItem(place()) ?? "null");
  if (kept) {
    sides = kept.sides;
    $("system").value = kept.system;
    kept.turns.forEach(restore);
    meter(kept.used, kept.all);
  } else meter(null, null);
  headings();
  after();
}

function headings() {
  const two = sides.length > 1;
  replace($("sides"), sides.map((side) => h("p", { class: "talk-side" }, t(two ? `side_${side}` : "side_alone"))));
  $("sides").hidden = !two;
  $("lead").textContent = t(two ? "lead" : "lead_one");
  document.body.classList.toggle("talk-two", two);
}

// ---- what stands on the screen
function column(turn, side) {
  const text = document.createTextNode("");
  const answer = h("p", { class: "talk-answer" }, text);
  const ends = h("p", { class: "hint talk-end" });
  const tools = h("div", { class: "talk-tools" });
  const name = t(sides.length > 1 ? `side_${side}` : "side_alone");
  turn.columns[side] = { text, answer, ends, tools };
  return h("article", { class: `talk-column ${side}`, "aria-label": name }, h("p", { class: "talk-name" }, name), answer, ends, tools);
}

// `system`: what this question is asked under, whatever the field says later.
function begin(question, system = $("system").value) {
  const turn = { question, system, text: {}, history: {}, columns: {}, ends: {}, rated: null };
  for (const side of sides) {
    turn.text[side] = "";
    // What a side has not answered it has not heard.
    turn.history[side] = turns.filter((one) => one.text[side]).flatMap((one) => [
      { role: "user", content: one.question }, { role: "assistant", content: one.text[side] }]);
  }
  turn.node = h("div", { class: "talk-turn" },
    h("div", { class: "talk-question" }, h("p", { class: "talk-name" }, t("you")), h("p", { class: "talk-answer" }, question)),
    h("div", { class: "talk-columns" }, sides.map((side) => column(turn, side))));
  turns.push(turn);
  $("turns").append(turn.node);
  $("empty").hidden = true;
  return turn;
}

function put(turn, side, piece) {
  const at = turn.columns[side];
  if (!at) return;
  turn.text[side] += piece;
  at.text.appendData(piece);
}

function closed(turn, stopped) {
  for (const side of sides) {
    const { answer, ends } = turn.columns[side];
    const end = turn.ends[side];
    if (!turn.text[side] && end !== "refused") replace(answer, h("span", { class: "soft" }, t("empty_answer")));
    const marks = [];
    if (stopped && !end) turn.ends[side] = "stopped";
    if (turn.ends[side] === "stopped") marks.push(t("mark_stopped"));
    if (["length", "positions", "loop"].includes(end)) marks.push(t(`end_${end}`));
    if (turn.forgotten?.[side]) marks.push(t("forgotten", { n: turn.forgotten[side] }));
    if (end !== "refused") replace(ends, marks.join(t("dot")));
  }
  const last = sides.at(-1);
  if (turn.text[last]) tools(turn, last);
}

function restore(kept) {
  if (unanswered(kept)) return ($("question").value ||= kept.question);
  const turn = begin(kept.question, kept.system);
  Object.assign(turn, { ends: kept.ends, rated: kept.rated, forgotten: kept.forgotten });
  for (const side of sides) put(turn, side, kept.text[side] ?? "");
  closed(turn, false);
}

// Whether a question was given up before any answer to it began: it is taken back.
const unanswered = ({ text, ends }) => !Object.values(text).some(Boolean) && Object.values(ends).every((end) => end === "stopped");

function after() {
  const some = turns.length > 0;
  $("empty").hidden = some;
  $("again").disabled = $("clear").disabled = !some || Boolean(running);
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  tell();
  if (choice) store();
}

function store() {
  if (!turns.length) return sessionStorage.removeItem(place());
  const kept = turns.map(({ question, system, text, ends, rated, forgotten }) => ({ question, system, text, ends, rated, forgotten }));
  try {
    sessionStorage.setItem(place(), JSON.stringify({ sides, system: $("system").value, turns: kept, used: $("meter").dataset.used, all: $("meter").dataset.all }));
  } catch { /* full: the conversation goes on without being kept */ }
}

// The page or the model goes in the middle of an answer: what there is of it stays.
function keepPart() {
  if (!running) return;
  for (const side of sides) turns.at(-1).ends[side] ??= "stopped";
  store();
}

function meter(used, all) {
  const bar = $("meter");
  used ? (bar.dataset.used = used) : delete bar.dataset.used;
  all ? (bar.dataset.all = all) : delete bar.dataset.all;
  bar.hidden = !all;
  bar.max = all || 1;
  bar.value = used || 0;
  bar.classList.toggle("full", Boolean(all) && used > 0.8 * all);
  $("room").textContent = !used ? t("room") : all ? t("room_used", { used: number(+used), all: number(+all) }) : t("room_open", { used: number(+used) });
}

// ---- asking
const settings = () => ({
  ...Object.fromEntries(NUMBERS.map((name) => [name, Number($(name).value)])), do_sample: !$("greedy").checked,
});

async function send() {
  const question = $("question").value.trim();
  if (!question || running || !choice) return;
  notice(null);
  const turn = begin(question);
  $("question").value = "";
  running = new AbortController();
  const mine = running;
  after();
  $("state").textContent = t("loading_model");
  turn.node.scrollIntoView({ block: "nearest" });
  const asked = { ...where(), question, system: turn.system, history: turn.history, options: settings() };
  let failed = null, stopped = false;
  try {
    await stream("/api/chat/answer", asked, (line) => (failed = heard(turn, line) ?? failed), mine.signal);
  } catch (error) {
    stopped = error.name === "AbortError";
    if (!stopped) (complain(error), failed = true);
  }
  if (running === mine) running = null;
  if (!turns.includes(turn)) return after();
  if (failed ? !Object.values(turn.text).some(Boolean) : stopped && unanswered(turn)) {
    drop(turn);
    $("question").value ||= question;
  } else closed(turn, stopped || Boolean(failed));
  if (typeof failed === "string") notice(failed);
  $("state").textContent = failed || !turns.includes(turn) ? "" : t(stopped ? "stopped" : "answered");
  if (!failed) announce($("state").textContent);
  after();
  $("question").focus({ preventScroll: true });
}

// One line of the answer; returns what went wrong with all of it.
function heard(turn, line) {
  if (line.t !== undefined) {
    const end = document.documentElement;
    const below = end.scrollHeight - end.scrollTop - end.clientHeight < 120;
    put(turn, line.side, line.t);
    if (below) window.scrollTo(0, end.scrollHeight);
  } else if (line.state === "answering") {
    told = true;
    $("state").textContent = t("thinking");
    if (line.model.alone) $("lead").textContent = t("only_tuned", { why: line.model.alone[language] });
    turn.all = line.model.positions;
    if (line.model.sides.join() !== sides.join()) rearrange(turn, line.model.sides);
  } else if (line.side && "end" in line) {
    turn.ends[line.side] = line.refused ? "refused" : line.end;
    turn.forgotten = { ...turn.forgotten, [line.side]: line.forgotten };
    if (line.refused) replace(turn.columns[line.side].ends, h("span", { class: "error" }, line.refused[language]));
    if (line.side === sides.at(-1) && line.tokens) meter(line.tokens, turn.all);
  } else if (line.refused || line.ended) return (line.refused ?? line.ended)[language];
  return null;
}

// The model has other sides than its kind let expect: a run that trained the whole model has a base beside it.
function rearrange(turn, found) {
  sides = found;
  turns.splice(turns.indexOf(turn), 1);
  turn.node.remove();
  const again = begin(turn.question, turn.system);
  Object.assign(turn, again);
  turns[turns.length - 1] = turn;
  headings();
}

function drop(turn) {
  turns.splice(turns.indexOf(turn), 1);
  turn.node.remove();
}

// ---- training data
function tools(turn, side) {
  const { tools: box } = turn.columns[side];
  const said = h("p", { class: "hint", role: "status" });
  const keep = async (kind, more) => {
    const history = Object.fromEntries(sides.map((one) => [one, turn.history[one]]));
    const { file, shown } = await post("/api/chat/keep", {
      kind, question: turn.question, system: turn.system, history: { tuned: history[side] }, answer: turn.text[side], ...more });
    replace(said, t(`saved_${kind}`), t("dot"), h("a", { href: `/data?${new URLSearchParams({ file, ...(choice.by === "run" ? { from: choice.id } : {}) })}` }, t("see_data", { file: shown })));
    after();
  };
  const tried = (work) => () => work().catch(complain);
  const rate = (good) => h("button", { type: "button", class: "quiet", "aria-pressed": String(turn.rated === good), onclick: tried(async () => {
    await keep("rating", { good });
    turn.rated = good;
    [yes, no].forEach((button, at) => button.setAttribute("aria-pressed", String(turn.rated === (at === 0))));
    after();
  }) }, t(good ? "good" : "bad"));
  const yes = rate(true), no = rate(false);
  const edit = async () => {
    const field = h("textarea", { id: "edited", rows: "8", value: turn.text[side] });
    const edited = await ask({
      title: t("edit"), button: t("save"), value: () => field.value,
      body: [h("p", { class: "small soft" }, t("edit_text")), h("p", {}, h("label", { for: "edited" }, t("edited")), field)],
    });
    if (edited !== null) await keep("pair", { edited });
  };
  replace(box, h("div", { class: "row", role: "group", "aria-label": t("rate_label") }, yes, no,
    h("button", { type: "button", class: "quiet", onclick: tried(edit) }, t("edit")),
    h("button", { type: "button", class: "quiet", onclick: tried(() => keep("row", {})) }, t("keep"))), said);
}

// ---- the command, the keys
function tell() {
  $("greedy").checked ? $("temperature").setAttribute("disabled", "") : $("temperature").removeAttribute("disabled");
  for (const name of ["top_p", "top_k"]) $(name).disabled = $("greedy").checked;
  const enter = $("enter").checked;
  $("send").textContent = t(enter ? "send_enter" : "send_ctrl");
  $("keys").textContent = t(enter ? "keys_enter" : "keys_ctrl");
  if (!choice) return command(["aift", "chat"]);
  const system = $("system").value, stored = choice.system ?? "";
  $("system_hint").textContent = t(system !== stored ? "system_other" : stored ? "system_stored" : "system_none");
  const words = ["aift", "chat", choice.name];
  if (choice.kind === "adapter") words.push("--compare");
  if (system !== stored) words.push("--system", system);
  if ($("max_new_tokens").value !== DEFAULTS.max_new_tokens) words.push("--max-new-tokens", $("max_new_tokens").value);
  if ($("greedy").checked) words.push("--greedy");
  else if ($("temperature").value !== DEFAULTS.temperature) words.push("--temperature", $("temperature").value);
  command(words);
}

$("enter").checked = localStorage.getItem("aift-enter-sends") === "1";
$("enter").addEventListener("change", () => (localStorage.setItem("aift-enter-sends", $("enter").checked ? "1" : "0"), tell()));
["system", "greedy", ...NUMBERS].forEach((name) => $(name).addEventListener("input", tell));
$("question").addEventListener("keydown", (event) => {
  // Enter that confirms kanji belongs to the input method: keyCode 229 is what Safari and older browsers tell.
  if (event.key !== "Enter" || event.isComposing || event.keyCode === 229) return;
  const sends = $("enter").checked ? !event.shiftKey : event.ctrlKey || event.metaKey;
  if (!sends) return;
  event.preventDefault();
  send();
});
$("box").addEventListener("submit", (event) => (event.preventDefault(), send()));
$("stop").addEventListener("click", () => running?.abort());
$("again").addEventListener("click", () => {
  const turn = turns.at(-1);
  if (!turn || running) return;
  drop(turn);
  $("question").value = turn.question;
  $("question").focus();
  after();
});
$("clear").addEventListener("click", async () => {
  if (!(await ask({ title: t("clear_sure"), body: h("p", {}, t("clear_text")), button: t("clear"), kind: "danger" }))) return;
  turns = [];
  replace($("turns"));
  meter(null, null);
  $("state").textContent = "";
  after();
});

addEventListener("pagehide", keepPart);
tell();
choose().catch(complain);
// A model that was closed meanwhile says so, once.
poll(async () => {
  if (!choice || !told || running) return;
  const { loaded, ended } = await get(`/api/chat/state?${choice.by}=${choice.id}`);
  if (loaded || running || !ended) return;
  told = false;
  $("state").textContent = ended[language];
}, 2000);

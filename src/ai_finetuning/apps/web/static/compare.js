// 比較: runs beside each other, the same question to them; their names, and the trash.
import { complain, get, post } from "./api.js";
import { chart } from "./chart.js";
import { $, ask, badge, command, h, marked, notice, replace } from "./dom.js";
import { showAsking } from "./same_question.js";
import { language, moment, number, t } from "./words.js";

const MOST = 6;
const MARKS = { better: "good", worse: "bad", overfitted: "bad", unchanged: "stopped", unknown: "stopped" };
let chosen = (new URLSearchParams(location.search).get("ids") ?? "").split(",").filter(Boolean);
let runs = [], asked = 0;

async function begin() {
  ({ runs } = await get("/api/compare/runs"));
  chosen = chosen.filter((id) => runs.some((run) => run.id === id));
  showRuns();
  await Promise.all([showBeside(), showTrash()]);
}

const loss = (value) => number(value, 3);

function showRuns() {
  if (!runs.length) return replace($("runs"), h("p", { class: "soft" }, t("no_runs")), h("a", { class: "button primary", href: "/train" }, t("new_run")));
  const head = ["choose", "name", "state", "model", "loss", "started", "actions"];
  replace($("runs"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("runs") }, h("table", { class: "runs" },
    h("thead", {}, h("tr", {}, head.map((key) => h("th", { scope: "col" }, t(key))))),
    h("tbody", {}, runs.map(line)))));
}

function line(run) {
  const box = h("input", { type: "checkbox", "aria-label": t("choose_run", { name: run.name }), checked: chosen.includes(run.id), onchange: () => {
    chosen = box.checked ? [...chosen, run.id] : chosen.filter((id) => id !== run.id);
    if (chosen.length > MOST) {
      chosen.pop();
      box.checked = false;
      return notice(t("too_many", { count: MOST }));
    }
    showBeside().catch(complain);
  } });
  const act = (key, work, kind) => h("button", { type: "button", class: kind, disabled: run.at_work, title: run.at_work ? t("at_work") : null,
    "aria-label": t(`${key}_run`, { name: run.name }), onclick: () => work(run) }, t(key));
  return h("tr", {}, h("td", {}, box),
    h("th", { scope: "row" }, h("a", { href: run.status === "completed" ? `/runs/${run.id}/result` : `/runs/${run.id}` }, run.name), run.adopted ? [" ", badge("good", t("in_use"))] : null),
    h("td", {}, badge(run.status)), h("td", {}, `${run.model} · ${run.method}`),
    h("td", {}, run.after === null ? "–" : run.before === null ? loss(run.after) : `${loss(run.before)} → ${loss(run.after)}`),
    h("td", {}, moment(run.started)),
    h("td", {}, h("div", { class: "row tight" }, act("rename", rename, "quiet"), act("trash", toTrash, "quiet"))));
}

// Beside each other.
async function showBeside() {
  const address = chosen.length ? `/compare?ids=${chosen.join(",")}` : "/compare";
  history.replaceState(null, "", address);
  command(chosen.length > 1 ? ["aift", "runs", "compare", ...chosen] : ["aift", "runs", "list"]);
  $("hint").textContent = chosen.length === 1 ? t("only_more") : "";
  $("beside").hidden = chosen.length < 2;
  if (chosen.length < 2) return;
  const mine = ++asked;
  const found = await get(`/api/compare?ids=${chosen.join(",")}`);
  if (mine !== asked) return;
  showSettings(found);
  curve($("eval"), found.runs, found.eval_loss, t("eval_curve"));
  curve($("train"), found.runs, found.loss, t("train_curve"));
  showAsking(found);
  showQuestions(found);
}

function showSettings(found) {
  const names = found.runs.map((run) => h("th", { scope: "col" }, run.name));
  const verdicts = h("tr", {}, h("th", { scope: "row" }, t("verdict")), found.runs.map((run) => h("td", {}, badge(MARKS[run.kind], t(`k_${run.kind}`)))));
  const lines = found.settings.map((one) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, one.key),
    one.about ? h("span", { class: "hint block" }, marked(one.about[language].split(/(?<=。)|(?<=\.) /)[0])) : null),
  one.values.map((value) => h("td", {}, h("code", {}, value)))));
  replace($("settings"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("differing") }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("setting")), names)), h("tbody", {}, verdicts, lines))),
  lines.length ? null : h("p", { class: "soft" }, t("same_settings")));
}

function curve(place, names, curves, label) {
  const steps = [...new Set(curves.flatMap((points) => points.map(([step]) => step)))].sort((a, b) => a - b);
  if (!steps.length) return replace(place, h("p", { class: "soft" }, t("no_curve")));
  const drawn = chart(place, { label, x: t("step_axis"), series: names.map((run) => run.name), height: 240 });
  drawn.draw([steps, ...curves.map((points) => {
    const at = new Map(points);
    return steps.map((step) => at.get(step) ?? null);
  })]);
}

function showQuestions(found) {
  const links = h("div", { class: "actions" }, found.runs.map((run) => h("a", { class: "button", href: `/chat?run=${run.id}` }, t("chat_with", { name: run.name }))));
  replace($("questions"), found.answers.length ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("same_question") }, h("table", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("question")), found.runs.map((run) => h("th", { scope: "col" }, run.name)))),
    h("tbody", {}, found.answers.map((one) => h("tr", {}, h("th", { scope: "row", class: "text" }, one.question),
      one.answers.map((answer) => h("td", { class: "text" }, answer ?? "–")))))))
    : h("p", { class: "soft" }, t("no_question")), links);
}

// Names and the trash.
async function rename(run) {
  const field = h("input", { id: "new-name", value: run.name, required: true, maxlength: 100, autocomplete: "off" });
  const name = await ask({ title: t("rename_run", { name: run.name }), button: t("rename"), value: () => field.value.trim(),
    body: [h("label", { for: "new-name" }, t("new_name")), field] });
  if (name === null || name === run.name) return;
  await act("/api/compare/rename", { id: run.id, name }, run.id, "renamed");
}

async function toTrash(run) {
  const field = h("input", { id: "typed-name", required: true, autocomplete: "off" });
  const name = await ask({ title: t("trash_run", { name: run.name }), button: t("trash"), kind: "danger", value: () => field.value,
    body: [h("p", {}, t("trash_body", { name: run.name })), h("label", { for: "typed-name" }, t("name")), field] });
  if (name === null) return;
  await act("/api/compare/trash", { id: run.id, name }, run.id, "trashed");
}

async function act(path, body, id, said) {
  try {
    const answer = await post(path, body);
    chosen = chosen.flatMap((one) => one !== id ? [one] : answer.id ? [answer.id] : []);
    await begin();
    notice(t(said, { name: answer.name }), "good");
  } catch (error) {
    complain(error);
  }
}

async function showTrash() {
  const { runs: found } = await get("/api/compare/trash");
  $("trash-card").hidden = !found.length;
  $("trash-title").textContent = t("in_trash", { count: found.length });
  replace($("trash"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("in_trash", { count: found.length }) }, h("table", {},
    h("thead", {}, h("tr", {}, ["name", "moved", "actions"].map((key) => h("th", { scope: "col" }, t(key))))),
    h("tbody", {}, found.map((run) => h("tr", {}, h("th", { scope: "row" }, run.name), h("td", {}, moment(run.moved)),
      h("td", {}, h("button", { type: "button", class: "quiet", "aria-label": t("restore_run", { name: run.name }),
        onclick: () => act("/api/compare/restore", { id: run.id }, "", "restored") }, t("restore")))))))));
}

begin().catch(complain);

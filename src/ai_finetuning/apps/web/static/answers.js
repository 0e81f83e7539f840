// 一括回答: a file, a column and a model become a job; the address names it, so that a reload goes on where it was.
import { complain, get, poll, post } from "./api.js";
import { $, announce, badge, command, download, h, labelled, notice, replace } from "./dom.js";
import { table } from "./table.js";
import { ago, duration, number, t } from "./words.js";

const address = new URLSearchParams(location.search);
let choices = [], shown = null, stopFollowing = () => {};

// ---- a new one
async function prepare() {
  const found = await get("/api/answers/choices");
  choices = found.choices;
  replace($("questions"), found.files.length ? found.files.map((one) => h("option", { value: one.id }, one.shown)) : h("option", { value: "" }, t("no_file")));
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
  if (found.files.some((one) => one.id === address.get("file"))) $("questions").value = address.get("file");
  chooseModel();
  await chooseFile();
}

const chosen = () => choices.find((one) => `${one.by}=${one.id}` === $("model").value);

function chooseModel() {
  $("system").value = chosen()?.system ?? "";
  tell();
}

async function chooseFile() {
  $("start").disabled = true;
  $("wrong").textContent = "";
  const file = $("questions").value;
  if (!file) return tell();
  try {
    const known = await get(`/api/answers/columns?file=${file}`);
    replace($("column"), h("option", { value: "" }, t(known.column ? "column_auto" : "column_choose")),
      known.columns.map((name) => h("option", { value: name }, name)));
    $("column").value = known.column ?? "";
    $("column_hint").textContent = known.expected ? t("expected_found", { name: known.expected }) : t("expected_none");
    $("start").disabled = !chosen();
  } catch (error) {
    $("wrong").textContent = error.message;
  }
  tell();
}

function tell() {
  if (shown) return;
  const one = chosen(), file = $("questions").selectedOptions[0];
  if (!one || !file?.value) return command(["aift", "answer"]);
  const words = ["aift", "answer", one.name, file.textContent, "--out", `answers${file.textContent.match(/\.\w+$/)?.[0] ?? ".csv"}`];
  if ($("column").value) words.push("--column", $("column").value);
  if ($("greedy").checked) words.push("--greedy");
  if ($("max_new_tokens").value !== "512") words.push("--max-new-tokens", $("max_new_tokens").value);
  if ($("system").value !== (one.system ?? "")) words.push("--system", $("system").value);
  command(words);
}

$("questions").addEventListener("change", () => chooseFile().catch(complain));
$("model").addEventListener("change", chooseModel);
["column", "greedy", "max_new_tokens", "system"].forEach((name) => $(name).addEventListener("input", tell));
$("new").addEventListener("submit", async (event) => {
  event.preventDefault();
  if ($("start").disabled) return;
  $("start").disabled = true;
  $("wrong").textContent = "";
  const one = chosen();
  try {
    const { id } = await post("/api/answers", {
      file: $("questions").value, column: $("column").value, [one.by]: one.id, system: $("system").value,
      max_new_tokens: Number($("max_new_tokens").value), greedy: $("greedy").checked });
    open(id);
  } catch (error) {
    $("wrong").textContent = error.message;
  }
  $("start").disabled = false;
});

// ---- one of them
function open(id) {
  history.pushState(null, "", `/answers?job=${id}`);
  follow(id);
}

function follow(id) {
  stopFollowing();
  shown = id;
  $("new").hidden = true;
  $("job").hidden = false;
  const parts = build(id);
  let last = "";
  stopFollowing = poll(async () => {
    const job = await get(`/api/answers/${id}`);
    if (shown !== id) return false;
    parts.draw(job);
    const now = `${job.status} ${job.done}`;
    if (now !== last && last) await parts.rows.reload();
    last = now;
    const ended = !["running", "waiting"].includes(job.status);
    if (ended) list().catch(complain);
    return ended ? false : undefined;
  }, 1000);
}

function build(id) {
  const title = h("h2", {}), state = h("span", {}), count = h("strong", { class: "batch-count" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": t("job") });
  const line = h("p", { class: "small soft" }), told = h("div", {}), score = h("div", {}), actions = h("div", { class: "actions" });
  const spreadsheet = h("input", { type: "checkbox", id: "spreadsheet", checked: true });
  const show = h("select", { id: "show", onchange: () => rows.show(0) },
    ["all", "match", "differ", "without"].map((name) => h("option", { value: name }, t(`show_${name}`))));
  let timer = null, said = "", offered = "";
  const find = h("input", { id: "find", type: "search", oninput: () => (clearTimeout(timer), (timer = setTimeout(() => rows.show(0), 250))) });
  const place = h("div", {});
  replace($("job"),
    h("div", { class: "card" }, h("div", { class: "row apart" }, title, state), h("div", { class: "row batch-bar" }, bar, count), line, told, score, actions),
    h("div", { class: "card" }, h("div", { class: "row batch-filter" },
      h("p", {}, h("label", { for: "show" }, t("show")), show), h("p", {}, h("label", { for: "find" }, t("find")), find)), place));
  const rows = table(place, {
    columns: [t("row"), t("question"), t("expected"), t("answer"), t("mark")], label: t("table"),
    load: async (page) => {
      const found = await get(`/api/answers/${id}/rows?page=${page}&show=${show.value}&find=${encodeURIComponent(find.value)}`);
      return { total: found.total, rows: found.rows.map(([at, question, expected, told, mark]) => [
        number(at), text(question), text(expected.join(" / ")), text(told ?? ""), marked(mark)]) };
    },
  });
  const act = (path, value) => post(`/api/answers/${id}/${path}`, value).catch((error) => (complain(error), null));

  function draw(job) {
    command(job.commands[0]);
    const { about, status } = job;
    title.textContent = about.shown + t("dot") + about.of.label;
    replace(state, badge(status));
    bar.max = job.total || 1;
    bar.value = job.done + job.refused;
    count.textContent = t("done_of", { done: number(job.done), total: number(job.total) });
    line.textContent = status === "waiting" ? t("waits")
      : status === "running" ? (job.done ? (job.seconds_left === null ? "" : t("time_left", { time: duration(job.seconds_left) })) : t("preparing")) : "";
    if (status === "completed") announce(t("state_completed"));
    const says = JSON.stringify([status, job.reason, job.refused, job.log]);
    if (says !== said) replace(told,
      status === "failed" && h("p", { class: "notice bad" }, t("failed_why", { why: (job.reason ?? "").replace(/^\w+Error: /, "") })),
      status === "stopped" && h("p", { class: "notice warn" }, t("stopped_at")),
      job.refused > 0 && h("p", { class: "notice warn" }, t("partly", { n: number(job.refused) })),
      job.log.length > 0 && h("details", {}, h("summary", {}, t("log")), h("pre", { class: "log", tabindex: "0" }, job.log.join("\n"))));
    replace(score, job.score && h("dl", { class: "facts batch-score" },
      h("dt", {}, t("score")), h("dd", {}, t("score_right", { right: number(job.score.right), judged: number(job.score.judged), share: number((100 * job.score.right) / job.score.judged, 1) })),
      Object.entries(job.score.means).filter(([name]) => name !== "exact").map(([name, value]) => [h("dt", {}, t(`metric_${name}`)), h("dd", {}, number(100 * value, 1), " %")]),
      h("dt", {}), h("dd", { class: "small soft" }, t("normalized_how"))));
    show.disabled = !about.expected && show.value === "all";
    for (const option of show.options) option.disabled = !about.expected && ["match", "differ"].includes(option.value);
    show.disabled = false;
    said = says;
    const partial = ["failed", "stopped"].includes(status) && job.done > 0;
    if (status + partial === offered) return; // buttons that are made anew lose the focus, and a click that has begun
    offered = status + partial;
    const table = /\.(csv|tsv)$/.test(about.out);
    const save = async () => {
      const made = await act("download", { spreadsheet: table && spreadsheet.checked });
      if (made) download(made.address);
    };
    replace(actions,
      status === "completed" && h("button", { type: "button", class: "primary", onclick: save }, t("save_with")),
      ["running", "waiting"].includes(status) && h("button", { type: "button", onclick: () => act("stop") }, t("stop")),
      ["failed", "stopped"].includes(status) && h("button", { type: "button", class: "primary", onclick: async () => (await act("resume")) && follow(id) }, t(status === "failed" ? "retry" : "resume")),
      partial && h("button", { type: "button", onclick: save }, t("save_so_far")),
      h("button", { type: "button", class: "quiet", onclick: () => (location.href = "/answers") }, t("new_one")));
    if (status === "completed" || partial) actions.append(h("div", { class: "batch-save" },
      table ? h("label", { for: "spreadsheet" }, spreadsheet, t("spreadsheet")) : "",
      h("p", { class: "hint" }, t(partial ? "kept_so_far" : "kept", { column: about.answer_column }))));
  }
  return { draw, rows };
}

const text = (value) => h("div", { class: "batch-text" }, value);
const SHAPES = { match: "good", differ: "bad", done: "good", open: "waiting", empty: "warn", refused: "warn" };
const marked = (mark) => h("span", { class: `badge ${SHAPES[mark]}` }, t(`mark_${mark}`));

async function list() {
  const { jobs, older } = await get("/api/answers");
  $("older").textContent = older.count ? t("older_jobs", older) : "";
  $("earlier").hidden = !jobs.length;
  replace($("jobs"), jobs.map((job) => h("li", { class: "row apart" },
    h("a", { href: `/answers?job=${job.id}` }, job.about.shown + t("dot") + job.about.of.label),
    h("span", { class: "row" }, h("span", { class: "small soft" }, ago(job.made)), badge(job.status)))));
}

addEventListener("popstate", () => location.reload());
tell();
const wanted = address.get("job");
if (wanted) follow(wanted);
else prepare().catch(complain);
list().catch(complain);

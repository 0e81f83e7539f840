// 結果: what a run has come to.
import { complain, get, poll, post } from "./api.js";
import { $, ask, badge, command, copying, download, emptied, h, notice, replace } from "./dom.js";
import { bytes, duration, language, number, t } from "./words.js";

const id = location.pathname.split("/")[2];
const MARKS = { better: "good", worse: "bad", overfitted: "bad", unchanged: "stopped", unknown: "stopped" };
const DECISIONS = { adopt: "good", hold: "stopped", reject: "bad" };
let run = null, failed = true, shown = 0, asked = 0, drawn = "", answered = null, gone = false;

// Until its process has told the verdict; what has not changed is not drawn anew.
async function look() {
  let told;
  try {
    told = await get(`/api/results/${id}`);
  } catch (error) {
    if (!run) replace($("verdict"), t("failed_to_load"));
    if (error.status === 404) emptied((gone = true));
    throw error;
  }
  if (gone) emptied((gone = false));
  if (drawn !== (drawn = JSON.stringify(told))) draw(told);
  if (answered !== run.judged) {
    await showAnew();
    answered = run.judged;
  }
  return run.judged;
}

function draw(told) {
  run = told;
  document.title = `${run.name} – ${t("title")} – aift`;
  $("name").textContent = run.name;
  $("about").textContent = `${run.model} · ${run.method}`;
  showVerdict();
  showNext();
  showNumbers();
  command(["aift", "chat", run.folder, "--compare"]);
}

// The answers from the first on, as many as were shown; the wrong ones, where nobody has chosen.
async function showAnew() {
  const before = shown;
  if (!$("filter").childElementCount) failed = true;
  await showAnswers(true);
  while (shown < before && !$("more").hidden) await showAnswers(false);
}

const loss = (value) => number(value, value !== null && Math.abs(value) < 10 ? 3 : 2);

function showVerdict() {
  const point = (name) => run.points[name] ? [h("dt", {}, t(`point_${name}`)),
    h("dd", {}, t("loss", { value: loss(run.points[name].loss) }), " ", h("span", { class: "soft small" }, t("at_step", { step: number(run.points[name].step) })))] : null;
  const why = run.why?.[language], before = run.returned;
  replace($("verdict"),
    run.status === "completed" ? null : h("p", { class: "notice warn" }, t("not_finished", { state: t(`state_${run.status}`) }), " ",
      h("a", { href: `/runs/${id}` }, t("to_run"))),
    run.judged ? h("p", { class: "notice warn", role: "status" }, t("judged")) : null,
    h("div", { class: "row" }, h("p", { class: `headline ${MARKS[run.kind]}` }, t(`k_${run.kind}`)),
      run.decision ? badge(DECISIONS[run.decision], t("decision", { word: t(`d_${run.decision}`) })) : null),
    why ? h("p", { class: "why" }, why, run.advice ? h("span", { class: "soft block" }, run.advice[language]) : null) : null,
    h("p", { class: why ? "soft small" : "why" }, why ? t("losses_say", { text: run.sentence[language] }) : run.sentence[language]),
    h("dl", { class: "facts points" }, ["before", "best", "last"].map(point)),
    before ? h("div", { class: "notice warn spaced" }, h("p", {}, t(before.unfinished ? "unfinished" : "returned", { step: number(before.step), last: number(before.last_step) })),
      before.decision ? h("p", {}, t("verdict_of_last", { word: t(`d_${before.decision}`), why: before.why?.[language] ?? "" })) : null,
      h("p", {}, t("answers_of_last")),
      h("p", {}, t("measure_again"), " ", h("code", {}, before.measure), " ", copying(h("button", { type: "button", class: "quiet" }, t("copy")), () => before.measure))) : null,
    choice());
}

// Whether its model is in use, and which of its weights it is.
function choice() {
  const button = (name, key, path, undo, words) => h("button", { type: "button", id: name, onclick: (event) => change(event.target, path, undo, words) }, t(key));
  const beside = (...parts) => h("div", { class: "row spaced" }, parts);
  const line = (text) => h("span", { class: "soft small" }, text);
  const runs = ["aift", "runs"];
  return [
    run.adopted && !run.judged ? beside(badge("good", t("in_use")), button("adopt", "release", "adopt", true, [...runs, "adopt", id, "--undo"]))
      : run.adoptable ? beside(button("adopt", "adopt", "adopt", false, [...runs, "adopt", id]), run.doubt ? line(run.doubt[language]) : null) : null,
    run.adopted_before === null ? null : h("p", { class: "soft small" }, t("adopted_before", { step: number(run.adopted_before) })),
    run.best || run.returned?.unfinished ? beside(button("best", "take_best", "best", false, [...runs, "best", id]),
      run.best ? line(t("best_is", { step: number(run.best.step), loss: loss(run.best.loss), last: number(run.best.last_step), last_loss: loss(run.best.last_loss) })) : null) : null,
    run.returned && run.adoptable ? beside(button("last", "take_last", "best", true, [...runs, "best", id, "--undo"])) : null,
  ];
}

async function change(button, path, undo, words) {
  for (const other of $("verdict").querySelectorAll("button")) other.disabled = true;
  if (path === "best") button.textContent = t("changing");
  try {
    drawn = JSON.stringify(await post(`/api/results/${id}/${path}`, { undo }));
    notice(null);
    draw(JSON.parse(drawn));
    command(words);
    ($(button.id) ?? $("adopt") ?? $("verdict").querySelector("button"))?.focus();
  } catch (error) {
    draw(run);
    complain(error);
  }
}

// What can be done with the model.
function showNext() {
  const link = (href, key, primary) => h("a", { class: primary ? "button primary" : "button", href }, t(key));
  const done = run.status === "completed";
  const rejected = run.decision === "reject";
  replace($("next"),
    rejected ? link(`/train?copy=${id}`, "again", true) : null,
    link(`/chat?run=${id}`, "chat", !rejected),
    link(`/answers?run=${id}`, "batch"),
    link(`/export?run=${id}`, "export"),
    link(`/train?from=${id}`, "more_data"),
    done ? h("button", { type: "button", onclick: trainOn }, t("more_epochs")) : null,
    rejected ? null : link(`/train?copy=${id}`, "again"),
    link(`/compare?ids=${id}`, "compare"),
    run.report ? h("button", { type: "button", onclick: saveReport }, t("report")) : null);
}

async function trainOn() {
  const field = h("input", { type: "number", id: "epochs", min: run.epochs + 1, value: run.epochs * 2, required: true });
  const epochs = await ask({
    title: t("more_epochs_title"), button: t("go_on"), value: () => Number(field.value),
    body: [h("p", {}, t("more_epochs_body", { now: number(run.epochs) })), h("label", { for: "epochs" }, t("epochs")), field],
  });
  if (epochs === null) return;
  try {
    await post(`/api/results/${id}/more`, { epochs });
    location.assign(`/runs/${id}`);
  } catch (error) {
    complain(error);
  }
}

async function saveReport() {
  try {
    download((await post(`/api/results/${id}/report`)).address);
  } catch (error) {
    complain(error);
  }
}

// Answers, failures first.
async function showAnswers(anew) {
  const mine = ++asked;
  const answer = await get(`/api/results/${id}/answers?from=${anew ? 0 : shown}${failed ? "&failed=1" : ""}`);
  if (mine !== asked) return; // asked for twice, or for others meanwhile
  if (anew && failed && !answer.failed) {
    failed = false;
    if (answer.all) return showAnswers(true);
  }
  if (anew) {
    shown = 0;
    $("answers-hint").hidden = !answer.all;
    replace($("answers"), answer.all ? null : h("p", { class: "soft" }, t("no_answers")));
    const button = (on, key, count) => h("button", { type: "button", "aria-pressed": String(failed === on), onclick: () => { failed = on; showAnswers(true).catch(complain); } }, t(key, { count }));
    replace($("filter"), answer.all && answer.failed ? [button(true, "only_failures", answer.failed), button(false, "all_answers", answer.all)] : null);
  }
  $("answers").append(...answer.answers.map(card));
  shown += answer.answers.length;
  $("more").hidden = shown >= answer.total;
}
$("more").addEventListener("click", () => showAnswers(false).catch(complain));

function card(one) {
  const state = one.scores[1] === null ? null : badge(one.scores[1] >= 1 ? "good" : "bad", t(one.scores[1] >= 1 ? "right" : "wrong"));
  const marks = [state, one.lost ? badge("stopped", t("lost")) : null, ...one.faults.map((fault) => badge("warn", fault[language])),
    one.japanese === null || one.japanese > 0.9 ? null : h("span", { class: "soft small" }, t("japanese", { share: number(100 * one.japanese) }))];
  const text = (value) => value === null ? h("span", { class: "soft" }, t("not_asked")) : value === "" ? h("span", { class: "soft" }, t("empty")) : value;
  return h("article", { class: "answer" },
    h("div", { class: "row apart" }, h("h3", {}, one.question), h("div", { class: "row" }, marks)),
    h("dl", {},
      one.expected ? h("div", {}, h("dt", {}, t("expected")), h("dd", {}, one.expected)) : null,
      h("div", {}, h("dt", {}, t("before")), h("dd", { class: "soft" }, text(one.before))),
      h("div", {}, h("dt", {}, t("after")), h("dd", {}, one.after === null ? text(null) : one.after.every(([part]) => part === "") ? text("")
        : one.after.map(([part, same]) => same ? part : h("mark", {}, part))))));
}

// Numbers.
function showNumbers() {
  const share = (value) => value === null ? "–" : `${number(100 * value, 1)} %`;
  const tasks = run.tasks.map((task) => [
    task.name === "data" ? t("t_data", { metric: t(`m_${task.metric}`).replace(/^m_/, "") }) : t(`t_${task.name}`).replace(/^t_/, ""),
    number(task.items), ...[task.before, task.after].map(task.lower ? loss : share), t(`w_${task.finding}`).replace(/^w_/, "")]);
  const figures = run.figures.map((one) => [one[language], "", loss(one.before), loss(one.after), ""]);
  const faults = run.language.map((one) => [one[language], "", share(one.before), share(one.after), one.veto ? t("w_worse") : ""]);
  const rows = [...tasks, ...figures, ...faults];
  const facts = Object.entries({
    f_steps: number(run.facts.steps), f_epochs: number(run.facts.epochs), f_seconds: run.facts.seconds === null ? null : duration(run.facts.seconds),
    f_tokens_per_second: run.facts.tokens_per_second === null ? null : t("tokens_per_second", { rate: number(run.facts.tokens_per_second) }),
    f_peak_memory_gb: run.facts.peak_memory_gb === null ? null : bytes(1e9 * run.facts.peak_memory_gb),
    f_train_loss_last_10_steps: run.facts.train_loss_last_10_steps === null ? null : loss(run.facts.train_loss_last_10_steps),
    folder: run.folder,
  }).filter(([, value]) => value !== null && value !== "–");
  replace($("numbers"),
    rows.length ? h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("numbers") }, h("table", {},
      h("thead", {}, h("tr", {}, ["measured", "items", "before", "after", "finding"].map((key, at) => h("th", { scope: "col", class: at > 0 && at < 4 ? "figure" : null }, t(key))))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, at) => at ? h("td", { class: at < 4 ? "figure" : null }, cell) : h("th", { scope: "row" }, cell))))))) : null,
    run.not_measured.length ? [h("h3", {}, t("not_measured")), h("ul", {}, run.not_measured.map((one) => h("li", {}, one[language])))] : null,
    h("h3", { class: "spaced" }, t("training")),
    h("dl", { class: "facts" }, facts.map(([key, value]) => [h("dt", {}, t(key)), h("dd", {}, value)])));
}

command(["aift", "runs", "show", id]);
poll(look, 3000);

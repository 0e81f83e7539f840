// 実行中: one run, by what is new of it each second; its state is in its files, the address names it.
import { complain, get, poll, post } from "./api.js";
import { chart } from "./chart.js";
import { $, announce, ask, badge, command, emptied, h, notice, replace } from "./dom.js";
import { followLog, showSamples } from "./run_parts.js";
import { ago, duration, language, moment, number, t } from "./words.js";

const id = location.pathname.split("/")[2];
const api = `/api/runs/${id}`;
let cursor = "", points = [], evaluations = [], curve = null, facts = null, shown = "", sampled = "", stopping = false;
const atWork = (status) => status === "running" || status === "waiting";

command(["aift", "runs", "show", id]);
async function begin() {
  facts = await get(api);
  emptied(false);
  notice(null);
  document.title = `${facts.name} – aift`;
  $("name").textContent = facts.name;
  replace($("about"), `${facts.method}: ${facts.model} · `, h("time", { id: "began", title: moment(facts.started) }));
  $("settings").textContent = facts.settings;
}
followLog(api);

poll(async () => {
  let update;
  do {
    try {
      if (!facts) await begin();
      update = await get(`${api}/metrics?after=${cursor}`);
    } catch (error) {
      // Gone, or not yet there: its cards come with it.
      if (error.status === 404) {
        facts = null;
        emptied(true);
      }
      throw error;
    }
    if (update.reset) [points, evaluations] = [[], []];
    points.push(...update.points);
    evaluations.push(...update.evaluations);
    cursor = update.cursor;
    if (update.points.length || update.evaluations.length || update.reset) draw();
  } while (update.more);
  const now = `${update.status} ${update.phase}`;
  // Answers are written after the loss of their evaluation, before the next phase.
  if (update.evaluations.length || now !== sampled) showSamples(api, atWork(update.status));
  sampled = now;
  showState(update);
}, 1000);

// Both lines over the steps that either has.
function draw() {
  $("no-points").hidden = points.length > 0;
  if (!points.length && !curve) return;
  curve ??= chart($("curve"), { label: t("curve"), x: t("x_step"), series: [t("train_loss"), t("eval_loss")] });
  const losses = new Map(points), tested = new Map(evaluations);
  const steps = [...new Set([...losses.keys(), ...tested.keys()])].sort((a, b) => a - b);
  curve.draw([steps, steps.map((step) => losses.get(step) ?? null), steps.map((step) => tested.get(step) ?? null)]);
  const best = evaluations.reduce((low, one) => (low === null || one[1] < low[1] ? one : low), null);
  if (best) curve.mark(best[0], t("best", { step: number(best[0]) }), 2);
  $("best").textContent = best ? t("best_line", { step: number(best[0]), loss: number(best[1], 4) }) : "";
}

function showState(update) {
  const { status, phase, last, seconds_left: left } = update;
  $("began").textContent = t("began", { time: ago(facts.started) });
  const at_work = atWork(status);
  if (stopping && !at_work) notice(null); // it said that it will stop
  if (!at_work) stopping = false;
  const step = last?.step ?? points.at(-1)?.[0] ?? null;
  const total = last?.total_steps ?? showState.total ?? null;
  showState.total = total;
  const share = step !== null && total ? step / total : null;
  const percent = share === null || !["training", "evaluation"].includes(phase) ? "" : t("percent", { percent: Math.floor(100 * share) });
  $("phase").textContent = at_work ? [t(`phase_${phase}`), percent].filter(Boolean).join(" ") : t(`state_${status}`);
  const steps = step === null ? "" : total ? t("step_of", { step: number(step), total: number(total) }) : t("step", { step: number(step) });
  showState.time = last?.time ?? showState.time;
  const quiet = status === "running" && phase === "training" && showState.time ? Date.now() / 1000 - showState.time : 0;
  $("left").textContent = [at_work && left !== null ? t("left", { time: duration(left) }) : "", steps,
    quiet > 60 ? t("quiet", { time: duration(quiet) }) : ""].filter(Boolean).join(" · ");
  const bar = $("bar");
  if (share === null && at_work) bar.removeAttribute("value");
  else bar.value = status === "completed" ? 1 : share ?? 0;
  if (at_work && last) announce(t("live", { step: number(step), loss: number(points.at(-1)?.[1], 3), time: duration(left) }));
  const now = JSON.stringify([status, phase === "waiting" ? update.before : null, update.reason, update.elsewhere, update.judged]);
  if (now === shown) return;
  shown = now;
  replace($("state"), badge(status));
  $("no-points").textContent = t(at_work ? "no_points" : "no_points_ended");
  if (!at_work) announce(t(`state_${status}`));
  replace($("told"), told(update));
  replace($("actions"), actions(update));
}

// A reason without the name of its kind, where that is the toolkit's own: its text says it for people.
const plain = (reason) => (reason ?? "").replace(/^(Usage|Data|InputNotFound|Hub|Diverged|OutOfMemory|Storage|RunLocked|Config|Model|Processes|Checkpoint)Error: /, "");
const asked = (reason) => /^(PreemptedError|KeyboardInterrupt)/.test(reason ?? "");

function told({ status, reason, gone, elsewhere, before, judged }) {
  if (status === "waiting") {
    return before.length ? [h("p", {}, t("waits_for")), h("ul", {}, before.map((one) => h("li", {}, one.id ? h("a", { href: `/runs/${one.id}` }, one.name)
      : one.api ? h("a", { href: "/export" }, t("an_api")) : one.name)))]
      : h("p", {}, t("waits_for_nobody"));
  }
  if (status === "failed") return h("p", { class: "notice bad" }, t("failed_text", { reason: gone ? t("gone") : plain(reason) }), "\n", t("can_go_on"));
  if (status === "stopped") {
    const why = elsewhere ? t("elsewhere") : asked(reason) ? null : plain(reason);
    return h("p", { class: "notice warn" }, why ? `${why}\n` : null, elsewhere ? null : t("stopped_text"));
  }
  if (status !== "completed") return null;
  // A reason is that of a later training, which was to go on from here and has failed before its first step.
  return [reason && !asked(reason) ? h("p", { class: "notice bad" }, t("going_on_failed", { reason: plain(reason) })) : null,
    h("p", { class: "notice good" }, t(judged ? "judged_text" : "completed_text"))];
}

function actions({ status, phase, elsewhere }) {
  const button = (text, work, kind = "") => h("button", { type: "button", class: kind, onclick: work }, text);
  const link = (text, href, kind = "") => h("a", { class: `button ${kind}`, href }, text);
  const duplicate = link(t("duplicate"), `/train?copy=${id}`);
  if (status === "running") {
    return [button(t("stop_save"), () => act("stop", { how: "save" }), "primary"), button(t("stop_best"), () => act("stop", { how: "best" })),
      button(t("stop_now"), stopNow, "danger"), duplicate];
  }
  if (status === "waiting") return [button(t("cancel"), () => act("stop", { how: "save" })), duplicate];
  if (status === "completed") return [link(t("result"), `/runs/${id}/result`, "primary"), link(t("chat"), `/chat?run=${id}`), duplicate];
  return [elsewhere ? null : button(t("resume"), () => act("resume"), "primary"), duplicate];
}

async function act(what, value = {}) {
  for (const button of $("actions").querySelectorAll("button")) button.disabled = true;
  command(["aift", "runs", what, id, ...({ best: ["--best"], now: ["--now"] }[value.how] ?? []), ...(what === "resume" ? ["--detach", "--wait"] : [])]);
  try {
    const said = await post(`${api}/${what}`, value);
    notice(said[language] ? `${said[language]}` : null, "warn");
    stopping = what === "stop";
  } catch (error) {
    complain(error);
  }
  shown = ""; // whatever comes next, the buttons are made anew
}

async function stopNow() {
  if (await ask({ title: t("stop_now"), body: h("p", {}, t("stop_now_sure")), button: t("stop_now"), kind: "danger" })) act("stop", { how: "now" });
}

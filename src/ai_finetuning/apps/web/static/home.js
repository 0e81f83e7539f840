// ホーム: this PC, runs at work with their bars, the last runs with their verdicts.
import { complain, get, poll, post } from "./api.js";
import { $, announce, badge, command, h, replace } from "./dom.js";
import { ago, bytes, duration, moment, number, t } from "./words.js";

command(["aift"]);
poll(async () => {
  const here = await get("/api/home");
  showMachine(here);
  showAtWork(here.at_work);
  $("last").hidden = here.last.length === 0;
  $("steps").hidden = here.last.length + here.at_work.length > 0;
  showLast(here.last);
}, 3000);

let details = [];
function showMachine({ machine, disk }) {
  const of = (free, total) => t("free_of", { free: bytes(free), total: bytes(total) });
  replace($("pc"), [
    [t("cpu"), t("cpu_is", { name: machine.cpu, cores: machine.cores })],
    [t("memory"), of(machine.memory_free, machine.memory)],
    ...(machine.gpus.length ? machine.gpus.map((gpu) => [t("gpu"), `${gpu.name} ${of(gpu.free, gpu.total)}`]) : [[t("gpu"), t("gpu_none")]]),
    [t("disk"), of(disk.free, disk.total)],
    ...details,
  ].map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

$("details").addEventListener("click", async () => {
  $("details").disabled = true;
  $("details").textContent = t("looking");
  command(["aift", "env"]);
  try {
    const found = await post("/api/home/details");
    const check = found.self_check;
    details = [[t("device"), found.device], ...Object.entries(found.versions).filter(([, version]) => version).slice(0, 6),
      [t("hub"), found.hub], [t("self_check"), check ? `${check.date}` : t("not_checked")]];
    showMachine(await get("/api/home"));
    $("details").remove();
  } catch (error) {
    complain(error);
    $("details").disabled = false;
    $("details").textContent = t("details");
  }
});

// Links and buttons stay the same nodes from one time to the next: one made anew loses the focus, and a click that has begun.
let drawn = {}, working = [], ages = [];
function isNew(name, value) {
  const now = JSON.stringify(value);
  return now !== drawn[name] && ((drawn[name] = now), true);
}

function showAtWork(runs) {
  $("at-work").hidden = runs.length === 0;
  if (isNew("at_work", runs.map(({ id, name, status }) => [id, name, status]))) {
    working = runs.map((run) => ({ far: h("span", { class: "soft" }), bar: h("progress", { "aria-label": run.name }) }));
    replace($("at-work-list"), runs.map((run, at) => h("div", { class: "at-work" },
      h("div", { class: "row apart" }, h("a", { href: `/runs/${run.id}` }, run.name), badge(run.status), working[at].far), working[at].bar)));
  }
  runs.forEach((run, at) => tellHowFar(run, working[at]));
}

function tellHowFar(run, { far, bar }) {
  const known = run.total && run.step !== null;
  const said = known ? t("step_of", { step: number(run.step), total: number(run.total) }) : "";
  const left = run.seconds_left === null ? "" : t("left", { time: duration(run.seconds_left) });
  announce([run.name, t(`state_${run.status}`), said, left].filter(Boolean).join(" "));
  far.textContent = `${said} ${left}`;
  if (!known) return bar.removeAttribute("value");
  bar.max = run.total;
  bar.value = run.step;
}

const KINDS = { adopt: "good", better: "good", hold: "warn", unchanged: "warn", overfitted: "warn" };
function showLast(runs) {
  if (!runs.length) return;
  if (isNew("last", runs)) drawLast(runs);
  runs.forEach((run, at) => (ages[at].textContent = ago(run.started)));
}

function drawLast(runs) {
  ages = runs.map((run) => h("td", { title: moment(run.started) }));
  const line = (run, at) => h("tr", {},
    h("th", { scope: "row" }, h("a", { href: `/runs/${run.id}` }, run.name), run.adopted ? [" ", badge("good", t("in_use"))] : null, h("div", { class: "soft small" }, `${run.method}: ${run.model}`)),
    h("td", {}, badge(run.status)),
    h("td", {}, run.verdict ? badge(KINDS[run.verdict] ?? "bad", t(`verdict_${run.verdict}`)) : "–"),
    h("td", { class: "figure" }, run.after === null ? "–" : `${run.before === null ? "" : `${number(run.before, 3)} → `}${number(run.after, 3)}`),
    ages[at],
    h("td", {}, next(run)));
  replace($("last-list"), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("last_runs") }, h("table", {},
    h("thead", {}, h("tr", {}, ["run", "state", "verdict", "loss", "started"].map((name) => h("th", { scope: "col" }, t(name))), h("td", {}))),
    h("tbody", {}, runs.map(line)))));
}

function next(run) {
  if (run.status === "completed") return h("a", { class: "button", href: `/runs/${run.id}/result` }, t("result"));
  const resume = async (event) => {
    event.target.disabled = true;
    try {
      await post(`/api/runs/${run.id}/resume`);
      location.assign(`/runs/${run.id}`);
    } catch (error) {
      complain(error);
      event.target.disabled = false;
    }
  };
  return h("button", { type: "button", onclick: resume }, t("resume"));
}

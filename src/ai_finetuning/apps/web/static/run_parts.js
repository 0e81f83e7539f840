// Parts of 実行中: answers to the same questions as the model learns, and what the run says.
import { complain, get, poll } from "./api.js";
import { $, h, replace } from "./dom.js";
import { number, t } from "./words.js";

// The answers of one evaluation beside those before training; the last one, until another is chosen.
let chosen = null;
export async function showSamples(api, at_work) {
  let rows;
  try {
    ({ rows } = await get(`${api}/samples`));
  } catch (error) {
    return complain(error);
  }
  const steps = [...new Set(rows.map((row) => row.step))].sort((a, b) => a - b);
  if (!steps.length) return replace($("samples"), h("p", { class: "soft" }, t(at_work ? "samples_wait" : "samples_none")));
  const name = (step) => (step === 0 ? t("before") : t("at_step", { step: number(step) }));
  const said = (answer) => answer ? answer : h("span", { class: "soft" }, t(answer === "" ? "empty_answer" : "no_answer"));
  const body = h("tbody"), heads = h("tr");
  const select = h("select", { id: "samples-at", onchange: () => { chosen = select.value; fill(); } }, steps.map((step) => h("option", { value: String(step) }, name(step))));
  const fill = () => {
    const at = Number(select.value);
    const sides = at === steps[0] ? [at] : [steps[0], at];
    const of = (step, question) => rows.find((row) => row.step === step && row.question === question);
    replace(heads, [t("question"), t("expected"), ...sides.map(name)].map((text) => h("th", { scope: "col" }, text)));
    replace(body, rows.filter((row) => row.step === at).map((row) => h("tr", {}, h("th", { scope: "row" }, row.question), h("td", {}, row.expected ?? "–"),
      sides.map((step) => h("td", {}, said(of(step, row.question)?.answer))))));
  };
  select.value = chosen !== null && steps.includes(Number(chosen)) ? chosen : String(steps.at(-1));
  replace($("samples"), h("div", { class: "row" }, h("label", { for: "samples-at" }, t("samples_at")), h("div", {}, select)),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("samples") }, h("table", { class: "samples" }, h("thead", {}, heads), body)));
  fill();
}

// What the run says, while its fold is open: its last lines, appended as they come.
const LINES = 2000;
export function followLog(api) {
  let cursor = "", lines = [], end = null;
  const turn = async () => {
    let text;
    do {
      const before = cursor;
      ({ text, cursor } = await get(`${api}/log?after=${cursor}`));
      if (cursor === before) break;
      lines = lines.concat(text.split("\n").slice(0, -1)).slice(-LINES);
    } while (text);
    const place = $("log-text"), content = lines.length ? lines.join("\n") : t("log_none");
    if (place.textContent === content) return;
    const low = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
    place.textContent = content;
    if (low) place.scrollTop = place.scrollHeight;
  };
  $("log").addEventListener("toggle", () => {
    end?.();
    end = $("log").open ? poll(turn, 1000) : null;
  });
}

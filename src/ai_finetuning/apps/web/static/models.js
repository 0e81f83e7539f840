// モデル: what is on this PC and what can be downloaded, with how well each way of training fits.
import { complain, get, post } from "./api.js";
import { $, ask, command, h, replace } from "./dom.js";
import { bytes, number, t } from "./words.js";

const METHODS = ["lora", "qlora", "full"], METHOD = "aift-method", SOME = 24;
// Of the memory that is free: what leaves room for other programs, and what fits.
const PLENTY = 0.8;
let method = METHODS.includes(localStorage.getItem(METHOD)) ? localStorage.getItem(METHOD) : "lora";
let found = null, every = false, asked = 0;
const checked = new Map();

const need = (model, use) => (checked.get(model.key) ?? model.need_gib)[use];
function fit(model, use) {
  const gib = need(model, use);
  if (gib === undefined) return "unknown";
  return gib <= PLENTY * found.room.gib ? "good" : gib <= found.room.gib ? "warn" : "bad";
}

function light(model, use) {
  const how = fit(model, use), gib = need(model, use);
  const size = gib === undefined ? null : bytes(gib * 2 ** 30);
  return h("li", { class: use === method ? "now" : null },
    h("span", { class: "use" }, t(`method_${use}`)),
    h("span", { class: `badge ${how === "unknown" ? "" : how}` }, t(`fit_${how}`)),
    h("span", { class: "figure soft" }, size === null ? "–" : checked.has(model.key) ? size : t("about", { size })));
}

const parameters = (billions) => (billions < 1 ? t("million", { n: number(billions * 1000) }) : t("billion", { n: number(billions, billions < 10 ? 1 : 0) }));

function card(model) {
  const facts = [
    [t("parameters"), [model.parameters_billion ? parameters(model.parameters_billion) : null, model.here?.size_bytes ? bytes(model.here.size_bytes) : null].filter(Boolean).join(" · ") || "–"],
    [t("licence"), model.licence ? [model.licence, " ", h("b", { class: `commercial ${model.commercial}` }, t(`commercial_${model.commercial}`))] : t("unlisted")],
    model.characters_per_token ? [t("characters"), number(model.characters_per_token, 2)] : null,
    model.context_length ? [t("context"), t("tokens", { n: number(model.context_length) })] : null,
  ].filter(Boolean);
  const status = h("p", { class: "hint", role: "status" }, checked.has(model.key) ? t("simulated") : null);
  const check = h("button", { type: "button", onclick: async () => {
    check.disabled = true;
    status.textContent = t("checking");
    try {
      const told = await post("/api/models/fit", { model: model.key });
      if (told.model.simulated.length) checked.set(model.key, told.model.need_gib);
      found.room = told.room;
      draw();
    } catch (error) { complain(error); draw(); }
  } }, t("check"));
  return h("article", { class: `card model-card fit-${fit(model, method)}`, "data-model": model.key, "aria-label": model.id },
    h("div", {}, h("h3", {}, model.id), h("p", { class: "row tags" },
      h("span", { class: `badge ${model.here ? "good" : ""}` }, t(model.here ? "here" : "elsewhere")),
      model.recommended ? h("span", { class: "tag" }, `★ ${t("recommended")}`) : null,
      model.gated ? h("span", { class: "tag" }, t("gated")) : null)),
    h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("div", {}, h("p", { class: "label" }, t("memory")), h("ul", { class: "lights" }, METHODS.map((use) => light(model, use))), status),
    h("div", { class: "actions" }, h("a", { class: `button${fit(model, method) === "bad" ? "" : " primary"}`, href: `/train?model=${model.key}` }, t("train")),
      model.here ? check : h("button", { type: "button", onclick: () => bring(model) }, t("bring"))));
}

function bring(model) {
  const folder = `${found.folder}/${model.id.split("/").pop()}`;
  const line = (words) => h("pre", { class: "log" }, words);
  const short = model.id.split("/").pop();
  ask({ title: t("bring_title", { name: model.id }), button: t("close"), body: h("ol", { class: "steps" },
    h("li", {}, t("bring_1"), line(`aift bundle ${model.id} --out ${short}`)), h("li", {}, t("bring_2"), line(folder)),
    h("li", {}, t("bring_3"), line(`aift bundle verify ${folder}`)), h("li", {}, t("bring_4"))) });
}

function draw() {
  const text = $("search").value.trim().toLowerCase();
  replace($("methods"), METHODS.map((use) => h("button", { type: "button", "aria-pressed": String(use === method), onclick: () => { method = use; localStorage.setItem(METHOD, use); load().catch(complain); } }, t(`method_${use}`))));
  $("method-hint").textContent = t(`hint_${method}`);
  const size = bytes(found.room.gib * 2 ** 30);
  $("room").textContent = t(found.room.gpus ? "free_gpu" : "free_memory", { size });
  command(["aift", "models", ...(text ? [text] : []), "--method", method]);
  const matching = found.models.filter((model) => model.id.toLowerCase().includes(text));
  const here = matching.filter((model) => model.here), others = matching.filter((model) => !model.here);
  const first = (model) => (model.recommended && fit(model, method) !== "bad" ? 0 : 1);
  others.sort((a, b) => first(a) - first(b));
  const shown = every || text ? others : others.slice(0, SOME);
  replace($("models"), matching.length ? null : h("p", { class: "soft" }, t("no_match")),
    here.length ? [h("h2", {}, t("on_this_pc")), h("div", { class: "cards models" }, here.map(card))] : null,
    shown.length ? [h("h2", {}, t("to_download")), h("div", { class: "cards models" }, shown.map(card))] : null,
    shown.length < others.length ? h("button", { type: "button", onclick: () => { every = true; draw(); } }, t("more", { n: number(others.length - shown.length) })) : null);
}

async function load() {
  const mine = ++asked;
  if (found) draw();
  const told = await get(`/api/models?method=${method}`);
  if (mine !== asked) return;
  found = told;
  draw();
}

$("search").addEventListener("input", () => found && draw());
load().catch(complain);

// 設定: the form, its YAML and what a training will take; kept in step by the server, which alone knows what can be.
import { complain, get, post } from "./api.js";
import { $, command, h, marked, notice, replace } from "./dom.js";
import { bytes, duration, language, number, t } from "./words.js";

const DRAFT = "aift-draft";
const WAIT = 250, PLAN = 700; // ms after the last change
const SMALL = 100e6; // parameters up to which three steps are tried without being asked
const freshKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (one) => one.toString(16).padStart(2, "0")).join("");
const address = new URLSearchParams(location.search);
const draft = { data: null, model: null, from: null, values: {}, preset: "standard" };
let key = freshKey(); // of a start: of these settings, in this tab
const inputs = new Map(); // setting -> { field, control, error, box }
let form = null, told = null, plan = null, asked = 0, timer = null, planTimer = null, planning = null, failure = null, complained = false;

const ids = () => Object.fromEntries(["data", "model", "from"].map((name) => [name, draft[name]]));
const body = () => ({ ...ids(), values: draft.values });
// Each tab has its own draft; the last one of all is what a new tab begins with.
const drafts = [sessionStorage, localStorage];
const remember = () => drafts.forEach((store) => store.setItem(DRAFT, JSON.stringify(draft)));
const forget = () => drafts.forEach((store) => store.removeItem(DRAFT));

async function begin() {
  if (address.get("copy")) return copy();
  const kept = JSON.parse(sessionStorage.getItem(DRAFT) ?? localStorage.getItem(DRAFT) ?? "null");
  const named = ["data", "model", "from"].some((name) => address.get(name));
  for (const name of ["data", "model", "from"]) draft[name] = address.get(name) ?? (kept && name !== "from" ? kept[name] : null);
  if (draft.from) draft.model = null;
  const query = new URLSearchParams(Object.entries(ids()).filter(([, id]) => id));
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
  try {
    form = await get(`/api/settings?${query}`);
  } catch (error) {
    if (error.status !== 404 || named) return showNothing(error);
    forget(); // what was chosen the last time is gone
    return location.replace(location.pathname);
  }
  const same = kept && Object.entries(ids()).every(([name, id]) => (kept[name] ?? null) === id) && Object.keys(kept.values).length;
  if (same) Object.assign(draft, { values: kept.values, preset: kept.preset });
  else choose("standard", form.values);
  if (!form.objectives.includes(draft.values.objective ?? "sft")) delete draft.values.objective;
  objective = draft.values.objective ?? "sft";
  showChosen();
  showFields();
  changed(0);
}

// The settings of an earlier run.
async function copy() {
  try {
    form = await get(`/api/settings?copy=${encodeURIComponent(address.get("copy"))}`);
  } catch (error) {
    return showNothing(error);
  }
  Object.assign(draft, form.ids, { values: form.values, preset: "" });
  objective = draft.values.objective ?? "sft";
  history.replaceState(null, "", `?${new URLSearchParams(Object.entries(ids()).filter(([, id]) => id))}`);
  showChosen();
  showFields();
  changed(0);
  if (form.left_out.length) notice(t("copy_left", { keys: form.left_out.join(", ") }), "warn");
}

// Data that cannot be trained on, or that is gone: another can be chosen.
function showNothing(error) {
  complain(error);
  replace($("data"), h("p", { class: "error" }, error.message), h("a", { class: "button", href: draft.from ? `/data?from=${draft.from}` : "/data" }, t("choose_data")));
  replace($("model"), h("a", { href: "/models" }, t("choose_model")));
}

// What is trained, on what.
function showChosen() {
  const { data, model } = form;
  const others = new URLSearchParams(Object.entries(ids()).filter(([, id]) => id));
  replace($("data"), data ? [
    h("p", {}, h("strong", {}, data.name), " ", h("span", { class: "soft" }, data.rows === null ? t("rows_unknown")
      : t(data.whole ? "rows" : "rows_about", { count: number(data.rows) })),
    data.divided ? h("span", { class: "soft" }, " · ", t("rows_eval", { count: number(data.divided) })) : null),
    data.bad ? h("p", { class: "hint" }, t("bad_rows", { count: number(data.bad) })) : null,
    h("a", { href: `/data?${others}` }, t("change_data"))]
    : [h("p", {}, t("no_data")), h("div", { class: "actions" }, h("a", { class: "button primary", href: `/data?${others}` }, t("choose_data")),
      h("a", { class: "button", href: `/train?${new URLSearchParams({ data: "embedded-kotoha-qa", ...Object.fromEntries(others) })}` }, t("try_shipped")))]);
  replace($("model"), h("p", {}, h("strong", {}, model)),
    draft.from ? [h("p", { class: "hint" }, t("goes_on", { run: draft.from })), draft.data ? h("a", { href: `/train?data=${draft.data}` }, t("from_base")) : null]
      : [model === "embedded:kotoha-tiny" ? h("p", { class: "hint" }, t("practice")) : null, h("a", { href: `/models?${others}` }, t("choose_model"))]);
}

// Fields.
function showFields() {
  const visible = form.fields.filter((field) => field.visible);
  const folded = form.fields.filter((field) => !field.visible);
  replace($("visible"), visible.map((field) => fieldBox(field, t(`f_${field.key}`))));
  const sections = [...new Set(folded.map((field) => field.key.split(".")[0]))];
  replace($("folded"), sections.map((name) => h("section", { class: "group" }, h("h3", {}, t(`s_${name}`)),
    h("div", { class: "fields" }, folded.filter((field) => field.key.startsWith(`${name}.`)).map((field) => fieldBox(field, field.key))))));
  $("more-hint").textContent = t("more_hint", { count: folded.length });
  fill();
}

function fieldBox(field, label) {
  const id = `f-${field.key.replaceAll(".", "-")}`;
  const error = h("p", { class: "error", id: `${id}-error`, role: "status" });
  const range = field.values[language];
  const hint = field[language] + (range && field.kind !== "choice" ? t("range", { values: range }) : "");
  const described = { id, name: field.key, "aria-describedby": `${id}-hint ${id}-error` };
  const control = field.kind === "choice" || field.kind === "bool" ? h("select", described, options(field))
    : field.key === "data.system_prompt" ? h("textarea", { ...described, rows: 2 })
      : h("input", { ...described, type: "text", inputmode: field.kind === "number" ? "decimal" : null, placeholder: placeholder(field), autocomplete: "off" });
  control.addEventListener("input", () => {
    if (control.value === "") delete draft.values[field.key];
    else draft.values[field.key] = control.value;
    if (presetKeys().has(field.key)) draft.preset = "";
    if (field.key === "method") dropAdapter();
    if (field.key === "objective") suggestRate();
    changed();
  });
  const box = h("div", { class: field.key === "data.system_prompt" ? "field wide" : "field" }, h("label", { for: id }, label), control,
    h("p", { class: "hint", id: `${id}-hint` }, marked(hint)), error);
  inputs.set(field.key, { field, control, error, box });
  return box;
}

// Another objective takes another learning rate; one that somebody has chosen stays.
let objective = "sft";
function suggestRate() {
  const key = "training.learning_rate", before = form.rates[objective];
  objective = draft.values.objective ?? "sft";
  if ((draft.values[key] ?? "") !== before || form.rates[objective] === before) return;
  if (form.rates[objective]) draft.values[key] = form.rates[objective];
  else delete draft.values[key];
  fill();
}

// What holds where a field is empty.
function placeholder(field) {
  if (field.key === "data.eval" && form.data?.divided) return t("divided", { count: number(form.data.divided) });
  const usual = form.inherited[field.key] ?? field.default;
  return t("default", { value: usual === "null" ? t("none") : usual });
}

function options(field) {
  const choices = field.key === "objective" ? form.objectives : field.kind === "bool" ? ["true", "false"] : field.choices;
  const word = (value) => value === "true" ? t("yes") : value === "false" ? t("no") : t(`c_${value}`).replace(/^c_/, "");
  return [h("option", { value: "" }, t("default_choice", { value: field.default === "null" ? t("none") : word(field.default) })),
    choices.filter((value) => value !== field.default).map((value) => h("option", { value }, word(value)))];
}

// All weights have no adapter.
function dropAdapter() {
  const full = draft.values.method === "full";
  if (full) for (const key of Object.keys(draft.values)) if (key.startsWith("lora.")) delete draft.values[key];
  for (const [key, { box }] of inputs) if (key.startsWith("lora.")) box.hidden = full;
}

function fill() {
  for (const [key, { field, control }] of inputs) {
    const value = draft.values[key] ?? "";
    const shown = control.tagName === "SELECT" && value === field.default ? "" : value;
    if (control !== document.activeElement || control.tagName === "SELECT") control.value = shown;
  }
  dropAdapter();
}

$("search").addEventListener("input", () => {
  const wanted = $("search").value.trim().toLowerCase();
  for (const group of $("folded").children) {
    for (const box of group.querySelectorAll(".field")) box.hidden = !box.textContent.toLowerCase().includes(wanted);
    group.hidden = !group.querySelector(".field:not([hidden])");
  }
  if (!wanted) dropAdapter();
});

// Presets.
const presetKeys = () => new Set(Object.values(told?.presets ?? form.presets).flatMap((one) => Object.keys(one.values ?? {}))
  .concat(Object.values(form.presets).flatMap((one) => Object.keys(one.values))));

function choose(name, base = draft.values) {
  const others = Object.entries(base).filter(([key]) => !presetKeys().has(key));
  const values = told?.presets?.[name]?.values ?? form.presets[name].values;
  draft.values = { ...Object.fromEntries(others), ...values };
  draft.preset = name;
}

function showPresets() {
  const rough = !plan;
  replace($("presets"), Object.entries(form.presets).map(([name, preset]) => {
    const figures = { ...told?.presets?.[name], ...plan?.presets?.[name] };
    const seconds = plan ? plan.presets[name].seconds : figures.seconds;
    const size = plan ? needed() : figures.memory_bytes;
    const lines = figures.total_steps === undefined ? [] : [
      [t("steps", { count: number(figures.total_steps) }), t(figures.epochs === 1 ? "epoch" : "epochs", { count: number(figures.epochs) })].join(" · "),
      [size ? t("memory_of", { size: rough ? t("about", { value: bytes(size) }) : bytes(size) }) : null,
        figures.disk_bytes ? t("disk_of", { size: bytes(plan?.disk_bytes ?? figures.disk_bytes) }) : null].filter(Boolean).join(" · "),
      preset.values["training.checkpoint.load_best"] === "true" ? t("best_kept") : null];
    return h("button", { type: "button", class: "preset", "data-preset": name, "aria-pressed": String(draft.preset === name),
      onclick: () => { choose(name); fill(); changed(0); } },
    h("span", { class: "name" }, preset[language]),
    figures.total_steps === undefined ? null : seconds === null || seconds === undefined ? h("span", { class: "hint" }, t("time_unknown")) : h("span", { class: "time" }, duration(seconds)),
    lines.filter(Boolean).map((line) => h("span", { class: "hint" }, line)));
  }));
}

// What was changed goes to the server, which answers with problems, or figures, YAML and command.
function changed(wait = WAIT) {
  key = freshKey();
  plan = null;
  planning?.abort();
  planning = null;
  clearTimeout(timer);
  clearTimeout(planTimer);
  remember();
  timer = setTimeout(check, wait);
}

async function check() {
  const mine = ++asked;
  try {
    const answer = await post("/api/settings/check", body());
    if (mine !== asked) return;
    showProblems(answer.problems);
    if (!answer.problems.length) {
      told = answer;
      if (document.activeElement !== $("yaml")) $("yaml").value = told.yaml;
      command(told.command);
      if (complained) notice(null);
      complained = false;
      if (draft.preset && told.presets[draft.preset]) follow();
      planTimer = told.figures || draft.data ? setTimeout(() => makePlan(false), PLAN) : null;
    }
    const ready = !answer.problems.length && Boolean(draft.data);
    $("start").disabled = $("plan").disabled = !ready;
    show();
  } catch (error) {
    complained = true;
    complain(error);
  }
}

// The epochs of a preset follow from the rows of a step, which may have changed.
function follow() {
  const wanted = told.presets[draft.preset].values;
  if (Object.entries(wanted).every(([key, value]) => draft.values[key] === value)) return;
  choose(draft.preset);
  fill();
  changed(0);
}

function showProblems(problems) {
  const at = new Map(problems.map((one) => [one.key, one[language]]));
  const others = problems.filter((one) => !inputs.has(one.key));
  for (const [key, { control, error }] of inputs) {
    error.textContent = at.get(key) ?? "";
    control.setAttribute("aria-invalid", String(at.has(key)));
    if (at.has(key) && !control.closest("#visible")) $("more").open = true;
  }
  replace($("problems"), problems.length ? h("div", { class: "notice bad" }, t("problems", { count: problems.length }),
    others.map((one) => h("div", {}, one[language]))) : null);
}

// Bytes that a plan needs: of a few real steps, with what libraries take, where they were more.
const needed = () => Math.max((plan.measured_memory ?? 0) + plan.memory.base, plan.needed_bytes);

// Figures: of the formulas at once, of the plan when it is there.
function show() {
  showPresets();
  const rough = told?.figures;
  const figures = plan ? { seconds: plan.seconds, memory: needed(), room: plan.limit_bytes ?? plan.free_memory_bytes,
    disk: plan.disk_bytes, steps: plan.total_steps, epoch: plan.steps_per_epoch, findings: plan.findings }
    : rough ? { seconds: rough.seconds, memory: rough.memory_bytes, room: told.room, disk: rough.disk_bytes, steps: rough.total_steps,
      epoch: rough.steps_per_epoch, findings: rough.findings } : null;
  const about = (text) => plan || text === "–" ? text : t("about", { value: text });
  const small = (text) => h("span", { class: "hint block" }, text);
  const line = (name, value, more) => [h("dt", {}, t(name)), h("dd", { "data-figure": name }, value, more)];
  replace($("figures"), figures ? [
    line("time", figures.seconds === null ? t("unmeasured") : duration(figures.seconds), beside()),
    line("length", about(number(figures.steps)), small(t("per_epoch", { count: number(figures.epoch) }))),
    line("memory", about(bytes(figures.memory)), small(t("of_free", { size: bytes(figures.room) }))),
    line("disk", about(bytes(figures.disk)), plan ? small(t("of_free", { size: bytes(plan.free_disk_bytes) })) : null)] : null);
  $("source").textContent = plan ? t(plan.tried ? "by_pilot" : "by_plan") : rough ? t(planning || planTimer ? "by_formula" : "by_formula_only") : "";
  const fits = figures && figures.memory !== null && figures.room ? figures.memory / figures.room : 0;
  replace($("findings"),
    figures?.findings.map((one) => h("div", { class: "notice warn" },
      one.kind === "few_steps" ? [h("strong", {}, t("too_few", { count: number(figures.steps) })), h("br")] : null, one[language])),
    fits > 1 || plan?.fits === false ? h("div", { class: "notice bad" }, t("short")) : fits > 0.85 ? h("div", { class: "notice warn" }, t("tight")) : null,
    plan && plan.seconds === null ? h("button", { type: "button", onclick: () => makePlan(true) }, t("try_steps")) : null);
}

// What takes a large part of the time beside the steps, and how to do without it.
const LARGE = 0.25;
function beside() {
  const parts = plan?.parts;
  if (!parts) return null;
  const named = [["t_answers", parts.answers], ["t_verdict", parts.verdict], ["t_evaluations", parts.evaluations]]
    .filter(([, seconds]) => seconds >= Math.max(1, LARGE * parts.total)).map(([name, seconds]) => t(name, { time: duration(seconds) }));
  if (!named.length) return null;
  const off = parts.at_evaluations >= LARGE * parts.total ? t("quick_without", { quick: form.presets.quick[language] }) : "";
  return h("span", { class: "hint block" }, t("of_which", { parts: named.join(t("and")) }), off);
}

async function makePlan(pilot) {
  clearTimeout(planTimer);
  planTimer = failure = null;
  planning?.abort();
  const mine = (planning = new AbortController());
  if (pilot) $("source").textContent = t("trying");
  try {
    const answer = await post("/api/settings/plan", { ...body(), pilot }, mine.signal);
    if (mine !== planning) return;
    plan = { ...answer, tried: pilot };
    planning = null;
    show();
    if (!pilot && plan.seconds === null && plan.parameters <= SMALL) makePlan(true);
  } catch (error) {
    if (mine !== planning) return;
    planning = null;
    failure = error.message;
    show();
    replace($("findings"), h("div", { class: "notice bad" }, failure));
  }
}

// The plan in full.
$("plan").addEventListener("click", () => {
  const place = h("div", {}, t("plan_waits"));
  if (!plan && !planning) makePlan(false);
  const dialog = h("dialog", { "aria-label": t("plan"), onclose: () => dialog.remove() }, h("h2", {}, t("plan")), h("p", { class: "hint" }, t("plan_nothing")), place,
    h("div", { class: "actions" }, h("button", { type: "button", class: "primary", onclick: () => dialog.close() }, t("close"))));
  document.body.append(dialog);
  dialog.showModal();
  const fill = () => {
    if (plan) replace(place, planFacts());
    else if (failure) replace(place, h("p", { class: "notice bad" }, failure));
    else if (place.isConnected) setTimeout(fill, 200);
  };
  fill();
});

function planFacts() {
  const facts = [
    ["model", plan.model], ["p_device", `${plan.device}, ${plan.precision}`],
    ["p_rows", t("p_rows_value", { rows: number(plan.rows), eval: number(plan.eval_rows) })],
    ["p_tokens", t("p_tokens_value", { tokens: number(plan.tokens), labels: number(plan.label_tokens) })],
    ["p_parameters", t("p_parameters_value", { trainable: number(plan.trainable), parameters: number(plan.parameters) })],
    ["length", `${number(plan.total_steps)} (${t("per_epoch", { count: number(plan.steps_per_epoch) })})`],
    ["p_warmup", t("steps", { count: number(plan.warmup_steps) })],
    ["p_evaluations", t("p_times", { count: number(plan.evaluations) })],
    ["time", plan.seconds === null ? t("unmeasured") : duration(plan.seconds)],
    plan.speed ? ["p_speed", t("p_speed_value", { rate: number(plan.speed.tokens_per_second), source: plan.speed.source[language] })] : null,
    ["memory", `${bytes(needed())} (${t("of_free", { size: bytes(plan.free_memory_bytes) })})`],
    ["p_checkpointing", t(plan.gradient_checkpointing ? "yes" : "no")],
    ["disk", `${bytes(plan.disk_bytes)} (${t("of_free", { size: bytes(plan.free_disk_bytes) })})`],
  ];
  return h("dl", { class: "facts" }, facts.filter(Boolean).map(([name, value]) => [h("dt", {}, t(name)), h("dd", {}, value)]));
}

// YAML.
let yamlTimer = null;
const takeYaml = async () => {
  try {
    const { values, left_out: left } = await post("/api/settings/yaml", { ...ids(), text: $("yaml").value });
    draft.values = values;
    draft.preset = "";
    $("yaml-error").textContent = left.length ? t("yaml_left", { keys: left.join(", ") }) : "";
    fill();
    changed(0);
  } catch (error) {
    $("yaml-error").textContent = error.message;
  }
};
$("yaml").addEventListener("input", () => { clearTimeout(yamlTimer); yamlTimer = setTimeout(takeYaml, 500); });
$("yaml").addEventListener("blur", () => { if (told && !$("yaml-error").textContent) $("yaml").value = told.yaml; });
$("yaml-file").addEventListener("change", async () => {
  const [file] = $("yaml-file").files;
  if (!file) return;
  try {
    $("yaml").value = (await file.text()).slice(0, 200000);
  } catch { // moved, or not readable
    return ($("yaml-error").textContent = t("yaml_unreadable", { name: file.name }));
  }
  await takeYaml();
});

// A start is one start, however often it is asked for: the key is the same until something changes.
$("form").addEventListener("submit", (event) => event.preventDefault());
$("start").addEventListener("click", async () => {
  $("start").disabled = true;
  $("start").textContent = t("starting");
  planning?.abort();
  planning = null;
  try {
    const { id } = await post("/api/settings/start", { ...body(), key });
    forget();
    location.assign(`/runs/${id}`);
  } catch (error) {
    $("start").disabled = false;
    $("start").textContent = t("start");
    if (error.problems?.some((one) => inputs.has(one.key))) showProblems(error.problems.map((one) => ({ key: one.key, [language]: one.text })));
    else complain(error);
  }
});

command(["aift", "start", "FILE"]);
begin().catch(complain);

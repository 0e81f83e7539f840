// データ: bringing files, what was read of one, its findings, rows and tokens.
import { complain, get, post, upload } from "./api.js";
import { $, announce, ask, command, h, notice, replace } from "./dom.js";
import { table } from "./table.js";
import { bytes, language, moment, number, t } from "./words.js";

const address = new URLSearchParams(location.search), id = address.get("file"), from = address.get("from");
// An address with the run that is to go on with the data, which is named from screen to screen.
const to = (path, more = {}) => {
  const query = new URLSearchParams({ ...more, ...(from ? { from } : {}) });
  return query.size ? `${path}?${query}` : path;
};
const SHIPPED = "embedded-kotoha-tiny", MODEL = "aift-tokens-model", SAID = "aift-data-said", TABLE = /\.(csv|tsv|xlsx)$/i;
let limits = null, shown = null, rows = null, chosen = null, last = null;

const known = (key, other) => (t(key) === key ? other : t(key));
const say = (text) => (sessionStorage.setItem(SAID, text), text);

function bar(text, stop, value = null) {
  const progress = h("progress", { max: 1, "aria-label": text, ...(value === null ? {} : { value }) });
  replace($("work"), h("section", { class: "card" }, h("p", { role: "status" }, text),
    h("div", { class: "row" }, h("div", { class: "grow" }, progress), h("button", { type: "button", onclick: stop }, t("stop")))));
  return progress;
}
const busy = (on) => document.querySelectorAll("#view button, #view select, #view input").forEach((item) => (item.disabled = on));

// Does something long, with a bar and a way out.
async function during(text, work) {
  const control = new AbortController();
  notice(null);
  bar(text, () => control.abort());
  busy(true);
  try {
    return await work(control.signal);
  } catch (error) {
    if (error.name === "AbortError") notice(t("stopped_work"), "warn");
    else complain(error);
    return null;
  } finally {
    replace($("work"));
    busy(false);
  }
}

// Bringing a file.
async function bring(files) {
  notice(null);
  const file = files[0];
  if (!file) return;
  const kinds = limits.kinds.join(" ");
  if (files.length > 1) return notice(t("one_file"));
  if (!limits.kinds.some((kind) => file.name.toLowerCase().endsWith(kind))) return notice(t("wrong_kind", { name: file.name, kinds }));
  if (file.size > limits.most) return notice(t("too_large", { name: file.name, most: bytes(limits.most) }));
  const control = new AbortController();
  const progress = bar(t("sending", { name: file.name }), () => control.abort(), 0);
  try {
    const made = await upload("/api/data/upload", file, (part) => (progress.value = part), control.signal);
    if (await during(t("reading", { name: made.shown }), (signal) => post(`/api/data/${made.id}/read`, {}, signal)))
      return location.assign(to("/data", { file: made.id }));
  } catch (error) {
    if (error.name === "AbortError") notice(t("stopped"), "warn");
    else complain(error);
  }
  replace($("work"));
  $("file").value = "";
  await list().catch(complain);
}

function dropping() {
  const place = $("drop");
  const mark = (on) => (event) => (event.preventDefault(), place.classList.toggle("over", on));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => event.preventDefault());
  place.addEventListener("dragenter", mark(true));
  place.addEventListener("dragover", mark(true));
  place.addEventListener("dragleave", mark(false));
  place.addEventListener("drop", (event) => (mark(false)(event), bring([...event.dataTransfer.files])));
  $("file").addEventListener("change", () => bring([...$("file").files]));
}

async function list() {
  limits = await get("/api/data");
  replace($("drop-hint"), t("drop_hint", { kinds: limits.kinds.join(" "), most: bytes(limits.most), folder: limits.folder }));
  const heads = ["column_name", "column_rows", "column_size", "column_made", "column_does"];
  $("sample").querySelector("a").href = to("/data", { file: "embedded-kotoha-qa" });
  $("bring").hidden = $("list").hidden = $("sample").hidden = false;
  replace($("uploads"), limits.uploads.length === 0 ? h("p", { class: "soft" }, t("nothing")) : h("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "list-title" }, h("table", {},
    h("thead", {}, h("tr", {}, heads.map((key) => h("th", { scope: "col" }, t(key))))),
    h("tbody", {}, limits.uploads.map((one) => h("tr", {},
      h("th", { scope: "row" }, h("a", { href: to("/data", { file: one.id }) }, one.shown)),
      h("td", { class: "figure" }, one.rows === null ? t("not_read") : number(one.rows)), h("td", { class: "figure" }, bytes(one.size)),
      h("td", {}, moment(one.made)), h("td", {}, removing(one))))))));
}

function removing(one) {
  const send = async (path, value) => {
    try {
      await post(`/api/data/${one.id}/${path}`, value);
      if (id) location.assign(to("/data"));
      else await list();
    } catch (error) { complain(error); }
  };
  const typed = h("input", { id: "typed", autocomplete: "off" });
  return h("div", { class: "row" },
    h("button", { type: "button", class: "quiet", onclick: async () =>
      (await ask({ title: t("trash_title", { name: one.shown }), body: h("p", {}, t("trash_body")), button: t("to_trash") })) && send("trash", {}) }, t("to_trash")),
    h("button", { type: "button", class: "quiet", onclick: async () => {
      const name = await ask({ title: t("delete_title", { name: one.shown }), kind: "danger", button: t("delete"), value: () => typed.value,
        body: h("div", {}, h("p", {}, t("delete_body")), h("label", { for: "typed" }, t("name")), typed) });
      if (name !== null) send("delete", { name });
    } }, t("delete")));
}

// One upload.
async function show() {
  $("others").hidden = false;
  $("others").querySelector("a").href = to("/data");
  shown = await get(`/api/data/${id}`);
  $("name").textContent = shown.shown;
  document.title = `${shown.shown} – aift`;
  if (shown.table === null) {
    if (!(await during(t("reading", { name: shown.shown }), (signal) => post(`/api/data/${id}/read`, {}, signal)))) return;
    shown = await get(`/api/data/${id}`);
  }
  $("view").hidden = false;
  command(["aift", "data", "doctor", shown.path, ...shown.settings]);
  card();
  findings();
  grid();
  await models();
}

async function again(text, path, value) {
  if (await during(text, (signal) => post(`/api/data/${id}/${path}`, value, signal))) {
    chosen = null;
    await show().catch(complain);
    if (last !== null) await tokens(last);
  }
}
const readAgain = (value) => again(t("reading", { name: shown.shown }), "read", value);

function card() {
  const read = shown.table;
  const facts = [[t("form"), t(`form_${read.form}`)], [t("rows"), number(read.rows) + (read.unread ? t("unread", { n: number(read.unread) }) : "")]];
  if (read.encoding) facts.push([t("encoding"), known(`encoding_${read.encoding}`, read.encoding)]);
  if (read.sheet !== null && read.sheets.length < 2) facts.push([t("sheet"), read.sheet]);
  replace($("card"), h("dl", { class: "facts" }, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    read.form === "unknown" ? h("div", { class: "notice warn" }, h("p", {}, t(read.columns.length < 2 ? "one_column" : "choose_columns")), TABLE.test(shown.shown) ? h("p", {}, t("no_heading")) : null) : null,
    h("div", { class: "fields" }, sheets(read), ...selects(read)),
    read.notes.length ? h("details", {}, h("summary", {}, t("notes", { n: read.notes.length })), h("ul", {}, read.notes.map((note) => h("li", {}, note[language === "ja" ? 0 : 1])))) : null,
    shown.shipped ? null : h("div", { class: "card-end" }, removing(shown)));
}

function sheets(read) {
  if (read.sheet === null || read.sheets.length < 2) return null;
  return h("div", {}, h("label", { for: "sheet" }, t("sheet")),
    h("select", { id: "sheet", onchange: (event) => readAgain({ sheet: event.target.value }) },
      read.sheets.map(([name, count]) => h("option", { value: name, selected: name === read.sheet }, t("sheet_rows", { name, rows: number(count) })))));
}

// The columns that can be chosen, and one button that swaps two of them.
function selects(read) {
  const pair = read.form === "pair", roles = pair ? ["chosen", "rejected"] : ["instruction", "output"];
  const now = { ...read.roles };
  if (read.columns.length < 2 || !(roles.every((role) => now[role]) || read.form === "unknown")) return [];
  const ids = pair ? ["instruction", ...roles] : roles;
  const send = (values) => {
    const columns = Object.fromEntries(Object.entries({ ...now, ...values }).filter(([, name]) => name));
    if (roles.every((role) => columns[role]) && new Set(Object.values(columns)).size === Object.values(columns).length) readAgain({ columns, ...(read.sheet === null ? {} : { sheet: read.sheet }) });
  };
  return [...ids.filter((role) => now[role] || read.form === "unknown").map((role) => h("div", {}, h("label", { for: `role-${role}` }, t(`role_${role}`)),
    h("select", { id: `role-${role}`, onchange: (event) => {
      const other = ids.find((name) => name !== role && now[name] === event.target.value);
      const before = now[role];
      now[role] = event.target.value;
      send(other ? { [other]: before } : {});
    } }, now[role] ? null : h("option", { value: "", selected: true }, t("not_chosen")),
      read.columns.map((name) => h("option", { value: name, selected: name === now[role] }, name))))),
  roles.every((role) => now[role]) ? h("div", { class: "bottom" }, h("button", { type: "button", onclick: () => send({ [roles[0]]: now[roles[1]], [roles[1]]: now[roles[0]] }) }, `⇄ ${t("swap")}`)) : null];
}

const ORDER = ["error", "check", "note"], BADGES = { error: "bad", check: "warn", note: "" };
const nameOf = (item) => known(`f_${item.key}`, item[language]);

function findings() {
  const found = [...shown.table.filters].sort((a, b) => ORDER.indexOf(a.severity) - ORDER.indexOf(b.severity));
  const button = (key, text, severity) => h("button", { type: "button", class: "filter", "aria-pressed": String(key === chosen), "data-key": key ?? "",
    onclick: () => { chosen = key; findings(); grid(); } }, severity ? h("span", { class: `badge ${BADGES[severity]}` }, t(`severity_${severity}`)) : null, text);
  const reasons = shown.table.unreadable.map((reason) => h("li", {}, reason[language === "ja" ? 0 : 1]));
  const box = h("input", { type: "checkbox", id: "split", checked: shown.share !== null, onchange: (event) => again(t("dividing"), "split", { share: event.target.checked ? 0.1 : null }) });
  replace($("findings"), found.length ? [h("p", { class: "hint" }, t("filter_hint")), h("div", { class: "filters" },
    button(null, h("span", {}, t("all"), " ", h("b", {}, number(shown.table.rows)))), found.map((item) => button(item.key, h("span", {}, nameOf(item), " ", h("b", {}, number(item.rows))), item.severity)))]
    : h("p", {}, h("span", { class: "badge good" }, t("clean"))),
  reasons.length ? h("details", {}, h("summary", {}, t("reasons")), h("ul", { class: "small" }, reasons)) : null,
  shown.table.form === "unknown" ? null : h("div", { class: "then" },
    h("div", {}, h("label", { class: "inline", for: "split" }, box, t("split")), h("p", { class: "hint" }, shown.divided ? t("split_done", { train: number(shown.divided.train), eval: number(shown.divided.eval) }) : t("split_hint"))),
    h("div", { class: "actions" },
      h("a", { class: "button primary", href: to("/train", { data: id }) }, t(from ? "train_on" : "train")),
      found.length ? h("button", { type: "button", onclick: repair }, t("repair")) : null),
    from ? h("p", { class: "hint" }, t("train_on_hint", { run: from })) : null));
}

async function repair() {
  const radio = (value, on) => h("label", { class: "choice" }, h("input", { type: "radio", name: "fix", value, checked: on }), t(`fix_${value}`));
  const mask = h("input", { type: "checkbox", checked: shown.table.filters.some((item) => item.key === "personal") });
  const body = h("div", {}, h("p", { class: "hint" }, t("repair_hint")), radio("all", true), radio("safe", false), h("label", { class: "choice" }, mask, t("mask")));
  const wanted = await ask({ title: t("repair_title"), body, button: t("make"), value: () => ({ fix: body.querySelector("input[name=fix]:checked").value, mask: mask.checked }) });
  if (!wanted) return;
  const made = await during(t("repairing"), (signal) => post(`/api/data/${id}/repair`, wanted, signal));
  if (!made) return;
  if (!made.id) return notice(t("repaired_nothing"), "warn");
  const sum = (counts) => number(Object.values(counts).reduce((total, count) => total + count, 0));
  say(t("repaired", { changed: sum(made.repaired.changed), dropped: sum(made.repaired.dropped), rows: number(made.repaired.rows) }));
  location.assign(to("/data", { file: made.id }));
}

// The rows.
function grid() {
  const form = shown.table.form;
  const heads = form === "pair" ? ["head_line", "head_question", "head_chosen", "head_rejected", "head_found"]
    : form === "text" || form === "unknown" ? ["head_line", "head_text", "head_found"] : ["head_line", "head_question", "head_answer", "head_found"];
  let held = [];
  $("rows").className = `data-rows ${form}`;
  rows = table($("rows"), {
    columns: heads.map((key) => t(key)), label: t("table"),
    load: async (page) => {
      const query = new URLSearchParams({ page, ...(chosen ? { filter: chosen } : {}) });
      const found = await get(`/api/data/${id}/rows?${query}`);
      held = found.rows;
      return { total: found.total, rows: held.map((row) => cells(row, form)) };
    },
    onrow: (at) => tokens(held[at % 100].number),
  });
}

function cells(row, form) {
  const names = Object.fromEntries(shown.table.filters.map((item) => [item.key, nameOf(item)]));
  const found = [...new Set(row.found.map((key) => names[key] ?? known(`f_${key}`, names.personal ?? key)))].map((name) => h("li", {}, name));
  if (row.refused) found.unshift(h("li", { class: "error" }, row.refused[language === "ja" ? 0 : 1]));
  const notes = h("ul", { class: "found" }, found);
  const number_ = h("span", {}, row.line || number(row.number));
  const of = (...roles) => row.texts.filter(([role]) => roles.includes(role));
  if (form === "text" || form === "unknown") return [number_, turns(row.texts), notes];
  if (form === "pair") return [number_, turns(of("system", "question", "material", "tool")), turns(of("answer"), false), turns(of("rejected"), false), notes];
  const end = row.texts.findLastIndex(([role]) => role === "answer" || role === "rejected");
  const mark = row.mark ? h("p", {}, h("span", { class: `badge ${row.mark}` }, t(`mark_${row.mark}`))) : null;
  return [number_, turns(end < 0 ? row.texts : row.texts.slice(0, end)), h("div", {}, mark, turns(end < 0 ? [] : [row.texts[end]], false)), notes];
}

function turns(texts, named = texts.length > 1) {
  if (texts.length === 0) return h("span", { class: "soft" }, t("blank"));
  return texts.map(([role, text, cut, spans]) => h("div", { class: "said" }, named ? h("span", { class: "who" }, t(`said_${role}`)) : null, h("span", { class: "clamp" }, marked(text, spans), cut ? "…" : "")));
}

// A text with what was found in it marked; places are counted in characters.
function marked(text, spans) {
  if (!spans.length) return text;
  const characters = [...text], parts = [];
  let at = 0;
  for (const [start, stop] of spans) {
    parts.push(characters.slice(at, start).join(""), h("span", { class: "hit" }, characters.slice(start, stop).join("")));
    at = stop;
  }
  return [...parts, characters.slice(at).join("")];
}

// A row as tokens.
async function models() {
  const chosenModel = localStorage.getItem(MODEL) ?? SHIPPED;
  const select = $("model");
  select.onchange = () => (localStorage.setItem(MODEL, select.value), last !== null && tokens(last));
  if (select.options.length) return;
  replace(select, h("option", { value: SHIPPED }, t("shipped_model")));  // until the others are known
  const found = await get("/api/models");
  replace(select, found.models.filter((model) => model.here).map((model) => h("option", { value: model.key, selected: model.key === chosenModel }, model.id)));
}

let asked = 0;
async function tokens(row) {
  const mine = ++asked;
  last = row;
  $("tokens-title").textContent = t("tokenizing");
  $("tokens-card").scrollIntoView({ block: "nearest" });
  try {
    const found = await post(`/api/data/${id}/tokens`, { row, model: $("model").value || SHIPPED });
    if (mine !== asked) return;
    $("tokens-title").textContent = t("tokens", { line: found.line || number(found.number) });
    $("tokens-title").focus({ preventScroll: true });
    if (found.rows.length) command(["aift", "data", "show", shown.path, "--model", $("model").selectedOptions[0]?.text ?? t("shipped_model"), "--row", found.usable, ...shown.settings]);
    replace($("tokens"), found.rows.length ? found.rows.map(drawn) : h("p", { class: "notice warn" }, t("no_tokens"), found.refused ? ` ${found.refused[language === "ja" ? 0 : 1]}` : ""));
    announce($("tokens-title").textContent);
  } catch (error) {
    if (mine !== asked) return;
    $("tokens-title").textContent = t("tokens_hint");
    complain(error);
  }
}

function drawn(row) {
  return h("div", { class: "token-row" },
    h("p", { class: "small" }, t("token_count", { tokens: number(row.tokens), live: number(row.label_tokens) })),
    row.parts.length === 1 && row.tokens >= 512 ? h("p", { class: "hint" }, t("token_cut")) : null,
    row.parts.map((part) => [t(`part_${part.name}`) ? h("h3", {}, t(`part_${part.name}`)) : null,
      h("p", { class: "tokens" }, part.tokens.map(([token, text, live, special]) => {
        const written = (special ? `⟨${text}⟩` : text).replaceAll("\n", "⏎\n");
        return h(live ? "mark" : "span", { class: `tok${live ? " live" : ""}${special ? " special" : ""}`, title: String(token) }, written);
      }))]));
}

command(["aift", "data", "doctor", "FILE"]);
dropping();
(id ? show() : list()).then(() => {
  const told = sessionStorage.getItem(SAID);
  sessionStorage.removeItem(SAID);
  if (told) notice(told, "good");
}).catch(complain);

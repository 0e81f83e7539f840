// Elements without markup: texts are only ever texts.
import { t } from "./words.js";

// h("button", { class: "primary", type: "button", onclick: start }, "…"): functions listen, true and false are attributes
// that are there or not, null leaves out; children are texts, nodes, lists of them, or nothing.
export function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  add(node, children);
  return node;
}

function add(node, children) {
  for (const child of children) {
    if (Array.isArray(child)) add(node, child);
    else if (child !== null && child !== undefined && child !== false) node.append(child);
  }
}

// A description of a setting: what stands between backticks is what one types.
export const marked = (text) => text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));

// Gives a node other children. Where the focus was on a link in it, it is on the same one again.
export function replace(node, ...children) {
  const focused = node.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  node.replaceChildren();
  add(node, children);
  if (focused) node.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  return node;
}

export const $ = (id) => document.getElementById(id);

// What the foot shows as "the same as a command".
export function command(words) {
  $("command").textContent = line(words);
}

export const line = (words) => words.map(quoted).join(" ");

function quoted(word) {
  const text = String(word);
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;
}

// A refusal or a success, at the top of the screen; without a text it goes.
export function notice(text, kind = "bad") {
  const place = $("notice");
  if (place.textContent === (text ?? "")) return;
  replace(place, text ? h("p", { class: `notice ${kind}` }, text) : null);
  if (text) place.scrollIntoView({ block: "nearest" });
}

// What the address names is not there: no cards that wait for it, only what is said above them.
export function emptied(yes) {
  for (const card of document.querySelectorAll("main .card")) card.hidden = yes;
}

let spoken = 0;
// For screen readers: what has changed, at most every 30 seconds.
export function announce(text) {
  if (Date.now() - spoken < 30000) return;
  spoken = Date.now();
  $("live").textContent = text;
}

// A state in words, shape and colour: completed, running, waiting, failed, stopped.
export function badge(status, text) {
  return h("span", { class: `badge ${status}` }, text ?? t(`state_${status}`));
}

// What a list calls something that answers.
export const labelled = (one) => (one.adopted ? t("in_use_name", { name: one.label }) : one.label);

// Asks in a dialog; resolves to what `value()` gives when its button was chosen, and to null else.
export function ask({ title, body, button, kind = "primary", value = () => true }) {
  return new Promise((resolve) => {
    let result = null;
    const accept = (event) => {
      event.preventDefault();
      result = value();
      dialog.close();
    };
    const dialog = h("dialog", { "aria-label": title, onclose: () => (dialog.remove(), resolve(result)) },
      h("form", { onsubmit: accept },
        h("h2", {}, title), body,
        h("div", { class: "actions" },
          h("button", { type: "submit", class: kind }, button),
          h("button", { type: "button", onclick: () => dialog.close() }, t("cancel")))));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// A click on the button copies what `text()` gives. A browser lets no page do so that came unencrypted from another PC.
export function copying(button, text) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      return notice(t("not_copied"), "warn");
    }
    button.textContent = t("copied");
    setTimeout(() => (button.textContent = label), 2000);
  });
  return button;
}

// Starts a download by the address of a ticket.
export function download(address) {
  const link = h("a", { href: address, download: true });
  document.body.append(link);
  link.click();
  link.remove();
}

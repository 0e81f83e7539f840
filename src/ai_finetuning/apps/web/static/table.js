// Rows from the server, 100 at a time.
import { complain } from "./api.js";
import { h, replace } from "./dom.js";
import { t, number } from "./words.js";

// table(place, { columns: [names], load: async (page) -> { total, rows: [[texts or nodes]] }, size, label, onrow }): shows
// the first page; `.show(page)` another one, and says where that fails; `.reload()` the same again, and rejects. A row becomes
// a button's line where `onrow` is given.
export function table(place, { columns, load, size = 100, label, onrow }) {
  const body = h("tbody");
  const where = h("span", { class: "where" });
  let page = 0, pages = 1, asked = 0;
  const buttons = ["first", "previous", "next", "last"].map((name) =>
    h("button", { type: "button", class: "quiet", onclick: () => show({ first: 0, previous: page - 1, next: page + 1, last: pages - 1 }[name]) }, t(name)));
  const pager = h("nav", { class: "pager", "aria-label": label }, buttons.slice(0, 2), where, buttons.slice(2));
  replace(place, h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, h("table", {},
    h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))), body)), pager);

  async function turn(wanted) {
    const mine = ++asked;
    const { total, rows } = await load(Math.max(0, wanted));
    if (mine !== asked) return;
    pages = Math.max(1, Math.ceil(total / size));
    page = Math.min(Math.max(0, wanted), pages - 1);
    replace(body, rows.map((row, at) => h("tr", {}, row.map((cell, place) => h("td", {},
      onrow && place === 0 ? h("button", { type: "button", class: "link", onclick: () => onrow(page * size + at, row) }, cell) : cell)))));
    where.textContent = t("rows_of", { from: number(total ? page * size + 1 : 0), to: number(Math.min(total, (page + 1) * size)), total: number(total) });
    buttons.forEach((button, at) => (button.disabled = at < 2 ? page === 0 : page >= pages - 1));
    pager.hidden = pages === 1;
  }
  const show = (wanted) => turn(wanted).catch(complain);
  show(0);
  return { show, reload: () => turn(page) };
}

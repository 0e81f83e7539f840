// A curve by uPlot, in the colours of the page, with the same numbers as a table below it.
import { h, replace } from "./dom.js";
import { number, t } from "./words.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const COLOURS = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"];
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3], [1, 4], [12, 6]];
// Rows of the table.
const ROWS = 200;

// chart(place, { label, x, series: [names], height }): what draws into `place`; `.draw([xs, ys, ...])` shows numbers (null
// where there is none), `.mark(x, text)` names a point. Lines differ in dashes, not in colour alone.
export function chart(place, { label, x, series, height = 260 }) {
  const canvas = h("div", { class: "curve", role: "img", "aria-label": label });
  const body = h("tbody");
  const table = h("details", { class: "numbers" }, h("summary", {}, t("as_numbers")),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, h("table", {},
      h("thead", {}, h("tr", {}, [x, ...series].map((name) => h("th", { scope: "col" }, name)))), body)));
  replace(place, canvas, table);
  let data = [[], ...series.map(() => [])], point = null, plot = null;

  const build = () => {
    plot?.destroy();
    const axis = { stroke: colour("--text-2"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    plot = new window.uPlot({
      width: Math.max(200, canvas.clientWidth), height, legend: { show: true, live: false },
      cursor: { y: false, points: { size: 6 } }, scales: { x: { time: false } },
      axes: [{ ...axis, label: x, labelSize: 18, labelFont: "12px system-ui" }, { ...axis, size: 56 }],
      series: [{ label: x }, ...series.map((name, at) => ({
        label: name, stroke: colour(COLOURS[at % 6]), width: 2, dash: DASHES[at % 6], spanGaps: true, points: { show: name.points ?? undefined },
      }))],
      hooks: { draw: [(self) => point && drawPoint(self, point)] },
    }, data, canvas);
  };
  const fill = () => {
    if (!table.open) return;
    const from = Math.max(0, data[0].length - ROWS);
    replace(body, data[0].slice(from).map((value, at) => h("tr", {}, h("th", { scope: "row" }, number(value)),
      data.slice(1).map((ys) => h("td", {}, number(ys[from + at], 4))))));
  };
  table.addEventListener("toggle", fill);
  new ResizeObserver(() => plot?.setSize({ width: Math.max(200, canvas.clientWidth), height })).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", build);
  build();
  return {
    draw: (numbers) => { data = numbers; plot.setData(data); fill(); },
    mark: (value, text, at = 1) => { point = value === null ? null : { value, text, at }; plot.redraw(false); },
  };
}

function drawPoint(self, { value, text, at }) {
  const place = self.data[0].indexOf(value);
  const y = self.data[at]?.[place];
  if (place < 0 || y === null || y === undefined) return;
  const [left, top, scale] = [self.valToPos(value, "x", true), self.valToPos(y, "y", true), devicePixelRatio];
  const c = self.ctx;
  c.save();
  c.fillStyle = c.strokeStyle = colour("--text-1");
  c.lineWidth = 2 * scale;
  c.beginPath();
  c.arc(left, top, 5 * scale, 0, 7);
  c.stroke();
  c.font = `${12 * scale}px system-ui`;
  c.textAlign = left > self.bbox.left + self.bbox.width / 2 ? "right" : "left";
  const x = left + (c.textAlign === "right" ? -9 : 9) * scale, line = Math.max(self.bbox.top + 14 * scale, top - 14 * scale);
  const wide = c.measureText(text).width;
  c.fillStyle = colour("--card");
  c.fillRect((c.textAlign === "right" ? x - wide : x) - 3 * scale, line - 13 * scale, wide + 6 * scale, 18 * scale);
  c.fillStyle = colour("--text-1");
  c.fillText(text, x, line);
  c.restore();
}

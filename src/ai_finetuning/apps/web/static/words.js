// The texts of this screen, which came with it, and numbers and times as people say them.
const texts = JSON.parse(document.getElementById("words").textContent);
export const language = document.documentElement.lang;

export function t(key, values = {}) {
  return (texts[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

export const number = (value, digits = 0) =>
  value === null || value === undefined ? "–"
    : value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

const UNITS = ["B", "kB", "MB", "GB", "TB"];
export function bytes(size) {
  if (size === null || size === undefined) return "–";
  const power = Math.min(UNITS.length - 1, Math.floor(Math.log10(Math.max(1, size)) / 3));
  return `${number(size / 1000 ** power, power > 2 ? 1 : 0)} ${UNITS[power]}`;
}

// 約 8 分: no more exact than it is known.
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 50) return t("about_seconds", { n: Math.max(1, seconds < 10 ? Math.round(seconds) : Math.round(seconds / 10) * 10) });
  if (seconds < 5400) return t("about_minutes", { n: Math.round(seconds / 60) });
  if (seconds < 129600) return t("about_hours", { n: number(seconds / 3600, seconds < 36000 ? 1 : 0) });
  return t("about_days", { n: Math.round(seconds / 86400) });
}

// Seconds since 1970 as a date and a time of this place, and as the time since.
export const moment = (seconds) =>
  new Date(seconds * 1000).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });
export function ago(seconds) {
  const since = Date.now() / 1000 - seconds;
  return since < 60 ? t("now") : t("ago", { time: duration(since) });
}

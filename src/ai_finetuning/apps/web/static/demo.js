// The demo's guide: a line on each screen that it leads through, from a table to the verdict.
import { $, h } from "./dom.js";
import { t } from "./words.js";

const KEY = "aift-demo", STEPS = ["home", "data", "settings", "runs", "results"];

export function guide() {
  if ("demo" in document.body.dataset && localStorage.getItem(KEY) === null) localStorage.setItem(KEY, "on");
  $("demo")?.addEventListener("click", () => localStorage.setItem(KEY, "on"));
  const step = STEPS.indexOf(document.body.dataset.screen);
  if (localStorage.getItem(KEY) !== "on" || step < 0) return;
  const close = () => {
    localStorage.setItem(KEY, "off");
    place.remove();
  };
  const place = h("aside", { class: "notice guide", "aria-label": t("demo_title", { step: step + 1 }) },
    h("p", {}, h("strong", {}, t("demo_title", { step: step + 1 })), " ", t(`demo_${STEPS[step]}`)),
    h("button", { type: "button", class: "quiet", onclick: close }, t("demo_end")));
  $("main").prepend(place);
  if (step === STEPS.length - 1) localStorage.setItem(KEY, "off"); // it has led to its end; what follows is the user's own
}

// What stands around every screen: this PC in the head, the other language, copying the command.
import { complain, get, poll, post } from "./api.js";
import { $, copying, replace, h } from "./dom.js";
import { guide } from "./demo.js";
import { bytes, t } from "./words.js";

guide();

// The links stay the same nodes while they say the same: one made anew loses a click that has begun.
const pc = h("span", {}), links = h("span", { class: "row" });
let said = "";
replace($("machine"), pc, links);
poll(async () => {
  const head = await get("/api/head");
  const free = head.gpu_free === null ? t("memory_free", { size: bytes(head.memory_free) }) : t("gpu_free", { size: bytes(head.gpu_free) });
  // A job's kind is the screen that shows it.
  const jobs = Object.entries(head.jobs).map(([kind, count]) => ["job_now", count, `/${kind}`, t(`nav_${kind}`)]);
  const counts = [["running_now", head.running, "/"], ["waiting_now", head.waiting, "/"], ...jobs].filter(([, count]) => count);
  pc.textContent = `${t("this_pc")}: ${free}`;
  if (said === (said = JSON.stringify(counts))) return;
  replace(links, counts.map(([key, count, href, what]) => h("a", { href, class: "count" }, t(key, { count, what }))));
}, 5000);

$("language").addEventListener("click", async () => {
  try {
    await post("/api/language", { language: $("language").lang });
    location.reload();
  } catch (error) {
    complain(error);
  }
});

copying($("copy"), () => $("command").textContent);

// What stands around every screen: this PC in the head, the other language, copying the command.
import { get, poll, post } from "./api.js";
import { $, replace, h } from "./dom.js";
import { guide } from "./demo.js";
import { bytes, t } from "./words.js";

guide();

poll(async () => {
  const head = await get("/api/head");
  const free = head.gpu_free === null ? t("memory_free", { size: bytes(head.memory_free) }) : t("gpu_free", { size: bytes(head.gpu_free) });
  const counts = [["running_now", head.running], ["waiting_now", head.waiting]].filter(([, count]) => count);
  replace($("machine"), h("span", {}, `${t("this_pc")}: ${free}`),
    counts.map(([key, count]) => h("a", { href: "/", class: "count" }, t(key, { count }))));
}, 5000);

$("language").addEventListener("click", async () => {
  await post("/api/language", { language: $("language").lang });
  location.reload();
});

$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText($("command").textContent);
  $("copy").textContent = t("copied");
  setTimeout(() => ($("copy").textContent = t("copy")), 2000);
});

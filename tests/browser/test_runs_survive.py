"""A training outlives tab and server, and is started once, whoever asks: with real trainings."""

from __future__ import annotations

import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.config.load import load_config
from ai_finetuning.config.run_folder import CHECKPOINTS, CONFIG, METRICS
from ai_finetuning.config.run_yaml import describe_run
from ai_finetuning.runs.folder import read_run
from ai_finetuning.runs.phase import change_run
from ai_finetuning.runs.state import state_of
from tests.browser.conftest import Web
from tests.support.patience import until


def stopped_run(folder: Path, model: Path) -> None:
    """A run that has not begun yet, to be resumed: long, over a tiny model."""
    data = folder.parent.parent / "rows.jsonl"
    rows = [{"instruction": f"{number} の次は？", "output": f"{number + 1} です。"} for number in range(16)]
    data.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    settings = {
        **{"model.name": model, "data.train": data, "data.eval": data, "training.output_dir": folder},
        **{
            "training.num_epochs": 1000,
            "training.batch_size": 4,
            "training.eval_steps": 50,
            "training.save_steps": 100_000,
        },
        **{"training.evaluation.verdict": "false", "training.gradient_accumulation_steps": 1},
        **{"training.runtime.kernels": "portable"},  # nothing to be compiled first
    }
    config = load_config(None, [f"{key}={value}" for key, value in settings.items()])
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(describe_run(config, {}), encoding="utf-8")
    change_run(folder, status="stopped", planned={"model": str(model), "method": config.effective_method})


def resume(web: Web) -> int:
    """The status of a request to go on, as the page sends it."""
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=120)
    connection.request("POST", "/api/runs/faq/resume", b"{}", {"x-aift-token": web.token})
    status = connection.getresponse().status
    connection.close()
    return status


def steps_in(folder: Path) -> list[int]:
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [row["step"] for row in rows if "loss" in row]


def wait_until(condition: Any, seconds: float = 120) -> None:
    until(condition, seconds, "the next steps")


@pytest.mark.timeout(1200)
def test_a_run_outlives_its_server_and_two_servers_start_it_once(
    start_web: Any, new_context: Any, tiny_model_dir: Path, tmp_path: Path
):
    """Started by the page; the server is killed; a new one is found by the same tab; stopped, and resumed by two servers
    at the same moment.
    """
    from playwright.sync_api import expect

    folder = tmp_path / "outputs" / "faq"
    stopped_run(folder, tiny_model_dir)
    web = start_web()
    context = new_context()
    page = context.new_page()
    web.open(page, "/runs/faq")
    page.get_by_role("button", name="続きから").dblclick()
    expect(page.locator("#phase")).to_contain_text("学習中", timeout=180_000)

    web.process.kill()
    web.process.wait()
    expect(page.locator("#notice")).to_contain_text("サーバーから応答がありません")
    there = len(steps_in(folder))
    wait_until(lambda: len(steps_in(folder)) > there + 5)
    web.start()
    web.open(context.new_page(), "/")  # the new address, once: the old tab finds its token
    expect(page.locator("#notice")).to_be_empty()
    page.bring_to_front()
    page.get_by_role("button", name="ここまでで止めて保存").click()
    expect(page.locator("#state")).to_have_text("中断", timeout=120_000)
    assert len(list((folder / CHECKPOINTS).glob("checkpoint-*"))) == 1
    steps = steps_in(folder)
    assert steps == list(range(1, len(steps) + 1))  # one process wrote them
    page.locator("#curve .numbers summary").click()
    shown = page.locator("#curve .numbers tbody th")
    expect(shown.last).to_have_text(f"{steps[-1]:,}")
    assert shown.count() == min(200, len(steps) + 1)  # and the evaluation before the first step

    second = start_web()
    with ThreadPoolExecutor(2) as pool:
        statuses = list(pool.map(resume, (web, second)))
    assert sorted(statuses) == [200, 409]
    expect(page.locator("#phase")).to_contain_text("学習中", timeout=180_000)
    wait_until(lambda: len(steps_in(folder)) > len(steps) + 5)
    expect(page.locator("#left")).to_contain_text("残り 約")
    page.get_by_role("button", name="すぐに止める").click()
    page.get_by_role("dialog").get_by_role("button", name="すぐに止める").click()
    expect(page.locator("#state")).to_have_text("中断", timeout=120_000)
    assert not state_of(read_run(folder)).at_work
    again = steps_in(folder)
    assert again == list(range(1, len(again) + 1))

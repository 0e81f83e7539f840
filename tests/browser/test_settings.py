"""設定: presets change what a training takes, problems stand at their field, form and YAML say the same, one start is one
run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.config.load import load_config
from ai_finetuning.planner.speed import place_of, remember
from ai_finetuning.runs.devices import occupying
from ai_finetuning.runs.folder import read_run
from ai_finetuning.runs.listing import list_runs
from ai_finetuning.runs.stop import stop

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
SHIPPED = "/train?data=embedded-kotoha-qa"


@pytest.fixture(autouse=True)
def known_speed() -> None:
    """Else the page tries three steps to learn it."""
    remember("embedded:kotoha-tiny", "lora", place_of("cpu", None, "ddp", 1), 1000.0)


def figure(page: Any, name: str) -> Any:
    return page.locator(f'[data-figure="{name}"]')


def test_presets_fields_and_yaml_go_together(web: Any, page: Any):
    """Behaviour 14."""
    web.open(page, SHIPPED)
    expect(page.locator("#data")).to_contain_text("2,417 行")
    expect(page.locator('[data-preset="standard"]')).to_have_attribute("aria-pressed", "true")
    expect(figure(page, "length")).to_contain_text("408")
    expect(figure(page, "memory")).to_contain_text("MB")
    standard = figure(page, "time").text_content()
    expect(figure(page, "time")).to_contain_text("約")
    expect(page.locator("#command")).to_contain_text("training.num_epochs=3")
    assert page.locator('input[placeholder*="null"]').count() == 0

    page.get_by_role("button", name="ていねい").click()
    expect(figure(page, "length")).to_contain_text("816")
    expect(figure(page, "time")).not_to_have_text(standard or "")
    expect(page.get_by_label("エポック数")).to_have_value("6")
    expect(page.get_by_label("最良の重みを結果にする")).to_have_value("true")
    page.get_by_role("button", name="速い").click()
    expect(figure(page, "length")).to_contain_text("136")
    expect(page.get_by_label("最良の重みを結果にする")).to_have_value("")

    memory = figure(page, "memory").text_content()
    page.get_by_label("一度に計算する行数").fill("64")
    expect(figure(page, "memory")).not_to_have_text(memory or "")
    expect(figure(page, "length")).not_to_contain_text("136")

    epochs = page.get_by_label("エポック数")
    epochs.fill("0")
    expect(page.locator("#f-training-num_epochs-error")).to_have_text(
        "training.num_epochs が 0 です。1 以上にしてください。"
    )
    expect(epochs).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#start")).to_be_disabled()
    epochs.fill("2")
    expect(page.locator("#f-training-num_epochs-error")).to_be_empty()
    expect(page.locator("#start")).to_be_enabled()

    page.get_by_text("YAML で見る").click()
    yaml = page.locator("#yaml")
    expect(yaml).to_have_value(web_yaml := yaml.input_value())
    assert "num_epochs: 2" in web_yaml
    assert "batch_size: 64" in web_yaml
    yaml.fill("training: {num_epochs: 5, output_dir: /etc}\ndata: {train: /etc/passwd}\n")
    expect(epochs).to_have_value("5")
    expect(page.locator("#yaml-error")).to_contain_text("data.train, training.output_dir")
    expect(page.get_by_label("一度に計算する行数")).to_have_value("")
    yaml.fill("training: {num_epochs: no}")
    expect(page.locator("#yaml-error")).to_contain_text("training.num_epochs")

    page.reload()
    expect(page.get_by_label("エポック数")).to_have_value("5")


def test_another_objective_takes_its_own_rate_and_leaves_what_was_written(web: Any, page: Any):
    rows = [{"prompt": f"{n} は？", "chosen": f"{n} です。", "rejected": "いいえ。"} for n in range(30)]
    answer = page.request.post(
        f"{web.url}/api/data/upload",
        data="".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
        headers={"x-aift-token": web.token, "x-aift-name": "pairs.jsonl"},
    )
    web.open(page, f"/train?data={answer.json()['id']}")
    rate, objective = page.get_by_label("学習率"), page.get_by_label("何から学ぶか")
    expect(rate).to_have_value("0.0001")
    expect(page.get_by_label("エポック数")).to_have_value("2")
    objective.select_option("")
    expect(rate).to_have_value("0.003")
    objective.select_option("preference")
    expect(rate).to_have_value("0.0001")
    rate.fill("0.0007")
    objective.select_option("")
    expect(rate).to_have_value("0.0007")


def test_few_steps_are_said_and_the_plan_replaces_the_formulas(web: Any, page: Any):
    web.open(page, SHIPPED)
    page.locator("#more summary").click()
    page.get_by_label("data.max_samples").fill("40")
    page.get_by_label("エポック数").fill("1")
    expect(page.locator("#findings")).to_contain_text("学習が少なすぎます（3 ステップ）")
    expect(page.locator("#source")).to_contain_text("データとモデルを読んで計算しました", timeout=120_000)
    expect(page.locator("#findings")).to_contain_text("学習が少なすぎます（3 ステップ）")
    expect(figure(page, "length")).to_have_text("31 エポック 3")
    expect(figure(page, "time")).to_contain_text("うち 回答の例 約")
    expect(figure(page, "time")).to_contain_text("「速い」では、学習中の回答の例を作りません")
    page.get_by_role("button", name="計画だけ").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("学習 36、評価 4")
    dialog.get_by_role("button", name="閉じる").click()
    assert not (web.folder / "outputs").exists()


def test_a_double_click_starts_one_run(web: Any, page: Any, monkeypatch: pytest.MonkeyPatch):
    """Behaviour 15; the device is taken, so that the run waits in the queue and computes nothing."""
    monkeypatch.setenv("AIFT_STATE", str(web.folder / "state"))
    with occupying(["cpu"], web.folder / "other"):
        web.open(page, SHIPPED)
        expect(page.locator("#start")).to_be_enabled()
        page.get_by_label("エポック数").fill("2")
        expect(page.locator("#command")).to_contain_text("training.num_epochs=2")
        page.locator("#start").dblclick()
        page.wait_for_url("**/runs/kotoha-qa")
        (entry,) = list_runs(web.folder)
        assert entry.status == "waiting"
        config = load_config(entry.path / "config.yaml")
        assert (config.data.train, config.training.num_epochs) == ("embedded:kotoha-qa", 2)

        # The same start asked for again, from anywhere, is the same run; another one is another.
        headers = {"x-aift-token": web.token}
        body = {"data": "embedded-kotoha-qa", "values": {}, "key": "0123456789abcdef"}
        answers = [
            page.request.post(f"{web.url}/api/settings/start", headers=headers, data=json.dumps(body)).json()
            for _ in range(2)
        ]
        assert answers == [{"id": "kotoha-qa-2"}] * 2
        for one in list_runs(web.folder):
            stop(one.path, "now")
            assert read_run(one.path)["child"]["reason"].startswith("KeyboardInterrupt")


def test_a_request_beside_the_form_is_held_to_the_list(web: Any, page: Any):
    for key, text in (
        ("training.output_dir", "/tmp/x"),
        ("model.trust_remote_code", "true"),
        ("training.runtime.report_to", "wandb"),
        ("lora.adapter", "/etc"),
    ):
        body = json.dumps({"data": "embedded-kotoha-qa", "values": {key: text}, "key": "0123456789abcdef"})
        answer = page.request.post(f"{web.url}/api/settings/start", headers={"x-aift-token": web.token}, data=body)
        assert answer.status == 422
        assert [one["key"] for one in answer.json()["error"]["problems"]] == [key]
    assert not list(Path(web.folder).glob("outputs/*"))

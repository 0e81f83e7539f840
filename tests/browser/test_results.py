"""結果 and 比較: the verdict and answers of a run, runs side by side, names and the trash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.evaluation.returned import take_best
from ai_finetuning.runs.folder import read_run
from ai_finetuning.runs.phase import change_run
from ai_finetuning.runs.process import identity
from tests.support.kept_runs import contents, kept_run, loaded, write_weights

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect
HOSTILE = "<img src=x onerror=alert(1)>"


def write_run(
    folder: Path, *, rate: float = 0.003, result: str = "adopt", answer: str = "奈良です。", **more: Any
) -> Path:
    """A run as it leaves its folder: 20 steps with evaluations, a verdict and its answers."""
    folder.mkdir(parents=True)
    rows = [{"step": step, "loss": 3.0 - step / 10, "seconds": float(step)} for step in range(1, 21)]
    evaluations = [{"step": step, "eval_loss": 4.0 - step / 10} for step in (0, 10, 20)]
    lines(folder / "metrics.jsonl", sorted([*rows, *evaluations], key=lambda row: row["step"]))
    sides = [
        {
            "side": side,
            "task": "data",
            "item": f"{item}",
            "score": score,
            "answer": text,
            "question": question,
            "accepted": ["東京です。"],
            "faults": faults,
        }
        for side, item, question, text, score, faults in (
            ("before", 1, "日本の首都は？", "わかりません", 0.0, []),
            ("after", 1, "日本の首都は？", "東京です。", 1.0, []),
            ("before", 2, f"次は？{HOSTILE}", "東京です。", 1.0, []),
            ("after", 2, f"次は？{HOSTILE}", answer, 0.0, ["loop"]),
        )
    ]
    lines(folder / "eval.jsonl", sides)
    config = f"model: {{name: 'embedded:kotoha-tiny'}}\nmethod: lora\ndata: {{train: 'embedded:kotoha-qa', eval: 0.1}}\ntraining: {{learning_rate: {rate}, num_epochs: 2}}\n"
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "report.html").write_text(f"<h1>{HOSTILE}</h1>", encoding="utf-8")
    task = {"items": 2, "metric": "exact", "primary": True, "finding": "improved", "before": 0.1, "after": 0.9}
    verdict = {
        "result": result,
        "why": {"ja": "評価データが改善しました。", "en": "evaluation data improved."},
        "advice": None,
        "tasks": {"data": task},
        "differences": {},
        "language": [{"task": "data", "fault": "loop", "before": 0.0, "after": 0.5, "veto": False}],
        "not_measured": [],
    }
    held = {
        name: {"step": step, "eval_loss": loss}
        for name, step, loss in (("held_out_before", 0, 4.0), ("held_out_after", 20, 2.0))
    }
    outcome = {"steps": 20, "epochs": 2.0, "seconds": 125.0, "saved_step": 20, **held}
    run = {
        "status": "completed",
        "fingerprint": {"model": "embedded:kotoha-tiny", "method": "lora"},
        "result": outcome,
        "verdict": verdict,
    }
    (folder / "run.json").write_text(json.dumps(run | more, ensure_ascii=False), encoding="utf-8")
    return folder


def lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_a_result_says_what_has_changed(web: Any, page: Any, tmp_path: Path):
    write_run(tmp_path / "outputs" / "faq")
    web.open(page, "/runs/faq/result")
    verdict = page.locator("#verdict")
    expect(verdict).to_contain_text("改善しました")
    expect(verdict).to_contain_text("判定: 採用")
    expect(verdict).to_contain_text("評価損失は 4.00 → 2.00")

    # What was answered better before comes first, with what differs from the expected answer; text is only ever text.
    answers = page.locator(".answer")
    expect(answers).to_have_count(1)
    expect(answers.first).to_contain_text(HOSTILE)
    expect(answers.first).to_contain_text("学習前のほうが良い")
    expect(answers.first).to_contain_text("同じ言葉の繰り返し")
    expect(answers.first.locator("mark")).to_have_text(["奈良"])
    page.get_by_role("button", name="すべて（2）").click()
    expect(answers).to_have_count(2)
    expect(page.locator("img")).to_have_count(0)

    expect(page.get_by_role("row", name="評価データ")).to_contain_text("90.0 %")
    expect(page.locator("#numbers")).to_contain_text("約 2 分")
    assert page.get_by_role("link", name="追加データで続ける").get_attribute("href") == "/train?from=faq"
    expect(page.locator("#command")).to_have_text(f"aift chat {tmp_path / 'outputs' / 'faq'} --compare")
    expect(page.locator("#next .primary")).to_have_text("会話して確かめる")
    assert page.get_by_role("link", name="設定を変えてやり直す").get_attribute("href") == "/train?copy=faq"

    with page.expect_download() as saved:
        page.get_by_role("button", name="報告書を保存").click()
    assert saved.value.suggested_filename == "faq-report.html"
    assert HOSTILE in Path(saved.value.path()).read_text(encoding="utf-8")


def test_a_rejected_model_is_to_be_trained_anew_and_an_empty_answer_is_wrong(web: Any, page: Any, tmp_path: Path):
    write_run(tmp_path / "outputs" / "faq", result="reject", answer="")
    web.open(page, "/runs/faq/result")
    expect(page.locator("#next .primary")).to_have_text("設定を変えてやり直す")
    expect(page.locator(".answer")).to_contain_text("（空）")
    expect(page.get_by_role("row", name="評価データ（一致率）")).to_be_visible()


def test_a_verdict_arrives_and_nothing_that_was_paged_through_is_lost(web: Any, page: Any, tmp_path: Path):
    """While it is waited for, answers stay as they are, and a request that fails is asked again."""
    folder = write_run(tmp_path / "outputs" / "faq", **identity())
    final = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps(final | {"verdict": {"pending": True}}), encoding="utf-8")
    rows = [
        {
            "side": "after",
            "task": "data",
            "item": f"{item}",
            "score": 0.0,
            "answer": "あ",
            "question": f"{item} の次は？",
        }
        for item in range(25)
    ]
    lines(folder / "eval.jsonl", rows)
    asked: list[int] = []

    def counted(route: Any) -> None:
        asked.append(0)
        if len(asked) == 2:
            return route.abort()
        route.continue_()

    page.route("**/api/results/faq", counted)
    web.open(page, "/runs/faq/result")
    expect(page.locator("#verdict")).to_contain_text("いま学習前と比べて判定しています")
    more, answers = page.get_by_role("button", name="さらに表示"), page.locator(".answer")
    expect(answers).to_have_count(10)
    more.dblclick()  # twice for the same rows
    expect(answers.nth(19)).to_be_visible()
    many = answers.count()
    assert len(set(answers.locator("h3").all_text_contents())) == many
    first = answers.first.element_handle()
    seen = len(asked)
    with page.expect_response("**/api/results/faq"):
        pass
    assert len(asked) > max(1, seen)
    assert first.evaluate("one => one.isConnected")
    (folder / "run.json").write_text(json.dumps(final), encoding="utf-8")
    expect(page.locator("#verdict")).to_contain_text("判定: 採用")
    expect(page.locator("#verdict")).not_to_contain_text("いま学習前と")
    expect(answers.nth(many - 1)).to_be_visible()
    assert len(set(answers.locator("h3").all_text_contents())) == answers.count()


def test_a_description_marks_what_one_types(web: Any, page: Any, tmp_path: Path):
    """As code, and not by the backticks of its text: on 比較, and on 設定 as the form has it."""
    for name, modules in (("first", "all-linear"), ("second", "[q_proj]")):
        with (write_run(tmp_path / "outputs" / name) / "config.yaml").open("a", encoding="utf-8") as config:
            config.write(f"lora: {{target_modules: {modules}}}\n")
    web.open(page, "/compare?ids=first,second")
    hint = page.locator("#settings").get_by_role("row", name="lora.target_modules").locator(".hint")
    expect(hint).to_have_text("アダプターを付ける線形層の名前のリスト、または all-linear。")
    expect(hint.locator("code")).to_have_text("all-linear")
    web.open(page, "/train?data=embedded-kotoha-qa")
    expect(page.locator("#f-lora-target_modules-hint code")).to_have_text("all-linear")
    expect(page.locator("#folded")).not_to_contain_text("`")


def test_runs_are_compared_renamed_trashed_and_restored(web: Any, page: Any, tmp_path: Path):
    root = tmp_path / "outputs"
    write_run(root / "first")
    write_run(root / "second", rate=0.001, result="reject", answer="大阪です。")
    busy = identity() | {"status": "running", "phase": {"name": "training", "since": 0}}
    write_run(root / "busy", **busy)
    web.open(page, "/compare")
    expect(page.get_by_role("button", name="busy をごみ箱へ移す")).to_be_disabled()
    page.get_by_label("first を比べる").check()
    expect(page.locator("#hint")).to_have_text("もう 1 つ選ぶと比べられます。")
    page.get_by_label("second を比べる").check()
    settings = page.locator("#settings")
    expect(settings.get_by_role("row")).to_have_count(3)  # heading, verdict, and the one setting that differs
    expect(settings.get_by_role("row", name="training.learning_rate")).to_contain_text("0.003")
    expect(settings).to_contain_text("悪化しました")
    expect(page.locator("#eval .curve canvas")).to_be_visible()
    page.locator("#eval summary").click()
    expect(page.locator("#eval .numbers tbody tr")).to_have_count(3)
    expect(page.locator("#questions")).to_contain_text("奈良です。")
    expect(page.locator("#questions")).to_contain_text("大阪です。")
    expect(page.locator("#command")).to_have_text("aift runs compare first second")
    page.reload()  # the address names what is compared
    expect(settings.get_by_role("row")).to_have_count(3)

    page.get_by_role("button", name="second の名前を変える").click()
    page.get_by_label("新しい名前").fill("二番目")
    page.get_by_role("dialog").get_by_role("button", name="名前を変える").click()
    expect(page.locator("#notice")).to_have_text("名前を 二番目 に変えました。")
    assert (root / "二番目" / "run.json").is_file()

    page.get_by_role("button", name="二番目 をごみ箱へ移す").click()
    page.get_by_role("dialog").get_by_label("名前").fill("ちがう")
    page.get_by_role("dialog").get_by_role("button", name="ごみ箱へ").click()
    expect(page.locator("#notice")).to_contain_text("「二番目」と入力してください")
    page.get_by_role("button", name="二番目 をごみ箱へ移す").click()
    page.get_by_role("dialog").get_by_label("名前").fill("二番目")
    page.get_by_role("dialog").get_by_role("button", name="ごみ箱へ").click()
    expect(page.locator("#notice")).to_have_text("二番目 をごみ箱へ移しました。")
    assert not (root / "二番目").exists()
    page.get_by_text("ごみ箱（1）").click()
    page.get_by_role("button", name="二番目 を元に戻す").click()
    expect(page.locator("#notice")).to_have_text("二番目 を元に戻しました。")
    assert (root / "二番目" / "run.json").is_file()

    headers = {"x-aift-token": web.token}
    refused = page.request.post(
        f"{web.url}/api/compare/trash", headers=headers, data=json.dumps({"id": "busy", "name": "busy"})
    )
    assert refused.status == 409
    (root / "busy" / "run.json").unlink()


def test_a_run_is_adopted_and_comes_first_where_one_chooses(web: Any, page: Any, tmp_path: Path):
    root = tmp_path / "outputs"
    run = kept_run(root / "faq", started="2026-01-01T00:00:00+00:00")
    kept_run(root / "newer")
    web.open(page, "/runs/faq/result")
    verdict = page.locator("#verdict")
    adopt = verdict.get_by_role("button", name="採用", exact=True)
    beside = page.get_by_role("button", name="採用", exact=True)
    expect(verdict.locator(".row", has=beside)).to_contain_text("判定は保留です。差は見えません。")
    adopt.click()  # asks nothing
    expect(verdict.locator(".badge.good", has_text="採用中")).to_be_visible()
    expect(page.locator("#command")).to_have_text("aift runs adopt faq")
    release = verdict.get_by_role("button", name="採用をやめる")
    expect(release).to_be_focused()
    assert read_run(run)["adopted"]["step"] == 8

    page.goto(f"{web.url}/compare")
    expect(page.locator("#runs tbody tr").first).to_contain_text("faq 採用中")
    page.get_by_role("button", name="faq をごみ箱へ移す").click()
    page.get_by_role("dialog").get_by_label("名前").fill("faq")
    page.get_by_role("dialog").get_by_role("button", name="ごみ箱へ").click()
    expect(page.locator("#notice")).to_contain_text("faq --undo")
    assert run.is_dir()
    page.goto(f"{web.url}/")
    expect(page.locator("#last-list tr", has_text="faq")).to_contain_text("採用中")
    for path in ("/chat", "/answers", "/export"):
        page.goto(f"{web.url}{path}")
        of_runs = page.locator("#model optgroup").first.locator("option")
        expect(of_runs.first).to_have_text("faq（採用中）")
        expect(of_runs.nth(1)).to_have_text("newer")

    page.goto(f"{web.url}/runs/faq/result")
    release.click()
    expect(adopt).to_be_visible()
    expect(page.locator("#command")).to_have_text("aift runs adopt faq --undo")
    assert "adopted" not in read_run(run)


def test_the_verdict_of_a_model_that_is_to_be_adopted_is_not_said_twice(web: Any, page: Any, tmp_path: Path):
    write_weights(write_run(tmp_path / "outputs" / "faq"), "adapter", 1)
    web.open(page, "/runs/faq/result")
    adopt = page.get_by_role("button", name="採用", exact=True)
    expect(page.locator("#verdict .row", has=adopt)).to_have_text("採用")


def test_the_best_weights_become_the_result_and_the_last_ones_come_back(web: Any, page: Any, tmp_path: Path):
    run = kept_run(tmp_path / "outputs" / "faq")
    before = contents(run)
    web.open(page, "/runs/faq/result")
    verdict = page.locator("#verdict")
    expect(verdict).to_contain_text("最良はステップ 4（評価損失 1.000）、いまの結果は最後のステップ 8（2.000）です。")
    best, last = (verdict.get_by_role("button", name=name) for name in ("最良に戻す", "最後の重みに戻す"))
    expect(last).to_have_count(0)
    best.click()
    expect(verdict).to_contain_text("結果は最良のステップ 4 の重みです")
    expect(verdict).to_contain_text("この判定は最後の重みのものです: 保留。差は見えません。")
    expect(verdict).to_contain_text(f"aift eval {run} --data FILE")
    expect(page.locator("#command")).to_have_text("aift runs best faq")
    expect(best).to_have_count(0)
    assert loaded(run) == {"weight": 40}
    last.click()
    expect(best).to_be_visible()
    expect(verdict).not_to_contain_text("結果は最良の")
    assert contents(run) == before

    (run / "checkpoints" / "best" / "adapter_model.safetensors").write_bytes(b"damaged")
    best.click()
    expect(page.locator("#notice")).to_contain_text("SHA-256 が一致しません")
    expect(best).to_be_enabled()
    assert loaded(run) == {"weight": 80}
    # Half done by a process that was killed: the page offers both ways.
    told = read_run(run)
    (run / "checkpoints" / "best" / "adapter_model.safetensors").write_bytes(
        before["checkpoints/best/adapter_model.safetensors"]
    )
    take_best(run)
    change_run(run, returned=read_run(run)["returned"] | {"to": "best"}, result=told["result"])
    page.reload()
    expect(verdict).to_contain_text("結果の入れ替えが途中で止まっています")
    best.click()
    expect(verdict).to_contain_text("結果は最良のステップ 4 の重みです")
    assert loaded(run) == {"weight": 40}

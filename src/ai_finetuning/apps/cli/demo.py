"""aift demo"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from ...errors import PreemptedError, localized
from ...messages import argument, printable

SHOWN = 8
# Asked of the tuned model at the end; the second question only makes sense after the first.
TALK = ("青森県の県庁はどこにありますか？", "では、岩手県の県庁所在地はどこですか？", "305を漢数字で書いてください。")


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "demo",
        help=localized(
            "同梱の小さな日本語モデルを LoRA でファインチューニングし、学習前と学習後の答えを比べます（ダウンロードなし。始める前に、かかる時間を表示します）。",
            "Fine-tunes the embedded Japanese model with LoRA and compares its answers before and after "
            "(no download; it says first how long it takes).",
        ),
    )(demo)


def demo(
    out: Path = typer.Option(Path("outputs/demo"), "--out", help=localized("出力先", "output folder")),
    epochs: int | None = typer.Option(None, help=localized("エポック数", "epochs")),
    steps: int | None = typer.Option(
        None, help=localized("ステップ数（エポック数の代わり）", "number of steps, instead of epochs")
    ),
    full: bool = typer.Option(
        False,
        "--full",
        help=localized("フル・LoRA・QLoRA を同じデータで比べます。", "Compare full, LoRA and QLoRA on the same data."),
    ),
    resume: bool = typer.Option(
        False,
        "--resume",
        help=localized("中断したデモを続きから再開します。", "Go on with a demo that was interrupted."),
    ),
) -> None:
    """Fine-tunes the embedded model on embedded:kotoha-qa, asks the trained facts in unseen phrasings, then talks."""
    try:
        _demo(out, {"epochs": epochs, "steps": steps}, full=full, resume=resume)
    except PreemptedError as error:
        given = [f"--{name} {value}" for name, value in (("epochs", epochs), ("steps", steps)) if value is not None]
        command = " ".join(["aift demo --resume --out", argument(out), *given, *(["--full"] if full else [])])
        saved = (error.ja.partition("再開:")[0], error.en.partition("To go on:")[0])
        raise PreemptedError(f"{saved[0]}再開: {command}", f"{saved[1]}To go on: {command}") from None


def _demo(out: Path, asked_for: dict[str, int | None], *, full: bool, resume: bool) -> None:
    from ...embedded import MODEL, questions
    from ...evaluation.answers import grade
    from ...models.adapters import without_adapter
    from ...planner.length import time_limit
    from ...planner.speed import duration
    from ...runs.folder import read_run
    from ...trainers.demo import EPOCHS, KEEPING_EPOCHS, answers_of, held_out_losses, lesson, seconds_of, teach

    base, data = MODEL, "embedded:kotoha-qa"
    asked, unknown = questions("held_out_phrasings"), questions("held_out_facts")
    length: dict[str, Any] = {
        "epochs": asked_for["epochs"] or (EPOCHS if full else KEEPING_EPOCHS),
        "max_steps": asked_for["steps"],
        "resume": resume,
    }
    if full:
        _compare(base, data, asked, out, length)
        return

    _say(
        f"1/3 {data} で LoRA ファインチューニングし、最後に学習前の {base} と比べます",
        f"1/3 LoRA fine-tuning on {data}, compared with {base} at the end",
    )
    folder = out / "adapter"
    config = lesson("lora", base, folder, keeps=True, **length)
    if not resume:
        seconds = seconds_of(config, data, asked)
        trains, judges = duration(seconds), duration(time_limit(seconds))
        print(
            localized(
                f"この PC では学習に約 {trains}、最後の判定に長くて {judges} かかります。",
                f"Training takes about {trains} on this machine, the verdict at the end {judges} at most.",
            )
        )
    trained, result = teach(config, data, asked)

    _say(
        "2/3 学習では使っていない言い回しの質問への、学習前と学習後の答え",
        "2/3 answers to questions in phrasings that are not in the training data, before and after",
    )
    model: Any = result.model
    with without_adapter(model):
        new = [grade(model, trained.ensure_tokenizer(), unknown)]
    new.append(grade(model, trained.ensure_tokenizer(), unknown))
    before, after = ([part, facts] for part, facts in zip(answers_of(folder), new, strict=True))
    _table(before[0], after[0])
    _scores(before, after, held_out_losses(result))
    _talk(folder)
    _verdict(read_run(folder).get("verdict") or {})
    print(
        localized(
            f"損失の曲線: {folder / 'loss.png'}   レポート: {folder / 'report.html'}",
            f"loss curve: {folder / 'loss.png'}   report: {folder / 'report.html'}",
        )
    )
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift chat {argument(folder)} --compare --greedy")
    print(f"  aift merge {argument(folder)} --out {argument(out / 'merged')}")
    print("  aift train data.train=FILE learning_rate=3e-3 training.output_dir=outputs/mine")


def _compare(base: str, data: str, questions: Sequence[tuple[str, str]], out: Path, length: dict[str, Any]) -> None:
    """Full, LoRA and QLoRA as a table and a plot."""
    from rich.console import Console
    from rich.table import Table

    from ...evaluation.curves import draw_bars
    from ...trainers.demo import compare_methods

    _say(
        f"フル・LoRA・QLoRA で {base} を {data} で学習します",
        f"full, LoRA and QLoRA train {base} on {data}",
    )
    measured = compare_methods(base, data, questions, out / "comparison", **length)
    table = Table(title=localized("同じデータでの比較", "the same data"))
    for name in (
        localized("方法", "method"),
        localized("評価損失", "evaluation loss"),
        localized("正解率", "exact match"),
        localized("時間", "time"),
        localized("メモリー*", "memory*"),
        localized("ディスク", "disk"),
    ):
        table.add_column(name, justify="right" if table.columns else "left")
    for item in measured:
        table.add_row(
            item.method,
            f"{item.held_out_loss:.3f}",
            f"{item.accuracy:.0%}",
            f"{item.seconds:.1f} s",
            f"{item.memory_bytes / 1e6:.1f} MB",
            f"{item.disk_bytes / 1e6:.2f} MB",
        )
    Console(width=None if Console().is_terminal else 120).print(table)
    print(
        localized(
            "* 重み・勾配・オプティマイザーの合計（アクティベーションは含みません）",
            "* weights, gradients and optimizer; activations are left out",
        )
    )
    picture = out / "comparison" / "comparison.png"
    draw_bars(
        {
            "evaluation loss": {item.method: item.held_out_loss for item in measured},
            "exact match (%)": {item.method: 100 * item.accuracy for item in measured},
            "seconds": {item.method: item.seconds for item in measured},
            "memory (MB)": {item.method: item.memory_bytes / 1e6 for item in measured},
            "disk (MB)": {item.method: item.disk_bytes / 1e6 for item in measured},
        },
        picture,
    )
    print(localized(f"図: {picture}", f"plot: {picture}"))


def _say(ja: str, en: str) -> None:
    print(localized(f"\n=== {ja} ===", f"\n=== {en} ==="), flush=True)


def _table(before: list[Any], after: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="学習前 / 学習後  (before / after)")
    for name in (localized("質問", "question"), localized("正解", "expected"), "学習前", "学習後"):
        table.add_column(name, overflow="fold")
    # Far apart in the list, which goes from kind to kind: eight rows show eight sorts of question.
    for index in range(0, len(after), max(1, len(after) // SHOWN)):
        mark = " ○" if after[index].right else " ×"
        table.add_row(
            after[index].question,
            after[index].expected,
            before[index].answer[:30] or "（空）",
            after[index].answer[:30] + mark,
        )
    Console(width=None if Console().is_terminal else 120).print(table, markup=False)


def _scores(before: list[list[Any]], after: list[list[Any]], losses: tuple[float, float]) -> None:
    """Exact match on trained facts and, reported separately, on facts that were never shown."""
    from ...evaluation.answers import exact_match

    rates = [(exact_match(first), exact_match(second)) for first, second in zip(before, after, strict=True)]
    print(
        localized(
            f"正解率（学習した事実 {len(after[0])} 問、言い回しは未学習）: 学習前 {rates[0][0]:.0%} → 学習後 {rates[0][1]:.0%}   評価損失: "
            f"{losses[0]:.3f} → {losses[1]:.3f}",
            f"exact match ({len(after[0])} questions about trained facts in unseen phrasings): before "
            f"{rates[0][0]:.0%} -> after {rates[0][1]:.0%}   evaluation loss: {losses[0]:.3f} -> {losses[1]:.3f}",
        )
    )
    print(
        localized(
            f"一度も見せていない事実 {len(after[1])} 問: {rates[1][0]:.0%} → {rates[1][1]:.0%}（小さなモデルは、"
            "教えていない事実には多くの場合もっともらしい誤りを答えます）",
            f"{len(after[1])} facts that are not in the training data: {rates[1][0]:.0%} -> {rates[1][1]:.0%} (on "
            "these a small "
            "model mostly gives plausible wrong answers)",
        )
    )


def _verdict(told: dict[str, Any]) -> None:
    """What the run's verdict is, whatever it is, and the figures of forgetting."""
    from ...evaluation.run_verdict import decision_line

    _say("3/3 判定", "3/3 the verdict")
    prose = (told.get("tasks") or {}).get("prose") or {}
    if "before" in prose:
        figures = f"{prose['before']:.3f} -> {prose['after']:.3f}"
        print(
            localized(
                f"一般の日本語の文章（bits/字）: {figures}", f"general Japanese prose (bits per character): {figures}"
            )
        )
    line = decision_line(told)
    why = told.get("why") or {"ja": "", "en": ""}
    print(
        localized(f"判定: {line.ja}", f"verdict: {line.en}")
        if line is not None
        else localized(f"判定: なし（{why['ja']}）", f"verdict: none ({why['en']})")
    )


def _talk(folder: Path) -> None:
    """The saved adapter, loaded by its folder, in a conversation."""
    from ...inference.session import Chat, open_model

    _say("保存したアダプターを読み込んで会話します", "the saved adapter, loaded again, in a conversation")
    chat = Chat(open_model(str(folder)))
    for question in TALK:
        print(localized(f"あなた> {question}", f"you> {question}"))
        print(printable("".join(chat.stream(question, do_sample=False, max_new_tokens=64))))
    print(localized(f"（続きは: aift chat {argument(folder)}）", f"(continue with: aift chat {argument(folder)})"))

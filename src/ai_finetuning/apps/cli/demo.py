"""aift demo"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from ...errors import localized

BASE_STEPS, EXAM_QUESTIONS, SHOWN = 400, 96, 8


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "demo",
        help=localized(
            "小さな日本語モデルを訓練し、学習前と学習後の答えを比べる（CPU で数分）。",
            "Trains a small Japanese model and compares its answers before and after (minutes on a CPU).",
        ),
    )(demo)


def demo(
    out: Path = typer.Option(Path("outputs/demo"), "--out", help=localized("出力先", "output folder")),
    steps: int = typer.Option(BASE_STEPS, help=localized("ベースモデルの訓練ステップ数", "steps of the base model")),
    epochs: int = typer.Option(12, help=localized("LoRA のエポック数", "epochs of LoRA")),
    full: bool = typer.Option(
        False,
        "--full",
        help=localized("フル・LoRA・QLoRA を同じデータで比べる。", "Compare full, LoRA and QLoRA on the same data."),
    ),
) -> None:
    """Pre-trains a tiny base on text written for this project, fine-tunes it with LoRA, asks the same questions again."""
    from ...config.data import DataConfig
    from ...config.lora import LoRAConfig
    from ...config.training import TrainingConfig
    from ...evaluation.generation import exact_match, grade
    from ...japanese.practice import corpus, exam, lessons
    from ...models.japanese_model import JapaneseModel
    from ...training.lora_finetuning import LoRAFinetuningTrainer
    from ...training.tiny_base import train_tiny_base

    _say(
        "1/3 小さな日本語モデルを最初から訓練します（約 1 分）",
        "1/3 a tiny Japanese model is trained from scratch (about a minute)",
    )
    base = train_tiny_base(out / "base", corpus(), steps=steps)

    questions = [(item.question, item.answer) for item in exam()][:EXAM_QUESTIONS]
    if full:
        _compare(base, lessons(), questions, out, epochs)
        return

    _say(
        "2/3 日本語の質問応答で LoRA ファインチューニングします",
        "2/3 it is fine-tuned with LoRA on Japanese questions and answers",
    )
    model = JapaneseModel(str(base))
    before = grade(model.ensure_model(), model.ensure_tokenizer(), questions)
    config = TrainingConfig(
        learning_rate=3e-3, batch_size=16, gradient_accumulation_steps=1, num_epochs=epochs, warmup_steps=20, eval_steps=200,
        output_dir=str(out / "adapter"), logging_steps=50,
    )  # fmt: skip
    lora = LoRAConfig(r=32, lora_alpha=64, lora_dropout=0.0)
    trainer = LoRAFinetuningTrainer(model, lora, config, data=DataConfig(max_length=128))
    held_out = [{"instruction": question, "output": answer} for question, answer in questions]
    trained = trainer.train(lessons(), held_out)

    _say(
        "3/3 訓練では使っていない言い回しで同じ質問をします",
        "3/3 the same facts are asked in phrasings that the training never used",
    )
    after = grade(trained, model.ensure_tokenizer(), questions)
    _table(before, after, trainer.result, (exact_match(before), exact_match(after)))
    folder = out / "adapter"
    print(
        localized(
            f"損失の曲線: {folder / 'loss.png'}   レポート: {folder / 'report.html'}",
            f"loss curve: {folder / 'loss.png'}   report: {folder / 'report.html'}",
        )
    )
    print(localized("次に試せること:", "what to type next:"))
    print(f"  aift chat {folder} --compare --greedy")
    print(f"  aift merge {folder} --out {out / 'merged'}")
    print(f"  aift train model={base} method=lora data.train=FILE learning_rate=1e-3 training.output_dir=outputs/mine")


def _compare(base: Path, rows: Any, questions: list[tuple[str, str]], out: Path, epochs: int) -> None:
    """Full, LoRA and QLoRA as a table and a plot."""
    from rich.console import Console
    from rich.table import Table

    from ...evaluation.curves import draw_bars
    from ...training.comparison import compare_methods

    _say("2/2 フル・LoRA・QLoRA を同じデータで訓練します", "2/2 full, LoRA and QLoRA are trained on the same data")
    measured = compare_methods(base, rows, questions, out / "comparison", epochs=epochs)
    table = Table(title=localized("同じデータでの比較", "the same data"))
    for name in (localized("方法", "method"), localized("検証損失", "held-out loss"), localized("正解率", "exact match"), localized("時間", "time"), localized("メモリー*", "memory*"), localized("ディスク", "disk")):  # fmt: skip
        table.add_column(name, justify="right" if table.columns else "left")
    for item in measured:
        table.add_row(
            item.method, f"{item.held_out_loss:.3f}", f"{item.accuracy:.0%}", f"{item.seconds:.1f} s", f"{item.memory_bytes / 1e6:.1f} MB", f"{item.disk_bytes / 1e6:.2f} MB"
        )  # fmt: skip
    Console(width=None if Console().is_terminal else 120).print(table)
    print(
        localized(
            "* 重み・勾配・オプティマイザーの合計（活性は含みません）",
            "* weights, gradients and optimizer; activations are left out",
        )
    )
    picture = out / "comparison" / "comparison.png"
    draw_bars(
        {
            "held-out loss": {item.method: item.held_out_loss for item in measured},
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


def _table(before: list[Any], after: list[Any], result: Any, rates: tuple[float, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="学習前 / 学習後  (before / after)")
    for name in (localized("質問", "question"), localized("正解", "wanted"), "学習前", "学習後"):
        table.add_column(name, overflow="fold")
    # One of every kind first, so that eight rows show more than one sort of question.
    order = sorted(range(len(after)), key=lambda index: index * 7 % len(after))[:SHOWN]
    for index in order:
        mark = " ○" if after[index].right else " ×"
        table.add_row(
            after[index].question,
            after[index].wanted,
            before[index].answer[:30] or "（空）",
            after[index].answer[:30] + mark,
        )
    Console(width=None if Console().is_terminal else 120).print(table, markup=False)
    scored = [row["eval_loss"] for row in result.history if row.get("eval_loss") is not None]
    print(
        localized(
            f"正解率（{len(after)} 問、言い回しは未学習）: 学習前 {rates[0]:.0%} → 学習後 {rates[1]:.0%}   検証損失: {scored[0]:.3f} → {scored[-1]:.3f}",
            f"exact match ({len(after)} questions in unseen phrasings): before {rates[0]:.0%} -> after {rates[1]:.0%}   held-out loss: {scored[0]:.3f} -> {scored[-1]:.3f}",
        )
    )

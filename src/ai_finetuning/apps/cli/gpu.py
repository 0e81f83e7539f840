"""aift gpu"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import localized
from ...messages import printable
from .japanese import App

if TYPE_CHECKING:
    from ...execution.self_check.results import Result

app = App()


@app.callback()
def _group() -> None:
    """What concerns the GPUs of this machine."""


@app.command(
    "self-check",
    help=localized(
        "この PC の GPU（なければ CPU）の計算が正しいか、どれだけ速いかを確かめます。ネットワークは使いません。",
        "Checks whether this machine's GPU (without one, its CPU) computes what it should, and how fast. No network.",
    ),
)
def self_check(
    device: str | None = typer.Option(
        None,
        "--device",
        help=localized(
            "調べるデバイス（cuda、cuda:1、cpu）。既定は最良のもの。", "cuda, cuda:1 or cpu (default: the best)"
        ),
    ),
    quick: bool = typer.Option(
        False,
        "--quick",
        help=localized("カーネルの計算だけを確かめます（20 秒ほど）。", "kernels only, some 20 seconds"),
    ),
    every: bool = typer.Option(
        False, "--all", help=localized("複数の GPU の戦略も確かめます。", "the strategies over several GPUs too")
    ),
    json_file: Path | None = typer.Option(
        None, "--json", metavar="FILE", help=localized("結果を書くファイルです。", "write the results to this file")
    ),
) -> None:
    """Facts, kernels, whole steps, memory, speed; exit code 1 where anything fails."""
    from ...errors import StorageError, UsageError
    from ...execution.self_check import everything, facts, record
    from ...system.files import write_in_place

    if quick and every:
        raise UsageError(
            "--quick と --all は同時に使えません。どちらか一方にしてください。",
            "--quick and --all cannot be used together; give only one of them.",
        )
    if json_file is not None and (json_file.is_dir() or not json_file.resolve().parent.is_dir()):
        raise UsageError(
            f"--json {json_file} に書けません。存在するフォルダーの中のファイルを指定してください。",
            f"--json {json_file} cannot be written; name a file in a folder that exists.",
        )
    chosen = facts.device_to_check(device)
    if chosen.type != "cuda" and device is None:
        print(
            localized(
                f"使える GPU がないため、{chosen.type} でできる検査だけをします。",
                f"there is no usable GPU: checking what can be checked on {chosen.type}.",
            )
        )
    shown = _Shown()
    made = everything.check(chosen, "quick" if quick else "all" if every else "one", shown.add)
    shown.end()
    _print_speed(made)
    print(f"{printable(made['key']['device'])}: {record.line(made)}")
    if json_file is not None:
        try:
            write_in_place(json_file, record.text_of(made).encode("utf-8"))
        except OSError as error:
            raise StorageError(
                f"{json_file} に書けません（{error.strerror}）。", f"{json_file} cannot be written ({error.strerror})."
            ) from error
        print(localized(f"{json_file} に書きました。", f"written to {json_file}."))
    if made["count"]["failed"]:
        raise typer.Exit(1)


class _Shown:
    """Prints a line for each group of checks when it is done, and those that failed or did not run."""

    def __init__(self) -> None:
        self._group = ""
        self._counts: Counter[str] = Counter()
        self._lines: list[str] = []

    def add(self, result: Result) -> None:
        """A result is there."""
        group = result.name.split("/")[0]
        if group != self._group:
            self.end()
            self._group = group
        self._counts[result.status] += 1
        note = "" if result.note is None else f": {result.note}"
        if result.status == "failed":
            apart = "" if result.value is None else f" {result.value:.3g} > {result.limit:.3g}"
            self._lines.append(
                localized(f"  不合格 {result.name}{apart}{note}", f"  failed {result.name}{apart}{note}")
            )
        elif result.status == "not run":
            self._lines.append(localized(f"  実行できず {result.name}{note}", f"  not run {result.name}{note}"))

    def end(self) -> None:
        """The group is done."""
        if self._group:
            good, bad, left = (self._counts[status] for status in ("passed", "failed", "not run"))
            head = localized(
                f"{self._group}: 合格 {good}、不合格 {bad}、実行できず {left}",
                f"{self._group}: {good} passed, {bad} failed, {left} not run",
            )
            for line in (head, *self._lines):
                print(printable(line), flush=True)
        self._group, self._counts, self._lines = "", Counter(), []


def _print_speed(made: dict[str, Any]) -> None:
    speed = made.get("speed")
    if speed is None:
        return
    products = ", ".join(f"{name} {value:.3g}" for name, value in speed["tflops"].items())
    copies = ", ".join(f"{name} {value:.3g}" for name, value in speed["gb_per_second"].items())
    step = speed["training"]
    shares = [
        (localized("公称値", "the table"), step["mfu_of_table"]),
        (localized("上の行列積", "these products"), step["mfu_of_measured"]),
    ]
    used = ", ".join(f"{share:.0%} ({name})" for name, share in shares if share is not None)
    for label, value in (
        (localized("行列積 TFLOP/s", "products, TFLOP/s"), products),
        (localized("コピー GB/s", "copies, GB/s"), copies),
        (
            localized("LoRA の 1 ステップ", "a LoRA step"),
            localized(
                f"{step['parameters']:,} パラメーター、{step['tokens_per_second']:,.0f} トークン/秒、MFU {used or '-'}",
                f"{step['parameters']:,} parameters, {step['tokens_per_second']:,.0f} tokens/s, MFU {used or '-'}",
            ),
        ),
    ):
        print(f"{label}: {value}")

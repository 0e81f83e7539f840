"""A quantization benchmark as JSON, as Markdown and as one picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StorageError
from .curves import draw_bars

JSON, MARKDOWN, PICTURE = "benchmark.json", "benchmark.md", "benchmark.png"
# Above this share of the machine taken by others, timings are not to be trusted.
BUSY = 0.05
# (row, keys below a side, factor, decimals)
_ROWS = (
    ("quantized modules", ("quantized_modules",), 1, 0),
    ("weights in memory, MB", ("memory_bytes",), 1e-6, 2),
    ("peak with a prefill, MB", ("peak_bytes",), 1e-6, 2),
    ("weights on disk, MB", ("disk_bytes",), 1e-6, 2),
    ("prefill, tokens/s", ("tokens_per_second",), 1, 1),
    ("prefill, characters/s", ("characters_per_second",), 1, 1),
    ("prefill, ms: p50", ("latency_ms", "p50"), 1, 2),
    ("prefill, ms: p90", ("latency_ms", "p90"), 1, 2),
    ("prefill, ms: p95", ("latency_ms", "p95"), 1, 2),
    ("prefill, ms: p99", ("latency_ms", "p99"), 1, 2),
    ("time to first token, ms: p50", ("time_to_first_token_ms", "p50"), 1, 2),
    ("time to first token, ms: p99", ("time_to_first_token_ms", "p99"), 1, 2),
    ("decoding, tokens/s", ("decode", "tokens_per_second"), 1, 1),
    ("decoding, characters/s", ("decode", "characters_per_second"), 1, 1),
    ("decoding, ms a token: p50", ("decode", "latency_ms", "p50"), 1, 2),
    ("decoding, ms a token: p90", ("decode", "latency_ms", "p90"), 1, 2),
    ("decoding, ms a token: p95", ("decode", "latency_ms", "p95"), 1, 2),
    ("decoding, ms a token: p99", ("decode", "latency_ms", "p99"), 1, 2),
    ("perplexity", ("perplexity",), 1, 3),
    ("bits per character", ("bits_per_character",), 1, 4),
)


def _at(obtained: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    value: Any = obtained
    for key in keys:
        value = value[key]
    return value


def _shown(value: float | None, factor: float = 1, decimals: int = 4) -> str:
    return "-" if value is None else f"{value * factor:,.{decimals}f}"


def markdown(obtained: Mapping[str, Any]) -> str:
    """Tables of both sides, of their agreement and of the verdict, with what qualifies the timings."""
    lines = ["# Before and after quantization", "", f"**{obtained['verdict']['grade']}**", ""]
    lines += ["| | original | quantized |", "|---|---|---|"]
    sides = [obtained["original"], obtained["quantized"]]
    lines += [f"| {key} | {sides[0][key]} | {sides[1][key]} |" for key in ("name", "dtype", "device", "attention")]
    for title, keys, factor, decimals in _ROWS:
        cells = " | ".join(_shown(_at(side, keys), factor, decimals) for side in sides)
        lines.append(f"| {title} | {cells} |")
    for title, key in (("storage, MB", "memory_by_dtype"),):
        cells = " | ".join(
            ", ".join(f"{dtype} {size / 1e6:.2f}" for dtype, size in side[key].items()) for side in sides
        )
        lines.append(f"| {title} | {cells} |")
    lines += ["", "| quantized against original | |", "|---|---|"]
    for title, key in (
        ("prefill, times as fast", "speedup"),
        ("decoding, times as fast", "decode_speedup"),
        ("memory ratio", "memory_ratio"),
        ("disk ratio", "disk_ratio"),
        ("perplexity ratio", "perplexity_ratio"),
    ):
        lines.append(f"| {title} | {_shown(obtained[key])} |")
    lines += [
        f"| {key} | {_shown(value, 1, 0 if key == 'tokens' else 5)} |" for key, value in obtained["agreement"].items()
    ]
    apart = ["same" if path is None else str(path + 1) for path in obtained["greedy"]["first_divergence"]]
    lines.append(f"| first different token of {obtained['new_tokens']} greedy ones, by prompt | {', '.join(apart)} |")
    lines += ["", "| check | value | limits | |", "|---|---|---|---|"]
    for check in obtained["verdict"]["checks"]:
        mark = "holds" if check["holds"] else "fails"
        decimals = 0 if isinstance(check["value"], int) else 4
        lines.append(f"| {check['name']} | {_shown(check['value'], 1, decimals)} | {check['limit']} | {mark} |")
    lines += ["", *_notes(obtained), ""]
    return "\n".join(lines)


def _notes(obtained: Mapping[str, Any]) -> list[str]:
    path, inputs = obtained["environment"], obtained["environment"]["inputs"]
    versions = ", ".join(
        f"{name} {path['versions'][name]}"
        for name in ("torch", "transformers", "bitsandbytes", "torchao")
        if path["versions"][name]
    )
    lines = [
        f"{inputs['number']} inputs, {inputs['tokens']:,} tokens (longest {inputs['longest']}, sha256 "
        f"{inputs['sha256'][:12]}); {obtained['num_runs']} prefill and "
        f"{obtained['decode_runs']} decoding runs of each, taken in turns after {obtained['warmup_runs']} that do not "
        f"count; {path['cpu']['name']}, {path['threads']} threads; {versions}.",
    ]
    if path["other_processes"] > BUSY:
        lines += [
            "",
            (
                f"Other processes took {path['other_processes']:.0%} of the machine: the timings are not a quiet "
                "measurement."
            ),
        ]
    if path["timed_with_cpu_packing"]:
        lines += [
            "",
            (
                "Timed with the re-packed weights that `aift chat` and `aift generate` use on this processor; the "
                "fidelity is that of the weights as stored."
            ),
        ]
    lines += [line for what, why in obtained["reasons"].items() for line in ("", f"{what}: {why}.")]
    return lines


def draw(obtained: Mapping[str, Any], path: Path) -> None:
    """Memory, speed, text and agreement as bars."""
    sides = {name: obtained[name] for name in ("original", "quantized")}
    groups = {
        "weights (MB)": {name: side["memory_bytes"] / 1e6 for name, side in sides.items()},
        "prefill (tokens/s)": {name: side["tokens_per_second"] for name, side in sides.items()},
        "decoding (tokens/s)": {name: side["decode"]["tokens_per_second"] for name, side in sides.items()},
        "perplexity": {name: side["perplexity"] or 0.0 for name, side in sides.items()},
        "agreement (%)": {
            "top-1": 100 * obtained["agreement"]["top1"],
            "top-5": 100 * obtained["agreement"]["top5"],
        },
    }
    draw_bars(groups, path)


def write_report(obtained: Mapping[str, Any], folder: Path) -> list[Path]:
    """benchmark.json, benchmark.md and benchmark.png in a folder, which is made.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(obtained, ensure_ascii=False, indent=1)
        (folder / JSON).write_text(text, encoding="utf-8")
        (folder / MARKDOWN).write_text(f"{markdown(obtained)}\n![bars]({PICTURE})\n", encoding="utf-8")
        draw(obtained, folder / PICTURE)
    except OSError as error:
        raise StorageError(
            f"{folder} に書き込めませんでした（{error}）。書き込める場所を指定してください。",
            f"{folder} could not be written ({error}); choose a writable folder.",
        ) from error
    return [folder / name for name in (JSON, MARKDOWN, PICTURE)]

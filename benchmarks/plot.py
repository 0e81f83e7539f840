"""A result's table (Markdown) and picture, and their place in docs/performance.md.

python -m benchmarks.plot benchmarks/results/RESULT.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"


def table(result: dict[str, Any]) -> str:
    """One row a variant; every number with what qualifies it."""
    clock = "wall"
    head = (
        "| variant | tokens/s (min - max) | ours is faster by (min - max) | share of FLOP limit | useful slots | peak "
        "memory | memory, ours / peer |"
    )
    lines = [_caption(result), "", head, "|---|---|---|---|---|---|---|"]
    for name, row in result["summary"].items():
        speed, ratio = row["tokens_per_second"], row[f"ours_is_faster_{clock}"]
        mark = " *" if row["contaminated_steps"] else ""
        compared = "1" if name == "ours" else f"{ratio['median']:.2f}x ({ratio['min']:.2f} - {ratio['max']:.2f})"
        lines.append(
            f"| {result['labels'][name]} | {speed['median']:.0f} ({speed['min']:.0f} - {speed['max']:.0f}){mark} "
            f"| {compared} | "
            f"{row['limit_share']:.0%} | {row['useful_slots']:.0%} | {row['peak_bytes'] / 2**20:.0f} MiB | "
            f"{row['ours_memory_ratio']:.2f} |"
        )
    return "\n".join([*lines, *contamination(result)])


def contamination(result: Mapping[str, Any]) -> list[str]:
    """What a table says below it where a row has a star."""
    if not any(row["contaminated_steps"] for row in result["summary"].values()):
        return []
    return [
        "",
        "\\* other processes took more than 5 % of the machine in some of these steps: not a quiet measurement.",
    ]


def _caption(result: dict[str, Any]) -> str:
    rows = min(row["steps"] for row in result["summary"].values())
    hardware = result["hardware"]
    return (
        f"{result['model']} model, {result['method']}, {result.get('precision', 'bf16')}, {result['threads']} threads, "
        f"{hardware.get('gpu', hardware['cpu'])}; "
        f"{rows} counted rounds of {result['documents']['per_step']} documents a step, medians; FLOP limit "
        f"{result['limit_tokens_per_second']:.0f} tokens/s at {result['ceiling_gflops']['used']:.0f} GFLOP/s measured; "
        f"{result['date'][:10]}, commit {result['commit'][:8]}."
    )


def picture(result: dict[str, Any], path: Path) -> Path:
    """Bars of speed and memory, one pair a variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(result["summary"])[::-1]
    rows = [result["summary"][name] for name in names]
    labels = [result["labels"][name] for name in names]
    colours = ["#c8553d" if name.startswith("ours") else "#8d99ae" for name in names]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 0.5 * len(names) + 1.6), sharey=True, layout="constrained"
    )
    speeds = [row["tokens_per_second"] for row in rows]
    medians = [speed["median"] for speed in speeds]
    reach = [[speed["median"] - speed["min"] for speed in speeds], [speed["max"] - speed["median"] for speed in speeds]]
    left.barh(labels, medians, xerr=reach, color=colours, error_kw={"lw": 0.8})
    left.axvline(result["limit_tokens_per_second"], color="black", ls=":", lw=1)
    left.set(xlabel="real tokens per second (median, min - max); dotted: FLOP limit")
    memory = right.barh(labels, [row["peak_bytes"] / 2**30 for row in rows], color=colours)
    right.bar_label(memory, fmt="%.1f", padding=3)
    right.margins(x=0.15)
    right.set(xlabel="peak memory, GiB")
    figure.suptitle(f"{result['model']} model, {result['method']}, {result['threads']} threads, {result['date'][:10]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def publish(result_path: Path, page: Path = PAGE) -> list[Path]:
    """Writes the picture and puts the table between the page's marks for this model and method.

    Raises:
        SystemExit: the page has no such marks.
    """
    result = json.loads(result_path.read_text(encoding="utf-8"))
    kind = "" if result.get("precision", "bf16") == "bf16" else f"-{result['precision']}"
    key = f"{result['model']}-{result['method']}-{result['device']}{kind}"
    image = picture(result, page.parent / "images" / f"training-step-{key}.png")
    put(page, key, f"{table(result)}\n\n![Speed and memory, {key}](images/{image.name})")
    return [image, page]


def put(page: Path, key: str, text: str) -> None:
    """Replaces what stands between a page's marks for this result.

    Raises:
        SystemExit: the page has no such marks.
    """
    begin, end = f"<!-- bench {key} -->", f"<!-- end {key} -->"
    old = page.read_text(encoding="utf-8")
    if begin not in old or end not in old:
        raise SystemExit(f"{page} has no place for this result: add the lines {begin} and {end}")
    before, rest = old.split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def commit() -> str:
    """The commit, with `+changes` where the working tree differs from it."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + ("+changes" if dirty.strip() else "")


if __name__ == "__main__":
    for written in publish(Path(sys.argv[1])):
        print(written)

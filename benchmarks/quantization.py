"""Every way to quantize against bf16: bits per character on held-out prose, KL, size, speed. Writes
docs/quantization.md's table and picture.

python -m benchmarks.quantization                   # embedded:kotoha-tiny on the held-out works of recipes/kotoha-tiny
python -m benchmarks.quantization --shape 1b        # random weights of a shape: speed and memory alone, for a GPU
python -m benchmarks.quantization --replot RESULT   # table and picture of a result that is there
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import runpy
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quantization.md"
# label: (bits, backend, quant_type, settings)
VARIANTS: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "8-bit (LLM.int8)": (8, "bitsandbytes", "int8", {}),
    "nf4": (4, "bitsandbytes", "nf4", {"bnb_4bit_use_double_quant": False}),
    "nf4 + double quantization": (4, "bitsandbytes", "nf4", {}),
    "fp4": (4, "bitsandbytes", "fp4", {"bnb_4bit_use_double_quant": False}),
    "torchao int8": (8, "torchao", "int8", {}),
    "torchao int8, dynamic": (8, "torchao", "int8-dynamic", {}),
    "torchao int4 (CUDA)": (4, "torchao", "int4", {}),
}
# Above this share of the machine taken by other processes, a row's timings are marked.
BUSY = 0.05


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", help="a random model of benchmarks/shapes.py in place of embedded:kotoha-tiny")
    parser.add_argument("--windows", type=int, default=128, help="inputs, spread over the held-out works")
    parser.add_argument("--tokens", type=int, default=512, help="of an input")
    parser.add_argument("--runs", type=int, default=40, help="number of timed prefill passes for each model")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("AIFT_SHARED", ROOT.parent / "shared")))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "quantization")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--replot", type=Path, help="a result to publish again; nothing is measured")
    return parser.parse_args()


def held_out_prose(shared: Path) -> list[str]:
    """The works that kotoha-tiny was never trained on, by the recipe's own rule."""
    eval_data = runpy.run_path(str(ROOT / "recipes" / "kotoha-tiny" / "prepare.py"), run_name="prepare")["held_out"]
    with gzip.open(shared / "data" / "prose" / "aozora_large.jsonl.gz", "rt", encoding="utf-8") as source:
        rows = [json.loads(line) for line in source]
    return [row["text"] for row in rows if eval_data(row["id"])]


def inputs_of(given: argparse.Namespace, name: str) -> list[Any]:
    """[1, tokens] each: prose, or random ids for random weights."""
    import torch

    from ai_finetuning.evaluation.quantization_benchmark import benchmark_inputs
    from ai_finetuning.models.tokenizers import load_tokenizer

    if given.shape:
        from benchmarks.shapes import SHAPES

        chosen = torch.Generator().manual_seed(0)
        size = (given.windows, 1, given.tokens)
        return list(torch.randint(10, SHAPES[given.shape].vocabulary, size, generator=chosen))
    return benchmark_inputs(
        held_out_prose(given.shared), load_tokenizer(name), rows=given.windows, max_length=given.tokens
    )


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Quantizes in every way and compares each with the original, one after the other."""
    import torch

    from ai_finetuning import QuantizationOptimizer
    from ai_finetuning.errors import ToolkitError
    from ai_finetuning.evaluation.quantization_benchmark import compare_models
    from ai_finetuning.models.loading import load_causal_lm
    from ai_finetuning.system.gpu import clear_gpu_memory

    name = "embedded:kotoha-tiny"
    if given.shape:
        from benchmarks.inputs import save_model
        from benchmarks.shapes import SHAPES

        name = str(save_model(ROOT / "build" / "models" / given.shape, SHAPES[given.shape]))
    inputs, original = inputs_of(given, name), load_causal_lm(name, dtype="bfloat16")
    obtained: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for label, (bits, backend, quant_type, settings) in VARIANTS.items():
        folder = given.work / label.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        optimizer = QuantizationOptimizer(name)
        try:
            model = optimizer.quantize(
                folder, bits=bits, backend=backend, quant_type=quant_type, compute_dtype="bfloat16", settings=settings
            )
        except ToolkitError as error:
            refused[label] = error.en
            continue
        obtained[label] = compare_models(original, model, inputs, num_runs=given.runs)
        obtained[label]["greedy"].pop("texts")
        obtained[label]["quantized"]["name"] = label  # not where it lay on this machine
        del model
        clear_gpu_memory()
        print(
            f"{label}: mean KL {obtained[label]['agreement']['mean_kl']:.5f}, {obtained[label]['verdict']['grade']}",
            flush=True,
        )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "model": given.shape or "kotoha-tiny",
        "random": bool(given.shape),
        "device": str(original.device),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "results": obtained,
        "refused": refused,
    }


def table(result: Mapping[str, Any]) -> str:
    """One row a way to quantize; the first is the original."""
    rows = result["results"]
    first = next(iter(rows.values()))
    head = (
        "| | bits per character | perplexity ratio | mean KL | p99 KL | top-1 | smallest cosine | weights, MB | disk, "
        "MB | prefill, times as fast | decoding, times as fast | verdict |"
    )
    lines = [_caption(result, first), "", head, "|" + "---|" * 12]
    side = first["original"]
    quality = (
        "- | - | - | - | - | -" if result["random"] else f"{side['bits_per_character']:.4f} | 1 | 0 | 0 | 100% | 1"
    )
    speed = f"1 ({side['tokens_per_second']:,.0f} tokens/s) | 1 ({side['decode']['tokens_per_second']:,.0f} tokens/s)"
    lines.append(
        f"| {side['dtype']} | {quality} | {side['memory_bytes'] / 1e6:.2f} | {side['disk_bytes'] / 1e6:.2f} | "
        f"{speed} | |"
    )
    for label, obtained in rows.items():
        side, close = obtained["quantized"], obtained["agreement"]
        mark = " *" if obtained["environment"]["other_processes"] > BUSY else ""
        quality, grade = "- | - | - | - | - | -", "-"
        if not result["random"]:
            quality = (
                f"{side['bits_per_character']:.4f} | {obtained['perplexity_ratio']:.4f} | {close['mean_kl']:.5f} | "
                f"{close['p99_kl']:.4f} | "
                f"{close['top1']:.1%} | {close['min_cosine']:.4f}"
            )
            grade = obtained["verdict"]["grade"]
        lines.append(
            f"| {label} | {quality} | {side['memory_bytes'] / 1e6:.2f} | {side['disk_bytes'] / 1e6:.2f} | "
            f"{obtained['speedup']:.2f}{mark} | "
            f"{obtained['decode_speedup']:.2f}{mark} | {grade} |"
        )
    if any(obtained["environment"]["other_processes"] > BUSY for obtained in rows.values()):
        lines += [
            "",
            (
                "\\* other processes took more than 5 % of the machine meanwhile: ratios of passes taken in turns, "
                "but not a quiet measurement. The other columns do not depend on time."
            ),
        ]
    for label, why in result["refused"].items():
        lines += ["", f"{label}: not measured. {why}"]
    return "\n".join(lines)


def _caption(result: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    place, inputs = first["environment"], first["environment"]["inputs"]
    text = "random ids" if result["random"] else "held-out prose"
    versions = ", ".join(
        f"{name} {place['versions'][name]}" for name in ("torch", "transformers", "bitsandbytes", "torchao")
    )
    hardware = place["gpu"]["devices"][0]["name"] if result["device"].startswith("cuda") else place["cpu"]["name"]
    return (
        f"{result['model']}, {inputs['tokens']:,} tokens of {text} ({inputs['number']} inputs); {hardware}, "
        f"{result['threads']} threads; {first['num_runs']} prefill and "
        f"{first['decode_runs']} decoding runs of each; {versions}; {result['date'][:10]}, commit "
        f"{result['commit'][:8]}."
    )


def picture(result: Mapping[str, Any], path: Path) -> Path:
    """Error, size and speed as bars, one row a way to quantize."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = result["results"]
    labels = list(rows)[::-1]
    panels = {
        "mean KL (nats)": [rows[label]["agreement"]["mean_kl"] for label in labels],
        "weights in memory, share of bf16": [rows[label]["memory_ratio"] for label in labels],
        "prefill, times as fast as bf16": [rows[label]["speedup"] for label in labels],
        "decoding, times as fast as bf16": [rows[label]["decode_speedup"] for label in labels],
    }
    if result["random"]:
        panels.pop("mean KL (nats)")
    figure = Figure(figsize=(3.2 * len(panels) + 1, 0.45 * len(labels) + 1.2), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        axes.bar_label(axes.barh(labels, values, color="#8d99ae"), fmt="%.3g", padding=3)
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.35)
        if "bf16" in title:
            axes.axvline(1, color="black", ls=":", lw=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))
    return path


def publish(result: Mapping[str, Any], page: Path = PAGE) -> list[Path]:
    """Writes the picture and puts the table between the page's marks for this model and device.

    Raises:
        SystemExit: the page has no such marks.
    """
    key = f"{result['model']}-{result['device'].split(':')[0]}"
    begin, end = f"<!-- bench {key} -->", f"<!-- end {key} -->"
    text = page.read_text(encoding="utf-8")
    if begin not in text or end not in text:
        raise SystemExit(f"{page} has no place for this result: add the lines {begin} and {end}")
    image = picture(result, page.parent / "images" / f"quantization-{key}.png")
    before, rest = text.split(begin, 1)
    block = f"{begin}\n\n{table(result)}\n\n![Error, size and speed, {key}](images/{image.name})\n\n{end}"
    page.write_text(before + block + rest.split(end, 1)[1], encoding="utf-8")
    return [image, page]


def main() -> None:
    """Measures, writes the JSON, publishes."""
    given = arguments()
    if given.replot:
        result = json.loads(given.replot.read_text(encoding="utf-8"))
    else:
        result = measure(given)
        key = (
            f"{result['date'][:10]}_quantization-{result['model']}-{result['device'].split(':')[0]}-"
            f"{result['threads']}t"
        )
        given.out.mkdir(parents=True, exist_ok=True)
        path = given.out / f"{key}.json"
        path.write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
        print(f"wrote {path}")
    print(table(result))
    for written in publish(result):
        print(written)


if __name__ == "__main__":
    main()

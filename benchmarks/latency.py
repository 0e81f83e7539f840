"""What is not the training step: start, tokens, saving, evaluation, generation, collation.

python benchmarks/latency.py --quick       # 5 MB of text, two rounds
python benchmarks/latency.py --plot        # 50 MB, five rounds; the table of docs/performance.md

Variants of one measurement take turns (A B A B), so that a busy machine slows both; ratios are of neighbours, the
median counts.
Japanese text: AIFT_SHARED/data/prose/aozora_large.jsonl.gz, or any JSONL with `text` by --text, or else made on the
spot.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT / "src")
sys.path.insert(1, str(ROOT))

from benchmarks import plot  # noqa: E402

# A model of 9M weights: as small as a laptop's first run.
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 8192,  # at least as many as the tokenizer of kotoha-tiny has
}


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds of all threads, what the work returned)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def summary(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {
        name: round(float(of(values)), 5) for name, of in (("median", statistics.median), ("min", min), ("max", max))
    }


def ratios(one: list[float], other: list[float]) -> dict[str, float]:
    """one / other of neighbours in time."""
    return summary([a / b for a, b in zip(one, other, strict=True)])


def child(name: str, *arguments: str, cores: int | None = None) -> dict[str, Any]:
    """Runs one of CHILDREN in a process of its own, on the first `cores` cores; its JSON with the process's whole
    time.
    """
    started = time.time()
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, str(started), str(cores or 0), *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "AIFT_LANG": "en"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


# ---- start -----------------------------------------------------------------------------------------------------------


def imports(rounds: int) -> dict[str, Any]:
    """Seconds of a Python process that only imports; `nothing` is Python itself."""
    programs = {
        "nothing": "pass",
        "ai_finetuning": "import ai_finetuning",
        "aift --help": "from ai_finetuning.apps.cli.main import run; run(['--help'])",
        "torch": "import torch",
        "torch, transformers": "from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel",
        "training (full)": "import ai_finetuning.trainers.from_config",
        "training (LoRA: peft, which loads bitsandbytes)": "import ai_finetuning.trainers.from_config, peft",
    }
    obtained: dict[str, list[float]] = {name: [] for name in programs}
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    for _ in range(rounds):
        for name, program in programs.items():
            wall, _, _ = timed(
                lambda program=program: subprocess.run(
                    [sys.executable, "-c", program], env=environment, check=True, capture_output=True
                )  # type: ignore[misc]
            )
            obtained[name].append(wall)
    return {name: summary(values) for name, values in obtained.items()}


def first_step(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds from the process's start to the end of the first optimizer step of `aift train`, by phase."""
    runs = [child("first_step", str(folder), str(folder / f"run-{number}")) for number in range(rounds)]
    return {phase: summary([run[phase] for run in runs]) for phase in runs[0]}


def child_first_step(started: float, model: str, out: str) -> dict[str, float]:
    marks = {"started": started, "python": time.time()}
    from ai_finetuning.engine import loop
    from ai_finetuning.execution import build, execute
    from ai_finetuning.trainers.from_config import run_training

    marks["imports"] = time.time()
    for owner, name, mark in (
        (execute, "resolve", "data"),
        (build, "_load", "model"),
        (loop, "step_with_retry", "step"),
    ):
        setattr(owner, name, _marking(getattr(owner, name), mark, marks))
    from ai_finetuning.config.load import load_config

    config = load_config(
        None,
        [
            f"model={model}",
            "method=lora",
            f"data.train={Path(model) / 'chat-small.jsonl'}",
            f"training.output_dir={out}",
            "data.cache=false",
            "training.schedule.max_steps=1",
            "training.warmup_steps=0",
            "training.runtime.progress=false",
            "learning_rate=1e-4",
            "data.max_length=512",
        ],
    )
    run_training(config)
    phases = ["python", "imports", "data", "model", "step"]
    before = ["started", *phases]
    seconds = {phase: marks[phase] - marks[earlier] for earlier, phase in zip(before, phases, strict=False)}
    return seconds | {"start to first step": marks["step"] - started}


def _marking(function: Callable[..., Any], mark: str, marks: dict[str, float]) -> Callable[..., Any]:
    def marked(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        marks[mark] = time.time()
        return result

    return marked


# ---- tokens ----------------------------------------------------------------------------------------------------------


def tokens(folder: Path, rounds: int) -> dict[str, Any]:
    """Reading, rendering and tokenizing conversations on one and on all cores, and finding them in the cache."""
    cores = len(os.sched_getaffinity(0))
    obtained: dict[int, list[dict[str, Any]]] = {1: [], cores: []}
    for _ in range(rounds):
        for count, runs in obtained.items():
            runs.append(child("tokens", str(folder), cores=count))
    result: dict[str, Any] = {}
    for count, runs in obtained.items():
        result["all cores" if count == cores else "1 core"] = {
            key: summary([run[key] for run in runs]) for key in runs[0]
        }
    result["speed-up of encode"] = ratios(*([run["encode_wall_s"] for run in obtained[count]] for count in (1, cores)))
    return result


def child_tokens(started: float, folder: str) -> dict[str, float]:
    from ai_finetuning.config.data import DataConfig
    from ai_finetuning.data.prepare import load_examples
    from ai_finetuning.data.sources import load_samples
    from ai_finetuning.data.tokenize import encode
    from ai_finetuning.models.tokenizers import load_tokenizer
    from ai_finetuning.system.gpu import peak_memory_bytes

    tokenizer = load_tokenizer(folder)
    path = Path(folder) / "chat.jsonl"
    megabytes = path.stat().st_size / 1e6
    read, _, (samples, _) = timed(lambda: load_samples(path))
    wall, cpu, (_, report) = timed(lambda: encode(samples, tokenizer, max_length=512))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["AIFT_CACHE"] = cache
        config = DataConfig(max_length=512)
        load_examples(path, tokenizer, config)
        cached, _, _ = timed(lambda: load_examples(path, tokenizer, config))
    return {
        "megabytes": megabytes,
        "tokens": report.tokens,
        "read_wall_s": read,
        "encode_wall_s": wall,
        "encode_cpu_s": cpu,
        "encode_MB_per_s": megabytes / wall,
        "encode_tokens_per_s": report.tokens / wall,
        "read_and_encode_MB_per_s": megabytes / (read + wall),
        "from_cache_s": cached,
        "peak_memory_MB": peak_memory_bytes() / 1e6,
    }


# ---- in one process: saving, evaluation, generation, collation -------------------------------------------------------


def _run(
    folder: Path, examples: list[Any], *, background: bool = False, packing: bool = True, documents: bool = True
) -> Any:
    """A full fine-tuning run over the examples, 16 documents a step; without `documents` on padded rows and masks."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ai_finetuning.data.loader import Loader
    from ai_finetuning.engine.checkpoint.store import CheckpointStore
    from ai_finetuning.engine.loss import make_document_loss, make_loss
    from ai_finetuning.engine.optimizer import build_optimizer
    from ai_finetuning.engine.state import Run
    from ai_finetuning.engine.train_state import TrainState
    from ai_finetuning.models.documents import select_forward_path
    from ai_finetuning.parallel.strategies.single import SingleDevice
    from ai_finetuning.system.gpu import sixteen_bit

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    autocast = sixteen_bit(torch.device("cpu"))  # as precision `auto` on a CPU
    strategy = SingleDevice(torch.device("cpu"), autocast=autocast)
    path, _ = select_forward_path(model, strategy.device, autocast=autocast, kernels="auto" if documents else "plain")
    strategy.prepare(model, make_loss(logits_to_keep=True) if path is None else make_document_loss(path))
    optimizer = strategy.attach(build_optimizer(list(model.named_parameters()), learning_rate=1e-4))
    if path is not None:
        path.watch(optimizer)
    rows = 4 if packing else 16
    loader = Loader(
        examples, rows_per_step=rows, seed=0, packing=packing, max_length=512, group_by_length=True, pad_token_id=0
    )
    return Run(
        model=model,
        strategy=strategy,
        loader=loader,
        optimizer=optimizer,
        state=TrainState(micro_batch_size=rows),
        store=CheckpointStore(folder, keep=2),
        metrics_path=folder / "metrics.jsonl",
        total_steps=1000,
        save_in_background=background,
    )


def _examples(count: int) -> list[Any]:
    """Documents of lognormal length, median 116 and at most 512 tokens; two thirds carry loss (as in
    docs/design/training-step.md).
    """
    import numpy as np

    from ai_finetuning.data.tokenize import IGNORED, Example

    dice = np.random.default_rng(0)
    obtained = []
    for length in np.clip(dice.lognormal(np.log(116), 0.75, count), 8, 512).astype(int):
        ids = dice.integers(3, SHAPE["vocab_size"], length).astype(np.int32)
        labels = np.where(np.arange(length) < length // 3, IGNORED, ids).astype(np.int32)
        obtained.append(Example(ids, labels, int(length)))
    return obtained


def saving(rounds: int) -> dict[str, Any]:
    """Seconds that a step waits for a checkpoint of all weights and moments, and what the steps beside the write
    lose.
    """
    from ai_finetuning.engine.loop import advance, save
    from ai_finetuning.engine.step import next_step, step_with_retry

    examples = _examples(2000)
    stalls: dict[str, list[float]] = {"sync": [], "background": []}
    steps: dict[str, list[float]] = {"alone": [], "beside a write": []}
    with tempfile.TemporaryDirectory() as place:
        runs = {name: _run(Path(place) / name, examples, background=name == "background") for name in stalls}

        def step(run: Any) -> float:
            return timed(lambda: advance(run, step_with_retry(run, next_step(run)[0])))[0]

        for run in runs.values():
            step(run)
            save(run)
            run.writer.wait()
        for _ in range(rounds):
            for name, run in runs.items():
                steps["alone"].append(step(run))
                stalls[name].append(timed(lambda run=run: save(run))[0])  # type: ignore[misc]
                if name == "background":
                    steps["beside a write"].append(step(run))
                    run.writer.wait()
        newest = runs["sync"].store.newest()
        size = sum(path.stat().st_size for path in newest.iterdir())
        for run in runs.values():
            run.writer.__exit__(None, None, None)
    return {
        "checkpoint_MB": round(size / 1e6, 1),
        "stall_s": {name: summary(values) for name, values in stalls.items()},
        "sync / background": ratios(stalls["sync"], stalls["background"]),
        "step_s": {name: summary(values) for name, values in steps.items()},
    }


def evaluation(rounds: int) -> dict[str, Any]:
    """Tokens a second of an evaluation, packed as training is, and padded; the sums agree."""
    from ai_finetuning.data.loader import evaluation_batches

    examples = _examples(96)
    with tempfile.TemporaryDirectory() as place:
        runs = {name: _run(Path(place), examples, documents=name == "packed") for name in ("packed", "padded")}
    batches = {
        name: evaluation_batches(examples, batch_size=4 if length else 8, pad_token_id=0, packing_length=length)
        for name, length in (("packed", 512), ("padded", None))
    }
    count = sum(map(len, examples))
    speeds: dict[str, list[float]] = {name: [] for name in batches}
    sums = {}
    for _ in range(rounds):
        for name, group in batches.items():
            wall, _, sums[name] = timed(lambda group=group, run=runs[name]: run.strategy.evaluate(group))  # type: ignore[misc]
            speeds[name].append(count / wall)
    assert sums["packed"][1] == sums["padded"][1]
    assert abs(sums["packed"][0] / sums["padded"][0] - 1) < 1e-3
    filled = {name: count / sum(batch.input_ids.numel() for batch in group) for name, group in batches.items()}
    return {
        "tokens_per_s": {name: summary(values) for name, values in speeds.items()},
        "filled": {name: round(share, 3) for name, share in filled.items()},
        "packed / padded": ratios(speeds["packed"], speeds["padded"]),
    }


def generation(folder: Path, rounds: int) -> dict[str, Any]:
    """New tokens a second, 32 questions, 32 tokens each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from ai_finetuning.models.generation import generate_text
    from ai_finetuning.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()
    questions = [[{"role": "user", "content": "日本の首都はどこですか。" * (number % 6 + 1)}] for number in range(32)]
    variants: dict[str, dict[str, Any]] = {
        "batched": {},
        "one by one": {"batch_size": 1},
        "batched, no cache": {"use_cache": False},
    }
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, options in variants.items():
            wall, _, _ = timed(
                lambda options=options: generate_text(
                    model, tokenizer, questions, do_sample=False, max_new_tokens=32, min_new_tokens=32, **options
                )  # type: ignore[misc]
            )
            speeds[name].append(32 * 32 / wall)
    return {
        "tokens_per_s": {name: summary(values) for name, values in speeds.items()},
        "batched / one by one": ratios(speeds["batched"], speeds["one by one"]),
        "cache / no cache": ratios(speeds["batched"], speeds["batched, no cache"]),
    }


def collation(rounds: int) -> dict[str, Any]:
    """What making a step's batches takes of the step, packed and padded."""
    from ai_finetuning.engine.loop import advance
    from ai_finetuning.engine.step import next_step, step_with_retry

    shares: dict[str, dict[str, float]] = {}
    for packing in (True, False):
        with tempfile.TemporaryDirectory() as place:
            run = _run(Path(place), _examples(2000), packing=packing)
        obtained = []
        for _ in range(2 + rounds):
            state = run.state
            batches, _, _ = timed(lambda: run.loader.micro_batches(state.epoch, state.index, state.micro_batch_size))  # noqa: B023
            wall, _, _ = timed(lambda: advance(run, step_with_retry(run, next_step(run)[0])))  # noqa: B023
            obtained.append(batches / wall)
        shares["packed" if packing else "padded"] = summary(obtained[2:])
    return {"share_of_a_step": shares}


# ---- inputs and report -----------------------------------------------------------------------------------------------


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a JSONL file; where there is none, everyday prose that never ends."""
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]
        return
    from recipes.kotoha.corpus import corpus

    for seed in itertools.count():
        yield "".join(corpus(20, seed))


def conversations(texts: Path, size: int) -> Iterator[str]:
    """JSONL lines of instruction and output cut from the texts, about `size` bytes of them."""
    done = 0
    for text in texts_of(texts):
        for start in range(0, len(text) - 40, 400):
            part = text[start : start + 400].strip()
            middle = len(part) // 2
            if not part[:middle].strip() or not part[middle:].strip():
                continue
            row = {"instruction": f"次の文の続きを書いてください。\n{part[:middle]}", "output": part[middle:]}
            made = json.dumps(row, ensure_ascii=False) + "\n"
            done += len(made.encode())
            yield made
            if done >= size:
                return


def prepare(texts: Path, size: int, folder: Path) -> None:
    """A model with the tokenizer that ships, conversations: `size` bytes of them to tokenize, 200 to start a
    training with.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from ai_finetuning.embedded import MODEL
    from ai_finetuning.models.tokenizers import load_tokenizer

    rows = list(conversations(texts, size))
    (folder / "chat.jsonl").write_text("".join(rows), encoding="utf-8")
    (folder / "chat-small.jsonl").write_text("".join(rows[:200]), encoding="utf-8")
    tokenizer = load_tokenizer(MODEL)
    assert len(tokenizer) <= SHAPE["vocab_size"]
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(**SHAPE, pad_token_id=0, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)


# What the table says: label, and where each number stands in the result.
ROWS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("`aift --help`, process and all", "{median:.2f} s", ("imports_s", "aift --help")),
    (
        "from starting `aift train` to the end of its first step (LoRA, 200 conversations)",
        "{median:.2f} s",
        ("first_step_s", "start to first step"),
    ),
    ("- of it imports", "{median:.2f} s", ("first_step_s", "imports")),
    ("- data: reading, rendering, tokens", "{median:.2f} s", ("first_step_s", "data")),
    ("- model: loading, adapter", "{median:.2f} s", ("first_step_s", "model")),
    ("- the step, with the proof of its path", "{median:.2f} s", ("first_step_s", "step")),
    ("reading and tokenizing, all cores", "{median:.1f} MB/s", ("tokens", "all cores", "read_and_encode_MB_per_s")),
    ("tokenizing, all cores against one", "{median:.2f}x", ("tokens", "speed-up of encode")),
    ("the same file again, from the cache", "{median:.2f} s", ("tokens", "all cores", "from_cache_s")),
    (
        "a step's wait for a checkpoint, written beside the training",
        "{median:.3f} s",
        ("saving", "stall_s", "background"),
    ),
    ("- against writing it in the step", "{median:.1f}x less", ("saving", "sync / background")),
    ("evaluation, packed", "{median:.0f} tokens/s", ("evaluation", "tokens_per_s", "packed")),
    ("- against padded", "{median:.2f}x", ("evaluation", "packed / padded")),
    ("generation, 32 questions in batches", "{median:.0f} new tokens/s", ("generation", "tokens_per_s", "batched")),
    ("- against one by one", "{median:.2f}x", ("generation", "batched / one by one")),
    ("- against no cache", "{median:.2f}x", ("generation", "cache / no cache")),
    ("making a step's batches, of the step", "{median:.2%}", ("collation", "share_of_a_step", "packed")),
)


def table(result: dict[str, Any]) -> str:
    """Medians with least and most; what disturbed them is said above."""
    before = result["machine_before"]
    lines = [
        f"{result['megabytes']:g} MB of text ({result['text']}), {before['cores']} cores, {result['rounds']} "
        "rounds, medians (min - max); load average "
        f"{before['load'][0]:.1f} before and {result['load_after'][0]:.1f} after; {result['date'][:10]}, commit "
        f"{before['commit']}.",
        "",
        "| what | measured | min - max |",
        "|---|---|---|",
    ]
    for label, form, place in ROWS:
        obtained = result
        for key in place:
            obtained = obtained[key]
        unit = form.partition("}")[2].strip()
        number = form.partition("}")[0].partition(":")[2]
        lines.append(
            f"| {label} | {form.format(**obtained)} | {obtained['min']:{number}} - {obtained['max']:{number}} {unit} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""
    names = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "numpy")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "commit": commit,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "load": os.getloadavg(),
    }


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"first_step": child_first_step, "tokens": child_tokens}


def run_child(name: str, started: str, cores: str, *arguments: str) -> None:
    """The other side of child()."""
    if int(cores):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    print(json.dumps(CHILDREN[name](float(started), *arguments)))


def main() -> None:
    """Measures, prints, writes the JSON and, where asked, the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("AIFT_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--quick", action="store_true", help="5 MB and 2 rounds")
    parser.add_argument("--megabytes", type=float, default=None, help="of text to tokenize (default 50)")
    parser.add_argument("--rounds", type=int, default=None, help="of every measurement (default 5)")
    parser.add_argument("--plot", action="store_true", help="also write the table of docs/performance.md")
    parser.add_argument("--text", type=Path, default=shared / "data" / "prose" / "aozora_large.jsonl.gz")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 5)
    megabytes = options.megabytes or (5 if options.quick else 50)
    obtained: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine_before": machine(),
        "rounds": rounds,
        "megabytes": megabytes,
        "text": options.text.name if options.text.is_file() else "generated",
    }
    with tempfile.TemporaryDirectory(prefix="aift-latency-") as place:
        folder = Path(place)
        prepare(options.text, int(megabytes * 1e6), folder)
        for name, measure in (
            ("imports_s", lambda: imports(rounds)),
            ("first_step_s", lambda: first_step(folder, rounds)),
            ("tokens", lambda: tokens(folder, min(3, rounds))),
            ("saving", lambda: saving(rounds)),
            ("evaluation", lambda: evaluation(rounds)),
            ("generation", lambda: generation(folder, rounds)),
            ("collation", lambda: collation(4 * rounds)),
        ):
            obtained[name] = measure()
            print(json.dumps({name: obtained[name]}, ensure_ascii=False), flush=True)
    obtained["load_after"] = os.getloadavg()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{obtained['date'][:10]}_latency{'_quick' if options.quick else ''}.json"
    path.write_text(json.dumps(obtained, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(table(obtained))
    print(f"wrote {path}")
    if options.plot:
        plot.put(plot.PAGE, "latency", table(obtained))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(*sys.argv[2:])
    else:
        main()

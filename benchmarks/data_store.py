"""Memory and speed of preparing text (`aift data prepare`), against the bare tokenizer.

python benchmarks/data_store.py --corpus aozora_large.jsonl.gz                 # 150 MB and 1.5 GB: an hour on two cores
python benchmarks/data_store.py --corpus aozora_large.jsonl.gz --megabytes 15 45 --turns 3

The corpus is repeated until it has the size, with a running number in each work, so that no two works are equal. Speeds are
in megabytes of UTF-8 text a CPU second, so that what else the machine does counts little; starting Python and its imports is
left out on both sides. The bare tokenizer gets the texts in lists and gives ids: without offsets (`encode_batch_fast`), and
with them (`encode_batch`), as labels need them. Speeds are of the smallest size, over some turns, in which what is compared runs one
behind the other; two processes that prepare are compared with two bare tokenizers at the same time, of half the texts each, as two
cores that share a cache or units are slower together. A ratio is the median of those of the turns. Seconds on the clock are told
beside: of two processes without what starting them takes. Memory is the peak above what the process held with everything imported and the tokenizer loaded,
and of it only what is the process's own (RssAnon in /proc/self/status, looked at 30 times a second): pages of files that are
read, written or mapped are the system's to take back. Without /proc it is the peak of all.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "data_store.json"
MEMORY_LIMIT_MB, MEMORY_RATIO, SPEED_RATIO = 700, 1.2, 0.8
_SETTINGS = {"on_long": "split", "max_length": 1024}
_HALVES = (2, 3)  # what bare() is asked that takes half of the texts
_TOGETHER = 2**18  # characters that the bare tokenizer gets at once


def write_corpus(source: Path, path: Path, megabytes: float) -> int:
    """Writes so much of a corpus; its bytes."""
    size = number = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        while size < megabytes * 10**6:
            with gzip.open(source, "rt", encoding="utf-8") as lines:
                for line in lines:
                    number += 1
                    text = f"{number}\n{json.loads(line)['text']}"
                    row = json.dumps({"text": text}, ensure_ascii=False) + "\n"
                    file.write(row)
                    size += len(row.encode())
                    if size >= megabytes * 10**6:
                        break
    return size


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def _held() -> float:
    """Megabytes of the process's own; without /proc the most that it ever held."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


@contextmanager
def _watched() -> Iterator[list[float]]:
    """Holds what the process held before, and the most that it held since."""
    seen, ended = [_held()] * 2, threading.Event()

    def look() -> None:
        while not ended.wait(1 / 30):
            seen[1] = max(seen[1], _held())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def prepare(path: Path, model: str, processes: int) -> dict[str, Any]:
    """What preparing a file takes, in this process and those that it starts."""
    from ai_finetuning.config.data import DataConfig
    from ai_finetuning.data.store.folder import prepare_folder
    from ai_finetuning.data.store.mapped import open_store
    from ai_finetuning.data.store.preparing import Preparation, sources_of
    from ai_finetuning.execution.tokenizing import encoder_for
    from ai_finetuning.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(model)
    tokenizer("あ")
    before, started = _cpu(resource.RUSAGE_SELF), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, _watched() as held:
        asked = Preparation((str(path),), DataConfig(**_SETTINGS), tokenizer, sources_of([str(path)], hashed=False))  # type: ignore[arg-type]
        encoder = encoder_for(tokenizer, 0, processes)
        _, manifest = prepare_folder(asked, Path(folder), encoder=encoder)
        seconds = time.perf_counter() - started
        own, children = _cpu(resource.RUSAGE_SELF) - before, _cpu(resource.RUSAGE_CHILDREN)
        peak = held[1] - held[0]
        began = time.perf_counter()
        examples, _ = open_store(Path(folder))
        opened = time.perf_counter() - began
        return {
            "cpu_seconds": own,
            "cpu_seconds_of_children": children,
            "seconds": seconds,
            "megabytes_above_imports": peak,
            "tokens": manifest.report.tokens,
            "rows": len(examples),
            "store_megabytes": sum(entry.bytes for entry in manifest.arrays.values()) / 10**6,
            "seconds_to_open": opened,
        }


def start(path: Path, model: str, processes: int) -> dict[str, Any]:
    """What starting the workers takes: the same with one row."""
    row = path.with_name("row.jsonl")
    row.write_text(json.dumps({"text": "東京は日本の首都です。" * 9}) + "\n", encoding="utf-8")
    return prepare(row, model, processes)


def bare(path: Path, model: str, what: int) -> dict[str, Any]:
    """What the tokenizer alone takes for the same texts: 0 without offsets, 1 with them, 2 and 3 without for either half."""
    from ai_finetuning.models.tokenizers import load_tokenizer

    core = load_tokenizer(model).backend_tokenizer
    offsets = what == 1
    encode = core.encode_batch if offsets else core.encode_batch_fast
    used, tokens, seconds = 0.0, 0, 0.0
    texts: list[str] = []

    def run() -> None:
        nonlocal used, tokens, seconds
        before, started = _cpu(resource.RUSAGE_SELF), time.perf_counter()
        for encoding in encode(texts):
            tokens += len(encoding.ids)
            if offsets:
                _ = encoding.offsets
        used += _cpu(resource.RUSAGE_SELF) - before
        seconds += time.perf_counter() - started
        texts.clear()

    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if what in _HALVES and number % 2 != what % 2:
                continue
            texts.append(json.loads(line)["text"])
            if sum(map(len, texts)) >= _TOGETHER:
                run()
    run()
    return {"cpu_seconds": used, "tokens": tokens, "seconds": seconds}


def child(what: str, path: Path, model: str, *numbers: int) -> dict[str, Any]:
    """One of the functions above in a process of its own, with one thread; for several numbers at the same time, summed."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--child", what, str(path), model]
    begun = [subprocess.Popen([*command, str(number)], env=environment, stdout=subprocess.PIPE) for number in numbers]
    told = [json.loads(process.communicate()[0].splitlines()[-1]) for process in begun]
    return {name: (max if name == "seconds" else sum)(item[name] for item in told) for name in told[0]}


def speeds(path: Path, model: str, turns: int) -> dict[str, Any]:
    """CPU seconds and seconds of everything that is compared, by turns, and the medians of the ratios."""
    size = path.stat().st_size / 10**6
    cpu: dict[str, list[float]] = defaultdict(list)
    clock: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        for name, numbers in (("bare", (0,)), ("bare_with_offsets", (1,)), ("two_bare", _HALVES)):
            obtained = child("bare", path, model, *numbers)
            cpu[name].append(obtained["cpu_seconds"])
            clock[name].append(obtained["seconds"])
            if name == "bare":
                one = child("prepare", path, model, 1)
                cpu["one"].append(one["cpu_seconds"])
                clock["one"].append(one["seconds"])
        two, begun = child("prepare", path, model, 2), child("start", path, model, 2)
        cpu["first_of_two"].append(two["cpu_seconds"])
        cpu["start_of_two"].append(begun["cpu_seconds_of_children"])
        cpu["two"].append(two["cpu_seconds"] + two["cpu_seconds_of_children"] - begun["cpu_seconds_of_children"])
        clock["two"].append(two["seconds"] - begun["seconds"])
        print(json.dumps({name: round(values[-1], 2) for name, values in cpu.items()}), file=sys.stderr)
    compared = (("one", "bare"), ("one", "bare_with_offsets"), ("two", "two_bare"), ("two", "bare"))
    ratios = {
        f"{name}_of_{of}": [theirs / mine for mine, theirs in zip(cpu[name], cpu[of], strict=True)]
        for name, of in compared
    }
    by_clock = {
        f"{name}_of_{of}": [theirs / mine for mine, theirs in zip(clock[name], clock[of], strict=True)]
        for name, of in (("one", "bare"), ("two", "two_bare"))
    }
    return {
        "megabytes": size,
        "megabytes_a_cpu_second": {name: size / median(values) for name, values in cpu.items()},
        "cpu_seconds": dict(cpu),
        "seconds": dict(clock),
        "of_the_bare_tokenizer": {name: median(values) for name, values in ratios.items()},
        "of_the_bare_tokenizer_on_the_clock": {name: median(values) for name, values in by_clock.items()},
    }


def measure(corpus: Path, model: str, sizes: list[float], turns: int) -> dict[str, Any]:
    """All figures; speeds are of the smallest size."""
    memory: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.jsonl"
        for megabytes in sizes:
            size = write_corpus(corpus, path, megabytes) / 10**6
            memory.append({"megabytes": size, **child("prepare", path, model, 1)})
            print(json.dumps(memory[-1]), file=sys.stderr)
            if megabytes == sizes[0]:
                speed = speeds(path, model, turns)
                print(json.dumps(speed), file=sys.stderr)
    peaks = [item["megabytes_above_imports"] for item in memory]
    return {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "model": model,
        "memory": memory,
        "largest_peak_over_smallest": max(peaks) / min(peaks),
        "speed": speed,
    }


def main() -> None:
    """Measures, prints and writes the figures."""
    if sys.argv[1:2] == ["--child"]:
        what, path, model, number = sys.argv[2:]
        function = {"prepare": prepare, "bare": bare, "start": start}[what]
        print(json.dumps(function(Path(path), model, int(number))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="JSON Lines with a column text, compressed by gzip")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[150, 1500])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--model", default="embedded:kotoha-tiny")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    figures = measure(asked.corpus, asked.model, asked.megabytes, asked.turns)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    print(text)
    asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

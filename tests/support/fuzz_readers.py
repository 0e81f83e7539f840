"""Every reader of the toolkit with its hostile inputs: what it starts from, and the command that comes to it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from .fuzz import NAMES, NUMBERS, WORDS, changed, damaged, value, written
from .hostile_templates import HOSTILE, UNREADABLE

ROWS = [{"質問": f"{number}番の首都は？", "回答": f"東京です。{'あ' * (number % 40)}"} for number in range(12)]
TALKS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "首都は？"}, {"role": "assistant", "content": "東京です。", "weight": 1}]},
    {"conversations": [{"from": "human", "value": "天気は？"}, {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
                       {"from": "observation", "value": "晴れ"}, {"from": "gpt", "value": "晴れです。"}]},
    {"instruction": "人口は？", "input": "日本", "output": 2, "history": [["首都は？", "東京です。"]], "system": "役"},
]  # fmt: skip
ROW_KEYS = [
    "messages", "conversations", "conversation", "instruction", "input", "output", "text", "system", "history", "tools", "prompt",
    "completion", "chosen", "rejected", "label", "answers", "translation", "tokens", "ner_tags", "weight", "train", "質問", "回答",
    "", "role", "content", "tool_calls", "function", "name", "arguments", "reasoning_content",
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """What the commands need beside their hostile input.

    Attributes:
        folder: of everything.
        model: a folder of a tiny model.
        rows: a good file of data.
    """

    folder: Path
    model: Path
    rows: Path

    @staticmethod
    def at(folder: Path) -> Place:
        """Makes it, or finds what is there."""
        from .models import save_tiny_model

        model, rows = folder / "model", folder / "rows.jsonl"
        if not model.is_dir():
            save_tiny_model(model, hidden_size=32)
        good = '{"instruction": "首都は？", "output": "東京です。"}\n'
        rows.write_text(good * 4, encoding="utf-8")
        return Place(folder, model, rows)

    def data(self, file: Path, rng: random.Random) -> list[str]:
        """A verb that reads data."""
        verb = ["show"] if rng.random() < 0.3 else ["stats"]
        end = ["--row", rng.choice(["1", "last", "3"])] if verb == ["show"] else []
        skip = ["data.skip_bad_rows=true"] if rng.random() < 0.5 else []
        return ["data", *verb, str(file), "--model", str(self.model), *end, *skip]


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        prepare: makes what its inputs start from.
        make: (chance, place, that, folder for the input) -> the command's arguments.
    """

    prepare: Callable[[Place], Any]
    make: Callable[[random.Random, Place, Any, Path], list[str]]


# --- data


def jsonl() -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS + TALKS).encode()


def table() -> str:
    return "質問,回答\r\n" + "".join(f'{row["質問"]},"{row["回答"]}"\r\n' for row in ROWS)


def _rows_of_values(rng: random.Random) -> list[Any]:
    if rng.random() < 0.5:
        return [changed(rng.choice(ROWS + TALKS), rng, ROW_KEYS) for _ in range(rng.randint(1, 4))]
    return [{rng.choice(ROW_KEYS): value(rng, names=ROW_KEYS) for _ in range(rng.randint(1, 4))} for _ in range(2)]


def _jsonl(rng: random.Random, place: Place, start: Any, work: Path) -> list[str]:
    file = work / "a.jsonl"
    if rng.random() < 0.4:
        raw = damaged(jsonl(), rng)
    else:
        raw = b"\n".join(
            json.dumps(row, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
            for row in _rows_of_values(rng)
        )
    file.write_bytes(raw)
    return place.data(file, rng)


def _json(rng: random.Random, place: Place, start: Any, work: Path) -> list[str]:
    file = work / "a.json"
    tree: Any = ROWS + TALKS if rng.random() < 0.3 else _rows_of_values(rng)
    wrapped = rng.choice(
        [tree, {"data": tree}, {"a": {"b": tree}}, {"columns": ["質問"], "data": tree}, {"質問": tree, "回答": tree}]
    )
    file.write_bytes(written(changed(wrapped, rng, ROW_KEYS), rng))
    return place.data(file, rng)


def _delimited(rng: random.Random, place: Place, start: Any, work: Path) -> list[str]:
    file = work / rng.choice(["a.csv", "a.tsv"])
    text = table().replace(",", rng.choice([",", "\t", ";", "|"]))
    cells = [str(item) for item in WORDS] + [
        '"',
        '""',
        '"' * 999,
        "\n",
        ",",
        "=1+1",
        "a" * 200_000,
        ",".join("a" * 2000),
    ]
    for _ in range(rng.randint(0, 4)):
        where = rng.randrange(len(text))
        text = text[:where] + rng.choice(cells) + text[where:]
    raw = text.encode(rng.choice(["utf-8", "cp932", "utf-16", "euc_jp", "utf-8-sig"]), errors="replace")
    file.write_bytes(damaged(raw, rng) if rng.random() < 0.6 else raw)
    return place.data(file, rng)


def _text(rng: random.Random, place: Place, start: Any, work: Path) -> list[str]:
    file = work / "a.txt"
    text = "吾輩は猫である。\n\n名前はまだ無い。\n" * rng.choice([1, 50]) + str(rng.choice(WORDS)) * rng.choice(
        [1, 3, 1000]
    )
    raw = text.encode(rng.choice(["utf-8", "euc_jp", "cp932", "utf-16-le", "utf-32", "iso2022_jp"]), errors="replace")
    file.write_bytes(damaged(raw, rng) if rng.random() < 0.7 else raw)
    return place.data(file, rng)


def _zstd(raw: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.Codec("zstd").compress(raw, asbytes=True))


_ZEROS = b"\x00" * 50_000_000  # one object: its hash is computed once
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _zstd,
}


@lru_cache(maxsize=40)
def _packed(kind: str, content: bytes) -> bytes:
    return _COMPRESS[kind](content)


def _compressed(rng: random.Random, place: Place, start: Any, work: Path) -> list[str]:
    kind = rng.choice([*_COMPRESS, ".zip"])
    inner = rng.choice([jsonl(), table().encode("cp932"), b'{"text": "' + b"a " * 300_000 + b'"}', b"", _ZEROS])
    if rng.random() < 0.3:
        inner = damaged(inner[:100_000], rng)
    name = rng.choice(["a.jsonl", "a.csv", "a.txt", "a.xlsx", "a.json", "a"])
    if kind == ".zip":
        buffer = io.BytesIO()
        way = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
        way = zipfile.ZIP_DEFLATED if len(inner) > 1_000_000 else way  # LZMA takes a second for that
        with zipfile.ZipFile(buffer, "w", way) as archive:
            for _ in range(rng.choice([1, 1, 1, 2])):
                archive.writestr(rng.choice([name, "../a.csv", "/a.csv", "__MACOSX/a.csv", "a\x1b[2J.csv"]), inner)
        raw, file = buffer.getvalue(), work / "a.zip"
    else:
        raw, file = _packed(kind, inner), work / f"{name}{kind}"
        if rng.random() < 0.1:
            raw = raw * 3
    file.write_bytes(damaged(raw, rng) if rng.random() < 0.7 else raw)
    return place.data(file, rng)


def _book(place: Place) -> dict[str, bytes]:
    import openpyxl

    book = openpyxl.Workbook()
    for row in [list(ROWS[0]), *(list(row.values()) for row in ROWS), [1.5, True], ["=1+1", None]]:
        book.active.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {item.filename: archive.read(item) for item in archive.infolist()}


_CELLS = [
    b'<row r="99999999"><c r="A99999999"><v>1</v></c></row>', b'<row r="x"/>', b'<c r="XFD1048577" t="s"><v>9</v></c>', b"<!DOCTYPE a>",
    b'<c r="A1" t="s"><v>99999999</v></c>', b'<c r="" t="q"><v>x</v></c>', b'<c t="d"><v>9999-99-99</v></c>', b"<v>1e999</v>",
    b'<c r="A2" s="99"><v>1</v></c>', b"<mergeCell ref='A1:XFD1048576'/>", b"&#0;", b"&a;", b"</row>", b'<row r="-1">',
]  # fmt: skip


def _xlsx(rng: random.Random, place: Place, start: dict[str, bytes], work: Path) -> list[str]:
    parts = dict(start)
    for _ in range(rng.randint(0, 3)):
        name = rng.choice(list(parts))
        raw = parts[name]
        where = rng.choice([rng.randrange(len(raw) + 1), max(0, raw.find(b"<row")), max(0, raw.find(b"<c "))])
        parts[name] = rng.choice([damaged(raw, rng), raw[:where] + rng.choice(_CELLS) + raw[where:]])
    if rng.random() < 0.1:
        del parts[rng.choice(list(parts))]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in parts.items():
            archive.writestr(name, raw)
    file = work / "a.xlsx"
    file.write_bytes(damaged(buffer.getvalue(), rng) if rng.random() < 0.3 else buffer.getvalue())
    return place.data(file, rng)


def _columnar_start(place: Place) -> dict[str, bytes]:
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    flat, nested = pyarrow.Table.from_pylist(ROWS), pyarrow.Table.from_pylist([TALKS[0]] * 5)
    found: dict[str, bytes] = {}
    for key, rows in (
        ("flat", flat),
        ("nested", nested),
        ("dictionary", flat.append_column("c", pyarrow.array(["a"] * 12).dictionary_encode())),
    ):
        for kind, write in (
            (".parquet", lambda rows, sink: pyarrow.parquet.write_table(rows, sink)),
            (".feather", lambda rows, sink: pyarrow.feather.write_feather(rows, sink)),
            (".arrow", _ipc(pyarrow.ipc.new_file)),
            ("-stream.arrow", _ipc(pyarrow.ipc.new_stream)),
        ):
            sink = io.BytesIO()
            write(rows, sink)
            found[key + kind] = sink.getvalue()
    return found


def _ipc(opened: Callable[..., Any]) -> Callable[[Any, Any], None]:
    def write(rows: Any, sink: Any) -> None:
        with opened(sink, rows.schema) as writer:
            writer.write_table(rows)

    return write


def _columnar(rng: random.Random, place: Place, start: dict[str, bytes], work: Path) -> list[str]:
    name = rng.choice(list(start))
    raw = bytearray(start[name])
    if rng.random() < 0.6:  # bits of what the offsets and lengths are in
        for _ in range(rng.randint(1, 8)):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    file = work / name
    file.write_bytes(bytes(raw) if rng.random() < 0.6 else damaged(bytes(raw), rng))
    return place.data(file, rng)


def _saved(place: Place) -> Path:
    import datasets

    folder = place.folder / "saved"
    if not folder.is_dir():
        rows = datasets.Dataset.from_list([{"instruction": "首都は？", "output": "東京です。"}] * 5)
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(folder / "two"))
        rows.save_to_disk(str(folder / "one"))
    return folder


_SET_NAMES = [
    *NAMES,
    "_data_files",
    "filename",
    "features",
    "_type",
    "dtype",
    "splits",
    "_split",
    "feature",
    "_format_type",
    "citation",
]


def _datasets(rng: random.Random, place: Place, start: Path, work: Path) -> list[str]:
    folder = work / "set"
    shutil.copytree(start / rng.choice(["one", "two"]), folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in rng.sample(files, rng.randint(1, 2)):
        if rng.random() < 0.05:
            file.unlink()
        elif file.suffix == ".json" and rng.random() < 0.8:
            file.write_bytes(written(changed(json.loads(file.read_text(encoding="utf-8")), rng, _SET_NAMES), rng))
        else:
            file.write_bytes(damaged(file.read_bytes(), rng))
    return place.data(folder, rng)


# --- settings

_RUN: dict[str, Any] = {
    "model": {"name": "MODEL", "dtype": "float32"},
    "method": "lora",
    "data": {"train": "ROWS", "max_length": 64},
    "training": {
        "learning_rate": 5e-3,
        "batch_size": 2,
        "num_epochs": 1,
        "runtime": {"progress": False},
        "output_dir": "OUT",
    },
    "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj"]},
}
_FOREIGN: list[dict[str, Any]] = [
    {"model_name_or_path": "org/model", "stage": "sft", "do_train": True, "finetuning_type": "lora", "dataset": "faq", "template": "llama3",
     "output_dir": "out", "lora_rank": 8, "lora_target": "all", "deepspeed": "ds.json", "learning_rate": 1e-4, "dataset_dir": "."},
    {"base_model": "org/model", "datasets": [{"path": "faq.jsonl", "type": "chat_template", "field_messages": "m"}], "adapter": "lora",
     "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True, "learning_rate": 2e-4, "micro_batch_size": 2, "output_dir": "out",
     "gradient_accumulation_steps": 4, "special_tokens": {"pad_token": "<pad>"}, "fsdp_config": {"a": 1}, "plugins": ["x"]},
    {"model_name_or_path": "org/model", "dataset_name": "org/data", "use_peft": True, "lora_r": 8, "per_device_train_batch_size": 2,
     "learning_rate": "2.0e-4", "packing": True},
]  # fmt: skip
_YAML = [
    "!!python/object/apply:os.system ['id']", "&a [*a]", "*x", "<<: *a", "? [a]", "!!binary x", "!!timestamp 1", "{a: {", "- -", "\t",
    "%YAML 9.9", "...", "---\na: 1\n---", "'", "\u0085", "\x00", "!!set {a}", "0o9", "1_0:6", "2026-99-99", ".inf", "~", "[" * 3000,
    "a: &b [1]\nc: [*b,*b,*b]",
]  # fmt: skip


def _settings_keys() -> list[str]:
    from ai_finetuning.config.fields import fields_of
    from ai_finetuning.config.run import RunConfig

    return sorted(".".join(path) for path in fields_of(RunConfig))


def _yaml_text(tree: Any, rng: random.Random) -> bytes:
    try:
        text = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)
    except Exception:
        text = json.dumps(tree)
    for _ in range(rng.randint(0, 2)):
        lines = text.split("\n")
        lines.insert(
            rng.randrange(len(lines) + 1),
            " " * rng.choice([0, 2, 4]) + rng.choice(["", "a: ", "- "]) + rng.choice(_YAML),
        )
        text = "\n".join(lines)
    raw = text.encode(errors="surrogatepass")
    return damaged(raw, rng) if rng.random() < 0.3 else raw


def _run_yaml(rng: random.Random, place: Place, start: list[str], work: Path) -> list[str]:
    text = (
        json.dumps(_RUN)
        .replace("MODEL", str(place.model))
        .replace("ROWS", str(place.rows))
        .replace("OUT", str(work / "out"))
    )
    file = work / "run.yaml"
    values = WORDS[:4] + NUMBERS + ["auto", "true", "false", "[1]", "{a: 1}", "linear", "bf16", "0.1", "3", "50"]
    overrides = [f"{rng.choice(start)}={rng.choice(values)}" for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.5:
        file.write_text(text, encoding="utf-8")
    else:
        words = [name for key in start for name in key.split(".")]
        file.write_bytes(_yaml_text(changed(json.loads(text), rng, words, 2), rng))
        overrides = overrides if rng.random() < 0.2 else []
    return ["train", str(file), *overrides, "--dry-run"]


def _import(rng: random.Random, place: Place, start: list[str], work: Path) -> list[str]:
    tree = changed(rng.choice(_FOREIGN), rng, start, times=5)
    as_json = rng.random() < 0.2
    file = work / ("theirs.json" if as_json else "theirs.yaml")
    file.write_bytes(written(tree, rng) if as_json else _yaml_text(tree, rng))
    (work / "dataset_info.json").write_bytes(
        written(
            changed(
                {"faq": {"file_name": "faq.json", "columns": {"prompt": "a"}, "formatting": "alpaca", "tags": {}}}, rng
            ),
            rng,
        )
    )
    (work / "ds.json").write_bytes(
        written(changed({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}, rng), rng)
    )
    tool = ["--from", rng.choice(["llamafactory", "axolotl", "trl"])] if rng.random() < 0.4 else []
    return ["import", str(file), *tool]


def _foreign_keys(place: Place) -> list[str]:
    from ai_finetuning.config.foreign.convert import TOOLS

    return sorted({key for tool in TOOLS.values() for key in tool.table})


# --- models

_CONFIG_NAMES = [
    "num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "num_experts", "max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta", "hidden_act", "model_type",
    "architectures", "auto_map", "quantization_config", "quant_method", "load_in_4bit", "text_config", "torch_dtype", "dtype",
    "attn_implementation", "layer_types", "sliding_window", "num_labels", "id2label", "eos_token_id", "pad_token_id", "bos_token_id",
    "tie_word_embeddings", "transformers_weights", "n_layer", "n_embd", "mlp_bias", "attention_bias", "attention_dropout",
    "initializer_range", "rms_norm_eps", "use_cache", "pretraining_tp", "rope_type", "factor", "chunk_size_feed_forward", "is_decoder",
    "add_cross_attention", "pruned_heads", "generation_config", "max_length", "num_beams", "kernel_config", "_name_or_path",
]  # fmt: skip


def _models(place: Place) -> list[Path]:
    from .models import CONFIGS, save_tiny_model

    found = [place.model]
    for kind in CONFIGS:
        folder = place.folder / f"model-{kind}"
        if not folder.is_dir():
            save_tiny_model(folder, kind, hidden_size=32)
        found.append(folder)
    return found


def _linked(model: Path, folder: Path) -> Path:
    """A copy of a model's folder."""
    return Path(shutil.copytree(model, folder))


def _ask(place: Place, folder: Path, rng: random.Random) -> list[str]:
    """A verb that reads a model's folder."""
    way = rng.randrange(6)
    out = f"training.output_dir={folder.parent / 'out'}"
    if way == 0:
        return ["train", f"model={folder}", f"data.train={place.rows}", "method=lora", out, "--dry-run"]
    if way == 1:
        return ["data", "stats", str(place.rows), "--model", str(folder)]
    if way == 2:
        for file in folder.glob("*.safetensors"):
            file.unlink()
        return ["train", f"model={folder}", f"data.train={place.rows}", "method=pretrain", out, "--dry-run"]
    return ["generate", str(folder), "首都は？", "--max-new-tokens", "2", "--greedy"]


def _config(rng: random.Random, place: Place, start: list[Path], work: Path) -> list[str]:
    folder = _linked(rng.choice(start), work / "model")
    file = folder / rng.choice(["config.json"] * 5 + ["generation_config.json"])
    tree = json.loads(file.read_text(encoding="utf-8"))
    if rng.random() < 0.3:
        tree[rng.choice(_CONFIG_NAMES[:12])] = rng.choice([*NUMBERS, *WORDS[:6]])
        file.write_text(json.dumps(tree), encoding="utf-8")
    else:
        file.write_bytes(written(changed(tree, rng, _CONFIG_NAMES), rng))
    return _ask(place, folder, rng)


_TOKENIZER_NAMES = [
    *NAMES, "vocab", "merges", "added_tokens", "special", "pre_tokenizer", "normalizer", "decoder", "post_processor", "truncation",
    "padding", "unk_token", "byte_fallback", "tokenizer_class", "eos_token", "bos_token", "pad_token", "chat_template",
    "model_max_length", "auto_map", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "max_length", "pattern",
    "Regex", "add_prefix_space", "stride", "strategy", "single", "pair", "special_tokens", "ids", "tokens",
]  # fmt: skip


def _tokenizer(rng: random.Random, place: Place, start: Any, work: Path) -> list[str]:
    folder = _linked(place.model, work / "model")
    file = folder / rng.choice(["tokenizer.json"] * 3 + ["tokenizer_config.json"] * 2 + ["special_tokens_map.json"])
    if file.name == "special_tokens_map.json":
        file.write_text(
            json.dumps({"eos_token": "</s>", "pad_token": {"content": "<pad>", "lstrip": False}}), encoding="utf-8"
        )
    tree = json.loads(file.read_text(encoding="utf-8"))
    few = {key: part for key, part in tree.items() if key != "model"} if rng.random() < 0.7 else tree
    mixed = changed(few, rng, _TOKENIZER_NAMES)
    file.write_bytes(written({**tree, **mixed} if isinstance(mixed, dict) and few is not tree else mixed, rng))
    if rng.random() < 0.05:
        file.unlink()
    return _ask(place, folder, rng)


_GRAMMAR = [
    "{{ m }}", "{{ messages[0].content }}", "{% for m in messages %}{{ m.role }}{% endfor %}", "{{ messages | tojson }}", "{{ eos_token }}",
    "{{ 1 / 0 }}", "{{ none.x }}", "{{ messages.x.y }}", "{{ messages['content'] + 1 }}", "{{ namespace(a=1).a }}", "{{ [1] + messages }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(f) }}", "{{ f(messages) }}", "{% if add_generation_prompt %}a{% endif %}", "{{ loop }}",
    "{{ ''.__class__.__mro__ }}", "{{ messages | attr('__class__') }}", "{% set x = messages %}{{ x }}", "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y') }}", "{{ messages | map(attribute='role') | join }}", "{{ 'あ' * 9 }}", "{{ range(9) | list }}", "{{ dict(a=1) }}",
    "{{ cycler(1, 2).next() }}", "{% break %}", "{{ messages | sort }}", "{{ messages == [messages] }}", "{{ (messages, 1) }}", "{{ -'a' }}",
    "{{ 'a' in messages }}", "{{ messages[1:][::-1] }}", "{{ messages | groupby('role') | list }}", "{{ undefined_function() }}", "{% raw %}x",
    "{{ '%d' % 'a' }}", "{{ '{0}'.format(messages) }}", "{{ messages | first | items | list }}", "{% with a = messages %}{{ a }}{% endwith %}",
    "{% set ns = namespace() %}{% for i in range(9) %}{% set ns.a = [ns.a, i] %}{% endfor %}{{ ns.a }}", "{% generation %}x{% endgeneration %}",
    "{% call f() %}x{% endcall %}", "{{ self }}", "{{ messages | sum(attribute='content') }}", "{{ 'a' | int(messages) }}", "{% continue %}",
]  # fmt: skip


def _template(rng: random.Random, place: Place, start: Any, work: Path) -> list[str]:
    from ai_finetuning.japanese.templates import TEMPLATES

    way = rng.randrange(4)
    if way == 0:
        text = rng.choice([*HOSTILE.values(), *UNREADABLE.values()])
    elif way == 1:
        text = "".join(rng.choice(_GRAMMAR) for _ in range(rng.randint(1, 5)))
    else:
        text = rng.choice([*TEMPLATES.values()]).jinja
        for _ in range(rng.randint(1, 3)):
            where = rng.randrange(len(text))
            text = (
                text[:where]
                + rng.choice([*_GRAMMAR, "{%", "}}", "'", " | ", "(", "]", "~"])
                + text[where + rng.choice([0, 3]) :]
            )
    raw = text.encode()
    raw = damaged(raw, rng) if rng.random() < 0.15 else raw
    if rng.random() < 0.5:
        file = work / "t.jinja"
        file.write_bytes(raw)
        return ["data", "show", str(place.rows), "--model", str(place.model), "--chat-template", str(file)]
    folder = _linked(place.model, work / "model")
    (folder / "chat_template.jinja").write_bytes(raw)
    return _ask(place, folder, rng)


def _weights(rng: random.Random, place: Place, start: list[Path], work: Path) -> list[str]:
    folder = _linked(rng.choice(start), work / "model")
    file = folder / "model.safetensors"
    file.write_bytes(_safetensors(file.read_bytes(), rng))
    if rng.random() < 0.2:
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors", "a": "b.safetensors"}}
        (folder / "model.safetensors.index.json").write_bytes(written(changed(index, rng), rng))
    return _ask(place, folder, rng)


def _safetensors(raw: bytes, rng: random.Random) -> bytes:
    """A file of weights with its header or its bytes changed."""
    size = int.from_bytes(raw[:8], "little")
    if rng.random() < 0.6:
        names = [
            "dtype",
            "shape",
            "data_offsets",
            "__metadata__",
            "a.weight",
            "lm_head.weight",
            "model.embed_tokens.weight",
        ]
        header = json.dumps(changed(json.loads(raw[8 : 8 + size]), rng, names)).encode()
        length = rng.choice([len(header)] * 8 + [0, 2**63, len(header) + 5])
        return length.to_bytes(8, "little") + header + raw[8 + size :]
    return damaged(raw, rng)


_ADAPTER_NAMES = [
    "r", "lora_alpha", "target_modules", "peft_type", "task_type", "base_model_name_or_path", "bias", "rank_pattern", "alpha_pattern",
    "modules_to_save", "use_dora", "use_rslora", "layers_to_transform", "layers_pattern", "exclude_modules", "fan_in_fan_out",
    "init_lora_weights", "megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "trainable_token_indices",
    "layer_replication", "runtime_config", "lora_bias", "target_parameters", "auto_mapping", "revision", "inference_mode",
    "lora_dropout", "arrow_config", "ensure_weight_tying", "alora_invocation_tokens", "use_qalora", "qalora_group_size",
]  # fmt: skip


def _adapters(place: Place) -> Path:
    folder = place.folder / "adapter"
    if not folder.is_dir():
        from ai_finetuning.models.adapters import add_lora
        from ai_finetuning.models.loading import load_causal_lm

        model = add_lora(load_causal_lm(str(place.model), dtype="float32", announce=False), r=4, alpha=8)
        model.peft_config["default"].base_model_name_or_path = str(place.model)
        model.save_pretrained(folder)
    return folder


def _adapter(rng: random.Random, place: Place, start: Path, work: Path) -> list[str]:
    folder = Path(shutil.copytree(start, work / "adapter"))
    file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if rng.random() < 0.8:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if rng.random() < 0.4:
            tree[rng.choice(_ADAPTER_NAMES)] = value(rng, 1, _ADAPTER_NAMES)
            file.write_text(json.dumps(tree), encoding="utf-8")
        else:
            file.write_bytes(written(changed(tree, rng, _ADAPTER_NAMES), rng))
    else:
        weights.write_bytes(_safetensors(weights.read_bytes(), rng))
    if rng.random() < 0.25:
        out = f"training.output_dir={work / 'out'}"
        return ["train", f"model={place.model}", f"data.train={place.rows}", f"lora.adapter={folder}", out, "--dry-run"]
    return ["generate", str(folder), "首都は？", "--max-new-tokens", "2", "--greedy"]


def _run(place: Place) -> Path:
    """A run's folder that was stopped behind its last step."""
    folder = place.folder / "run"
    if not folder.is_dir():
        from .commands import call

        assert call(*_resumed(place, folder)[:-1]) == 0
        state = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        (folder / "run.json").write_text(json.dumps(state | {"status": "running"}), encoding="utf-8")
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            (folder / name).unlink(missing_ok=True)
    return folder


def _resumed(place: Place, folder: Path) -> list[str]:
    settings = [
        "max_steps=2",
        "save_steps=1",
        "training.batch_size=1",
        "gradient_accumulation_steps=1",
        "runtime.progress=false",
        "training.runtime.report_samples=0",  # answers take longer than the reading
    ]
    run = ["train", f"model={place.model}", f"data.train={place.rows}", "method=lora", "model.dtype=float32"]
    return [*run, *settings, f"training.output_dir={folder}", "--resume"]


_STATE_NAMES = [
    *NAMES, "format_version", "files", "tensors", "bytes", "sha256", "step", "state", "fingerprint", "derived", "shape", "slice", "dtype",
    "file", "status", "epoch", "index", "weights_only", "rng", "precision", "warmup_steps", "batch_size",
]  # fmt: skip


def _checkpoint(rng: random.Random, place: Place, start: Path, work: Path) -> list[str]:
    folder = Path(shutil.copytree(start, work / "run"))
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".json", ".safetensors", ".jsonl", ".yaml")
    )
    sealed = rng.random() < 0.5
    for file in rng.sample(files, rng.randint(1, 3)):
        if file.suffix == ".json":
            file.write_bytes(written(changed(json.loads(file.read_text(encoding="utf-8")), rng, _STATE_NAMES), rng))
        elif rng.random() < 0.1:
            file.unlink()
        elif file.suffix == ".safetensors":
            file.write_bytes(_safetensors(file.read_bytes(), rng))
        else:
            file.write_bytes(damaged(file.read_bytes(), rng))
    if sealed:  # by somebody who knows the format: the hashes fit what was changed
        for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
            _seal(checkpoint)
    end = ["--dry-run"] if rng.random() < 0.85 else []
    return [*_resumed(place, folder), *end]


def _seal(folder: Path) -> None:
    from ai_finetuning.config.run_folder import MANIFEST
    from ai_finetuning.engine.checkpoint.store import _digest_of
    from ai_finetuning.system.files import sha256_of

    file = folder / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        manifest.pop("sha256", None)
        for name, entry in manifest["files"].items():
            entry |= {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        manifest["sha256"] = _digest_of(manifest)
        file.write_text(json.dumps(manifest), encoding="utf-8")
    except Exception:
        return  # it is damaged beyond that


def _none(place: Place) -> None:
    return None


READERS: dict[str, Reader] = {
    "jsonl": Reader(_none, _jsonl),
    "json": Reader(_none, _json),
    "csv": Reader(_none, _delimited),
    "text": Reader(_none, _text),
    "compressed": Reader(_none, _compressed),
    "xlsx": Reader(_book, _xlsx),
    "columnar": Reader(_columnar_start, _columnar),
    "datasets": Reader(_saved, _datasets),
    "run yaml": Reader(lambda place: _settings_keys(), _run_yaml),
    "import": Reader(_foreign_keys, _import),
    "config.json": Reader(_models, _config),
    "tokenizer": Reader(_none, _tokenizer),
    "chat template": Reader(_none, _template),
    "weights": Reader(_models, _weights),
    "adapter": Reader(_adapters, _adapter),
    "checkpoint": Reader(_run, _checkpoint),
}

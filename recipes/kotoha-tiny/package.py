"""A trained kotoha-tiny into the folder that ships: weights, tokenizer, curve, card, numbers.

    python recipes/kotoha-tiny/package.py MODEL DATA [--run RUN] [--step N] [--before RUN] [--note TEXT] [--out OUT]

MODEL is a Hugging Face folder (the finished run's own, or a snapshot of one that goes on), DATA the folder that
prepare.py and baseline.py wrote, RUN the run's folder with metrics.jsonl (MODEL, if left out), N the step
of a snapshot that the run has left behind, --before an earlier run that RUN began from, TEXT what the card says of the
runs, OUT the package's embedded/kotoha-tiny. What stood in OUT is replaced only when the new folder is whole, segments
text alike in both tokenizer files, and is below 25 MB.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import ai_finetuning.embedded
from ai_finetuning.config.data import DataConfig
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.evaluation.curves import draw_curve
from ai_finetuning.evaluation.scoring import score
from ai_finetuning.models.tokenizers import check_tokenizer_parity

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `recipes`, where this is run by its path

from recipes.kotoha.corpus import corpus

NAME, MAX_BYTES = "kotoha-tiny", 25_000_000
CONTEXT = 512
# Documents of our own program with another seed than the training's: other sentences about the same facts.
OWN_SEED, OWN_DOCUMENTS = 2026, 100
PROMPTS = (
    "吾輩は猫である。",
    "ある日の暮方の事である。",
    "山の中の小さな村に、",
    "彼は黙って窓の外を",
    "北海道の道庁は",
)
SAMPLE_TOKENS, SAMPLE_SEED = 60, 0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.model")


def texts_of(path: Path) -> list[str]:
    """The documents of a JSON Lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def seconds_of(history: list[dict[str, Any]]) -> float:
    """Time of all steps; the clock of a run starts again where it was resumed."""
    total = last = 0.0
    for row in history:
        if "seconds" in row:
            total += row["seconds"] - last if row["seconds"] >= last else row["seconds"]
            last = row["seconds"]
    return total


def bits_per_character(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """On whole documents, with at most 512 tokens of context."""
    config = DataConfig(max_length=CONTEXT, on_long="split", cache=False)
    value = score(model, tokenizer, [{"text": text} for text in texts], config)["eval_bits_per_character"]
    assert value is not None
    return round(value, 4)


@torch.no_grad()
def sliding_bits(model: Any, tokenizer: Any, texts: list[str]) -> float:
    """Bits per character where every token sees 256 to 511 tokens before it, as far as its document has them.

    Windows of 512 tokens move on by 256 and count their second half; a compressor that reads a whole work is compared
    fairly only so.
    """
    total, characters = 0.0, 0
    for text in texts:
        ids = torch.tensor(
            [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        )
        characters += len(text)
        counted = 1  # tokens whose loss is in the sum; the first has none
        for start in range(0, len(ids), CONTEXT // 2):
            window = ids[start : start + CONTEXT]
            logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
            new = start + len(window) - counted
            total += float(losses[len(losses) - new :].sum()) if new > 0 else 0.0
            counted = start + len(window)
            if counted == len(ids):
                break
    return round(total / math.log(2) / characters, 4)


def measured(folder: Path, data: Path) -> dict[str, Any]:
    """Bits per character of the weights as they ship."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    works = texts_of(data / "held_out.jsonl")
    baseline = data / "baseline.json"
    return {
        "context_tokens": CONTEXT,
        "held_out_works": bits_per_character(model, tokenizer, works),
        "held_out_works_sliding": sliding_bits(model, tokenizer, works),
        "held_out_works_below_4000_characters": bits_per_character(
            model, tokenizer, [t for t in works if len(t) < 4000]
        ),
        "own_text": {
            "seed": OWN_SEED,
            "documents": OWN_DOCUMENTS,
            "value": bits_per_character(model, tokenizer, corpus(OWN_DOCUMENTS, OWN_SEED)),
        },
        "ppmd_order_8_same_split": json.loads(baseline.read_text(encoding="utf-8"))["bits_per_character"]
        if baseline.is_file()
        else None,
    }


def samples(folder: Path) -> list[tuple[str, str]]:
    """(beginning, continuation) with a fixed seed."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    obtained = []
    for prompt in PROMPTS:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]])
        torch.manual_seed(SAMPLE_SEED)
        with torch.no_grad():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=SAMPLE_TOKENS,
                do_sample=True,
                temperature=0.8,
                top_p=0.9,
                top_k=0,
            )
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        obtained.append((prompt, text.rstrip("\ufffd").replace("\n", "⏎")))
    return obtained


def write_model(source: Path, tokenizer: Path, out: Path) -> None:
    """Weights in bf16 in one file; the tokenizer's files as they are."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    for name in TOKENIZER_FILES:
        place = source / name if (source / name).is_file() else tokenizer / name
        shutil.copyfile(place, out / name)
    problems = check_tokenizer_parity(out)
    if problems:
        raise SystemExit(f"tokenizer.json and tokenizer.model segment differently: {problems[0]!r}")


def gather_from(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two runs' metrics as one history: steps and tokens of the second count on."""
    if not before:
        return after
    last = [row for row in before if row.get("loss") is not None][-1]
    total = last["step"] + after[-1]["total_steps"]
    counted = [
        row
        | {"step": row["step"] + last["step"], "total_steps": total}
        | ({"tokens": row["tokens"] + last["tokens"]} if "tokens" in row else {})
        for row in after
    ]
    return before + counted


def facts(folder: Path, run: Path, data: Path, history: list[dict[str, Any]], note: str) -> dict[str, Any]:
    """training.json: everything that the card states as a number."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    split = json.loads((data / "split.json").read_text(encoding="utf-8"))
    steps = [row for row in history if row.get("loss") is not None]
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    training = config["training"]
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "architecture": {
            key: shape[key]
            for key in (
                "model_type",
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
                "vocab_size",
                "max_position_embeddings",
                "tie_word_embeddings",
            )
        },
        "bits_per_character": measured(folder, data),
        "steps": steps[-1]["step"],
        "total_steps": steps[-1]["total_steps"],
        "tokens": steps[-1]["tokens"],
        "seconds": round(seconds_of(steps)),
        "text": {key: split[key] for key in ("train", "held_out", "own")},
        "hardware": {"cpu": environment["cpu"], "threads": environment["threads"], "device": environment["device"]},
        "versions": {
            key: environment["versions"][key] for key in ("torch", "transformers", "sentencepiece", "tokenizers")
        },
        "settings": {
            key: training[key] for key in ("learning_rate", "batch_size", "gradient_accumulation_steps", "warmup_steps")
        }
        | {
            "max_length": config["data"]["max_length"],
            "optimizer": training["optimizer"],
            "schedule": training["schedule"],
        },
        "note": note,
        "samples": {"seed": SAMPLE_SEED, "temperature": 0.8, "top_p": 0.9, "texts": samples(folder)},
    }


def card(obtained: dict[str, Any]) -> str:
    """README.md."""
    bits, shape, settings = obtained["bits_per_character"], obtained["architecture"], obtained["settings"]
    ppmd = bits["ppmd_order_8_same_split"]
    compared = f"| PPMd（order 8、同じ分割 / same split） | {ppmd:.3f} |\n" if ppmd else ""
    text, cpu = obtained["text"], obtained["hardware"]["cpu"]
    note = f"- {obtained['note']}\n" if obtained["note"] else ""
    unfinished = "" if obtained["steps"] == obtained["total_steps"] else f" of {obtained['total_steps']:,}"
    # The rows are bold where a user would look first.
    shown = "\n".join(f"- **{prompt}**{answer}" for prompt, answer in obtained["samples"]["texts"])
    return f"""---
language: [ja]
license: cc0-1.0
library_name: transformers
pipeline_tag: text-generation
tags: [ai-finetuning-toolkit, llama, japanese, tiny]
---

# kotoha-tiny

AI Fine-tuning Toolkit に同梱の小さな日本語モデルです（`embedded:kotoha-tiny`）。公有の文学作品と、このプロジェクトのプログラムが書いた文だけで最初から学習しました。ダウンロードなしでファインチューニングを試すためのもので、実用の回答には向きません。

A small Japanese model that ships with the AI Fine-tuning Toolkit (`embedded:kotoha-tiny`), trained from scratch on public-domain literature and on text of the project's own program alone. It is for trying fine-tuning
without a download, and no source of facts.

| | |
|---|---|
| parameters | {obtained["parameters"]:,} ({shape["model_type"]}, {shape["num_hidden_layers"]} layers, width {shape["hidden_size"]}, {shape["num_attention_heads"]} heads, {"tied" if shape["tie_word_embeddings"] else "untied"} embeddings), bf16 |
| tokenizer | {shape["vocab_size"]:,} pieces, sentencepiece unigram with byte fallback, no normalisation; `tokenizer.model` and `tokenizer.json` give the same ids |
| context | trained on {settings["max_length"]} tokens, at most {shape["max_position_embeddings"]} |
| chat | `<\\|user\\|>`question`<\\|assistant\\|>`answer`</s>`; the base has never seen a conversation |

## 測定値 / Measured

1 文字あたりのビット数（学習に使っていない {text["held_out"]["documents"]} 作品、{text["held_out"]["characters"]:,} 文字、文脈 {bits["context_tokens"]} トークン） / bits per character on {text["held_out"]["documents"]} whole works that were held out:

| | |
|---|---|
| kotoha-tiny（この重み / these weights）、512 トークンごとに文脈なし / in rows of 512 tokens | {bits["held_out_works"]:.3f} |
| kotoha-tiny、256〜511 トークンの文脈 / with 256 to 511 tokens before each | {bits["held_out_works_sliding"]:.3f} |
{compared}| 一様 / uniform over the vocabulary | about 8.1 |

![loss](loss.png)

## 学習 / Training

- 本文 / text: {text["train"]["documents"]:,} works of {text["train"]["characters"]:,} characters (Aozora Bunko, authors who died in 1945 or earlier), and {text["own"]["documents"]:,} short documents of our own program, {text["own"]["characters"]:,} characters
- {obtained["tokens"]:,} tokens, {obtained["steps"]:,} steps{unfinished}, {obtained["seconds"] / 3600:.1f} h on {cpu["name"]} ({cpu["cores"]} core(s), {", ".join(cpu["flags"])}, {obtained["hardware"]["device"]}), torch {obtained["versions"]["torch"]}
- {settings["optimizer"]["name"]}, learning rate {settings["learning_rate"]:g}, {settings["batch_size"] * settings["gradient_accumulation_steps"]} rows of {settings["max_length"]} tokens a step, {settings["schedule"]["name"]} schedule
{note}- `recipes/kotoha-tiny/` makes such a model again; every number of this page is in `training.json`

## 生成例 / Samples

Unchosen, one for each beginning: seed {obtained["samples"]["seed"]}, temperature {obtained["samples"]["temperature"]}, top-p {obtained["samples"]["top_p"]} (⏎ is a line end).

{shown}

## 使い方 / Use

    aift train data.train=embedded:kotoha-qa learning_rate=3e-3
    aift generate embedded:kotoha-tiny "日本で一番高い山は？"

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
from ai_finetuning.embedded import model_folder

folder = model_folder("embedded:kotoha-tiny")
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```

## 限界 / Limits

文学作品の文体で、意味の通らない文や誤りを書きます。作品には今日では不適切な表現も含まれます。 / It writes in the manner of old prose, often without sense, and it is wrong about facts; the works hold expressions that
are not acceptable today.

## ライセンス / Licence

重みとトークナイザーは CC0 1.0 で、自由に使えます。学習に使った作品は著作権の保護期間が満了したもの、残りの文はこのプロジェクトが CC0 で書いたものです。 / Weights and tokenizer are CC0 1.0: use them for anything. The works
that they were trained on are out of copyright, and the rest was written by this project under CC0.
"""


def main() -> None:
    """Packs, checks, then replaces."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--step", type=int)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--note", default="")
    parser.add_argument("--out", type=Path, default=Path(ai_finetuning.embedded.__file__).parent / NAME)
    options = parser.parse_args()
    run = options.run or options.model
    staging = options.out.with_name(f".{options.out.name}.new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write_model(options.model, options.data / "tokenizer", staging)
    last = options.step or float("inf")
    history = [row for row in read_metrics(run / "metrics.jsonl") if row["step"] <= last]
    history = gather_from(read_metrics(options.before / "metrics.jsonl") if options.before else [], history)
    obtained = facts(staging, run, options.data, history, options.note)
    (staging / "training.json").write_text(json.dumps(obtained, ensure_ascii=False, indent=1), encoding="utf-8")
    draw_curve(history, staging / "loss.png")
    (staging / "README.md").write_text(card(obtained), encoding="utf-8")
    size = sum(path.stat().st_size for path in staging.iterdir())
    if size > MAX_BYTES:
        raise SystemExit(f"{staging} has {size:,} bytes; what ships must be below {MAX_BYTES:,}")
    shutil.rmtree(options.out, ignore_errors=True)
    staging.rename(options.out)
    print(f"{options.out}: {size / 1e6:.1f} MB, {json.dumps(obtained['bits_per_character'])}")


if __name__ == "__main__":
    main()

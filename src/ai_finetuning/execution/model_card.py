"""The card of a trained model: what it is, what was measured, how to use it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config.run import RunConfig
from ..embedded import is_embedded
from ..evaluation.fidelity import Agreement
from ..messages import on_one_line
from ..models.catalog import CatalogRow

# How a whole model is used.
_USE = (
    "```python",
    "from ai_finetuning import JapaneseModel",
    "",
    'print(JapaneseModel("THIS_FOLDER").generate_japanese("質問"))',
    "```",
    "",
    "`aift chat THIS_FOLDER`",
)


# What Markdown (GitHub's too) reads as markup inside a line, links without brackets included.
_MARKUP = re.compile(r"[\\`*\[\]<>&|#~@$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def markdown(text: str) -> str:
    """A name from outside as Markdown that shows just its characters, on one line."""
    return _MARKUP.sub(lambda found: "\\" + found.group(), on_one_line(text))


def literal(text: str) -> str:
    """A name from outside as a string in a line of Python."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)


def public_name(name: str) -> str:
    """A model's name that means something on another machine: of a folder its last part, never the whole path."""
    if is_embedded(name) or not os.path.isdir(os.path.expanduser(name)):
        return name
    return Path(os.path.abspath(os.path.expanduser(name))).name


def _base_of_hub(name: str) -> dict[str, str]:
    """The card's `base_model`, which is for ids of the hub alone; nothing for folders and embedded models."""
    local = is_embedded(name) or os.path.isdir(os.path.expanduser(name))
    return {} if local else {"base_model": on_one_line(name)}


def _base_argument(name: str) -> str:
    """A base as the first argument of load_lora_model; a folder's place is noted in the adapter."""
    return literal(name) if public_name(name) == name else "None"


def _number(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else "-" if value is None else f"{value:,}"


def _scores(summary: dict[str, Any]) -> list[str]:
    before, after = summary["held_out_before"] or {}, summary["held_out_after"] or {}
    if not after:
        return ["評価データは使っていません。 / No evaluation data was used."]
    rows = [
        ("評価損失 / evaluation loss (nats per token)", "eval_loss"),
        ("パープレキシティ / perplexity", "eval_perplexity"),
        ("1 文字あたりのビット数 / bits per character", "eval_bits_per_character"),
    ]
    lines = ["| | 学習前 / before | 学習後 / after |", "|---|---|---|"]
    return lines + [f"| {label} | {_number(before.get(key))} | {_number(after.get(key))} |" for label, key in rows]


def model_card(config: RunConfig, summary: dict[str, Any], machine: dict[str, Any], row: CatalogRow | None) -> str:
    """README.md in Markdown with the front matter of the Hugging Face hub."""
    adapter = not config.trains_all
    base = row.id if row is not None else public_name(config.model.name)
    front = {
        "language": ["ja"],
        "library_name": "peft" if adapter else "transformers",
        **_base_of_hub(row.id if row is not None else config.model.name),
        "pipeline_tag": "text-generation",
        "tags": sorted({"ai-finetuning-toolkit", config.effective_method, "lora" if adapter else "full"}),
    }
    licence = [f"- ライセンス / licence of the base: {row.licence}"] if row is not None and row.licence else []
    notes = [f"- {ja} / {en}" for ja, en in (row.licence_notices() if row is not None else [])]
    plan = summary["plan"]
    device = machine["gpu"]["devices"][0]["name"] if machine["gpu"]["available"] else machine["cpu"]["name"]
    remote = (
        ["- リポジトリーのコードを実行する設定でした / code of the repository was allowed to run"]
        if config.model.trust_remote_code
        else []
    )
    use = (
        [
            "```python",
            "from ai_finetuning import LoRAFinetuningTrainer",
            "",
            f'model, tokenizer = LoRAFinetuningTrainer.load_lora_model({_base_argument(config.model.name)}, "THIS_FOLDER")',
            "```",
            "",
            "`aift chat THIS_FOLDER`",
        ]
        if adapter
        else list(_USE)
    )
    training = config.training
    lines = [
        "---",
        yaml.safe_dump(front, allow_unicode=True, sort_keys=False, width=10_000).strip(),
        "---",
        "",
        f"# {markdown(base)} ({config.effective_method})",
        "",
        "AI Fine-tuning Toolkit で学習しました。 / Trained with the AI Fine-tuning Toolkit.",
        "",
        "## 測定値 / Measured",
        "",
        *_scores(summary),
        "",
        (
            "- 学習損失（最後の 10 ステップの平均） / training loss, mean of the last 10 steps: "
            f"{_number(summary['train_loss_last_10_steps'])}"
        ),
        (
            f"- ステップ / steps: {summary['steps']:,}（{_number(summary['epochs'], 2)} エポック / epochs、"
            f"{summary['tokens']:,} トークン / tokens）"
        ),
        f"- 飛ばしたステップ / skipped steps: {summary['skipped_steps']}",
        (
            f"- 時間 / time: {summary['seconds']:,} s（{_number(summary['tokens_per_second'], 1)} tokens/s）、最大メモリー / "
            f"peak memory: {summary['peak_memory_gb']} GB（見積もり / estimate {summary['estimated_memory_gb']} GB）"
        ),
        f"- デバイス / device: {device}, {plan['device']}, {plan['precision']}",
        (
            f"- torch {machine['versions']['torch']}, transformers {machine['versions']['transformers']}, peft "
            f"{machine['versions']['peft']}, Python {machine['versions']['python']}"
        ),
        "",
        "## 設定 / Settings",
        "",
        f"- 方法 / method: {config.effective_method}、学習した重み / trained parameters: {plan['trainable']:,} / {plan['parameters']:,}",
        f"- 行 / rows: {plan['rows']:,}（評価 / evaluation {plan['eval_rows']:,}）",
        (
            f"- learning_rate {training.learning_rate:g}, batch {training.batch_size} x "
            f"{training.gradient_accumulation_steps}, warm-up {plan['warmup_steps']}, seed {training.runtime.seed}"
        ),
        (
            "- すべての設定は config.yaml、数値は metrics.jsonl にあります。 / All settings are in config.yaml, all numbers in "
            "metrics.jsonl."
        ),
        *licence,
        *notes,
        *remote,
        "",
        "## 使い方 / Use",
        "",
        *use,
        "",
    ]
    return "\n".join(lines)


def merge_card(
    base: str,
    adapter: str,
    *,
    bits: int | None,
    source: str,
    close: Agreement,
    measured: Mapping[str, Agreement],
    limits: tuple[float, float],
    prompts: int,
) -> str:
    """README.md of a merged model: what went into it, and how far it is from the trained one.

    Args:
        base: the model whose weights were taken.
        bits: of the base in training; None for 16 and 32.
        source: `original` or `dequantized`.
        close: of the saved model, read back.
        measured: of every base that was compared.
        limits: most KL and least top-1 that were allowed.
        prompts: number of texts that were compared.
    """
    own = _base_of_hub(base)
    base = public_name(base)
    front = {
        "language": ["ja"],
        "library_name": "transformers",
        **({**own, "base_model_relation": "merge"} if own else {}),
        "pipeline_tag": "text-generation",
        "tags": ["ai-finetuning-toolkit", "lora", "merged"],
    }
    trained = f"{bits} bit" if bits is not None else "16/32 bit"
    rows = [(f"{name}（統合直後 / before saving）", obtained) for name, obtained in measured.items()]
    rows.append((f"{source}（保存して再読み込み / read back from disk）", close))
    lines = [
        "---",
        yaml.safe_dump(front, allow_unicode=True, sort_keys=False, width=10_000).strip(),
        "---",
        "",
        f"# {markdown(base)} + {markdown(Path(adapter).name)}",
        "",
        (
            f"LoRA アダプター {markdown(Path(adapter).name)} を 16bit のベースに統合したモデルです（AI Fine-tuning Toolkit）。 / A LoRA adapter merged "
            "into a 16-bit base."
        ),
        "",
        "## 測定値 / Measured",
        "",
        (
            f"学習したときのモデル（ベース {trained} とアダプター）との差。評価用の文 {prompts} 個。 / Distance from the trained model (base in "
            f"{trained} plus adapter) on {prompts} evaluation texts."
        ),
        "",
        "| ベース / base | KL (nats) | Top-1 一致率 / top-1 |",
        "|---|---|---|",
        *(f"| {markdown(name)} | {obtained.kl:.6f} | {obtained.top1:.2%} |" for name, obtained in rows),
        "",
        f"- 上限 / limits: KL {limits[0]}, top-1 {limits[1]:.0%}",
        *(["- KL の小さい方を採用しました。 / The base with the lower KL was taken."] if measured else []),
        "",
        "## 使い方 / Use",
        "",
        *_USE,
        "",
    ]
    return "\n".join(lines)

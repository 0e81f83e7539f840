"""The card of a trained model: what it is, what was measured, how to use it. In Japanese, then in English; no row of the
data stands in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..config.preference import LOSSES
from ..config.run import RunConfig
from ..embedded import is_embedded
from ..errors import Reason, without_secrets
from ..evaluation.fidelity import Agreement
from ..evaluation.figures import figures_of
from ..evaluation.verdict import Point, Verdict
from ..messages import on_one_line
from ..models.catalog import CatalogRow
from ..models.source import ModelSource

# What Markdown (GitHub's too) reads as markup inside a line, links without brackets included.
_MARKUP = re.compile(r"[\\`*\[\]<>&|#~@$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def markdown(text: str) -> str:
    """A name from outside as Markdown that shows just its characters, on one line."""
    return _MARKUP.sub(lambda found: "\\" + found.group(), on_one_line(text))


def literal(text: str) -> str:
    """A name from outside as a string in a line of Python."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)


def _number(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else "-" if value is None else f"{value:,}"


# `owner/name`: what nothing but a hub calls a model.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Base:
    """The base of a trained model, as a card names it.

    Attributes:
        title: what people call it; of a folder only its own name.
        hub_id: by which a hub knows it; None for folders and for what ships in the package.
        embedded: its name in the package, `embedded:NAME`, or None.
        row: what the catalog knows of it.
    """

    title: str
    hub_id: str | None = None
    embedded: str | None = None
    row: CatalogRow | None = None

    @classmethod
    def of(cls, source: ModelSource) -> Base:
        """The base that a run was given."""
        row, known = source.catalog_row, cls.named(source.name)
        return (
            known if row is None else replace(known, title=row.id, hub_id=None if known.embedded else row.id, row=row)
        )

    @classmethod
    def named(cls, name: str) -> Base:
        """A base by hub id, `embedded:NAME` or folder."""
        if is_embedded(name):
            return cls(name, embedded=name)
        if _HUB_ID.fullmatch(name) and not Path(name).is_dir():
            return cls(name, name)
        return cls(without_secrets(Path(name).name or name))


def model_card(
    config: RunConfig,
    summary: Mapping[str, Any],
    machine: Mapping[str, Any],
    base: Base,
    answers: Sequence[tuple[str, str]] = (),
) -> str:
    """README.md in Markdown with the front matter of the Hugging Face hub: a Japanese part, an English part, the code.

    Args:
        summary: measured numbers (execution/artifacts.py).
        machine: what environment() says.
        base: the base's name; a local path is never written.
        answers: (question, answer) of the trained model to general questions.
    """
    adapter = not config.trains_all
    front = {
        "language": ["ja"],
        "library_name": "peft" if adapter else "transformers",
        **({"base_model": on_one_line(base.hub_id)} if base.hub_id is not None else {}),
        "pipeline_tag": "text-generation",
        "tags": sorted({"ai-finetuning-toolkit", config.effective_method, "lora" if adapter else "full", *_of(config)}),
    }
    body = [
        *_results(summary, base, adapter=adapter),
        *_data(summary),
        *_settings(config, summary, machine),
        *_conditions(config, base),
    ]
    lines = [
        *_front(front),
        f"# {markdown(base.title)} ({config.effective_method})",
        *(line.ja for line in body),
        *_answers(answers),
        *(line.en for line in body),
        "",
        "## 使い方 · Use",
        "",
        *_code(config, base),
        "",
    ]
    return "\n".join(lines)


def _of(config: RunConfig) -> list[str]:
    """The objective and its loss, of a run over answers."""
    return [] if config.objective == "sft" else [config.objective, str(config.loss_settings.loss)]


def _objective(config: RunConfig) -> list[Reason]:
    """What the answers were compared by, with its numbers and what it was compared with."""
    if config.objective == "sft":
        return []
    ja, en = (
        ("参照は学習前のモデル", "reference: the model before training")
        if LOSSES[str(config.loss_settings.loss)].reference
        else ("参照なし", "no reference")
    )
    said = config.objective_text
    return [Reason(f"- 目的: {said}、{ja}", f"- objective: {said}; {en}")]


def _front(values: Mapping[str, Any]) -> list[str]:
    return ["---", yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False, width=10_000).strip(), "---", ""]


def _heading(ja: str, en: str) -> list[Reason]:
    return [_NOTHING, Reason(f"## {ja}", f"## {en}"), _NOTHING]


_NOTHING = Reason("", "")


def _results(summary: Mapping[str, Any], base: Base, *, adapter: bool) -> list[Reason]:
    """What was made of what, the verdict, and the losses."""
    what = Reason(" LoRA アダプター", "LoRA adapter") if adapter else Reason("モデル", "model")
    found = verdict_of(summary)
    before, after = summary["held_out_before"] or {}, summary["held_out_after"] or {}
    lines = [
        *_heading("結果", "Results"),
        Reason(
            f"AI Fine-tuning Toolkit で {markdown(base.title)} から学習した{what.ja}です。{found.sentence.ja}",
            f"A {what.en} trained from {markdown(base.title)} with the AI Fine-tuning Toolkit. {found.sentence.en}",
        ),
        _NOTHING,
    ]
    if after:
        lines += [Reason("| | 学習前 | 学習後 |", "| | before | after |"), Reason("|---|---|---|", "|---|---|---|")]
        for label, key in figures_of([after, before]):
            numbers = f"{_number(before.get(key))} | {_number(after.get(key))}"
            lines.append(Reason(f"| {label.ja} | {numbers} |", f"| {label.en} | {numbers} |"))
        lines.append(_NOTHING)
    if found.best is not None:
        loss = _number(found.best.loss)
        lines.append(
            Reason(
                f"- 最良のステップ: {found.best.step:,}（評価損失 {loss}）、保存した重みのステップ: {summary['saved_step']:,}",
                f"- best step: {found.best.step:,} (evaluation loss {loss}); step of the saved weights: "
                f"{summary['saved_step']:,}",
            )
        )
    loss = _number(summary["train_loss_last_10_steps"])
    lines.append(
        Reason(f"- 学習損失（最後の 10 ステップの平均）: {loss}", f"- training loss, mean of the last 10 steps: {loss}")
    )
    return lines


def verdict_of(summary: Mapping[str, Any]) -> Verdict:
    """The verdict that a summary holds as plain values."""
    values = dict(summary["verdict"])
    kind, margin = values.pop("kind"), values.pop("margin", None)
    points = {name: Point(**value) if value else None for name, value in values.items()}
    return Verdict(kind, **points, margin=margin)


def _data(summary: Mapping[str, Any]) -> list[Reason]:
    plan, data = summary["plan"], summary["data"]
    train, scored = (_joined([Reason(*name) for name in data[key]]) for key in ("train", "eval"))
    size = Reason("ストリーミング、行数は数えていません", "streamed, rows not counted")
    if plan["rows"] is not None:
        rows, tokens = plan["rows"], plan["label_tokens"]
        size = Reason(f"{rows:,} 行、学習対象 {tokens:,} トークン", f"{rows:,} rows, {tokens:,} label tokens")
    return [
        *_heading("学習データ", "Data"),
        Reason(f"- 学習: {train.ja}（{size.ja}）", f"- training: {train.en} ({size.en})"),
        Reason(
            f"- 評価: {scored.ja or 'なし'}（{plan['eval_rows']:,} 行）",
            f"- evaluation: {scored.en or 'none'} ({plan['eval_rows']:,} rows)",
        ),
        Reason(f"- 除いた行: {data['left_out']:,}", f"- rows left out: {data['left_out']:,}"),
        *_parent(summary),
    ]


def _parent(summary: Mapping[str, Any]) -> list[Reason]:
    """What the run went on from, by the last part of its folder's name."""
    parent = summary.get("parent")
    if parent is None:
        return []
    name = markdown(Path(parent["folder"]).name)
    return [Reason(f"- 元の学習: {name}", f"- continued from: {name}")]


def _joined(names: Sequence[Reason]) -> Reason:
    return Reason("、".join(markdown(name.ja) for name in names), ", ".join(markdown(name.en) for name in names))


def _settings(config: RunConfig, summary: Mapping[str, Any], machine: Mapping[str, Any]) -> list[Reason]:
    plan, training, versions = summary["plan"], config.training, machine["versions"]
    device = machine["gpu"]["devices"][0]["name"] if machine["gpu"]["available"] else machine["cpu"]["name"]
    speed, epochs = _number(summary["tokens_per_second"], 1), _number(summary["epochs"], 2)
    passes = Reason(f"{epochs} エポック", f"{epochs} epochs")
    if plan["rows"] is None:  # streamed: nobody knows which part of a pass it was
        whole = int(summary["epochs"])
        passes = Reason(f"終わりまで読んだ回数 {whole}", f"data read to its end {whole} times")
    used = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft"))
    rates = (
        f"- learning_rate {training.learning_rate:g}, batch_size {plan['batch_size']} x "
        f"{plan['gradient_accumulation_steps']}, warmup_steps {plan['warmup_steps']}, seed {training.runtime.seed}"
    )
    return [
        *_heading("設定", "Settings"),
        Reason(
            f"- 方法: {config.effective_method}、学習した重み {plan['trainable']:,} / {plan['parameters']:,}",
            f"- method: {config.effective_method}, {plan['trainable']:,} of {plan['parameters']:,} parameters trained",
        ),
        *_objective(config),
        Reason(
            f"- ステップ: {summary['steps']:,}（{passes.ja}、{summary['tokens']:,} トークン、見送り {summary['skipped_steps']}）",
            f"- steps: {summary['steps']:,} ({passes.en}, {summary['tokens']:,} tokens, {summary['skipped_steps']} "
            "skipped)",
        ),
        Reason(rates, rates),
        Reason(
            f"- 時間: {summary['seconds']:,} 秒（毎秒 {speed} トークン）、最大メモリー: {summary['peak_memory_gb']} GB（見積もり "
            f"{summary['estimated_memory_gb']} GB）",
            f"- time: {summary['seconds']:,} s ({speed} tokens/s), peak memory: {summary['peak_memory_gb']} GB (estimate "
            f"{summary['estimated_memory_gb']} GB)",
        ),
        Reason(
            f"- デバイス: {device}, {plan['device']}, {plan['precision']}",
            f"- device: {device}, {plan['device']}, {plan['precision']}",
        ),
        Reason(f"- {used}, Python {versions['python']}", f"- {used}, Python {versions['python']}"),
        Reason(
            "- すべての設定は config.yaml、数値は metrics.jsonl、まとめは report.html にあります。",
            "- All settings are in config.yaml, all numbers in metrics.jsonl, an overview is report.html.",
        ),
    ]


def _conditions(config: RunConfig, base: Base) -> list[Reason]:
    """What a user has to know of the base."""
    row, lines = base.row, []
    if row is not None and row.licence:
        lines.append(Reason(f"- ベースのライセンス: {row.licence}", f"- licence of the base: {row.licence}"))
    lines += [Reason(f"- {ja}", f"- {en}") for ja, en in (row.licence_notices() if row is not None else [])]
    if config.model.trust_remote_code:
        lines.append(
            Reason(
                "- リポジトリーのコードを実行する設定でした。",
                "- Code of the repository was allowed to run in training.",
            )
        )
    return [*_heading("利用条件", "Conditions"), *lines] if lines else []


def _answers(answers: Sequence[tuple[str, str]]) -> list[str]:
    """Answers as quotations, in which nothing is markup."""
    if not answers:
        return []
    lines = [
        "",
        "## 回答の例",
        "",
        "どのモデルにも尋ねる一般的な質問への、このモデルの回答です（学習データの文ではありません）。",
        "",
    ]
    for question, answer in answers:
        shown = " ".join(answer.split())
        shown = shown if len(shown) <= _LONGEST_ANSWER else f"{shown[:_LONGEST_ANSWER]}…"
        lines += [f"- {markdown(question)}", "", f"  > {markdown(shown)}", ""]
    return lines[:-1]


_LONGEST_ANSWER = 200


# A whole model; and what is asked, of a model that answers and of one that continues texts.
_WHOLE = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'folder = "THIS_FOLDER"',
    "model = AutoModelForCausalLM.from_pretrained(folder)",
)
_CHAT = (
    'messages = [{"role": "user", "content": "日本の首都はどこですか？"}]',
    "inputs = tokenizer.apply_chat_template(",
    '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
    ")",
)
_CONTINUE = ('inputs = tokenizer("むかしむかし、", return_tensors="pt", return_token_type_ids=False)',)


def _code(config: RunConfig, base: Base) -> list[str]:
    """How transformers and PEFT use a run's folder, and how this toolkit does."""
    loading = _WHOLE if config.trains_all else _adapter_code(config, base)
    return _with_code(loading, _CONTINUE if config.method == "pretrain" else _CHAT)


def _with_code(loading: Sequence[str], asking: Sequence[str]) -> list[str]:
    return [
        "```python",
        *loading,
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        *asking,
        "output = model.generate(**inputs.to(model.device), max_new_tokens=128)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        "```",
        "",
        "```sh",
        "aift chat THIS_FOLDER",
        "```",
    ]


def _adapter_code(config: RunConfig, base: Base) -> list[str]:
    """Loads the base as it was trained on, and puts the adapter on it."""
    if base.embedded is not None:
        name = f"model_folder({literal(base.embedded)})"
    else:
        name = literal(base.hub_id or "BASE_MODEL")
    if config.model.extra_tokens:  # their rows are the adapter's, which this function makes room for
        return [
            "from ai_finetuning import LoRAFinetuningTrainer",
            "from transformers import AutoTokenizer",
            "",
            'folder = "THIS_FOLDER"',
            f"model, _ = LoRAFinetuningTrainer.load_lora_model({literal(base.embedded) if base.embedded else name}, folder)",
        ]
    bits = (4 if config.lora.qlora_4bit else 8) if config.uses_qlora else None
    classes = ["AutoModelForCausalLM", "AutoTokenizer", *(["BitsAndBytesConfig"] if bits is not None else [])]
    quantized = {
        4: 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)',
        8: "BitsAndBytesConfig(load_in_8bit=True)",
    }
    options = f", quantization_config={quantized[bits]}" if bits is not None else ""
    return [
        "from peft import PeftModel",
        f"from transformers import {', '.join(classes)}",
        *(["from ai_finetuning.embedded import model_folder"] if base.embedded is not None else []),
        "",
        'folder = "THIS_FOLDER"',
        f"base = AutoModelForCausalLM.from_pretrained({name}{options})",
        "model = PeftModel.from_pretrained(base, folder)",
    ]


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
    known = Base.named(base)
    front = {
        "language": ["ja"],
        "library_name": "transformers",
        **(
            {"base_model": on_one_line(known.hub_id), "base_model_relation": "merge"}
            if known.hub_id is not None
            else {}
        ),
        "pipeline_tag": "text-generation",
        "tags": ["ai-finetuning-toolkit", "lora", "merged"],
    }
    trained, title = (f"{bits} bit" if bits is not None else "16/32 bit"), markdown(Path(adapter).name)
    rows = [
        *((Reason(f"{name}（統合直後）", f"{name} (before saving)"), obtained) for name, obtained in measured.items()),
        (Reason(f"{source}（保存して再読み込み）", f"{source} (read back from disk)"), close),
    ]
    body = [
        *_heading("測定値", "Measured"),
        Reason(
            f"LoRA アダプター {title} を 16bit のベースに統合したモデルです（AI Fine-tuning Toolkit）。学習したときのモデル（ベース {trained} とアダプター）との差を、評価用の文 "
            f"{prompts} 個で測りました。",
            f"The LoRA adapter {title}, merged into a 16-bit base with the AI Fine-tuning Toolkit. Its distance from the "
            f"trained model (base in {trained} plus adapter) on {prompts} evaluation texts:",
        ),
        _NOTHING,
        Reason("| ベース | KL (nat) | Top-1 一致率 |", "| base | KL (nats) | top-1 agreement |"),
        Reason("|---|---|---|", "|---|---|---|"),
        *(
            Reason(
                f"| {markdown(name.ja)} | {obtained.kl:.6f} | {obtained.top1:.2%} |",
                f"| {markdown(name.en)} | {obtained.kl:.6f} | {obtained.top1:.2%} |",
            )
            for name, obtained in rows
        ),
        _NOTHING,
        Reason(f"- 上限: KL {limits[0]}、Top-1 {limits[1]:.0%}", f"- limits: KL {limits[0]}, top-1 {limits[1]:.0%}"),
        *([Reason("- KL の小さい方を採用しました。", "- The base with the lower KL was taken.")] if measured else []),
    ]
    lines = [
        *_front(front),
        f"# {markdown(known.title)} + {title}",
        *(line.ja for line in body),
        *(line.en for line in body),
        "",
        "## 使い方 · Use",
        "",
        *_with_code(_WHOLE, _CHAT),
        "",
    ]
    return "\n".join(lines)

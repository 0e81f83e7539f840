"""A run's settings as the page holds them: texts by dotted name, of which only those of a list count. Needs no torch.

Where data and models are is never in them: the server finds that by ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...config.describe import Setting, settings
from ...config.fields import fields_of, options_of
from ...config.limits import choices
from ...config.load import load_config, load_text
from ...config.run import RunConfig
from ...config.run_yaml import describe_run
from ...config.section import explicitly_set, with_values
from ...errors import ConfigError, Problem, Reason, UsageError
from ...japanese.templates import TEMPLATES

# Names what a request may set; every other setting is refused (tests/unit/apps/web/test_draft.py holds the whole list of both).
ALLOWED = frozenset(
    [
        "method",
        "objective",
        "model.chat_template",
        "model.dtype",
        "model.attention",
        "data.eval",
        "data.max_length",
        "data.packing",
        "data.group_by_length",
        "data.on_long",
        "data.system_prompt",
        "data.skip_bad_rows",
        "data.loss_on",
        "data.cache",
        "data.max_samples",
        "data.replay.path",
        "data.replay.share",
        "data.replay.distill",
        "data.doctor.ignore",
        "data.normalize.newlines",
        "data.normalize.bom",
        "data.normalize.compose",
        "data.normalize.widen_kana",
        "data.normalize.strip_control",
        "data.normalize.narrow_ascii",
        "data.normalize.wave_dash",
        "data.normalize.collapse_blank_lines",
        "training.learning_rate",
        "training.batch_size",
        "training.gradient_accumulation_steps",
        "training.num_epochs",
        "training.warmup_steps",
        "training.max_grad_norm",
        "training.eval_steps",
        "training.save_steps",
        "training.logging_steps",
        "training.fp16",
        "training.gradient_checkpointing",
        "training.saves_per_epoch",
        "training.evals_per_epoch",
        "training.save_only_model",
        "training.optimizer.name",
        "training.optimizer.betas",
        "training.optimizer.eps",
        "training.optimizer.weight_decay",
        "training.optimizer.lora_plus_ratio",
        "training.schedule.name",
        "training.schedule.max_steps",
        "training.schedule.min_lr_ratio",
        "training.schedule.decay_ratio",
        "training.schedule.warmup_ratio",
        "training.checkpoint.save_total_limit",
        "training.checkpoint.load_best",
        "training.checkpoint.keep_best",
        "training.runtime.precision",
        "training.runtime.seed",
        "training.runtime.early_stopping_patience",
        "training.runtime.early_stopping_threshold",
        "training.runtime.report_samples",
        "training.runtime.kernels",
        "training.runtime.offload",
        "training.evaluation.verdict",
        "training.evaluation.generate",
        "lora.r",
        "lora.lora_alpha",
        "lora.target_modules",
        "lora.lora_dropout",
        "lora.bias",
        "lora.qlora_4bit",
        "lora.use_rslora",
        "lora.use_dora",
        "lora.modules_to_save",
        "lora.target_parameters",
        "parallel.strategy",
        "parallel.pipeline_parallel_size",
        "parallel.tensor_parallel_size",
        "parallel.pipeline_schedule",
        "parallel.max_restarts",
        "preference.loss",
        "preference.beta",
        "preference.label_smoothing",
        "preference.margin",
        "preference.sft_weight",
        "preference.ld_alpha",
        "preference.desirable_weight",
        "preference.undesirable_weight",
    ]
)
# Those that are seen at once; the rest is folded away.
VISIBLE = (
    "objective",
    "method",
    "training.num_epochs",
    "training.learning_rate",
    "training.batch_size",
    "training.gradient_accumulation_steps",
    "data.max_length",
    "data.eval",
    "data.system_prompt",
    "lora.r",
    "lora.lora_alpha",
    "training.checkpoint.load_best",
)
# Characters of a value, and of a YAML.
_LONGEST, YAML_CHARACTERS = 10_000, 200_000


@dataclass(frozen=True)
class Rule:
    """What a value must be beyond its type, so that no request names a place on the disk."""

    holds: Callable[[Any], bool]
    rule: Reason


_RULES = {
    "method": Rule(
        lambda value: value != "pretrain",
        Reason(
            "最初からの学習（pretrain）は、コマンド aift train で始めてください。",
            "a model from scratch (pretrain) is trained by the command aift train.",
        ),
    ),
    "data.eval": Rule(
        lambda value: value is None or isinstance(value, float),
        Reason(
            "0 より大きく 1 より小さい割合（0.1 など）か null にしてください。",
            "it must be a share above 0 and below 1 (0.1), or null.",
        ),
    ),
    "data.replay.path": Rule(
        lambda value: value is None or (isinstance(value, str) and value.startswith("embedded:")),
        Reason(
            "この画面では同梱のデータ（embedded:prose）か null にしてください。",
            "on this page it must be data that ships with the toolkit (embedded:prose), or null.",
        ),
    ),
    "model.chat_template": Rule(
        lambda value: value is None or value in TEMPLATES,
        Reason(
            f"この画面では名前で選んでください（{', '.join(sorted(TEMPLATES))}）。",
            f"on this page it must be a name: {', '.join(sorted(TEMPLATES))}.",
        ),
    ),
}


# What the page says of settings that take less here than anywhere else: no place on the disk (_RULES).
_HINTS = {
    "data.eval": Reason(
        "学習データから評価のために分けておく割合（0.1 なら 1 割）。空欄なら評価しません。",
        "Share of the training rows that is kept for evaluation (0.1: a tenth). Without one nothing is evaluated.",
    ),
    "data.replay.path": Reason(
        "一般の日本語を忘れないように混ぜる、同梱の文章（embedded:prose）。空欄なら混ぜません。",
        "Text that ships with the toolkit (embedded:prose), mixed in so that general Japanese is not forgotten; empty for none.",
    ),
    "model.chat_template": Reason(
        "チャットテンプレート。空欄ならモデルのもの、なければカタログのものです。",
        "The chat template; empty takes the model's own, then the catalog's.",
    ),
}


@dataclass(frozen=True)
class Chosen:
    """Model and data of a run, as the server has found them by their ids.

    Attributes:
        model: what `model.name` takes; None leaves it to the run that this one goes on from.
        train: what `data.train` takes; None while none is chosen.
        columns, sheet: as the upload has them.
        eval: an evaluation file.
    """

    model: str | None
    train: str | None
    columns: dict[str, str] | None = None
    sheet: str | None = None
    eval: str | None = None


def config_of(values: Mapping[str, Any], chosen: Chosen) -> RunConfig:
    """The configuration that a request describes.

    Args:
        values: texts by dotted name, as they stand behind `=` on the command line; an empty one is the default.

    Raises:
        ConfigError: settings that the page does not set, or values that cannot be: all of them, each with its setting.
    """
    problems = [_not_here(key) for key in values if key not in ALLOWED]
    given = {key: text for key, text in values.items() if key in ALLOWED}
    if any(not isinstance(text, str) or len(text) > _LONGEST or "\0" in text for text in given.values()):
        raise UsageError("設定の値は短い文字列です。", "values of settings are short texts.")
    try:
        config = load_config(None, [f"{key}={text}" for key, text in given.items() if text.strip()])
    except ConfigError as error:
        raise ConfigError.of([*problems, *map(_placed, error.problems)]) from None
    problems += [
        Problem(f"{key} は使えません。{one.rule.ja}", f"{key} cannot be taken: {one.rule.en}", key)
        for key, one in _RULES.items()
        if not one.holds(_value(config, key))
    ]
    if chosen.eval is not None and config.data.eval is not None:
        problems.append(
            Problem(
                "データの画面で分けた評価データを使います。この欄は空にしてください。",
                "the evaluation data that was divided on the data screen is used: leave this one empty.",
                "data.eval",
            )
        )
    if problems:
        raise ConfigError.of(problems)
    try:
        return _with(config, chosen)
    except ConfigError as error:
        raise ConfigError.of([*map(_placed, error.problems)]) from None


def _with(config: RunConfig, chosen: Chosen) -> RunConfig:
    data: dict[str, Any] = {
        "train": chosen.train,
        "columns": chosen.columns,
        "sheet": chosen.sheet,
        "eval": chosen.eval,
    }
    data = {name: value for name, value in data.items() if value is not None}
    model = {} if chosen.model is None else {"name": chosen.model}
    return with_values(config, model=with_values(config.model, **model), data=with_values(config.data, **data))


def _not_here(key: str) -> Problem:
    return Problem(
        f"{key[:100]} は、この画面では変えられません。",
        f"{key[:100]} cannot be changed on this page.",
        key,
    )


def _placed(problem: Problem) -> Problem:
    """A problem with the setting that its text begins with, where it names none."""
    first = problem.en.partition(" ")[0]
    return problem if problem.key or first not in ALLOWED else Problem(problem.ja, problem.en, first)


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def yaml_of(config: RunConfig) -> str:
    """The YAML that `aift train` takes."""
    return describe_run(config, {})


def arguments_of(config: RunConfig) -> list[str]:
    """The same as `aift train` takes it on the command line."""
    return [f"{key}={text_of(value)}" for key, value in _given(config)]


def values_of_yaml(text: str, chosen: Chosen) -> tuple[dict[str, str], list[str]]:
    """(texts by dotted name of what a YAML sets, what else it sets that the page does not take and that differs from
    what is chosen).

    Raises:
        ConfigError: it is none, or its settings cannot be; with lines. UsageError: it is too long.
    """
    if len(text) > YAML_CHARACTERS:
        raise UsageError("YAML が長すぎます。", "the YAML is too long.")
    given = dict(_given(load_text(text, "YAML")))
    taken = {key: value for key, value in given.items() if key in ALLOWED and _holds(key, value)}
    own = dict(_given(config_of({}, chosen)))
    left = [key for key, value in given.items() if key not in taken and own.get(key) != value]
    return {key: text_of(value) for key, value in taken.items()}, left


def _holds(key: str, value: Any) -> bool:
    return key not in _RULES or _RULES[key].holds(value)


def _given(config: RunConfig) -> Iterator[tuple[str, Any]]:
    """What was set, by dotted name."""
    for setting in leaves():
        *sections, name = setting.key.split(".")
        place: Any = config
        for section in sections:
            place = getattr(place, section, None)
        if setting.key == "method" and (config.uses_qlora or name in explicitly_set(config)):
            yield "method", config.effective_method
        elif setting.key != "lora.use_qlora" and place is not None and name in explicitly_set(place):
            yield setting.key, getattr(place, name)


def text_of(value: Any) -> str:
    """A value as it stands behind `=`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def leaves() -> list[Setting]:
    """Every setting that holds a value."""
    return [item for item in settings() if not item.is_section]


def described() -> list[dict[str, Any]]:
    """The settings of the page as a form shows them: key, texts in both languages, default, kind and choices."""
    hints = {".".join(path): hint for path, hint in fields_of(RunConfig).items()}
    return [
        {
            "key": item.key,
            "ja": _HINTS.get(item.key, item).ja,
            "en": _HINTS.get(item.key, item).en,
            "values": {"ja": item.values_ja, "en": item.values_en},
            "default": item.default,
            "visible": item.key in VISIBLE,
            "kind": _kind(item.key, hints[item.key]),
            "choices": _choices(item.key, hints[item.key]),
        }
        for item in sorted(leaves(), key=lambda item: VISIBLE.index(item.key) if item.key in VISIBLE else len(VISIBLE))
        if item.key in ALLOWED
    ]


def _choices(key: str, hint: Any) -> list[str]:
    if key == "model.chat_template":
        return sorted(TEMPLATES)
    names = choices(hint) if _kind(key, hint) == "choice" else []
    return [name for name in names if name != "pretrain"]


# Those of which the page takes less than their types do.
_KINDS = {"model.chat_template": "choice", "data.eval": "number"}


def _kind(key: str, hint: Any) -> str:
    """How a form asks for it: yes or no, one of some words, a number, or text (lists as YAML writes them)."""
    if key in _KINDS:
        return _KINDS[key]
    options = [option for option in options_of(hint) if option is not type(None)]
    if options == [bool]:
        return "bool"
    if len(options) == 1 and choices(options[0]) and not str(options[0]).startswith(("dict", "list", "tuple")):
        return "choice"
    return "number" if all(option in (int, float) for option in options) else "text"

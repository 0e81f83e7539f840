"""Training that goes on from a saved adapter (`lora.adapter`): its settings, and whether it belongs to the run's base."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.lora import LoRAConfig
from ..config.run import RunConfig
from ..config.run_folder import CHECKPOINTS
from ..config.section import explicitly_set, with_values
from ..config.training import TrainingConfig
from ..errors import ConfigError, InputNotFoundError, ModelError, Problem
from ..japanese.default_system import default_system, split_default_system
from ..messages import argument, notice, warn
from ..models.adapter_folder import WEIGHTS, adapter_config, base_name, recorded_base, unreadable
from ..models.hub import named_base, on_disk
from ..models.named import find_named, refusal
from ..planner.presets import rate_for
from ..runs.folder import recorded_settings
from ..system.files import read_bounded, sha256_of

# Bytes of a tokenizer.json; those of large vocabularies have some 40 MB.
_LARGEST_TOKENIZER = 256 << 20
# Settings that an adapter brings, under PEFT's names, which are ours too, and PEFT's values where its file has none.
_BROUGHT = {
    "r": 8,
    "lora_alpha": 8,
    "target_modules": None,
    "bias": "none",
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
}


# Above the hidden size of any model; whether the file has as much is looked at when it is loaded.
_LARGEST_RANK = 1 << 17


def with_adapter_settings(config: RunConfig) -> RunConfig:
    """The configuration with what its adapter says of rank, alpha, layers and variant; itself without an adapter.

    Raises:
        InputNotFoundError: no adapter there. ModelError: weights only as a pickle, or an adapter that is no LoRA.
        ConfigError: settings that the user gave and that the adapter contradicts; the folder is the run's own.
    """
    lora = config.lora
    if lora.adapter is None or config.trains_all:
        return config
    _refuse_own_folder(lora.adapter, config.training.output_dir)
    stored = adapter_config(lora.adapter)
    if stored.get("peft_type", "LORA") != "LORA":
        raise ModelError(
            f"{lora.adapter} は {stored['peft_type']} のアダプターです。続きから学習できるのは LoRA だけです。",
            f"{lora.adapter} is an adapter of the kind {stored['peft_type']}; training goes on from LoRA only.",
        )
    given = explicitly_set(lora)
    with unreadable(lora.adapter):
        brought = {name: _plain(stored[name] if stored.get(name) is not None else d) for name, d in _BROUGHT.items()}
        if not isinstance(brought["r"], int) or not 0 < brought["r"] <= _LARGEST_RANK:
            raise ValueError(f"r: {str(brought['r'])[:20]}")
        problems = [
            _contradiction(lora.adapter, name, getattr(lora, name), value)
            for name, value in brought.items()
            if name in given and not _same(getattr(lora, name), value)
        ]
    if problems:
        raise ConfigError.of(problems)
    if isinstance(brought["target_modules"], str) or lora.target_modules == "all-linear":
        del brought[
            "target_modules"
        ]  # PEFT's regular expression stays with the adapter; validate_targets() looks at words
    if "lora_dropout" not in given:
        with unreadable(lora.adapter):
            brought["lora_dropout"] = float(stored.get("lora_dropout") or 0.0)
    return with_values(config, lora=with_values(lora, **brought))


def _refuse_own_folder(adapter: str, output_dir: str) -> None:
    folder, output = Path(adapter).resolve(), Path(output_dir).resolve()
    if folder == output:
        raise ConfigError(
            f"lora.adapter と training.output_dir が同じ {adapter} です。学習すると元のアダプターが消えるので、別の output_dir にしてください。",
            f"lora.adapter and training.output_dir are both {adapter}; training would replace the adapter that it goes "
            "on from. Choose another output_dir.",
        )
    if output / CHECKPOINTS in folder.parents:
        raise ConfigError(
            f"lora.adapter の {adapter} は training.output_dir の {output_dir} の中にあります。学習を始めるとそこの以前の実行は別の名前に移るので、"
            "別の output_dir にしてください。",
            f"lora.adapter, {adapter}, lies in training.output_dir, {output_dir}; the earlier run there is moved away when "
            "training begins. Choose another output_dir.",
        )


def refuse_own_base(config: RunConfig) -> None:
    """Refuses a base that lies where the run writes: an earlier run there is moved away when training begins.

    Raises:
        ConfigError: with both folders.
    """
    base, output = Path(config.model.name).expanduser(), Path(config.training.output_dir)
    if config.training.checkpoint.resume_from_checkpoint is not None or not base.is_dir():
        return
    inside = base.resolve() == output.resolve() or (output / CHECKPOINTS).resolve() in base.resolve().parents
    if inside and config.method != "pretrain":
        raise ConfigError(
            f"model の {config.model.name} は training.output_dir の {output} にあります。学習を始めるとそこの以前の実行は別の名前に移るので、別の "
            "output_dir にしてください。",
            f"model, {config.model.name}, lies in training.output_dir, {output}; the earlier run there is moved away when "
            "training begins. Choose another output_dir.",
        )


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)  # alpha, as some tools write it
    return sorted(value) if isinstance(value, list) else value


def _same(given: Any, brought: Any) -> bool:
    """`null` and `all-linear` mean layers of the model, which only the model can name."""
    if isinstance(given, list) and isinstance(brought, list):
        return sorted(given) == brought
    return given in (None, "all-linear", brought) or (not given and not brought)


def _contradiction(adapter: str, name: str, given: Any, brought: Any) -> Problem:
    return Problem(
        f"lora.{name} が {given!r} ですが、アダプター {adapter} では {brought!r} です。lora.{name} を消してください（アダプターの値を使います）。",
        f"lora.{name} is {given!r}, and {brought!r} in the adapter {adapter}; remove lora.{name}, the adapter's value "
        "holds.",
        f"lora.{name}",
    )


def validate_targets(config: RunConfig, linear_layers: list[str]) -> None:
    """Refuses `target_modules: all-linear` beside an adapter that has fewer layers.

    Args:
        linear_layers: names of the base's linear layers without the head.

    Raises:
        ConfigError: layers that the adapter does not have.
    """
    lora = config.lora
    if lora.adapter is None or lora.target_modules != "all-linear":
        return
    targets = adapter_config(lora.adapter).get("target_modules")
    # As PEFT finds layers by their names, or by the ends of these.
    ends = () if isinstance(targets, str) else tuple(f".{target}" for target in targets or ())
    if targets != "all-linear" and not all(f".{name}".endswith(ends) for name in linear_layers):
        raise ConfigError.of([_contradiction(lora.adapter, "target_modules", lora.target_modules, _plain(targets))])


def validate_origin(config: RunConfig, base: str, tokenizer: Any) -> None:
    """Compares base and tokenizer of the run with those that the adapter was trained with.

    Args:
        base: what the run's base is called.
        tokenizer: of the run.

    Raises:
        ConfigError: the adapter was trained with tokens that the run's tokenizer has not.
    """
    adapter = config.lora.adapter
    if adapter is None:
        return
    trained_on = base_name(adapter_config(adapter))
    if not _one_base(trained_on, base):
        warn(
            f"アダプター {adapter} は {trained_on} で学習したものですが、ベースは {base} です。同じ重みでなければ、アダプターは役に立ちません。",
            f"the adapter {adapter} was trained on {trained_on} and the base is {base}; unless their weights are the "
            "same, the adapter is of no use.",
        )
    missing = [token for token in _added_tokens(Path(adapter)) if token not in tokenizer.get_vocab()]
    if missing:
        raise ConfigError(
            f"アダプター {adapter} を学習したときのトークン {', '.join(missing)} がトークナイザーにありません。model.extra_tokens に同じ順で指定してください。",
            f"the adapter {adapter} was trained with the tokens {', '.join(missing)}, which the tokenizer does not have; "
            "give them in this order in model.extra_tokens.",
        )
    template = Path(adapter) / "chat_template.jinja"
    obtained, system = split_default_system(template.read_text(encoding="utf-8") if template.is_file() else "")
    if system is not None and config.data.system_prompt is None and default_system(tokenizer) is None:
        warn(
            f"アダプター {adapter} はシステムプロンプト付きで学習したものです。同じもので続けるなら data.system_prompt={argument(system)}",
            f"the adapter {adapter} was trained with a system prompt; to go on with it: data.system_prompt="
            f"{argument(system)}",
        )
    if obtained and obtained.strip() != split_default_system(str(tokenizer.chat_template))[0].strip():
        warn(
            f"チャットテンプレートが、アダプター {adapter} を学習したときのものと違います（{template} を model.chat_template に指定すると同じになります）。",
            f"the chat template differs from the one that the adapter {adapter} was trained with (model.chat_template="
            f"{template} takes that one).",
        )


def _one_base(trained_on: str, base: str) -> bool:
    if trained_on == base:
        return True
    try:
        first, second = on_disk(trained_on), on_disk(base)
    except InputNotFoundError:  # an embedded model that this version does not have
        return False
    return first is not None and second is not None and first.samefile(second)


def _added_tokens(adapter: Path) -> list[str]:
    """The tokens beside the vocabulary that a tokenizer saved with the adapter has, in the order of their ids."""
    try:
        stored = json.loads(read_bounded(adapter / "tokenizer.json", _LARGEST_TOKENIZER))
        added = sorted(stored.get("added_tokens") or [], key=lambda token: int(token["id"]))
        return [str(token["content"]) for token in added]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


# --- a run that goes on from what an earlier one has trained


@dataclass(frozen=True)
class Start:
    """What a folder that training goes on from says of itself.

    Attributes:
        folder: of an adapter or a model.
        run: the folder of the run that made it, or None.
        adapter: whether it is an adapter.
        base: of the adapter; of a model the folder itself.
        bits: of the base that the adapter was trained on; None for 16 and 32.
        full: whether the run trained all weights.
        chat_template: file of the template that it was trained with, or None.
        system_prompt: that it was trained with, where its template does not hold it; else None.
        extra_tokens, special_tokens: that it was trained with; None where the run's settings have none.
        learning_rate: of its run, None where that is not known.
        objective: of its run, as in its settings.
    """

    folder: Path
    run: Path | None
    adapter: bool
    base: str
    bits: int | None = None
    full: bool = False
    chat_template: str | None = None
    system_prompt: str | None = None
    extra_tokens: list[str] | None = None
    special_tokens: dict[str, str] | None = None
    learning_rate: float | None = None
    objective: str = "sft"


def find_start(name: str | Path) -> Start:
    """What training goes on from.

    Args:
        name: folder of an adapter, of a run, or of the best weights of one.

    Raises:
        InputNotFoundError: no such folder. ModelError: it holds no weights to go on from.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise InputNotFoundError(
            f"--from の {name} というフォルダーがありません。アダプターか、学習の出力フォルダーを指定してください。",
            f"--from is {name}, which is not a folder; name the folder of an adapter or of a run.",
        )
    named = find_named(folder)
    if named.kind not in ("adapter", "model"):
        raise refusal(named)
    adapter, settings = named.kind == "adapter", recorded_settings(named.run) if named.run is not None else {}
    template = folder / "chat_template.jinja"
    in_template = split_default_system(template.read_text(encoding="utf-8"))[1] if template.is_file() else None
    model, rate = _mapping(settings.get("model")), _mapping(settings.get("training")).get("learning_rate")
    return Start(
        folder=folder,
        run=named.run,
        adapter=adapter,
        base=named_base(folder) if adapter else str(folder),
        bits=_bits(folder, settings) if adapter else None,
        full=settings.get("method") in ("full", "pretrain"),
        chat_template=str(template) if adapter and template.is_file() else None,
        system_prompt=_mapping(settings.get("data")).get("system_prompt") if in_template is None else None,
        extra_tokens=model.get("extra_tokens") if adapter else None,
        special_tokens=model.get("special_tokens") if adapter else None,
        learning_rate=rate if isinstance(rate, float) and 0 < rate < 1 else None,
        objective=str(settings.get("objective") or "sft"),
    )


def _bits(folder: Path, settings: dict[str, Any]) -> int | None:
    """Bits of the base that an adapter was trained on: as its folder says, or the settings of its run."""
    lora = _mapping(settings.get("lora"))
    if recorded_base(folder).bits is None and (settings.get("method") == "qlora" or lora.get("use_qlora") is True):
        return 8 if lora.get("qlora_4bit") is False else 4
    return recorded_base(folder).bits


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def going_on_from(config: RunConfig, name: str | Path) -> RunConfig:
    """The configuration of a new run that goes on from an earlier one's weights, with a fresh optimizer.

    What the user gave stands; base, method, template, system prompt, new tokens and the learning rate come from the
    earlier run where nothing else is given.

    Raises:
        InputNotFoundError, ConfigError: as find_start; settings that name other weights.
    """
    start = find_start(name)
    if not start.adapter:
        return _from_model(config, start)
    if "method" in explicitly_set(config) and config.trains_all:
        merge = f"aift merge {argument(start.folder)} --out {argument(f'{start.folder}-merged')}"
        raise ConfigError(
            f"{start.folder} は LoRA アダプターなので、method: {config.method} では続けられません。先に {merge} で統合し、そのモデルを model に"
            "指定してください。",
            f"{start.folder} is a LoRA adapter, so method: {config.method} cannot go on from it; merge it first ({merge}) "
            "and name the merged model in model.",
        )
    given = config.lora.adapter
    if given is not None and Path(given).resolve() != start.folder.resolve():
        raise ConfigError(
            f"--from が {start.folder} で lora.adapter が {given} です。どちらか一方にしてください。",
            f"--from is {start.folder} and lora.adapter is {given}; give only one of them.",
        )
    return _carried_over(config, start, lora_of(start, config.lora, method=config.method))


def lora_of(start: Start, lora: LoRAConfig, *, method: str = "lora") -> LoRAConfig:
    """The settings of an adapter that goes on from another: from its weights, on a base quantized as it was."""
    changes: dict[str, Any] = {"adapter": str(start.folder)}
    given = explicitly_set(lora)
    if start.bits is not None and "use_qlora" not in given and method != "qlora":
        changes["use_qlora"] = True
    if start.bits == 8 and "qlora_4bit" not in given:
        changes["qlora_4bit"] = False
    return with_values(lora, **changes)


def _from_model(config: RunConfig, start: Start) -> RunConfig:
    changes: dict[str, Any] = {}
    if start.full and "method" not in explicitly_set(config):
        changes["method"] = "full"
    return _carried_over(with_values(config, **changes), start, config.lora)


def _carried_over(config: RunConfig, start: Start, lora: LoRAConfig) -> RunConfig:
    """The configuration with everything that an earlier run brings and the user has not given."""
    model, data, training = config.model, config.data, config.training
    named = model.name if "name" in explicitly_set(model) else None
    if named is not None and not start.adapter and Path(named).resolve() != start.folder.resolve():
        raise ConfigError(
            f"--from が {start.folder} で model が {named} です。どちらか一方にしてください。",
            f"--from is {start.folder} and model is {named}; give only one of them.",
        )
    brought = {
        "name": start.base if named is None or Path(named).resolve() == start.folder.resolve() else named,
        "chat_template": start.chat_template,
        "extra_tokens": start.extra_tokens,
        "special_tokens": start.special_tokens,
    }
    given = explicitly_set(model) - {"name"}
    model = with_values(model, **{key: value for key, value in brought.items() if value and key not in given})
    if start.system_prompt is not None and "system_prompt" not in explicitly_set(data):
        data = with_values(data, system_prompt=start.system_prompt)
        notice(
            f"システムプロンプトは元の学習のものです: {data.system_prompt}",
            f"the system prompt is the earlier run's: {data.system_prompt}",
        )
    if "learning_rate" not in explicitly_set(training):
        training = _with_rate(config, start, model.name)
    resuming = training.checkpoint.resume_from_checkpoint is not None
    if "output_dir" not in explicitly_set(training):
        training = with_values(training, output_dir=_folder_beside(start, resuming=resuming))
    base = f"、ベース {model.name}" if start.adapter else ""
    notice(
        f"{start.folder} の続きから学習します（{base.removeprefix('、')}{'、' if base else ''}オプティマイザーは新しく始めます）。出力先: {training.output_dir}",
        f"going on from {start.folder} ({f'base {model.name}, ' if start.adapter else ''}a fresh optimizer). "
        f"Output: {training.output_dir}",
    )
    return with_values(config, model=model, data=data, training=training, lora=lora)


def _with_rate(config: RunConfig, start: Start, base: str) -> TrainingConfig:
    """The training settings with the earlier run's learning rate; where that learnt from something else, with the one that
    is suggested for this objective: a rate for answers spoils a model that learns from comparisons.
    """
    training, rate = config.training, start.learning_rate
    if start.objective != config.objective and not config.trains_all:
        rate = rate_for(base, config.objective)
        notice(
            f"元の学習は objective: {start.objective} なので、学習率は引き継がず、{config.objective} の目安 {rate:g} にします（training.learning_rate で変えられます）。",
            f"the earlier run learnt by objective: {start.objective}, so that its learning rate is not taken; it is {rate:g}, as "
            f"suggested for {config.objective} (training.learning_rate changes it).",
        )
    elif rate is None or start.full != config.trains_all or start.objective != config.objective:
        return training
    else:
        notice(
            f"学習率は元の学習と同じ {rate:g} です（training.learning_rate で変えられます）。",
            f"the learning rate is the earlier run's, {rate:g} (training.learning_rate changes it).",
        )
    return with_values(training, learning_rate=rate)


def _folder_beside(start: Start, *, resuming: bool) -> str:
    """A folder for the new run, named after the earlier one: the first that is not there, or, for a run that resumes,
    the last that is.
    """
    before = start.run or start.folder
    before = before if before.name not in ("", ".", "..") else before.resolve()
    numbered = (before.with_name(f"{before.name}-{number}") for number in itertools.count(2))
    there = list(itertools.takewhile(lambda folder: folder.exists(), numbered))
    return str(there[-1] if resuming and there else before.with_name(f"{before.name}-{len(there) + 2}"))


def parent_of(config: RunConfig) -> dict[str, Any] | None:
    """What a run goes on from, for its run.json and card; None where it begins with a base."""
    if config.lora.adapter is not None and not config.trains_all:
        folder = Path(config.lora.adapter)
        return {"folder": str(folder.resolve()), "kind": "adapter", "sha256": sha256_of(folder / WEIGHTS)}
    folder = Path(config.model.name).expanduser()
    if folder.is_dir() and find_named(folder).run is not None:
        return {"folder": str(folder.resolve()), "kind": "model"}
    return None

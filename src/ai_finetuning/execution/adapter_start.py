"""Training that goes on from a saved adapter (`lora.adapter`): its settings, and whether it belongs to the run's base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config.run import RunConfig
from ..config.section import explicitly_set, with_values
from ..errors import ConfigError, ModelError, Problem
from ..japanese.default_system import default_system, split_default_system
from ..messages import argument, warn
from ..models.adapter_folder import adapter_config, base_name

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
    brought = {name: _plain(stored[name] if stored.get(name) is not None else d) for name, d in _BROUGHT.items()}
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
        brought["lora_dropout"] = float(stored.get("lora_dropout") or 0.0)
    return with_values(config, lora=with_values(lora, **brought))


def _refuse_own_folder(adapter: str, output_dir: str) -> None:
    if Path(adapter).resolve() == Path(output_dir).resolve():
        raise ConfigError(
            f"lora.adapter と training.output_dir が同じ {adapter} です。学習すると元のアダプターが消えるので、別の output_dir にしてください。",
            f"lora.adapter and training.output_dir are both {adapter}; training would replace the adapter that it goes "
            "on from. Choose another output_dir.",
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
    folders = [Path(name).expanduser() for name in (trained_on, base)]
    return trained_on == base or (all(folder.is_dir() for folder in folders) and folders[0].samefile(folders[1]))


def _added_tokens(adapter: Path) -> list[str]:
    """The tokens beside the vocabulary that a tokenizer saved with the adapter has, in the order of their ids."""
    try:
        stored = json.loads((adapter / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    added = sorted(stored.get("added_tokens") or [], key=lambda token: int(token["id"]))
    return [str(token["content"]) for token in added]

"""What the toolkit knows of a model before it loads one; the rows are in catalog.yaml."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..japanese.templates import TEMPLATES, ChatTemplate, PromptStatus
from ..messages import warn
from .bundle import read_bundle

_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
# What `lora.target_modules: all-linear` takes, every linear layer but the head: for readers of SUPPORTED_MODELS alone, as
# training finds the layers in the model itself. Experts of a mixture are no linear layers in transformers 5 (decision 0069).
LORA_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_text", "stablelm"), _ALL_LINEAR),
    **dict.fromkeys(("mixtral", "qwen3_moe", "gpt_oss"), _ATTENTION),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "plamo2": ("qkv_proj", "o_proj", "in_proj", "out_proj", "gate_up_proj", "down_proj"),
}
# Where nothing that was asked for loads: small, ungated, Apache-2.0 or MIT.
RECOMMENDED = (
    "llm-jp/llm-jp-3-1.8b-instruct3",
    "sbintuitions/sarashina2.2-1b-instruct-v0.1",
    "llm-jp/llm-jp-3-150m-instruct3",
)
_FREE_LICENCES = ("Apache", "MIT", "CC-BY-4.0", "CC0")  # beginnings of their names
_GIB = 2**30


@dataclass(frozen=True)
class CatalogRow:
    """One model.

    Attributes:
        id: hub id.
        display_name: name for people.
        alias_of: the real id, where this one was never published.
        params_b, active_params_b: parameters in 10^9.
        hidden_size: width of the hidden states.
        memory_gib: computed GiB by use: `infer`, `lora` (bf16), `qlora` (NF4), `full`.
        template: key of japanese.templates, None for base models.
        prompt: how far the prompt is known; None for base models.
        source: where the prompt, or the tokenizer's template, was read: an address, or `card` for the model's own page.
    """

    id: str
    display_name: str
    alias_of: str | None = None
    params_b: float | None = None
    active_params_b: float | None = None
    model_type: str | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    context_length: int | None = None
    chars_per_token_ja: float | None = None
    kind: str | None = None
    base: str | None = None
    template: str | None = None
    licence: str | None = None
    gated: bool = False
    non_commercial: bool = False
    remote_code: bool = False
    prompt: PromptStatus | None = None
    source: str | None = None
    memory_gib: dict[str, float] = field(default_factory=dict)

    @property
    def trust_remote_code(self) -> bool:
        """Whether the model needs code from its repository: transformers has no class for it."""
        return self.remote_code

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The family's prompt."""
        return TEMPLATES.get(self.template or "")

    @property
    def prompt_source(self) -> str | None:
        """The source of the prompt, in full."""
        return f"https://huggingface.co/{self.id}" if self.source == "card" else self.source

    @property
    def commercial(self) -> str | None:
        """`yes` or `no` where the licence's name says whether commercial use is allowed, `conditions` where its text has to
        be read; None where the licence is not known.
        """
        if self.non_commercial:
            return "no"
        if not self.licence:
            return None
        return "yes" if self.licence.startswith(_FREE_LICENCES) else "conditions"

    def licence_notices(self) -> list[tuple[str, str]]:
        """(Japanese, English) lines that a user has to know before training."""
        lines = []
        if self.commercial == "no":
            lines.append(
                (
                    f"{self.id} は非商用ライセンス（{self.licence}）です。",
                    f"{self.id} is for non-commercial use ({self.licence}).",
                )
            )
        elif self.commercial == "conditions":
            lines.append(
                (
                    f"{self.id} のライセンスは {self.licence} です。条件を確認してください。",
                    f"{self.id} is licensed under {self.licence}; read its conditions.",
                )
            )
        if self.gated:
            lines.append((f"{self.id} は利用申請が必要です。", f"{self.id} is gated: request access on its page."))
        return lines


@functools.lru_cache(maxsize=1)
def rows() -> dict[str, CatalogRow]:
    """Every row by id."""
    text = resources.files(__package__).joinpath("catalog.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return {name: CatalogRow(id=name, **values) for name, values in yaml.load(text, loader).items()}  # nosec B506


def resolve(name: str) -> str:
    """The published id behind an alias, reported in one line; other names as they are."""
    row = rows().get(name)
    if row is None or row.alias_of is None:
        return name
    warn(
        f"{name} という ID は公開されていません。公開されている {row.alias_of} を使います。",
        f"{name} is not a published model; using {row.alias_of}.",
    )
    return row.alias_of


def lookup(name: str) -> CatalogRow | None:
    """The row of an id or alias, or of a folder that `aift bundle` made; None for models that the catalog does not know."""
    row = rows().get(name)
    if row is None and (bundle := read_bundle(Path(name).expanduser())) is not None:
        row = rows().get(bundle.model)
    return rows()[row.alias_of] if row is not None and row.alias_of is not None else row


def near(name: str, n: int = 3) -> list[str]:
    """Ids that look like a name, whole or by their last part; never the name itself."""
    whole = {key.lower(): key for key in rows()}
    last = {key.split("/")[-1].lower(): key for key in rows()}
    expected = name.lower()
    obtained = difflib.get_close_matches(expected, whole, n=n, cutoff=0.6)
    found_last = difflib.get_close_matches(expected.split("/")[-1], last, n=n, cutoff=0.6)
    found = dict.fromkeys([*(whole[key] for key in obtained), *(last[key] for key in found_last)])
    return [other for other in found if other != name][:n]


def supported_models() -> dict[str, dict[str, Any]]:
    """The documented SUPPORTED_MODELS: display_name and min_gpu_memory_gb (bf16 inference, in 10^9 bytes), and what
    else is known; `verified` says whether the prompt is golden or the tokenizer's.
    """
    return {name: _public(row) for name, row in rows().items()}


def _public(row: CatalogRow) -> dict[str, Any]:
    real = rows()[row.alias_of] if row.alias_of is not None else row
    template = real.chat_template
    memory = {use: round(gib * _GIB / 1e9, 1) for use, gib in real.memory_gib.items()}
    public = {
        "display_name": row.display_name,
        "min_gpu_memory_gb": -(-int(10 * memory["infer"]) // 10) if "infer" in memory else None,
        "parameters_billion": real.params_b,
        "model_type": real.model_type,
        "context_length": real.context_length,
        "licence": real.licence,
        "non_commercial": real.non_commercial,
        "gated": real.gated,
        "needs_remote_code": real.remote_code,
        "memory_gb": memory,
        "template": real.template,
        "stop_tokens": [template.turn_end] if template is not None else [],
        "newline": template.newline if template is not None else None,
        "lora_targets": list(LORA_TARGETS.get(real.model_type or "", ())),
        "characters_per_token": real.chars_per_token_ja,
        "prompt": real.prompt,
        "prompt_source": real.prompt_source,
        "verified": real.prompt in ("golden", "tokenizer"),
    }
    return public | ({"alias_of": row.alias_of} if row.alias_of is not None else {})


def fallback_order(requested: str, free_bytes: int) -> list[str]:
    """Ids to try where `requested` does not load: its family's smaller models, then the recommended ones, as far as
    they fit.

    Args:
        requested: what the user asked for.
        free_bytes: memory of the device.
    """
    row = lookup(requested)
    family: list[str] = []
    if row is not None and row.params_b is not None:
        size, maker = row.params_b, row.id.split("/")[0]
        smaller = [
            other
            for other in rows().values()
            if other.id.split("/")[0] == maker
            and other.alias_of is None
            and other.template == row.template
            and other.params_b is not None
            and other.params_b < size
            and not (other.gated or other.remote_code)
        ]
        family = [other.id for other in sorted(smaller, key=lambda other: -(other.params_b or 0.0))]
    expected = [name for name in dict.fromkeys([*family, *RECOMMENDED]) if name != requested]
    return [name for name in expected if rows()[name].memory_gib.get("infer", 0.0) * _GIB <= free_bytes]

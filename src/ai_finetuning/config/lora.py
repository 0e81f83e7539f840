"""LoRAConfig with the documented fields, order and defaults."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .limits import AtLeastOne, FractionOrZero, Rule
from .section import section

_Targets = Annotated[
    Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] | None,
    Rule(
        "モジュール名のリスト、'all-linear' または null（None）にしてください。",
        "it must be a list of module names, 'all-linear' or null (None).",
    ),
]

_Folder = Annotated[
    Annotated[str, Field(pattern=r"\S")] | None,
    Rule("アダプターのフォルダーか null（None）にしてください。", "it must be an adapter's folder or null (None)."),
]


@section
class LoRAConfig:
    """LoRA (arXiv:2106.09685) and QLoRA (arXiv:2305.14314) settings."""

    SECTION: ClassVar[str] = "lora"

    r: AtLeastOne = 16
    """Rank of the update.
    ja: 更新行列のランク。
    """
    lora_alpha: AtLeastOne = 32
    """Scale: the update is multiplied by lora_alpha / r.
    ja: 更新の倍率。更新に lora_alpha / r を掛けます。
    """
    target_modules: _Targets = None
    """Names of the linear layers to adapt, or `all-linear`; null means all of them too. In mixtures of experts these are
    the layers that are not experts (docs/models.md).
    ja: アダプターを付ける線形層の名前のリスト、または `all-linear`。null もすべての線形層です。混合エキスパート（MoE）では、エキスパート以外の層です（docs/models.ja.md）。
    """
    lora_dropout: FractionOrZero = 0.05
    """Dropout before the update.
    ja: 更新の前に適用するドロップアウトの率。
    """
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases train.
    ja: 学習するバイアス。
    """
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    """Always CAUSAL_LM here.
    ja: 常に CAUSAL_LM です。
    """
    use_qlora: bool = False
    """Load the base model quantized.
    ja: ベースモデルを量子化して読み込むかどうか。
    """
    qlora_4bit: bool = True
    """4 bit (NF4, double quantization); False for 8 bit.
    ja: 4 bit（NF4、二重量子化）にするかどうか。False は 8 bit です。
    """
    use_rslora: bool = dataclasses.field(default=False, kw_only=True)
    """Use rsLoRA (arXiv:2312.03732): scale by lora_alpha / sqrt(r).
    ja: rsLoRA（arXiv:2312.03732）。倍率を lora_alpha / sqrt(r) にします。
    """
    use_dora: bool = dataclasses.field(default=False, kw_only=True)
    """Use DoRA (arXiv:2402.09353), which trains magnitude and direction separately.
    ja: DoRA（arXiv:2402.09353）。重みの大きさと向きを別々に学習します。
    """
    adapter: _Folder = dataclasses.field(default=None, kw_only=True)
    """Folder of a LoRA adapter (ours or PEFT's) that training goes on from: its rank, alpha, layers and variant hold,
    and its dropout where lora_dropout is not set.
    ja: 続きから学習する LoRA アダプターのフォルダー（本ツールか PEFT のもの）。ランク、alpha、対象の層、種類はアダプターのもので、lora_dropout も指定しなければそうです。
    """
    modules_to_save: list[str] | None = dataclasses.field(default=None, kw_only=True)
    """Modules that are trained in full and saved with the adapter (embed_tokens, lm_head after adding tokens).
    ja: 全体を学習し、アダプターと一緒に保存するモジュール（トークンを追加したときの embed_tokens、lm_head など）。
    """
    target_parameters: Annotated[list[str], Field(min_length=1)] | None = dataclasses.field(default=None, kw_only=True)
    """Weights of the experts of a mixture of experts to adapt too, by the ends of their names
    ([experts.gate_up_proj, experts.down_proj]). Their adapters have no dropout.
    ja: 混合エキスパート（MoE）でアダプターを付けるエキスパートの重みの名前（末尾。[experts.gate_up_proj, experts.down_proj] など）。ドロップアウトは適用されません。
    """

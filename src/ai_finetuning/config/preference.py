"""PreferenceConfig: which loss learns from pairs of answers, or from answers with a mark, and its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .limits import NotNegativeFloat, PositiveFloat, Share
from .section import require, section

Objective = Literal["sft", "preference", "kto"]
Loss = Literal[
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "sigmoid_norm",
    "apo_zero",
    "apo_down",
    "simpo",
    "orpo",
    "kto",
    "apo_zero_unpaired",
]


@dataclass(frozen=True)
class LossFacts:
    """What a loss takes.

    Attributes:
        objective: whose loss it is.
        settings: numbers of the section that it reads, beside beta.
        beta: its beta where none is given.
        reference: whether it compares with the model as it stands before step 1.
    """

    objective: Objective = "preference"
    settings: tuple[str, ...] = ()
    beta: float = 0.1
    reference: bool = True


_COMMON = ("sft_weight", "ld_alpha")
_WEIGHTS = ("desirable_weight", "undesirable_weight")
LOSSES: dict[str, LossFacts] = {
    "sigmoid": LossFacts(settings=("label_smoothing", *_COMMON)),
    "robust": LossFacts(settings=("label_smoothing", *_COMMON)),
    "hinge": LossFacts(settings=_COMMON),
    "ipo": LossFacts(settings=_COMMON),
    "sigmoid_norm": LossFacts(settings=_COMMON),
    "apo_zero": LossFacts(settings=_COMMON),
    "apo_down": LossFacts(settings=_COMMON),
    "simpo": LossFacts(settings=("margin", "sft_weight"), beta=2.0, reference=False),
    "orpo": LossFacts(reference=False),
    "kto": LossFacts("kto", _WEIGHTS),
    "apo_zero_unpaired": LossFacts("kto", _WEIGHTS),
}


def loss_of(objective: Objective, settings: PreferenceConfig) -> Loss:
    """The loss of a run: the one that is set, or the objective's own (sigmoid, kto)."""
    return settings.loss or ("kto" if objective == "kto" else "sigmoid")


@section
class PreferenceConfig:
    """Loss over pairs of answers (objective: preference) or marked answers (objective: kto)."""

    SECTION: ClassVar[str] = "preference"

    loss: Loss | None = None
    """DPO (`sigmoid`, arXiv:2305.18290), robust DPO (2403.00409), SLiC (`hinge`, 2305.10425), IPO (2310.12036, by token as
    its authors use it), `sigmoid_norm` (DPO by token, as in Tulu 3), APO (2408.06266), SimPO (2405.14734), ORPO
    (2403.07691, its likelihood over the answer alone); for objective kto: KTO (2402.01306) and APO without pairs. null:
    sigmoid, or kto.
    ja: 損失。DPO（sigmoid）、robust DPO、SLiC（hinge）、IPO（トークン平均）、sigmoid_norm（トークン平均の DPO）、APO、SimPO、ORPO（尤度は回答だけ）。objective: kto では KTO と組のない APO。null は sigmoid（kto では kto）です。
    """
    beta: PositiveFloat | None = None
    """How strongly answers are held to the reference, or the scale of the reward without one; null: 0.1, for simpo 2.
    ja: 参照モデルから離れにくくする強さ（参照のない損失では報酬の倍率）。null は 0.1（simpo は 2）です。
    """
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs whose sides are taken to be swapped (sigmoid: conservative DPO; robust).
    ja: 良い回答と悪い回答が逆になっていると見込む割合（sigmoid は conservative DPO、robust）。
    """
    margin: NotNegativeFloat | None = None
    """SimPO's gamma, what the better answer's reward must lead by; null: 1.
    ja: SimPO の gamma。良い回答の報酬がこれだけ上回ることを求めます。null は 1 です。
    """
    sft_weight: NotNegativeFloat = 0.0
    """Weight of the chosen answer's own loss a token, which keeps it likely (RPO, arXiv:2404.19733: 1).
    ja: 良い回答そのものの損失（1 トークンあたり）の重み。その確率が下がるのを防ぎます（RPO では 1）。
    """
    ld_alpha: Share | None = None
    """Weight of the tokens of an answer beyond the length of the shorter one (LD-DPO, arXiv:2409.06411); null: 1.
    ja: 短いほうの回答の長さを超えたトークンの重み（LD-DPO）。null は 1 です。
    """
    desirable_weight: PositiveFloat = 1.0
    """KTO's weight of good answers.
    ja: KTO での良い回答の重み。
    """
    undesirable_weight: PositiveFloat = 1.0
    """KTO's weight of bad answers.
    ja: KTO での悪い回答の重み。
    """

    def __post_init__(self) -> None:
        """Refuses numbers that the loss would not read: a run with them would be another one than was asked for."""
        if self.loss is None:
            return
        facts = LOSSES[self.loss]
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            reading = [loss for loss, other in LOSSES.items() if name in other.settings]
            takers, objective = ", ".join(reading), LOSSES[reading[0]].objective
            other = "" if objective == facts.objective else f" (objective: {objective})"
            require(
                value == default or name in facts.settings,
                f"preference.{name}",
                value,
                f"preference.loss: {self.loss} では使われません。{takers}{other} を選ぶか、この設定を消してください。",
                f"preference.loss {self.loss} does not read it: choose {takers}{other}, or remove it.",
            )


_DEFAULTS: dict[str, float | None] = {
    "label_smoothing": 0.0,
    "margin": None,
    "sft_weight": 0.0,
    "ld_alpha": None,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
}

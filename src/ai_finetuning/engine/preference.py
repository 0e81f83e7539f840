"""Losses over pairs of answers, and over answers with a mark, from the sums of their tokens' log-probabilities.

Every loss is one number a pair; a step's loss is their sum over the number of pairs of the whole step, whatever the
micro-batches and ranks are. Sources stand with the settings (config/preference.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.preference import LOSSES, PreferenceConfig

CHOSEN, REJECTED = 0, 1
# ORPO's log(1 - p) of a mean log-probability that rounds to 0.
_SURE = -1e-7


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of the answers of pairs.

    Attributes:
        policy: [pairs, 2, 2] fp32, sums over an answer's labels: chosen and rejected, each over its first m labels and
            over the rest, where m is the number of the shorter one.
        labels: [pairs, 2], their numbers. A pair without any, as ranks have that ran out of rows, counts nothing.
        reference: as policy, of the model before step 1; None where the loss has none.
    """

    policy: Tensor
    labels: Tensor
    reference: Tensor | None = None

    @property
    def live(self) -> Tensor:
        """[pairs] bool: both answers have labels."""
        return (self.labels > 0).all(dim=1)


@dataclass(frozen=True)
class _Terms:
    """What formulas read of pairs that live; dead ones hold harmless numbers, so that no gradient becomes NaN.

    Attributes:
        ratio: [pairs, 2] log(policy / reference), the policy's own without a reference.
        mean: [pairs, 2] the same by label.
        chosen_mean: [pairs] the chosen answer's log-probability by label, all labels alike.
        beta, smoothing, margin: the settings.
    """

    ratio: Tensor
    mean: Tensor
    chosen_mean: Tensor
    beta: float
    smoothing: float
    margin: float


def _lead(values: Tensor) -> Tensor:
    return values[:, CHOSEN] - values[:, REJECTED]


def _smoothed(lead: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(lead) - smoothing * F.logsigmoid(-lead)


def _robust(of: _Terms) -> Tensor:
    lead, swapped = of.beta * _lead(of.ratio), of.smoothing
    loss = -(1 - swapped) * F.logsigmoid(lead) + swapped * F.logsigmoid(-lead)
    return loss / (1 - 2 * swapped)


def _apo_zero(of: _Terms) -> Tensor:
    reward = torch.sigmoid(of.beta * of.ratio)
    return 1 - reward[:, CHOSEN] + reward[:, REJECTED]


def _apo_down(of: _Terms) -> Tensor:
    return torch.sigmoid(of.beta * of.ratio[:, CHOSEN]) + 1 - torch.sigmoid(of.beta * _lead(of.ratio))


def _log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 - p)) of a mean log-probability, stable at both ends."""
    sure = mean.clamp(max=_SURE)
    # log(1 - exp(x)): by expm1 near 0, by log1p below -log 2 (Mächler, 2012).
    rest = torch.where(sure > -0.6931472, torch.log(-torch.expm1(sure)), torch.log1p(-torch.exp(sure)))
    return sure - rest


def _orpo(of: _Terms) -> Tensor:
    return -of.chosen_mean - of.beta * F.logsigmoid(_lead(_log_odds(of.mean)))


_FORMULAS: dict[str, Callable[[_Terms], Tensor]] = {
    "sigmoid": lambda of: _smoothed(of.beta * _lead(of.ratio), of.smoothing),
    "robust": _robust,
    "hinge": lambda of: torch.relu(1 - of.beta * _lead(of.ratio)),
    "ipo": lambda of: (_lead(of.mean) - 1 / (2 * of.beta)) ** 2,
    "sigmoid_norm": lambda of: -F.logsigmoid(of.beta * _lead(of.mean)),
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "simpo": lambda of: -F.logsigmoid(of.beta * _lead(of.mean) - of.margin),
    "orpo": _orpo,
}


def pair_losses(scores: PairScores, settings: PreferenceConfig) -> Tensor:
    """[pairs] losses in fp32; 0, with no gradient, for pairs without labels.

    Raises:
        ValueError: the loss compares with a reference, and there is none.
    """
    of = _terms(scores, settings)
    losses = _FORMULAS[settings.loss or "sigmoid"](of)
    if settings.sft_weight:
        losses = losses - settings.sft_weight * of.chosen_mean
    return torch.where(scores.live, losses, torch.zeros_like(losses))


_PAIR_METRICS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)
_MARKED_METRICS = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")


def metric_names(settings: PreferenceConfig) -> tuple[str, ...]:
    """What pair_metrics, or for objective kto marked_metrics, sums up."""
    if LOSSES[settings.loss or "sigmoid"].objective == "kto":
        return _MARKED_METRICS
    if settings.loss == "orpo":
        return (*_PAIR_METRICS, "nll_loss", "log_odds_ratio")
    return (*_PAIR_METRICS, "nll_loss") if settings.sft_weight else _PAIR_METRICS


@torch.no_grad()
def pair_metrics(scores: PairScores, settings: PreferenceConfig) -> dict[str, Tensor]:
    """Sums over the pairs that live, to be divided by their number over all micro-batches and ranks.

    Rewards are beta times what the loss compares; the accuracy is the share of pairs whose chosen answer has the higher
    one, so it is 0 where both have the same, as before step 1.

    Raises:
        ValueError: the loss compares with a reference, and there is none.
    """
    of, facts, live = _terms(scores, settings), LOSSES[settings.loss or "sigmoid"], scores.live
    reward = of.beta * (of.ratio if facts.reference else of.mean)
    rows = {
        "rewards/chosen": reward[:, CHOSEN],
        "rewards/rejected": reward[:, REJECTED],
        "rewards/margins": _lead(reward),
        "rewards/accuracies": (_lead(reward) > 0).float(),
        "logps/chosen": scores.policy[:, CHOSEN].sum(dim=1),
        "logps/rejected": scores.policy[:, REJECTED].sum(dim=1),
    }
    if settings.loss == "orpo" or settings.sft_weight:
        rows["nll_loss"] = -of.chosen_mean
    if settings.loss == "orpo":
        rows["log_odds_ratio"] = _lead(_log_odds(of.mean))
    return {name: torch.where(live, values, torch.zeros_like(values)).sum() for name, values in rows.items()}


@torch.no_grad()
def marked_metrics(
    ratio: Tensor, policy: Tensor, good: Tensor, live: Tensor, settings: PreferenceConfig
) -> dict[str, Tensor]:
    """Sums over the marked answers that live, those of good ones to be divided by their number and the others by theirs,
    with both numbers (`good`, `bad`).

    Args:
        ratio: [rows] log(policy / reference) of an answer.
        policy: [rows] its log-probability.
        good: [rows] bool marks.
        live: [rows] bool: the answer has labels.
        settings: whose loss it is.
    """
    beta, obtained = beta_of(settings), {}
    for name, count, rows in (("chosen", "good", good & live), ("rejected", "bad", ~good & live)):
        for kind, values in (("rewards", beta * ratio), ("logps", policy)):
            obtained[f"{kind}/{name}"] = torch.where(rows, values, torch.zeros_like(values)).sum()
        obtained[count] = rows.sum()
    return obtained


def beta_of(settings: PreferenceConfig) -> float:
    """The section's beta, or that of its loss."""
    return LOSSES[settings.loss or "sigmoid"].beta if settings.beta is None else settings.beta


def _terms(scores: PairScores, settings: PreferenceConfig) -> _Terms:
    facts, live = LOSSES[settings.loss or "sigmoid"], scores.live[:, None]
    rest = 1.0 if settings.ld_alpha is None else settings.ld_alpha
    policy = scores.policy[..., 0] + rest * scores.policy[..., 1]
    if facts.reference:
        if scores.reference is None:
            raise ValueError(f"the loss {settings.loss} compares with a reference, and there is none")
        policy = policy - (scores.reference[..., 0] + rest * scores.reference[..., 1])
    ratio = torch.where(live, policy, torch.full_like(policy, -1.0))
    labels = scores.labels.clamp(min=1)
    return _Terms(
        ratio=ratio,
        mean=ratio / labels,
        chosen_mean=scores.policy[:, CHOSEN].sum(dim=1) / labels[:, CHOSEN],
        beta=beta_of(settings),
        smoothing=settings.label_smoothing,
        margin=1.0 if settings.margin is None else settings.margin,
    )


def marked_losses(ratio: Tensor, good: Tensor, settings: PreferenceConfig, at_rest: Tensor | None = None) -> Tensor:
    """[rows] losses of answers with a mark.

    Args:
        ratio: [rows] log(policy / reference) of an answer.
        good: [rows] bool marks.
        settings: whose loss is kto or apo_zero_unpaired.
        at_rest: KTO's reference point, one number for a whole step: the mean of log(policy / reference) over answers
            to other questions, at least 0. No gradient goes through it; apo_zero_unpaired has none.

    Raises:
        ValueError: the loss is kto, and there is no reference point.
    """
    from_rest = ratio
    if settings.loss != "apo_zero_unpaired":
        if at_rest is None:
            raise ValueError("the loss kto needs a reference point (at_rest)")
        from_rest = ratio - at_rest.detach().clamp(min=0)
    reward = torch.where(good, from_rest, -from_rest)
    weight = torch.where(good, settings.desirable_weight, settings.undesirable_weight)
    return weight * (1 - torch.sigmoid(beta_of(settings) * reward))

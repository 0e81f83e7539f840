"""Preference losses: TRL's numbers where it has the same loss, the papers' where it has not, and gradients that stay finite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ai_finetuning.config.preference import LOSSES, Loss, PreferenceConfig
from ai_finetuning.engine.preference import PairScores, marked_losses, pair_losses, pair_metrics
from ai_finetuning.errors import ConfigError

# tests/fixtures/preference_losses.json: values of the formulas of TRL 1.16.0 (DPOTrainer, and CPOTrainer's simpo and
# ORPOTrainer's odds ratio on sums a label), computed with its own code in fp64.
FROZEN = json.loads((Path(__file__).parents[2] / "fixtures" / "preference_losses.json").read_text(encoding="utf-8"))
PAIRED: list[Loss] = [name for name, facts in LOSSES.items() if facts.objective == "preference"]


def frozen_scores() -> PairScores:
    """The fixture's sums, all in the first part: without ld_alpha the parts are added."""
    parts = [torch.tensor(FROZEN[name], dtype=torch.float64) for name in ("policy", "reference")]
    policy, reference = (torch.stack([part, torch.zeros_like(part)], dim=-1) for part in parts)
    return PairScores(policy, torch.tensor(FROZEN["labels"]), reference)


def some_scores(pairs: int = 6, seed: int = 0) -> PairScores:
    """Random ones whose answers differ in length."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 30, (pairs, 2), generator=generator)
    shared = labels.amin(dim=1, keepdim=True)
    counts = torch.stack([shared.expand(-1, 2), labels - shared], dim=-1)
    policy = -(torch.rand(pairs, 2, 2, generator=generator) + 0.1) * counts
    reference = policy + 0.3 * torch.randn(pairs, 2, 2, generator=generator) * (counts > 0)
    return PairScores(policy, labels, reference)


@pytest.mark.parametrize("loss", [name for name in FROZEN["losses"] if name in PAIRED])
def test_formulas_are_those_of_trl(loss: Loss):
    values = {"beta": FROZEN["beta"]} if loss != "simpo" else FROZEN["simpo"]
    if loss == "robust":
        values["label_smoothing"] = FROZEN["label_smoothing"]
    obtained = pair_losses(frozen_scores(), PreferenceConfig(loss, **values))
    torch.testing.assert_close(
        obtained, torch.tensor(FROZEN["losses"][loss], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_orpo_is_the_likelihood_of_the_answer_and_trls_odds_ratio():
    """TRL takes the likelihood of prompt and answer; the paper, and this, that of the answer. Its odds are in fp32."""
    scores = frozen_scores()
    obtained = pair_losses(scores, PreferenceConfig("orpo", beta=FROZEN["orpo"]["beta"]))
    likelihood = -scores.policy[:, 0].sum(dim=1) / scores.labels[:, 0]
    expected = likelihood + torch.tensor(FROZEN["losses"]["orpo_odds"], dtype=torch.float64)
    torch.testing.assert_close(obtained, expected, rtol=1e-6, atol=1e-6)


def test_label_smoothing_acts_with_the_default_loss():
    """In TRL it does nothing there, without a word."""
    scores = some_scores()
    assert scores.reference is not None
    lead = 0.1 * ((scores.policy - scores.reference).sum(-1)[:, 0] - (scores.policy - scores.reference).sum(-1)[:, 1])
    expected = -0.7 * F.logsigmoid(lead) - 0.3 * F.logsigmoid(-lead)
    obtained = pair_losses(scores, PreferenceConfig(label_smoothing=0.3))
    torch.testing.assert_close(obtained, expected)


def test_the_weight_of_the_chosen_answer_is_a_term_of_each_pair():
    """RPO; TRL takes a token mean of the micro-batch, so its step depends on how the rows are cut."""
    scores = some_scores()
    plain, weighted = (pair_losses(scores, PreferenceConfig("sigmoid", sft_weight=weight)) for weight in (0.0, 2.0))
    torch.testing.assert_close(weighted - plain, -2 * scores.policy[:, 0].sum(-1) / scores.labels[:, 0])


def test_tokens_beyond_the_shorter_answer_count_less_in_both_models():
    scores = some_scores()
    assert scores.reference is not None
    short = PairScores(scores.policy[..., :1], scores.labels, scores.reference[..., :1])
    cut = [torch.cat([part, torch.zeros_like(part)], dim=-1) for part in (short.policy, short.reference)]
    obtained = pair_losses(scores, PreferenceConfig(ld_alpha=0.0))
    torch.testing.assert_close(obtained, pair_losses(PairScores(cut[0], scores.labels, cut[1]), PreferenceConfig()))
    whole = pair_losses(scores, PreferenceConfig(ld_alpha=1.0))
    torch.testing.assert_close(whole, pair_losses(scores, PreferenceConfig()))


def gradient(scores: PairScores, settings: PreferenceConfig) -> tuple[Tensor, Tensor]:
    policy = scores.policy.clone().requires_grad_()
    losses = pair_losses(PairScores(policy, scores.labels, scores.reference), settings)
    losses.sum().backward()
    assert policy.grad is not None
    return losses.detach(), policy.grad


@pytest.mark.parametrize("loss", PAIRED)
def test_pairs_without_labels_count_nothing(loss: Loss):
    """Ranks that have run out of rows hold such pairs."""
    scores, settings = some_scores(), PreferenceConfig(loss)
    assert scores.reference is not None
    expected, expected_gradient = gradient(scores, settings)
    zeros = torch.zeros(2, 2, 2)
    more = PairScores(
        torch.cat([scores.policy, zeros]),
        torch.cat([scores.labels, torch.tensor([[0, 0], [3, 0]])]),
        torch.cat([scores.reference, zeros]),
    )
    obtained, obtained_gradient = gradient(more, settings)
    assert torch.equal(obtained[:-2], expected)
    assert torch.equal(obtained[-2:], torch.zeros(2))
    assert torch.equal(obtained_gradient[:-2], expected_gradient)
    assert torch.equal(obtained_gradient[-2:], zeros)
    for name, value in pair_metrics(more, settings).items():
        torch.testing.assert_close(value, pair_metrics(scores, settings)[name])


@pytest.mark.parametrize("loss", PAIRED)
@pytest.mark.parametrize("height", [0.0, -1e-9, -1e-6, -500.0])
def test_losses_and_gradients_are_finite_at_the_ends(loss: str, height: float):
    """Answers that are certain, and answers that are nearly impossible."""
    policy = torch.zeros(2, 2, 2)
    policy[0, 0, 0], policy[1, 1, 0] = height, height
    scores = PairScores(policy, torch.ones(2, 2, dtype=torch.long), torch.zeros(2, 2, 2))
    losses, found = gradient(scores, PreferenceConfig(loss))
    assert losses.isfinite().all()
    assert found.isfinite().all()


@pytest.mark.parametrize("loss", PAIRED)
def test_a_step_is_the_sum_of_its_pairs_however_they_are_cut(loss: Loss):
    scores, settings = some_scores(3), PreferenceConfig(loss)
    assert scores.reference is not None
    whole, whole_gradient = gradient(scores, settings)
    for cut in ([0, 2, 3], [0, 1, 2, 3]):
        parts = [
            gradient(PairScores(scores.policy[a:b], scores.labels[a:b], scores.reference[a:b]), settings)
            for a, b in zip(cut, cut[1:], strict=False)
        ]
        assert torch.equal(torch.cat([losses for losses, _ in parts]), whole)
        assert torch.equal(torch.cat([found for _, found in parts]), whole_gradient)


def test_metrics_are_sums_over_pairs():
    scores, settings = some_scores(), PreferenceConfig("sigmoid", beta=0.5)
    assert scores.reference is not None
    reward = 0.5 * (scores.policy - scores.reference).sum(-1)
    obtained = pair_metrics(scores, settings)
    torch.testing.assert_close(obtained["rewards/chosen"], reward[:, 0].sum())
    torch.testing.assert_close(obtained["rewards/margins"], (reward[:, 0] - reward[:, 1]).sum())
    torch.testing.assert_close(obtained["rewards/accuracies"], (reward[:, 0] > reward[:, 1]).float().sum())
    torch.testing.assert_close(obtained["logps/rejected"], scores.policy[:, 1].sum())
    same = PairScores(scores.policy, scores.labels, scores.policy)
    assert pair_metrics(same, settings)["rewards/accuracies"] == 0  # before step 1 no answer leads
    assert {"nll_loss", "log_odds_ratio"} <= pair_metrics(scores, PreferenceConfig("orpo")).keys()


def test_marked_answers_are_pushed_to_their_side_of_the_rest():
    """KTO, Eq. 8 of its paper, and APO without a rest."""
    ratio = torch.tensor([1.0, -2.0, 0.5, 3.0], requires_grad=True)
    good, rest = torch.tensor([True, True, False, False]), torch.tensor(0.4, requires_grad=True)
    settings = PreferenceConfig("kto", desirable_weight=1.5, undesirable_weight=0.5)
    obtained = marked_losses(ratio, good, settings, rest)
    distances = torch.tensor([1.0 - 0.4, -2.0 - 0.4, 0.4 - 0.5, 0.4 - 3.0])
    expected = torch.tensor([1.5, 1.5, 0.5, 0.5]) * (1 - torch.sigmoid(0.1 * distances))
    torch.testing.assert_close(obtained, expected)
    obtained.sum().backward()
    assert ratio.grad is not None
    assert (ratio.grad[:2] < 0).all()
    assert (ratio.grad[2:] > 0).all()
    assert rest.grad is None
    below = marked_losses(ratio, good, settings, torch.tensor(-5.0))
    torch.testing.assert_close(below, marked_losses(ratio, good, settings, torch.tensor(0.0)))
    with pytest.raises(ValueError, match="reference point"):
        marked_losses(ratio, good, settings)
    plain = marked_losses(ratio, good, PreferenceConfig("apo_zero_unpaired", beta=0.3))
    reward = torch.sigmoid(0.3 * ratio)
    torch.testing.assert_close(plain, torch.where(good, 1 - reward, reward))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (
            {"loss": "hinge", "label_smoothing": 0.1},
            "preference.label_smoothing is 0.1; preference.loss hinge does not read",
        ),
        ({"loss": "sigmoid", "margin": 1.0}, "choose simpo"),
        ({"loss": "orpo", "sft_weight": 1.0}, "preference.sft_weight"),
        ({"loss": "simpo", "ld_alpha": 0.5}, "preference.ld_alpha"),
        ({"loss": "sigmoid", "desirable_weight": 2.0}, "kto, apo_zero_unpaired"),
        ({"loss": "dpo"}, "preference.loss"),
        ({"beta": 0.0}, "preference.beta"),
        ({"label_smoothing": 0.5}, "preference.label_smoothing"),
    ],
)
def test_numbers_that_a_loss_does_not_read_are_refused(values: dict, word: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_LANG", "en")
    with pytest.raises(ConfigError) as refusal:
        PreferenceConfig(**values)
    assert word in refusal.value.en

"""Pairs through the step's own ways against a plain, pair-by-pair computation by transformers in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.support.models import build_model
from torch import Tensor

from ai_finetuning.config.preference import LOSSES, Loss, PreferenceConfig
from ai_finetuning.data.answers import AnswerRows, Mismatched, longest_conversation, positions_of
from ai_finetuning.data.forks import forked, side_of
from ai_finetuning.data.loader import Loader, answer_batch, evaluation_batches, evaluation_rows
from ai_finetuning.data.tokenize import IGNORED, Example
from ai_finetuning.engine import loss as token_loss
from ai_finetuning.engine.answer_scores import make_document_scores, make_padded_scores
from ai_finetuning.engine.loss import make_document_loss, make_loss
from ai_finetuning.engine.preference import PairScores, marked_losses, pair_losses
from ai_finetuning.engine.preference_loss import FallingAnswers, PreferenceLoss, score_answers
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.documents import VarlenForward, select_forward_path, why_no_forks
from ai_finetuning.parallel.strategies.single import SingleDevice

CPU = torch.device("cpu")
PAIRED: list[Loss] = [name for name, facts in LOSSES.items() if facts.objective == "preference"]
SETTINGS: dict[str, PreferenceConfig] = {
    **{name: PreferenceConfig(name) for name in PAIRED},
    "conservative": PreferenceConfig("sigmoid", label_smoothing=0.1),
    "robust": PreferenceConfig("robust", label_smoothing=0.1),
    "rpo": PreferenceConfig("sigmoid", sft_weight=1.0),
    "ld": PreferenceConfig("sigmoid", ld_alpha=0.5),
}


def whole(ids: Sequence[int], learnt: int) -> Example:
    array = np.array(ids, dtype=np.int32)
    return Example(array, np.where(np.arange(len(array)) >= learnt, array, IGNORED).astype(np.int32))


def pairs(count: int = 6, seed: int = 0) -> list[Example]:
    """Pairs whose answers begin alike, end alike, are parts of one another or have a label each."""
    random = np.random.default_rng(seed)
    obtained = []
    for number in range(count):
        prompt = random.integers(3, 400, int(random.integers(1, 25))).tolist()
        chosen, rejected = (random.integers(3, 400, int(random.integers(2, 20))).tolist() for _ in range(2))
        if number % 3 == 1:
            rejected = [*chosen[:2], *rejected]  # labels in the prefix, that each answer counts
        if number == 3:
            rejected = [*chosen, 7]
        if number == 4:
            chosen, rejected = [5], [6]
        obtained.append(forked(*(whole([*prompt, *answer], len(prompt)) for answer in (chosen, rejected))))
    return obtained


def model_of(kind: str, method: str):
    model = build_model(kind)
    if method == "full":
        return model, model
    wrapped = add_lora(model, r=4, alpha=8, dropout=0.0, target_modules="all-linear")
    generator = torch.Generator().manual_seed(7)
    for name, parameter in sorted(wrapped.named_parameters()):
        if "lora_" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return wrapped, model


def plain_scores(model, example: Example) -> tuple[list[list[Tensor]], list[int]]:
    """[[first m, rest] of chosen, the same of rejected], and the numbers of labels: one conversation at a time."""
    rows = []
    for side in (0, 1):
        alone = side_of(example, side)
        ids, labels = (torch.tensor(part, dtype=torch.int64) for part in (alone.input_ids, alone.labels))
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        at = labels[1:] != IGNORED
        rows.append(logits.log_softmax(-1)[at].gather(1, labels[1:][at][:, None])[:, 0])
    least = min(map(len, rows))
    return [[row[:least].double().sum(), row[least:].double().sum()] for row in rows], [len(row) for row in rows]


def plain_step(
    wrapped, examples: Sequence[Example], settings: PreferenceConfig, reference: Tensor
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss of a step and its gradients, pair by pair."""
    wrapped.zero_grad()
    total = 0.0
    for example, of_base in zip(examples, reference, strict=True):
        policy, labels = plain_scores(wrapped, example)
        scores = PairScores(
            torch.stack([torch.stack(row) for row in policy])[None].float(),
            torch.tensor([labels]),
            of_base[None] if LOSSES[settings.loss or "sigmoid"].reference else None,
        )
        loss = pair_losses(scores, settings).sum() / len(examples)
        loss.backward()
        total += float(loss.detach())
    return total, gradients(wrapped)


def gradients(wrapped) -> dict[str, Tensor]:
    return {name: item.grad.clone() for name, item in wrapped.named_parameters() if item.grad is not None}


def noisy_reference(wrapped, examples: Sequence[Example]) -> Tensor:
    """Of a model near the trained one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        rows = [torch.stack([torch.stack(row) for row in plain_scores(wrapped, example)[0]]) for example in examples]
    scores = torch.stack(rows).float()
    return scores + 0.5 * torch.randn(scores.shape, generator=generator) * (scores != 0)


def loader_of(
    examples: Sequence[Example], rows: AnswerRows, share: tuple[int, int] = (0, 1), step: int | None = None
) -> Loader:
    loader = Loader(
        examples,
        rows_per_step=step or len(examples),
        seed=0,
        packing=False,
        max_length=64,
        group_by_length=False,
        pad_token_id=0,
        share=share,
    )
    loader.answers = rows
    return loader


def loss_of(path: VarlenForward | None, settings: PreferenceConfig) -> PreferenceLoss:
    if path is None:
        return PreferenceLoss(make_loss(logits_to_keep=True), make_padded_scores(), settings)
    return PreferenceLoss(make_document_loss(path), make_document_scores(path), settings)


def step(
    wrapped, loss: PreferenceLoss, loader: Loader, micro_batch_size: int
) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """A step by the strategy."""
    strategy = SingleDevice(CPU)
    strategy.prepare(wrapped, loss)
    wrapped.zero_grad()
    group = loader.micro_batches(0, 0, micro_batch_size)
    loss.begin()
    if loss.has_rest:
        loss.find_rest(strategy, lambda: strategy.score(loader.other_answers(0, 0, micro_batch_size)))
    total = strategy.forward_backward(group, sum(batch.num_units for batch in group))
    return float(total), gradients(wrapped), loss.take(strategy)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, float]:
    """Relative, of all gradients together and of the worst tensor."""
    assert one.keys() == other.keys()
    squares = {name: float((one[name] - other[name]).double().square().sum()) for name in one}
    norms = {name: float(other[name].double().square().sum()) for name in other}
    worst = max((squares[name] / norms[name]) ** 0.5 for name in one if norms[name])
    return (sum(squares.values()) / sum(norms.values())) ** 0.5, worst


def ways(inner, kernels: str) -> VarlenForward:
    path, reason = select_forward_path(inner, CPU, autocast=None, kernels=kernels)
    assert path is not None, reason
    assert why_no_forks(path, autocast=None) is None
    return path


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_a_step_is_that_of_each_pair_by_itself(name: str, method: str, monkeypatch: pytest.MonkeyPatch):
    """Loss and gradient, with the two answers sharing what they begin with and as two documents each, in several
    micro-batches, with the head in small pieces, and in padded rows.
    """
    wrapped, inner = model_of("llama", method)
    examples = pairs()
    reference = noisy_reference(wrapped, examples)
    settings = SETTINGS[name]
    expected = plain_step(wrapped, examples, settings, reference)
    for kind in ("fused", "portable", "plain"):
        path = None if kind == "plain" else ways(inner, kind)
        try:
            for shared, size, chunk in ((True, 6, None), (True, 2, 2**14), (False, 4, None)):
                if path is None and shared:
                    continue
                monkeypatch.setattr(token_loss, "CHUNK_BYTES", chunk or 256 * 2**20)
                loader = loader_of(examples, AnswerRows(shared, reference))
                total, found, metrics = step(wrapped, loss_of(path, settings), loader, size)
                assert total == pytest.approx(expected[0], rel=1e-5)
                together, worst = distance(found, expected[1])
                assert together <= 1e-5, (kind, shared)
                assert worst <= 2e-5, (kind, shared)
                assert 0 <= metrics["rewards/accuracies"] <= 1
        finally:
            if path is not None:
                path.close()


@pytest.mark.parametrize("kind", ["qwen2", "stablelm", "gpt_neox", "qwen3_tied", "gemma2", "gpt2"])
def test_every_family_shares_what_answers_begin_with(kind: str):
    """Windows, capped scores, tied heads: the fork computes what each conversation alone does."""
    wrapped, inner = model_of(kind, "full")
    examples = [forked(*(whole(range(3, 40 + number), 30) for number in (0, 3)))]
    examples += [forked(whole([*range(3, 40), 8, 9], 30), whole([*range(3, 33), *range(50, 80)], 30)), *pairs(3)]
    reference = noisy_reference(wrapped, examples)
    expected = plain_step(wrapped, examples, SETTINGS["sigmoid"], reference)
    path, reason = select_forward_path(inner, CPU, autocast=None, kernels="portable", longest=80)
    assert path is not None, reason
    why = why_no_forks(path, autocast=None, longest=80)
    assert (why is None) == (kind != "stablelm"), why  # it hands on positions alone, which do not tell of forks
    try:
        loader = loader_of(examples, AnswerRows(why is None, reference))
        total, found, _ = step(wrapped, loss_of(path, SETTINGS["sigmoid"]), loader, 3)
        assert total == pytest.approx(expected[0], rel=1e-5)
        assert distance(found, expected[1])[0] <= 1e-5
    finally:
        path.close()


@pytest.mark.parametrize("name", ["sigmoid", "rpo", "kto"])
def test_a_step_is_the_same_however_its_rows_are_cut(name: str):
    """Into micro-batches, and over ranks of which one may have fewer rows: no mean of means, and one reference point."""
    wrapped, inner = model_of("llama", "lora")
    settings = SETTINGS.get(name) or PreferenceConfig("kto")
    examples = marked(3) if name == "kto" else pairs(3)
    others = Mismatched(examples, 0, 64) if name == "kto" else None
    with torch.no_grad():
        reference = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(2)) - 60
    path = ways(inner, "portable")
    try:
        rows = AnswerRows(True, reference, others)
        results = [step(wrapped, loss_of(path, settings), loader_of(examples, rows), size) for size in (3, 2, 1)]
        for total, found, metrics in results[1:]:
            assert total == pytest.approx(results[0][0], rel=1e-6)
            assert distance(found, results[0][1])[0] <= 1e-5
            assert metrics == pytest.approx(results[0][2], rel=1e-5)
    finally:
        path.close()


def marked(count: int) -> list[Example]:
    random = np.random.default_rng(5)
    obtained = []
    for number in range(count):
        size, learnt = int(random.integers(8, 30)), int(random.integers(2, 7))
        plain = whole(random.integers(3, 400, size).tolist(), learnt)
        obtained.append(Example(plain.input_ids, plain.labels, mark=1 if number % 2 else -1))
    return obtained


@pytest.mark.parametrize("way", ["fused", "portable", "plain"])
@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_marked_answers_are_those_of_each_by_itself(loss: Loss, way: str):
    """KTO's reference point is the mean over answers to other questions, of the whole step, without a gradient."""
    wrapped, inner = model_of("llama", "lora")
    examples, settings = marked(5), PreferenceConfig(loss, desirable_weight=1.5)
    others = Mismatched(examples, 0, 64)
    assert sorted(example.labels[-1] for example in others) == sorted(example.labels[-1] for example in examples)
    for own, other in zip(examples, others, strict=True):
        assert other.labels[-1] != own.labels[-1]
        start = int((own.labels != IGNORED).argmax())
        assert other.input_ids[:start].tolist() == own.input_ids[:start].tolist()
        assert (other.labels[:start] == IGNORED).all()
    reference = torch.zeros(5, 2, 2)
    reference[:, :, 0] = torch.randn(5, 2, generator=torch.Generator().manual_seed(2)) - 70

    def ratio_of(example: Example, of_base: Tensor) -> Tensor:
        ids = torch.tensor(example.input_ids, dtype=torch.int64)
        at = torch.tensor(example.labels[1:] != IGNORED)
        rows = wrapped(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)[at]
        return rows.gather(1, ids[1:][at][:, None]).sum() - of_base

    wrapped.zero_grad()
    with torch.no_grad():
        rest = torch.stack([ratio_of(item, of_base[1, 0]) for item, of_base in zip(others, reference, strict=True)])
    ratios = torch.stack([ratio_of(item, of_base[0, 0]) for item, of_base in zip(examples, reference, strict=True)])
    good = torch.tensor([item.mark > 0 for item in examples])
    expected = marked_losses(ratios, good, settings, rest.mean()).mean()
    expected.backward()
    gradient = gradients(wrapped)
    path = None if way == "plain" else ways(inner, way)
    try:
        loader = loader_of(examples, AnswerRows(path is not None, reference, others))
        total, found, metrics = step(wrapped, loss_of(path, settings), loader, 2)
        assert total == pytest.approx(float(expected.detach()), rel=1e-5)
        together, worst = distance(found, gradient)
        assert together <= 1e-5
        assert worst <= 2e-5
        assert (metrics["good"], metrics["bad"]) == (2, 3)
        assert metrics["rewards/chosen"] == pytest.approx(0.1 * float(ratios[good].detach().mean()), rel=1e-5)
        assert ("kl" in metrics) == (loss == "kto")
    finally:
        if path is not None:
            path.close()


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "orpo", "kto"])
def test_rows_without_labels_add_nothing(name: str):
    """What a rank computes that has nothing left: a loss and gradients of exactly 0."""
    wrapped, inner = model_of("llama", "lora")
    examples = marked(2) if name == "kto" else pairs(2)
    settings = SETTINGS.get(name) or PreferenceConfig("kto")
    path = ways(inner, "portable")
    try:
        loss = loss_of(path, settings)
        loader = loader_of(examples, AnswerRows(True, torch.zeros(2, 2, 2), examples))
        (batch,) = loader.micro_batches(0, 0, 2)
        empty = batch.without_labels()
        assert (batch.num_units, empty.num_units, empty.num_tokens) == (2, 0, 0)
        value = loss(wrapped, empty)
        value.backward()
        assert float(value) == 0.0
        assert all(not gradient.any() for gradient in gradients(wrapped).values())
    finally:
        path.close()


def test_the_margin_is_0_before_step_1():
    """The reference is the model itself, by the same way: exactly, where the rows are the same."""
    wrapped, inner = model_of("llama", "lora")
    examples = pairs(5)
    path = ways(inner, "portable")
    try:
        loss, strategy, rows = loss_of(path, SETTINGS["sigmoid"]), SingleDevice(CPU), AnswerRows()
        strategy.prepare(wrapped, loss)
        batches = evaluation_batches(examples, batch_size=2, pad_token_id=0, answers=rows)
        order = [row[0] for row in evaluation_rows(examples, None)]
        scores = torch.zeros(5, 2, 2)
        scores[order] = torch.from_numpy(score_answers(strategy, loss, batches))
        rows.reference = scores
        loss.begin()
        total, units = strategy.evaluate(evaluation_batches(examples, batch_size=2, pad_token_id=0, answers=rows))
        metrics = loss.take(strategy)
        assert (units, metrics["rewards/margins"], metrics["rewards/accuracies"]) == (5, 0.0, 0.0)
        assert total == pytest.approx(5 * np.log(2), rel=1e-6)
        _, _, metrics = step(wrapped, loss, loader_of(examples, rows), 3)  # other rows beside each other
        assert abs(metrics["rewards/margins"]) < 1e-4
    finally:
        path.close()


def test_a_pair_takes_the_positions_of_its_longer_conversation():
    examples = [forked(whole([1, 2, 3, 4, 9], 3), whole([1, 2, 3, 5, 6, 7, 9], 3)), whole([1, 2, 3], 1)]
    assert longest_conversation(examples) == 7
    assert positions_of(examples[0]).tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6]


def test_answers_of_a_batch_travel_with_it():
    rows = AnswerRows(True, torch.ones(3, 2, 2))
    batch = answer_batch(pairs(3), [0, 1, 2], rows, pad_token_id=0)
    moved = batch.to(torch.device("meta"))
    assert moved.answers is not None
    assert batch.answers is not None
    tensors = {name: value for name, value in vars(moved.answers).items() if isinstance(value, Tensor)}
    assert set(tensors) == {"index", "targets", "owner", "counts", "reference"}
    assert all(value.is_meta for value in tensors.values())
    assert moved.num_units == 3
    assert batch.num_label_tokens == int(batch.answers.counts.sum())


def test_a_model_that_forgets_the_better_answers_is_told_of(caplog: pytest.LogCaptureFixture):
    def said(settings: PreferenceConfig, chosen: float, margin: float = 0.1) -> int:
        caplog.clear()
        watch = FallingAnswers(settings)
        for number in range(30):
            watch.look(
                number, {"rewards/chosen": chosen * number, "rewards/accuracies": 0.9, "rewards/margins": margin}
            )
        return caplog.text.count("sft_weight")

    assert said(PreferenceConfig("sigmoid"), -0.02) == 1
    assert said(PreferenceConfig("sigmoid"), 0.02) == 0
    assert said(PreferenceConfig("sigmoid"), -0.02, margin=-0.1) == 0  # the worse ones have not fallen further
    assert said(PreferenceConfig("simpo"), -0.02) == 1

"""The training step against a plain fp32 reference: loss and gradients, however the rows are cut, padded or packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.support.models import build_model

from ai_finetuning.data.collate import collate
from ai_finetuning.data.example import Example
from ai_finetuning.data.loader import Loader, evaluation_batches
from ai_finetuning.engine.loss import make_loss
from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.labels import IGNORED
from ai_finetuning.parallel.loss_scale import LossScale
from ai_finetuning.parallel.plugins.accelerated import Accelerated
from ai_finetuning.parallel.strategies.single import SingleDevice

KINDS = ["llama", "qwen2", "stablelm", "gpt_neox"]


def rows(count: int = 7, seed: int = 0) -> list[Example]:
    """Rows of 5 to 40 tokens; the first third carries no loss."""
    generator = np.random.default_rng(seed)
    obtained = []
    for _ in range(count):
        ids = generator.integers(3, 400, generator.integers(5, 40)).astype(np.int32)
        labels = ids.copy()
        labels[: max(1, len(ids) // 3)] = IGNORED
        obtained.append(Example(ids, labels, len(ids)))
    return obtained


def reference(model: torch.nn.Module, examples: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss per token and gradients, one unpadded row at a time, in plain PyTorch."""
    model.zero_grad()
    tokens = sum(int((item.labels[1:] != IGNORED).sum()) for item in examples)
    total = 0.0
    for item in examples:
        ids, labels = (torch.tensor(array, dtype=torch.int64) for array in (item.input_ids, item.labels))
        logits = model(input_ids=ids[None]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum") / tokens
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def ours(model, examples, *, micro: int, packing: bool = False, strategy=None, keep: bool = True):
    """The same step by loader, loss and strategy."""
    model.zero_grad()
    strategy = strategy or SingleDevice(torch.device("cpu"))
    strategy.prepare(model, make_loss(logits_to_keep=keep))
    loader = Loader(
        examples,
        rows_per_step=len(examples),
        seed=0,
        packing=packing,
        max_length=64,
        group_by_length=True,
        pad_token_id=0,
    )
    group = [batch for index in range(len(loader)) for batch in loader.micro_batches(0, index, micro)]
    tokens = sum(batch.num_label_tokens for batch in group)
    return float(strategy.forward_backward(group, tokens)), gradients(model)


def assert_close(one, other, tolerance: float = 1e-5) -> None:
    assert one[0] == pytest.approx(other[0], abs=tolerance)
    for name, gradient in other[1].items():
        scale = max(1.0, float(gradient.abs().max()))
        assert torch.allclose(one[1][name], gradient, atol=tolerance * scale), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro", [1, 2, 3, 7])
def test_any_micro_batch_gives_the_reference(kind: str, micro: int):
    """Padding, short last micro-batches and accumulation change neither loss nor gradients."""
    model = build_model(kind)
    assert_close(ours(model, rows(), micro=micro), reference(model, rows()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_give_the_reference(kind: str, attention: str):
    """Documents in one row do not see each other, in every attention implementation that is allowed."""
    model = build_model(kind)
    model.set_attn_implementation(attention)
    assert_close(ours(model, rows(12), micro=2, packing=True), reference(model, rows(12)))


def test_packing_fills_rows_and_parts_documents():
    loader = Loader(
        rows(12), rows_per_step=2, seed=0, packing=True, max_length=64, group_by_length=False, pad_token_id=0
    )
    assert loader.num_rows < 8
    (batch,) = loader.micro_batches(0, 0, 2)
    assert batch.attention_mask is None
    starts = (batch.position_ids == 0).sum()
    assert starts > batch.input_ids.shape[0]
    assert (batch.labels[batch.position_ids == 0] == IGNORED).all()


@pytest.mark.parametrize("batch_size", [1, 4])
def test_packed_evaluation_is_the_padded_one(batch_size: int):
    """The same loss to fp32 rounding and the same label tokens, in less width."""
    strategy = SingleDevice(torch.device("cpu"))
    strategy.prepare(build_model(), make_loss(logits_to_keep=True))
    examples = rows(23)
    padded, packed = (
        evaluation_batches(examples, batch_size=batch_size, pad_token_id=0, packing_length=length)
        for length in (None, 64)
    )
    (one, tokens), (other, packed_tokens) = strategy.evaluate(padded), strategy.evaluate(packed)
    assert packed_tokens == tokens
    assert other == pytest.approx(one, rel=1e-6)
    assert sum(batch.num_tokens for batch in packed) == sum(batch.num_tokens for batch in padded)
    assert sum(len(batch.input_ids) for batch in packed) < len(examples) / 2
    assert all(batch.input_ids.shape[1] <= 64 and batch.attention_mask is None for batch in packed)


@pytest.mark.parametrize("keep", [True, False])
def test_the_head_on_live_positions_only_is_the_same(keep: bool):
    model = build_model()
    assert_close(ours(model, rows(), micro=3, keep=keep), reference(model, rows()), 1e-6)


def test_chunked_logits_are_the_same(monkeypatch: pytest.MonkeyPatch):
    from ai_finetuning.engine import loss

    monkeypatch.setattr(loss, "CHUNK_BYTES", 16 * 400 * 4)
    model = build_model()
    assert_close(ours(model, rows(), micro=7), reference(model, rows()), 1e-6)


def test_accelerate_gives_the_same_gradients():
    model = build_model()
    plain = ours(model, rows(), micro=2)
    other = build_model()
    assert_close(ours(other, rows(), micro=2, strategy=Accelerated(torch.device("cpu"))), plain, 0.0)


def test_bf16_autocast_stays_near_the_reference():
    model = build_model()
    mixed = ours(model, rows(), micro=3, strategy=SingleDevice(torch.device("cpu"), autocast=torch.bfloat16))
    exact = reference(model, rows())
    assert mixed[0] == pytest.approx(exact[0], rel=0.01)
    norm = torch.stack([gradient.norm() for gradient in exact[1].values()]).norm()
    error = torch.stack([(mixed[1][name] - gradient).norm() for name, gradient in exact[1].items()]).norm()
    assert error / norm < 0.05


def test_gradient_checkpointing_gives_the_same_gradients():
    from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing

    model = build_model().train()
    exact = reference(model, rows())
    enable_activation_checkpointing(model)
    assert_close(ours(model, rows(), micro=3), exact, 1e-6)


def test_the_loss_scale_of_fp16_skips_an_overflow_and_halves():
    """The arithmetic of fp16 on older GPUs, on a CPU: scaled gradients clip as unscaled ones, an overflow changes no
    weight.
    """
    model, scaled = build_model(), SingleDevice(torch.device("cpu"), scaler=True)
    exact = reference(model, rows())
    scaled.prepare(model, make_loss(logits_to_keep=True))
    optimizer = scaled.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    loss, _ = ours(model, rows(), micro=2, strategy=scaled)
    scale = scaled.state_dict()["scale"]
    norm = torch.stack([gradient.norm() for gradient in exact[1].values()]).norm()
    update = scaled.update(torch.tensor(loss), 1e9)
    assert update.loss == pytest.approx(exact[0], abs=1e-5)
    assert update.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert update.applied
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    loss, _ = ours(model, rows(), micro=2, strategy=scaled)
    next(model.parameters()).grad.fill_(float("inf"))
    update = scaled.update(torch.tensor(loss), 1.0)
    assert update.grad_norm == float("inf")
    assert not update.applied
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    assert scaled.state_dict()["scale"] == scale / 2
    again = SingleDevice(torch.device("cpu"), scaler=True)
    again.load_state_dict(scaled.state_dict())
    assert again.state_dict() == scaled.state_dict()


def test_the_loss_scale_moves_as_torchs_gradscaler():
    """Over 2000 good steps and a few overflows, both have the same state after every step, and unscale to the same
    bits.
    """
    weight = torch.nn.Parameter(torch.tensor([1.0, 3.0]))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    theirs, ours = torch.amp.GradScaler("cpu"), LossScale(enabled=True)
    theirs.scale(torch.zeros(()))
    for step in range(4510):
        bad = step in (3, 4, 2500)
        gradient = torch.tensor([torch.inf if bad else 0.3, 0.7]) * ours.value
        mine = gradient.clone()
        weight.grad = gradient
        theirs.unscale_(optimizer)
        theirs.step(optimizer)
        theirs.update()
        ours.unscale([mine])
        ours.update(overflow=bad)
        assert torch.equal(mine, weight.grad)
        assert ours.state_dict() == theirs.state_dict(), step
    assert ours.value == 2.0**15


def test_clipping_is_by_the_global_norm():
    model = build_model()
    strategy = SingleDevice(torch.device("cpu"))
    loss, obtained = ours(model, rows(), micro=2, strategy=strategy)
    strategy.attach(torch.optim.SGD(model.parameters(), lr=0.0))
    expected = torch.stack([gradient.norm() for gradient in obtained.values()]).norm()
    assert strategy.update(torch.tensor(loss), 0.01).grad_norm == pytest.approx(float(expected), rel=1e-5)
    after = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert float(after) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_does_not_reach_the_weights(what: str):
    model = build_model()
    strategy = SingleDevice(torch.device("cpu"))
    loss, _ = ours(model, rows(), micro=2, strategy=strategy)
    strategy.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    before = [parameter.clone() for parameter in model.parameters()]
    if what == "gradient":
        next(model.parameters()).grad.view(-1)[0] = torch.nan
    update = strategy.update(torch.tensor(torch.inf if what == "loss" else loss), 1.0)
    assert not update.applied
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_every_row_is_seen_once_an_epoch_in_an_order_of_the_seed():
    examples = [
        Example(np.full(6 + index % 5, index + 3, dtype=np.int32), np.full(6 + index % 5, index + 3, dtype=np.int32), 1)
        for index in range(23)
    ]

    def order(seed: int, epoch: int, micro: int = 2, by_length: bool = False) -> list[int]:
        loader = Loader(
            examples,
            rows_per_step=4,
            seed=seed,
            packing=False,
            max_length=64,
            group_by_length=by_length,
            pad_token_id=0,
        )
        return [
            int(row[0])
            for index in range(len(loader))
            for batch in loader.micro_batches(epoch, index, micro)
            for row in batch.input_ids
        ]

    for by_length in (False, True):
        assert sorted(order(1, 0, by_length=by_length)) == list(range(3, 26))
        assert order(1, 0, by_length=by_length) == order(1, 0, micro=4, by_length=by_length)
        assert order(1, 0, by_length=by_length) != order(1, 1, by_length=by_length)
        assert order(1, 0, by_length=by_length) != order(2, 0, by_length=by_length)


def test_length_groups_pad_less():
    def padding(by_length: bool) -> int:
        loader = Loader(
            rows(200), rows_per_step=8, seed=0, packing=False, max_length=64, group_by_length=by_length, pad_token_id=0
        )
        batches = [batch for index in range(len(loader)) for batch in loader.micro_batches(0, index, 8)]
        return sum(batch.input_ids.numel() - batch.num_tokens for batch in batches)

    assert padding(True) < 0.5 * padding(False)


def test_ranks_share_the_rows_of_a_step():
    def ids(**rank: int) -> list[list[int]]:
        loader = Loader(
            rows(9),
            rows_per_step=4,
            seed=0,
            packing=False,
            max_length=64,
            group_by_length=False,
            pad_token_id=0,
            **rank,
        )
        return [
            [int(row[0]) for batch in loader.micro_batches(0, index, 2) if batch.num_tokens for row in batch.input_ids]
            for index in range(len(loader))
        ]

    whole, first, second = ids(), ids(share=(0, 2)), ids(share=(1, 2))
    for step, parts in zip(whole, zip(first, second, strict=True), strict=True):
        assert sorted(step) == sorted([*parts[0], *parts[1]])


def test_the_optimizer_is_adamw_with_decay_on_matrices_only():
    model = build_model()
    optimizer = build_optimizer(
        list(model.named_parameters()),
        name="adamw",
        learning_rate=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.1,
        lora_plus_ratio=None,
    )
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        dims = {parameter.ndim for parameter in group["params"]}
        assert (group["weight_decay"] == 0.1) == (1 not in dims)
    seen = sum(len(group["params"]) for group in optimizer.param_groups)
    assert seen == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("shape", "points"),
    [
        ("linear", {0: 1 / 11, 9: 10 / 11, 10: 1.0, 55: 0.5, 99: 1 / 90}),
        ("cosine", {10: 1.0, 55: 0.5}),
        ("constant", {10: 1.0, 55: 1.0, 99: 1.0}),
        ("wsd", {0: 1 / 11, 10: 1.0, 55: 1.0, 82: 1.0, 91: 0.5}),
    ],
)
def test_schedules(shape: str, points: dict[int, float]):
    from ai_finetuning.engine.schedule import Schedule, lr_factor

    for step, expected in points.items():
        assert lr_factor(step, Schedule(shape, warmup=10), total=100) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("steps", "explicitly_set", "total", "expected"),
    [(100, False, 200, 20), (100, False, 5, 0), (100, True, 1000, 100), (3, True, 100, 3)],
)
def test_the_warm_up_rules(steps: int, explicitly_set: bool, total: int, expected: int):
    from ai_finetuning.engine.schedule import resolve_warmup

    assert resolve_warmup(steps, explicitly_set=explicitly_set, total_steps=total) == expected


def test_an_explicitly_set_warm_up_is_warned_about_and_refused(logged):
    from ai_finetuning.engine.schedule import resolve_warmup
    from ai_finetuning.errors import ConfigError

    assert resolve_warmup(40, explicitly_set=True, total_steps=100) == 40
    assert "warmup" in logged()
    with pytest.raises(ConfigError, match="only 100 steps"):
        resolve_warmup(100, explicitly_set=True, total_steps=100)


def test_precision_follows_the_machine():
    from ai_finetuning.engine.precision import resolve_precision
    from ai_finetuning.system.gpu import cpu_has_bf16

    cpu = torch.device("cpu")
    assert resolve_precision("auto", fp16=False, device=cpu).name == "fp32"
    assert resolve_precision("auto", fp16=True, device=cpu).name == ("bf16" if cpu_has_bf16() else "fp32")
    assert resolve_precision("fp16", fp16=True, device=cpu).name != "fp16"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
        old = resolve_precision("auto", fp16=True, device=torch.device("cuda"))
        assert (old.name, old.scaler) == ("fp16", True)


def test_mps_has_one_16_bit_type_for_weights_and_training(monkeypatch: pytest.MonkeyPatch):
    """bf16 from macOS 14 on; before it weights are fp16, and training stays in fp32 (docs/decisions/0068)."""
    from ai_finetuning.engine.precision import resolve_precision
    from ai_finetuning.models.loading import resolve_dtype
    from ai_finetuning.system.gpu import sixteen_bit

    mps = torch.device("mps")
    for new, dtype, precision in ((True, torch.bfloat16, "bf16"), (False, torch.float16, "fp32")):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor, new=new: new)
        assert sixteen_bit(mps) is resolve_dtype("auto", mps) is dtype
        assert resolve_precision("auto", fp16=True, device=mps).name == precision
        assert resolve_precision("fp16", fp16=True, device=mps).name == precision
        assert resolve_precision("auto", fp16=False, device=mps).name == "fp32"


def test_collate_counts():
    batch = collate([[rows(2)[0]], [rows(2)[1]]], pad_token_id=0, packed=False)
    assert batch.num_tokens == sum(len(item) for item in rows(2))
    assert batch.num_label_tokens == int((batch.labels[:, 1:] != IGNORED).sum())


def _muon(model):
    embeddings = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return build_optimizer(
        list(model.named_parameters()), name="muon", learning_rate=1e-2, weight_decay=0.1, embeddings=embeddings
    )


def _one_step(model, optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_muon_turns_hidden_matrices_and_leaves_the_rest_to_adamw():
    """Hidden matrices keep one momentum; embeddings, head and norms keep AdamW's two moments."""
    from ai_finetuning.parallel.weights.state import optimizer_tensors

    model = build_model("llama")
    optimizer = _muon(model)
    _one_step(model, optimizer, 0)
    keys = optimizer_tensors(optimizer).keys()
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        assert (f"{name}/momentum_buffer" in keys) == hidden
        assert (f"{name}/exp_avg_sq" in keys) == (not hidden)


def test_muon_goes_on_from_its_saved_state():
    """The state of optimizer_tensors() gives the same next weights, bit for bit."""
    from ai_finetuning.parallel.weights.state import load_optimizer_tensors, optimizer_tensors

    model, other = build_model("llama"), build_model("llama")
    optimizer = _muon(model)
    _one_step(model, optimizer, 0)
    other.load_state_dict(model.state_dict())
    restored = _muon(other)
    load_optimizer_tensors(restored, {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()})
    _one_step(model, optimizer, 1)
    _one_step(other, restored, 1)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(other.named_parameters())[name]), name

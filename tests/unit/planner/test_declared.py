"""Every kernel of a step is known to the planner: one that is not would make its figures wrong, silently."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from ai_finetuning.kernels import native
from ai_finetuning.kernels.attention_blocks import AttentionShape
from ai_finetuning.kernels.attention_pieces import AttendedInPieces
from ai_finetuning.kernels.blocks import Made
from ai_finetuning.kernels.build import why_unavailable
from ai_finetuning.kernels.loss import LinearCrossEntropy
from ai_finetuning.kernels.products import OPENBLAS, PIECES, TORCH, Products, why_no_pieces, why_not_openblas
from ai_finetuning.kernels.stand_in import without_arithmetic
from ai_finetuning.planner._upstream import tensors_without_data
from ai_finetuning.planner.declared import NATIVE, OPERATIONS, is_declared
from ai_finetuning.planner.tracker import Tracker

PACKAGE = Path(__file__).resolve().parents[3] / "src" / "ai_finetuning"
# Files that may load or call compiled code, which no dispatch mode sees.
CALLING = {"kernels/native.py", "kernels/build.py", "kernels/products.py", "kernels/loss.py", "kernels/triton_loss.py"}
NAMES = {"torch.library", "torch.ops", "ctypes", "triton", "cffi", "cpp_extension"}


def half(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bfloat16)


ROWS = torch.ones(6, 2)


def attention_in_pieces() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output, an input, and a gradient of the output."""
    q, k, v = (half(6, width).requires_grad_() for width in (8, 4, 4))
    mixed = Made.apply(AttendedInPieces((2, 3), AttentionShape(2, 1, 4, 0.5)), q, k, v, ROWS, ROWS)
    return mixed, q, half(6, 8)


CALLS = {
    "norm_forward": lambda: native.norm_forward(half(6, 8), torch.ones(8), None, eps=1e-6, offset=0.0, centered=False),
    "norm_backward": lambda: native.norm_backward(
        half(6, 8), half(6, 8), torch.ones(8), None, ROWS, offset=0.0, centered=True, wanted=(True, True, True)
    ),
    "rope": lambda: native.to_heads(half(6, 8), half(2, 6, 4), ROWS, ROWS, 4),
    "softmax_forward": lambda: native.softmax_forward(
        half(1, 6, 6), half(1, 6, 6), 6, first=0, window=0, scale=1.0, cap=1.0
    ),
    "softmax_backward": lambda: native.softmax_backward(
        half(1, 6, 6), half(1, 6, 6), None, 6, first=0, window=0, scale=1.0, cap=0.0
    ),
    "gated_forward": lambda: native.gated_forward(half(6, 8), half(6, 8), "silu"),
    "gated_backward": lambda: native.gated_backward(half(6, 8), half(6, 8), half(6, 8), "silu"),
    "cross_entropy": lambda: native.cross_entropy(
        half(6, 8), torch.zeros(6, dtype=torch.int64), cap=0.0, with_gradient=True
    ),
    "dropout": lambda: native.dropout(half(6, 8), 1, 0.5),
    "product": lambda: Products(OPENBLAS if why_not_openblas() is None else TORCH).mm(
        half(6, 8).float(), half(8, 6).float()
    ),
    "product_in_pieces": lambda: Products(TORCH if why_no_pieces(torch.bfloat16) else PIECES).mm(
        half(6, 8), half(8, 6)
    ),
    "attention_forward": lambda: attention_in_pieces(),
    "attention_backward": lambda: torch.autograd.grad(*attention_in_pieces()),
}


def test_the_table_has_every_native_function():
    assert NATIVE == set(native._SIGNATURES) == set(CALLS)


@pytest.mark.skipif(why_unavailable(torch.device("cpu")) is not None, reason="no compiled kernels here")
@pytest.mark.parametrize("name", sorted(NATIVE))
def test_native_functions_allocate_the_same_without_arithmetic(name: str):
    with Tracker() as computed:
        CALLS[name]()
    with without_arithmetic(), Tracker() as allocated:
        CALLS[name]()
    assert allocated.peak == computed.peak > 0


@pytest.mark.parametrize("full", [False, True], ids=["frozen head", "head trains"])
def test_a_plan_for_a_gpu_counts_the_loss_as_its_kernel_takes_it(full: bool):
    """One chunk of logits in their own type, which become their gradient, a number a row, and the gradients."""
    rows, width, words, chunk = 64, 32, 5000, 16
    with tensors_without_data(), without_arithmetic("cuda"):
        hidden = torch.empty(rows, width, dtype=torch.bfloat16, requires_grad=True)
        head = torch.empty(words, width, dtype=torch.bfloat16, requires_grad=full)
        targets = torch.empty(rows, dtype=torch.int64)
        with Tracker() as tracker:
            given = (hidden, head, targets, 0.0, chunk * 2 * words, lambda weight: weight)
            LinearCrossEntropy.apply(*given, True)
    assert not tracker.unknown
    inputs = 2 * rows * width + 2 * words * width + 8 * rows
    at_the_end = inputs + 2 * chunk * words + 4 * chunk + 2 * rows * width + 4  # logits, losses, gradient, sum
    product = 2 * words * width if full else 2 * chunk * width  # of the gradient that is made last
    gradients = 4 * words * width if full else 0
    assert tracker.peak == pytest.approx(at_the_end + product + gradients, abs=8 * chunk)


def test_only_declared_files_call_compiled_code():
    """A new way to kernels of our own has to come through here."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {ast.unparse(node)} if isinstance(node, ast.Attribute) else set()
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module or ""}
            if any(name == known or name.startswith(f"{known}.") for name in names for known in NAMES):
                found.add(path.relative_to(PACKAGE).as_posix())
    assert found <= CALLING | {"system/nvml.py"} | {name for name in found if name.startswith("system/")}


def test_operations_that_are_declared_exist_and_tell_what_they_give():
    pytest.importorskip("bitsandbytes")
    for name in OPERATIONS:
        space, _, operation = name.partition("::")
        packet = getattr(getattr(torch.ops, space), operation.partition(".")[0])
        overload = getattr(packet, operation.partition(".")[2] or "default")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "Meta"), name


def test_an_operation_of_others_is_noticed():
    with torch.library._scoped_library("aift_test", "DEF") as library:
        library.define("mine(Tensor x) -> Tensor")
        library.impl("mine", lambda x: x.clone(), "CompositeExplicitAutograd")
        with Tracker() as tracker:
            torch.ops.aift_test.mine(torch.ones(3))
    assert tracker.unknown == {"aift_test::mine"}
    assert is_declared("aten", "aten::add.Tensor")

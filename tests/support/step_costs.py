"""What a training step would launch on a GPU, counted on fake tensors of the CPU with the GPU's way taken: kernels, copies
into another type, bytes that other kernels than matrix products and attention read and write, and reads by the host.

Operations stand for kernels, but for those over lists of tensors, whose launches are computed. A launch of Liger counts as
one. What a kernel changes in place is read and written. Numbers that depend on data cannot be read from fake tensors, so a
step that waits for the device in its micro-batch fails here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ai_finetuning.data.collate import collate
from ai_finetuning.data.example import Example
from ai_finetuning.engine.loss import make_document_loss
from ai_finetuning.engine.optimizer import build_optimizer, make_state
from ai_finetuning.kernels import attention, lora, loss
from ai_finetuning.models import liger
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.adapters import add_lora, without_input_casts
from ai_finetuning.models.documents import VarlenForward
from ai_finetuning.models.lora_forward import lighten
from ai_finetuning.models.parts import unwrapped
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.planner.blank import materialize, quantize_shapes
from tests.support.compiled_graphs import KINDS, graphs

# The shapes of Llama 3 8B; layers are counted by the difference between two numbers of them.
LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
# Operations that launch nothing: views, memory that is not filled, and two of the three that dropout is on a CPU.
_FREE = (
    "bernoulli_", "div_",
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
    "split", "split_with_sizes", "chunk", "unbind", "detach", "alias", "as_strided", "empty", "empty_like",
    "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "resize_", "set_", "_reshape_alias", "narrow",
)  # fmt: skip
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "gemm_4bit")


@dataclass
class Costs:
    """Counts of a stretch of a step."""

    kernels: int = 0
    casts: int = 0
    bytes: int = 0

    def __sub__(self, other: Costs) -> Costs:
        return Costs(self.kernels - other.kernels, self.casts - other.casts, self.bytes - other.bytes)


# Kernels over lists of tensors (torch's ATen/native/cuda/MultiTensorApply.cuh): how many lists each walks along; tensors in a
# launch by that number, up to CUDA 12 (13 takes more); blocks in a launch, of so many elements each.
_LISTS = {"_foreach_copy_": 2, "_foreach_norm": 1, "_foreach_mul_": 1, "_foreach_add_": 1, "_fused_adamw_": 4}
_TENSORS, _BLOCKS, _CHUNK = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}, 320, 65536
_OVERWRITES = ("copy_", "_foreach_copy_", "zero_", "fill_")


def launches(sizes: Sequence[int], lists: int) -> int:
    """Of a kernel over lists of tensors with so many elements: it goes when it has the most tensors, or blocks, it takes."""
    done = tensors = blocks = 0
    for number, size in enumerate(sizes):
        tensors += 1
        chunks = -(-size // _CHUNK)
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if blocks == _BLOCKS or (last and (tensors == _TENSORS[lists] or number == len(sizes) - 1)):
                done, blocks, tensors = done + 1, 0, 0 if last else 1
    return done


def _bytes(tensors: Any) -> int:
    kept = {id(x): x for x in tree_leaves(tensors) if isinstance(x, Tensor)}
    return sum(x.numel() * x.element_size() for x in kept.values())


class Counted(TorchDispatchMode):
    """Adds up what every operation would cost.

    Args:
        read: what the host reads where it reads; None refuses.
    """

    def __init__(self, read: float | None = None) -> None:
        super().__init__()
        self.costs, self.by_name, self._read = Costs(), dict[str, int](), read

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        space, name = function.namespace, function._schema.name.split("::")[1]
        if name == "_local_scalar_dense" and self._read is not None:
            return self._read
        obtained = function(*args, **kwargs)
        if space == "prim" or (space == "aten" and name in _FREE):
            return obtained
        given = dict(zip((argument.name for argument in function._schema.arguments), args, strict=False)) | kwargs
        written = [
            given[argument.name]
            for argument in function._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write and argument.name in given
        ]
        changed = {id(x) for x in tree_leaves(written)}
        read = [x for x in tree_leaves(given) if not (name in _OVERWRITES and id(x) in changed)]
        made = [x for x in tree_leaves(obtained) if id(x) not in changed]
        number = launches([x.numel() for x in args[0]], _LISTS[name]) if name in _LISTS else 1
        product = space == "torch_attn" or name in _PRODUCTS
        self.launched(f"{space}.{name}", 0 if product else _bytes(read) + _bytes([written, made]), number)
        return obtained

    def launched(self, name: str, touched: int, number: int = 1) -> None:
        """Kernels, and the bytes that they read and write."""
        self.costs.kernels += number
        self.costs.casts += name == "aten._to_copy"
        self.costs.bytes += touched
        self.by_name[name] = self.by_name.get(name, 0) + number


def _launch(name: str, counted: Counted, outputs: int) -> Any:
    """An operation of one kernel forward and one backward, whose outputs are like its first inputs."""

    class Launch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            tensors = [x for x in inputs if isinstance(x, Tensor)]
            ctx.save_for_backward(*tensors)
            ctx.count = len(inputs)
            made = tuple(torch.empty_like(x) for x in tensors[:outputs])
            counted.launched(f"liger.{name}", _bytes([tensors, made]))
            return made if outputs > 1 else made[0]

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            saved = ctx.saved_tensors
            made = [
                torch.empty_like(x) if needed else None for x, needed in zip(saved, ctx.needs_input_grad, strict=False)
            ]
            counted.launched(f"liger.{name}_backward", _bytes([saved, gradients, made]))
            return *made, *(None for _ in range(ctx.count - len(made)))

    return Launch.apply


@contextlib.contextmanager
def _as_on_a_gpu(counted: Counted) -> Iterator[None]:
    """The row kernel of GPUs, Liger as kernels without arithmetic, and what a step's layers share, fake as it is."""
    made: dict[Any, Any] = {}

    def shared(make: Any, like: Tensor, *given: Any) -> Any:
        if (make, given) not in made:
            made[make, given] = make.__wrapped__(*given)
        return made[make, given]

    kept = loss.kernels_of, lora.kernels_of, liger._ligers, attention._shared
    attention._shared = shared
    loss.kernels_of = lora.kernels_of = lambda device: "cuda"
    norm, silu, gelu = (_launch(name, counted, 1) for name in ("norm", "silu", "gelu"))
    liger._ligers = lambda: liger.Kernels(norm, silu, gelu, _launch("rotate", counted, 2))
    try:
        yield
    finally:
        loss.kernels_of, lora.kernels_of, liger._ligers, attention._shared = kept


def step_costs(layers: int, method: str, *, with_liger: bool, tokens: int = 4096) -> Counted:
    """Forward and backward pass of one packed row under bf16 autocast, layers recomputed, LoRA of rank 16 with dropout."""
    counted = Counted()
    (model, inner), batch = _model(layers, method), _batch(tokens)
    with FakeTensorMode(allow_non_fake_inputs=True), _as_on_a_gpu(counted):
        materialize(model)
        inner.set_attn_implementation(attention.VARLEN)
        if with_liger:
            _put_on(inner)
        path = VarlenForward(
            "portable", inner, inner.lm_head, 0.0, lambda weight: weight.to(torch.bfloat16), True, torch.bfloat16
        )
        batch = replace(
            batch,
            **{name: torch.empty(x.shape, dtype=x.dtype) for name, x in vars(batch).items() if isinstance(x, Tensor)},
        )
        documents: Callable[..., Tensor] = make_document_loss(path)
        with counted:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = documents(model, batch) / batch.num_label_tokens
            value.backward()
    return counted


def _model(layers: int, method: str) -> tuple[Any, Any]:
    """Made on the meta device, where PEFT and bitsandbytes work as usual; materialize() makes fake tensors of it."""
    config = transformers.LlamaConfig(**LLAMA_8B, num_hidden_layers=layers, tie_word_embeddings=False)
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        if method != "full":
            model = model.to(torch.bfloat16)
            if method == "QLoRA":
                quantize_shapes(model, 4, torch.bfloat16)
            model = add_lora(model, r=16, alpha=32, dropout=0.05)
            without_input_casts(model, "cpu")
            lighten(model, "cpu")
    enable_activation_checkpointing(unwrapped(model))
    return model.train(), unwrapped(model)


def _put_on(inner: Any) -> None:
    """Without the comparison, which fake tensors cannot have."""
    compare, liger._problem = liger._problem, lambda *given: None
    try:
        liger.find_replacements(inner, torch.device("cpu"), torch.bfloat16).put_on()
    finally:
        liger._problem = compare


def _batch(tokens: int) -> Any:
    lengths = (tokens // 2, tokens // 4, tokens - tokens // 2 - tokens // 4)
    rows = [[Example(np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32), n) for n in lengths]]
    return collate(rows, pad_token_id=0, packed=True)


def measured(method: str, *, with_liger: bool) -> dict[str, dict[str, float]]:
    """Of one layer, and of all beside the layers: kernels, copies into another type, GB of element-wise traffic."""
    one, two = (step_costs(layers, method, with_liger=with_liger).costs for layers in (1, 2))
    return {"layer": _numbers(two - one), "rest": _numbers(one - (two - one))}


def _numbers(part: Costs) -> dict[str, float]:
    return {"kernels": part.kernels, "casts": part.casts, "gigabytes": round(part.bytes / 1e9, 2)}


def update_costs(method: str, optimizer: str, *, norm: float = 1.0) -> dict[str, float]:
    """Of the clip to 1 and the optimizer's step over the weights of 32 layers that train, by torch's kernels over lists.

    Args:
        norm: of the gradients.
    """
    (one, _), (two, _) = (_model(layers, method) for layers in (1, 2))
    shapes, more = ([tuple(x.shape) for x in model.parameters() if x.requires_grad] for model in (one, two))
    layer = [tuple(x.shape) for name, x in two.named_parameters() if x.requires_grad and ".layers.1." in name]
    assert len(more) == len(shapes) + len(layer)
    supported = clip_grad._has_foreach_support
    counted = Counted(read=norm)
    with FakeTensorMode(allow_non_fake_inputs=True), counted, contextlib.ExitStack() as stack:
        clip_grad._has_foreach_support = lambda *_: True  # as on a GPU
        stack.callback(setattr, clip_grad, "_has_foreach_support", supported)
        held: Any = torch.nn.ParameterList(torch.empty(shape) for shape in [*shapes, *31 * layer])
        held.hf_device_map = {}  # it lies where it is
        for weight in held:
            weight.grad = torch.empty_like(weight)
        strategy = SingleDevice(torch.device("cpu"), autocast=torch.bfloat16)
        strategy.prepare(held, lambda *_: torch.empty(()))
        made = build_optimizer(list(held.named_parameters()), name=optimizer, learning_rate=1e-4)
        strategy.attach(made)
        make_state(made)
        counted.costs = Costs()
        strategy.update(torch.empty(()), 1.0)
    return _numbers(counted.costs)


VARIANTS: dict[str, dict[str, Any]] = {
    f"{method}{', Liger' if with_liger else ''}": {"method": method, "with_liger": with_liger}
    for method in ("LoRA", "QLoRA", "full")
    for with_liger in (False, True)
}
UPDATES: dict[str, dict[str, str]] = {
    f"{method}, {optimizer}": {"method": method, "optimizer": optimizer}
    for method in ("LoRA", "full")
    for optimizer in ("adamw", "adamw_8bit")
}


def _version(name: str) -> str:
    try:
        return ".".join(version(name).split(".")[:2])
    except PackageNotFoundError:  # bitsandbytes on macOS
        return "none"


VERSIONS = {name: _version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
BUDGETS = Path(__file__).with_name("step_costs.json")


PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def whole_step(table: dict[str, Any], variant: str) -> dict[str, float]:
    """The stored numbers of 32 layers and of what is beside them."""
    layer, rest = table[variant]["layer"], table[variant]["rest"]
    return {what: 32 * layer[what] + rest[what] for what in layer}


def as_page(table: dict[str, Any]) -> str:
    """The stored numbers as they stand in docs/performance.md."""
    lines = ["| forward and backward pass | kernels | of them casts | element-wise traffic |", "|---|---|---|---|"]
    for name in VARIANTS:
        step = whole_step(table, name)
        lines.append(f"| {name} | {step['kernels']:,.0f} | {step['casts']:,.0f} | {step['gigabytes']:.0f} GB |")
    lines += ["", "| clip and optimizer | kernels | element-wise traffic |", "|---|---|---|"]
    for name in UPDATES:
        update = table["update"][name]
        lines.append(f"| {name} | {update['kernels']:,.0f} | {update['gigabytes']:.1f} GB |")
    first = max(counts["first rows"] for counts in table["graphs"].values())
    later = max(counts["later"] for counts in table["graphs"].values())
    lines += [
        "",
        f"Graphs that FlexAttention compiles: {first} over the first rows, {later} later, whatever their lengths.",
    ]
    return "<!-- step costs -->\n\n" + "\n".join(lines) + "\n\n<!-- end step costs -->\n"


def main() -> None:
    """Counts, stores, and writes the page's table."""
    table: dict[str, Any] = {"versions": VERSIONS} | {name: measured(**options) for name, options in VARIANTS.items()}
    table["update"] = {name: update_costs(**options) for name, options in UPDATES.items()}
    table["graphs"] = {kind: dict(zip(("first rows", "later"), graphs(kind), strict=True)) for kind in KINDS}
    BUDGETS.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    before, _, after = PAGE.read_text(encoding="utf-8").partition("<!-- step costs -->\n")
    PAGE.write_text(before + as_page(table) + after.partition("<!-- end step costs -->\n")[2], encoding="utf-8")


if __name__ == "__main__":
    main()

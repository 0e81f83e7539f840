"""What a training step would launch on a GPU, counted on fake tensors of the CPU with the GPU's way taken: kernels, copies
into another type, bytes that other kernels than matrix products and attention read and write, and reads by the host.

Operations stand for kernels. A launch of Liger counts as one, with what it reads and writes. Numbers that depend on data
cannot be read from fake tensors, so a step that waits for the device in its micro-batch fails here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ai_finetuning.data.collate import collate
from ai_finetuning.data.tokenize import Example
from ai_finetuning.engine.loss import make_document_loss
from ai_finetuning.kernels import attention, lora, loss
from ai_finetuning.models import liger
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.adapters import add_lora, without_input_casts
from ai_finetuning.models.documents import VarlenForward
from ai_finetuning.models.lora_forward import lighten
from ai_finetuning.models.parts import unwrapped

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
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul")


@dataclass
class Costs:
    """Counts of a stretch of a step."""

    kernels: int = 0
    casts: int = 0
    bytes: int = 0

    def __sub__(self, other: Costs) -> Costs:
        return Costs(self.kernels - other.kernels, self.casts - other.casts, self.bytes - other.bytes)


class Counted(TorchDispatchMode):
    """Adds up what every operation would cost."""

    def __init__(self) -> None:
        super().__init__()
        self.costs, self.by_name = Costs(), dict[str, int]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        obtained = function(*args, **(kwargs or {}))
        space, name = function.namespace, function._schema.name.split("::")[1]
        if space == "prim" or (space == "aten" and name in _FREE):
            return obtained
        self.launched(f"{space}.{name}", [args, kwargs, obtained], product=space == "torch_attn" or name in _PRODUCTS)
        return obtained

    def launched(self, name: str, touched: Any, *, product: bool = False) -> None:
        """One kernel, and the tensors that it reads or writes."""
        self.costs.kernels += 1
        self.costs.casts += name == "aten._to_copy"
        self.by_name[name] = self.by_name.get(name, 0) + 1
        if not product:
            tensors = {id(x): x for x in tree_leaves(touched) if isinstance(x, Tensor)}
            self.costs.bytes += sum(x.numel() * x.element_size() for x in tensors.values())


def _launch(name: str, counted: Counted, outputs: int) -> Any:
    """An operation of one kernel forward and one backward, whose outputs are like its first inputs."""

    class Launch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            tensors = [x for x in inputs if isinstance(x, Tensor)]
            ctx.save_for_backward(*tensors)
            ctx.count = len(inputs)
            made = tuple(torch.empty_like(x) for x in tensors[:outputs])
            counted.launched(f"liger.{name}", [tensors, made])
            return made if outputs > 1 else made[0]

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            saved = ctx.saved_tensors
            made = [
                torch.empty_like(x) if needed else None for x, needed in zip(saved, ctx.needs_input_grad, strict=False)
            ]
            counted.launched(f"liger.{name}_backward", [saved, gradients, made])
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

    kept = loss.row_kernel, liger._ligers, attention._shared, lora.only_allocating
    attention._shared = shared
    lora.only_allocating = lambda: True  # products may give fp32, as on a GPU
    loss.row_kernel = lambda dtype, device, compiled: loss.one_kernel_cross_entropy
    norm, silu, gelu = (_launch(name, counted, 1) for name in ("norm", "silu", "gelu"))
    liger._ligers = lambda: liger.Kernels(norm, silu, gelu, _launch("rotate", counted, 2))
    try:
        yield
    finally:
        loss.row_kernel, liger._ligers, attention._shared, lora.only_allocating = kept


def step_costs(layers: int, *, full: bool, with_liger: bool, tokens: int = 4096) -> Counted:
    """Forward and backward pass of one packed row under bf16 autocast, layers recomputed, LoRA of rank 16 with dropout."""
    counted = Counted()
    (model, inner), batch = _model(layers, full=full), _batch(tokens)
    with FakeTensorMode(), _as_on_a_gpu(counted):
        _fill(model)
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


def _model(layers: int, *, full: bool) -> tuple[Any, Any]:
    """Made on the meta device, where PEFT works as usual; then of fake tensors on the CPU."""
    config = transformers.LlamaConfig(**LLAMA_8B, num_hidden_layers=layers, tie_word_embeddings=False)
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        if not full:
            model = add_lora(model.to(torch.bfloat16), r=16, alpha=32, dropout=0.05)
            without_input_casts(model, "cpu")
            lighten(model, "cpu")
    enable_activation_checkpointing(unwrapped(model))
    return model.train(), unwrapped(model)


def _fill(model: Any) -> None:
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            made = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
            setattr(module, name, torch.nn.Parameter(made, requires_grad=weight.requires_grad))
        for name, value in list(vars(module).items()) + list(module.named_buffers(recurse=False)):
            if isinstance(value, Tensor):
                setattr(module, name, torch.empty(value.shape, dtype=value.dtype, device="cpu"))


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


def measured(*, full: bool, with_liger: bool) -> dict[str, dict[str, float]]:
    """Of one layer, and of all beside the layers: kernels, copies into another type, GB of element-wise traffic."""
    one, two = (step_costs(layers, full=full, with_liger=with_liger).costs for layers in (1, 2))
    parts = {"layer": two - one, "rest": one - (two - one)}
    return {
        name: {"kernels": part.kernels, "casts": part.casts, "gigabytes": round(part.bytes / 1e9, 2)}
        for name, part in parts.items()
    }


VARIANTS = {
    "LoRA": {"full": False, "with_liger": False},
    "LoRA, Liger": {"full": False, "with_liger": True},
    "full": {"full": True, "with_liger": False},
    "full, Liger": {"full": True, "with_liger": True},
}
VERSIONS = {name: ".".join(version(name).split(".")[:2]) for name in ("torch", "transformers", "peft")}
BUDGETS = Path(__file__).with_name("step_costs.json")


PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def whole_step(table: dict[str, Any], variant: str) -> dict[str, float]:
    """The stored numbers of 32 layers and of what is beside them."""
    layer, rest = table[variant]["layer"], table[variant]["rest"]
    return {what: 32 * layer[what] + rest[what] for what in layer}


def as_page(table: dict[str, Any]) -> str:
    """The stored numbers as they stand in docs/performance.md."""
    lines = ["| | kernels | of them casts | element-wise traffic |", "|---|---|---|---|"]
    for name in VARIANTS:
        step = whole_step(table, name)
        lines.append(f"| {name} | {step['kernels']:,.0f} | {step['casts']:,.0f} | {step['gigabytes']:.0f} GB |")
    return "<!-- step costs -->\n\n" + "\n".join(lines) + "\n\n<!-- end step costs -->\n"


def main() -> None:
    """Counts, stores, and writes the page's table."""
    table = {"versions": VERSIONS} | {name: measured(**options) for name, options in VARIANTS.items()}
    BUDGETS.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    before, _, after = PAGE.read_text(encoding="utf-8").partition("<!-- step costs -->\n")
    PAGE.write_text(before + as_page(table) + after.partition("<!-- end step costs -->\n")[2], encoding="utf-8")


if __name__ == "__main__":
    main()

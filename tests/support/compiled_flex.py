"""FlexAttention's own kernels, forward and backward, compiled by Triton for NVIDIA GPUs that are not here: one JSON line a
width of heads, with their shared memory.

The templates are those of the torch that is installed; what Inductor writes into them for causal documents stands here. It
shows that the kernels exist for a GPU and fit it, not that their numbers are right there.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment
from torch._inductor.kernel.flex.common import load_flex_template
from triton._C.libtriton import ir, nvidia, passes
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptx_version_from_options
from triton.compiler import ASTSource, make_backend

from ai_finetuning.kernels.attention import flex_options

# torch 2.13's blocks in fp32 (torch/_inductor/template_heuristics/triton.py), where they are not chosen: for the forward pass
# of heads of 64, 128 and 256 features from a compute capability on, and for the backward pass.
_FORWARD = {
    (12, 0): {64: (128, 32, 2), 128: (128, 32, 2), 256: (64, 16, 2)},
    (8, 0): {64: (128, 32, 3), 128: (128, 32, 3), 256: (64, 16, 3)},
    (7, 5): dict.fromkeys((64, 128, 256), (64, 64, 3)),
}
_BACKWARD = {"BLOCK_M1": 16, "BLOCK_N1": 16, "BLOCK_M2": 16, "BLOCK_N2": 16, "num_stages": 1, "num_warps": 4}
_NAMES = {
    "forward": "Q K V LSE MAX KV_NUM_BLKS KV_IDX FULL_KV_NUM_BLKS FULL_KV_IDX",
    "backward": (
        "Q K V LSE DELTA DO DQ DV KV_NUM_BLKS KV_IDX Q_NUM_BLKS Q_IDX FULL_KV_NUM_BLKS FULL_KV_IDX FULL_Q_NUM_BLKS FULL_Q_IDX"
    ),
}
_PARTS = {"forward": ("flex_attention", "utilities", "common"), "backward": ("flex_backwards", "utilities")}
_HEADS, _SHARED = 32, 8  # of queries, and of keys
_KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def _source(way: str, width: int, options: dict[str, Any]) -> tuple[str, list[str]]:
    """The kernel's text and the names of its arguments."""
    arguments = [f"arg_{name}" for name in (*_NAMES[way].split(), "OUT", "LOWEST", "TOKENS")]
    defines = {
        "PRESCALE_QK": False,
        "ROWS_GUARANTEED_SAFE": False,
        "BLOCKS_ARE_CONTIGUOUS": False,
        "WRITE_DQ": True,
        "OUTPUT_LOGSUMEXP": True,
        "OUTPUT_MAX": False,
        "FLOAT32_PRECISION": "'ieee'",
        "IS_DIVISIBLE": False,
        "SM_SCALE": 0.125,
        "GQA_SHARED_HEADS": _HEADS // _SHARED,
        "HAS_FULL_BLOCKS": True,
        "QK_HEAD_DIM": width,
        "QK_HEAD_DIM_ROUNDED": width,
        "V_HEAD_DIM": width,
        "V_HEAD_DIM_ROUNDED": width,
        "SAFE_HEAD_DIM": True,
        "USE_TMA": False,
        "SPARSE_Q_BLOCK_SIZE": 128,
        "SPARSE_KV_BLOCK_SIZE": 128,
        "INDEX_DTYPE": "tl.int32",
    } | {name: value for name, value in options.items() if name.startswith("BLOCK")}

    def strides(name: str, at: int | None = None) -> str:
        if name in ("Q", "K", "V", "DO", "DQ", "DV"):
            heads = _SHARED if name in ("K", "V", "DV") else _HEADS
            every = [f"{heads * width} * arg_TOKENS", str(width), str(heads * width), "1"]
        else:
            every = ["0", "0", "(arg_TOKENS + 127) // 128", "1"]
        return ", ".join(every) if at is None else every[at]

    def modification(**given: Any) -> str:
        if given["output_name"] is None:  # gradients of what the functions have caught: nothing
            return "pass"
        if given["output_name"] == "mask_mod_output":
            query, key = given["m"], given["n"]
            return f"mask_mod_output = ({key} <= {query}) & ({key} >= tl.load(arg_LOWEST + {query}))"
        return f"{given['output_name']} = {given.get('grad_score_mod', given['score'])}"

    def store(indices: tuple[str, ...], value: str, mask: str, **_: Any) -> str:
        return f"tl.store(arg_OUT + {indices[2]} * {width} + {indices[3]}, {value}, {mask})"

    hooks = {
        "def_kernel": lambda *names: "\n".join(
            ["@triton.jit", f"def kernel({', '.join(arguments)}):", *(f"    {name} = arg_{name}" for name in names)]
        ),
        "gen_argdefs": lambda: ", ".join(arguments),
        "gen_defines": lambda: "\n".join(f"{name}: tl.constexpr = {value}" for name, value in defines.items()),
        "stride": strides,
        "size": lambda name, at: (
            ("1", str(_HEADS if name == "Q" else _SHARED), "arg_TOKENS")[at] if len(name) == 1 else "1"
        ),
        "modification": modification,
        "store_output": store,
    }
    environment = Environment(autoescape=False)
    environment.filters["indent_except_first"] = lambda text, steps: text.replace("\n", "\n" + " " * 4 * steps)
    template = "".join(load_flex_template(part) for part in _PARTS[way])
    text = environment.from_string(template).render(**hooks, **defines)
    head, _, body = text.partition(f"arg_{_NAMES[way].split()[-1]}\n")
    constants = "".join(f"    {name}: tl.constexpr = {value}\n" for name, value in defines.items())
    imports = "import triton\nimport triton.language as tl\n\n"
    return imports + head + f"arg_{_NAMES[way].split()[-1]}\n" + constants + body, arguments


def shared_memory(way: str, capability: int, dtype: torch.dtype, width: int, options: dict[str, Any]) -> int:
    """Bytes of a block of threads.

    Args:
        options: BLOCK_*, num_stages and num_warps of this pass.
    """
    text, arguments = _source(way, width, options)
    kind = _KINDS[dtype]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flex_kernel.py"
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("flex_kernel", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        wide = {"arg_LSE": "*fp32", "arg_MAX": "*fp32", "arg_DELTA": "*fp32", "arg_TOKENS": "i32"}
        listed = ("NUM_BLKS", "IDX", "LOWEST")
        signature = {name: wide.get(name, "*i32" if name.endswith(listed) else f"*{kind}") for name in arguments}
        attributes = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(arguments) if name != "arg_TOKENS"}
        source = ASTSource(module.kernel, signature, {}, attributes)
        return _allocated(source, GPUTarget("cuda", capability, 32), options)


def _allocated(source: Any, target: Any, asked: dict[str, Any]) -> int:
    """Triton's own passes up to the one that allocates shared memory: machine code of plain fp32 takes minutes."""
    backend = make_backend(target)
    options = backend.parse_options({name: asked[name] for name in ("num_stages", "num_warps")})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    made = source.make_ir(
        target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context
    )
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    metadata: dict[str, Any] = {**vars(options)}
    for name in ("ttir", "ttgir"):
        made = stages[name](made, metadata)
    manager = ir.pass_manager(context)
    passes.ttgpuir.add_combine_tensor_select_and_if(manager)
    passes.ttgpuir.add_allocate_warp_groups(manager)
    passes.convert.add_scf_to_cf(manager)
    passes.gluon.add_inliner(manager)
    version = get_ptx_version_from_options(options, target.arch)
    nvidia.passes.ttgpuir.add_allocate_shared_memory_nv(manager, target.arch, version)
    manager.run(made, "shared memory")
    return int(made.get_int_attr("ttg.shared"))


def main() -> None:
    """fp32 with torch's blocks and with ours, and its backward pass."""
    for capability in ((7, 5), (8, 6), (8, 9), (12, 0)):
        number = 10 * capability[0] + capability[1]
        for width in (64, 128, 256):
            blocks = next(by for least, by in _FORWARD.items() if capability >= least)[width]
            theirs = dict(zip(("BLOCK_M", "BLOCK_N", "num_stages"), blocks, strict=True)) | {"num_warps": 4}
            chosen = flex_options(torch.float32, width, capability)
            ours = theirs | {name.removeprefix("fwd_"): size for name, size in chosen.items() if "fwd_" in name}
            ways = {"torch's": ("forward", theirs), "forward": ("forward", ours), "backward": ("backward", _BACKWARD)}
            sizes = {
                name: shared_memory(way, number, torch.float32, width, options) for name, (way, options) in ways.items()
            }
            print(json.dumps({"capability": number, "width": width, "bytes": sizes}))


if __name__ == "__main__":
    main()

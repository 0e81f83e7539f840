"""What is compared: one line a variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Interpreters: the project's own environment, and those that requirements-peers*.txt make.
OWN, PEERS, FACTORY = "own", "peers", "peers-lf"
# Distributions with kernels that peers take.
LIGER, FLASH = "liger-kernel", "flash-attn"


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        worker: module in benchmarks/workers.
        environment: OWN, PEERS or FACTORY.
        label: for the table.
        best: the peer's best documented settings instead of its defaults.
        settings: the project's own `key=value` settings; of a peer those of its configuration.
        needs: distributions that its interpreter must have, where those installed are taken (benchmarks/gpu_cells.py).
        kernels: distributions whose kernels it is told to use where they are installed.
        micro_batch: rows of a micro-batch, where the variant has its own number of them.
        former: the code of an earlier commit, which the command line names.
    """

    worker: str
    environment: str
    label: str
    best: bool = False
    settings: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    micro_batch: int | None = None
    former: bool = False


# The order decides who waits beside whom (groups): the two HF Trainers, which take most memory, are apart.
VARIANTS = {
    "ours": Variant("ours", OWN, "this toolkit, packing"),
    "ours-portable": Variant("ours", OWN, "this toolkit, portable", settings=("training.runtime.kernels=portable",)),
    "former": Variant("ours", OWN, "an earlier commit of this toolkit, packing", former=True),
    "naive": Variant("naive", OWN, "the documented way: padded to 512, fp32"),
    "hf": Variant("hf_trainer", PEERS, "HF Trainer, dynamic padding"),
    "hf-best": Variant("hf_trainer", PEERS, "HF Trainer, grouped by length", best=True),
    "trl": Variant("trl_sft", PEERS, "TRL SFTTrainer, defaults"),
    "trl-packing": Variant(
        "trl_sft",
        PEERS,
        "TRL packing, no checkpointing",
        best=True,
        needs=("trl", "peft", "accelerate", "datasets"),
        kernels=(FLASH,),
    ),
    "lf": Variant("llama_factory", FACTORY, "LLaMA-Factory, defaults"),
    "lf-packing": Variant(
        "llama_factory",
        FACTORY,
        "LLaMA-Factory neat packing, no checkpointing",
        best=True,
        needs=("llamafactory",),
        kernels=(LIGER, FLASH),
    ),
    "ours-mallopt": Variant("ours_mallopt", OWN, "this toolkit, packing, mallopt"),
    "ours-portable-mallopt": Variant(
        "ours_mallopt", OWN, "this toolkit, portable, mallopt", settings=("training.runtime.kernels=portable",)
    ),
    "trl-liger": Variant(
        "trl_sft",
        PEERS,
        "TRL + Liger + packing",
        best=True,
        needs=("trl", "peft", "accelerate", "datasets", LIGER),
        kernels=(LIGER, FLASH),
    ),
    "unsloth": Variant("unsloth_sft", PEERS, "Unsloth + packing", best=True, needs=("unsloth", "trl", "datasets")),
}
QUICK = ("ours", "naive")
# Measured where they are asked for by name.
STUDIES = ("ours-mallopt", "ours-portable-mallopt", "former")
# Against whom a GPU is measured: ours first, then every peer at its best. The plain TRL stands in where Liger is not.
ON_GPU = ("ours", "trl-liger", "trl-packing", "lf-packing", "unsloth")
GPU_ONLY = ("trl-liger", "unsloth")

# Preference training (benchmarks/preference.py): pairs of a micro-batch in the place of rows.
PAIR_VARIANTS = {
    "ours": Variant("ours", OWN, "this toolkit, micro-batches of 2", micro_batch=2),
    "ours-8": Variant("ours", OWN, "this toolkit, micro-batches of 8", micro_batch=8),
    "ours-portable": Variant(
        "ours", OWN, "this toolkit, portable", settings=("training.runtime.kernels=portable",), micro_batch=2
    ),
    "ours-fp32": Variant(
        "ours", OWN, "this toolkit, fp32", settings=("training.runtime.precision=fp32",), micro_batch=2
    ),
    "trl": Variant("trl_dpo", PEERS, "TRL DPOTrainer, defaults", micro_batch=8),
    **{
        f"trl-{precision}-{size}": Variant(
            "trl_dpo",
            PEERS,
            f"TRL, {precision}, precomputed, no checkpointing, micro-batches of {size}",
            best=True,
            settings=(f"bf16={precision == 'bf16'}",),
            micro_batch=size,
        )
        for precision in ("bf16", "fp32")
        for size in (1, 2, 4, 8)
    },
}


def groups(names: Sequence[str], *, together: int) -> list[list[str]]:
    """Who is stepped in turn with whom: the peers in even parts, our own variants in every part.

    Eight processes that wait with their weights, states and buffers leave too little memory for the one that computes;
    so each peer is compared with our own variant of its own part, run at the same time.

    Args:
        names: variants; those of the worker `ours` take part everywhere.
        together: most processes at a time; a part has at least one peer.
    """
    own = [name for name in names if VARIANTS[name].worker == "ours"]
    peers = [name for name in names if name not in own]
    parts = -(-len(peers) // max(1, together - len(own)))
    return [own + peers[part::parts] for part in range(parts)] or [own]

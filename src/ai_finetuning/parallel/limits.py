"""What a model's numbers and a device's memory allow, without torch: asked before anything heavy is imported."""

from __future__ import annotations

from ..errors import ConfigError

# Libraries, allocator and buffers (CUDA: its context) that a process has on every device beside the model.
BASE_BYTES = 600 * 2**20
# Most bytes of fp32 logits that a loss over documents makes at a time (engine/loss.py).
LOGIT_CHUNK_BYTES = 256 * 2**20
# Of training.runtime.offload: storages that are on their way to the host, or fetched ahead of their use, at a time; and
# optimizer state that is on the device at a time, three times over: one part in use, one coming, one going.
OFFLOAD_AHEAD, OFFLOAD_CHUNK_BYTES = 2, 256 * 2**20


def validate_heads(heads: int, key_value_heads: int, tensor_parallel_size: int) -> None:
    """Refuses a tensor_parallel_size that does not divide the heads of a model.

    Raises:
        ConfigError: with the sizes that do.
    """
    if heads % tensor_parallel_size == 0 and key_value_heads % tensor_parallel_size == 0:
        return
    sizes = ", ".join(
        str(size) for size in range(1, key_value_heads + 1) if heads % size == 0 and key_value_heads % size == 0
    )
    raise ConfigError(
        f"tensor_parallel_size {tensor_parallel_size} でヘッドを分けられません（アテンションヘッド {heads}、KV ヘッド {key_value_heads}）。"
        f"両方を割り切る {sizes} のどれかにしてください。",
        f"tensor_parallel_size {tensor_parallel_size} does not divide the model's {heads} attention heads and "
        f"{key_value_heads} key-value heads; sizes that do: {sizes}.",
    )

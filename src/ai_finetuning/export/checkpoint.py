"""A checkpoint as an adapter or a model of its own, which any library loads."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from ..execution.output_folder import new_folder, validate_new_folder
from ..inference.usable import whole_checkpoint, write_checkpoint
from ..messages import argument, notice
from ..models.hub import validate_name
from ..models.named import find_named


def export_checkpoint(name: str, out: Path) -> Path:
    """Writes a checkpoint, or an interrupted run's newest one, as an adapter's or a model's folder.

    Args:
        name: a checkpoint's folder, or an interrupted run's.
        out: a folder that is not there yet, or is empty.

    Raises:
        UsageError: it is no checkpoint. CheckpointError: it is damaged. ConfigError: a folder in use.
        StorageError: it cannot be written.
    """
    validate_new_folder(out)
    named = find_named(name)
    if named.kind != "checkpoint":
        validate_name(name)
        shown = argument(name)
        raise UsageError(
            f"{shown} はチェックポイントではありません。そのまま使えます（aift chat {shown}）。チェックポイントは {shown}/checkpoints/checkpoint-N です。",
            f"{shown} is no checkpoint and can be used as it is (aift chat {shown}); checkpoints are "
            f"{shown}/checkpoints/checkpoint-N.",
        )
    checkpoint = whole_checkpoint(named)
    with new_folder(out) as staging:
        write_checkpoint(checkpoint, staging, run=named.run, home=out)
    kind = ("アダプター", "an adapter") if find_named(out).kind == "adapter" else ("モデル", "a model")
    notice(
        f"{checkpoint} の重みを{kind[0]}として {out} に書き出しました。",
        f"wrote the weights of {checkpoint} as {kind[1]}: {out}",
    )
    return out

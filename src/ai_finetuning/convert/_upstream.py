"""Private names of transformers that conversions of models need: looked through at every upgrade."""

from __future__ import annotations

from typing import Any


def forget_bitsandbytes_conversions(model: Any) -> None:
    """Lets a model that was turned back to 16 bit be saved as it is.

    transformers 5.3 to 5.23 keeps in `_weight_conversions` how it read the quantized files, and undoes it on saving,
    which bitsandbytes' part cannot. Not needed once `dequantize` forgets them by itself.
    """
    read_by = getattr(model, "_weight_conversions", None)
    if read_by is not None:
        model._weight_conversions = [item for item in read_by if not _reads_bitsandbytes(item)]


def _reads_bitsandbytes(conversion: Any) -> bool:
    operations = getattr(conversion, "operations", ())
    return any(type(operation).__module__.endswith("integrations.bitsandbytes") for operation in operations)

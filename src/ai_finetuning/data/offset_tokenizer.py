"""What the data room asks of a tokenizer in Python that knows where its tokens stand; models/ has the one that does."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray


@runtime_checkable
class OffsetTokenizer(Protocol):
    """A tokenizer without a Rust object behind it, which gives exact offsets by itself."""

    def ids_and_offsets(self, text: str, *, add_special_tokens: bool = False) -> tuple[list[int], NDArray[Any]]:
        """Ids [tokens], and where each token's characters begin and end in the text, [tokens, 2] int64."""
        ...

    def identity(self) -> str:
        """Everything that decides ids, as text; equal for two tokenizers only if their ids are."""
        ...

"""The documented TextDataset."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError, Reason
from ..labels import IGNORED
from ..messages import excerpt, warn
from .collate import collate
from .messages import PlainText
from .tokenize import Example, encode


class TextDataset(Dataset[dict[str, Tensor]]):
    """Plain texts as padded tensors.

    Args:
        texts: what is learnt, one item a text.
        tokenizer: a transformers tokenizer.
        max_length: tokens of every item; longer texts are cut, which is reported once with the share and the characters
            that fit.

    Raises:
        DataError: no text, or an item that is not a string or holds nothing. ConfigError: max_length is no whole number
            of at least 1.
    """

    def __init__(self, texts: list[str], tokenizer: Any, max_length: int = 512) -> None:
        if isinstance(texts, str) or not texts:
            raise DataError(
                "TextDataset の texts は空でない文字列のリストにしてください。",
                "TextDataset: texts must be a list of strings with at least one item.",
            )
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"TextDataset の texts[{index}] が {excerpt(repr(text))} です。空でない文字列にしてください。",
                    f"TextDataset: texts[{index}] is {excerpt(repr(text))}; it must be a string with text.",
                    Reason(
                        f"TextDataset の texts[{index}] が文字列ではないか、空です。",
                        f"TextDataset: texts[{index}] is no string with text.",
                    ),
                )
        length: Any = max_length  # whatever was given
        if isinstance(length, bool) or not isinstance(length, Integral) or int(length) < 1:
            raise ConfigError(
                f"TextDataset の max_length が {excerpt(repr(max_length))} です。1 以上の整数にしてください。",
                f"TextDataset: max_length is {excerpt(repr(max_length))}; it must be a whole number of at least 1.",
            )
        self.max_length = int(max_length)
        self.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        samples = [PlainText(text, f"texts[{index}]") for index, text in enumerate(texts)]
        whole, report = encode(samples, tokenizer, max_length=2**30)
        self.examples = [self._cut(item) for item in whole]
        cut = sum(len(item) > self.max_length for item in whole)
        if cut:
            fit = round(report.characters_per_token * max_length)
            warn(
                f"TextDataset: {len(whole)} 件のうち {cut} 件（{cut / len(whole):.0%}）が max_length {max_length} トークン（約 "
                f"{fit} 文字）で切られます。",
                f"TextDataset: {cut} of {len(whole)} texts ({cut / len(whole):.0%}) are cut at max_length "
                f"{max_length} tokens (about {fit} characters).",
            )

    @classmethod
    def of(cls, examples: list[Example], *, max_length: int, pad_token_id: int) -> TextDataset:
        """A data set of texts that are tokenized and cut already."""
        obtained = cls.__new__(cls)
        obtained.examples, obtained.max_length, obtained.pad_token_id = examples, max_length, pad_token_id
        return obtained

    def _cut(self, item: Example) -> Example:
        if len(item) <= self.max_length:
            return item
        share = self.max_length / len(item)
        ids, labels = item.input_ids[: self.max_length], item.labels[: self.max_length]
        return Example(ids, labels, round(item.characters * share), item.source)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, idx: int) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels, each [max_length] int64; labels are -100 and the mask 0 on padding."""
        batch = collate([[self.examples[idx]]], pad_token_id=self.pad_token_id, packed=False)
        assert batch.attention_mask is not None
        missing = self.max_length - batch.input_ids.shape[1]
        pad = torch.nn.functional.pad
        labels = batch.labels[0].clone()
        labels[0] = batch.input_ids[0, 0]  # unshifted labels of a causal LM: the model's own shift drops the first
        return {
            "input_ids": pad(batch.input_ids[0], (0, missing), value=self.pad_token_id),
            "attention_mask": pad(batch.attention_mask[0], (0, missing), value=0),
            "labels": pad(labels, (0, missing), value=IGNORED),
        }

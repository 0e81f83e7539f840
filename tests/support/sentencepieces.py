"""Six sentencepiece models of real prose, laid out as makers publish them: no tokenizer.json, random weights."""

from __future__ import annotations

import gzip
import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_T5 = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
_AS_IT_IS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}

# (name of the file, tokenizer_config.json, what the model is trained with).
SIX: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any]]] = {
    "llama, unigram": ("tokenizer.model", _LLAMA, {"model_type": "unigram", "byte_fallback": True} | _AS_IT_IS),
    "rinna, unigram": (
        "spiece.model",
        _T5,
        {
            "model_type": "unigram",
            "byte_fallback": True,
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
            "normalization_rule_name": "nmt_nfkc",
        },
    ),
    "T5, unigram without bytes": ("spiece.model", _T5, {"model_type": "unigram"}),
    "llama, BPE": ("tokenizer.model", _LLAMA, {"model_type": "bpe", "byte_fallback": True} | _AS_IT_IS),
    "a file alone, BPE": (
        "tokenizer.model",
        None,
        {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    ),
    "another name, BPE without bytes": ("maker.model", _LLAMA, {"model_type": "bpe"}),
}
PIECES = 1500
each_layout = pytest.mark.parametrize("layout", SIX)


@cache
def prose(shared: Path, passages: int = 150) -> list[str]:
    """Lines of Wikipedia passages."""
    with gzip.open(shared / "data" / "prose" / "wikipedia_annotated_corpus.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in itertools.islice(file, passages)]
    return [line for text in texts for line in text.splitlines() if line]


def write_tokenizer(layout: str, folder: Path, lines: list[str], **changes: Any) -> Path:
    """A folder with the sentencepiece file and what its maker writes beside it; returns the file.

    Args:
        **changes: what the model is trained with in place of what SIX says.
    """
    import io

    import sentencepiece

    name, config, options = SIX[layout]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=PIECES,
        hard_vocab_limit=options["model_type"] == "bpe",
        character_coverage=0.98,
        pad_id=3,
        minloglevel=2,
        num_threads=1,
        **options | changes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(written.getvalue())
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder / name


def write_model(layout: str, folder: Path, lines: list[str]) -> Path:
    """The same with a tiny random Llama; returns the folder."""
    from tests.support.models import build_model

    write_tokenizer(layout, folder, lines)
    build_model("llama", vocab_size=PIECES, hidden_size=32, layers=1).save_pretrained(folder)
    return folder

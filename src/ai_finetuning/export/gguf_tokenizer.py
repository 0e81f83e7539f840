"""What llama.cpp makes of a tokenizer: whether its converter knows it, and the metadata with which it tokenizes as in
training.

Left alone, the converter changes a Japanese tokenizer without an error: a unigram model is marked as one that merges
pairs, markers of chat templates become ordinary text, a blank and BOS are put in front. Measured on the embedded model:
0 of 20 Japanese probes and 0 of 20 prompts segmented as in training (docs/decisions/0042).
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import localized
from ..japanese.prompts import render
from .gguf_file import ARRAY, BOOL, BYTE, CONTROL, STRING, UINT32, UNKNOWN, USER_DEFINED, Value

UNIGRAM, PIECE_BPE, BYTE_BPE, OTHER = "unigram", "sentencepiece-bpe", "byte-bpe", "other"
# Architectures whose converter reads tokenizer.model; the others know byte-level BPE only.
_READ_PIECES = frozenset(
    {
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "MixtralForCausalLM",
        "Qwen2ForCausalLM",
        "GemmaForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
    }
)


@dataclass(frozen=True)
class Verdict:
    """Whether a conversion will know the tokenizer: True, False, or None where it is unknown; and why."""

    known: bool | None
    ja: str
    en: str

    def __str__(self) -> str:
        return localized(self.ja, self.en)


def tokenizer_kind(tokenizer: Any) -> str:
    """How a tokenizer cuts text: one of the four kinds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # read by sentencepiece itself
        proto = getattr(tokenizer, "proto", None)
        kind = _protocol().ModelProto.FromString(proto).trainer_spec.model_type if proto is not None else 0
        return {1: UNIGRAM, 2: PIECE_BPE}.get(kind, OTHER)
    model = json.loads(backend.to_str())["model"]
    if model["type"] == "Unigram":
        return UNIGRAM
    if model["type"] != "BPE":
        return OTHER
    return PIECE_BPE if model.get("byte_fallback") else BYTE_BPE


def _protocol() -> Any:
    """The classes of a tokenizer.model; made when imported, so types know nothing of them."""
    return importlib.import_module("sentencepiece.sentencepiece_model_pb2")


def assess(tokenizer: Any, architecture: str, converter: Path | None) -> Verdict:
    """Whether the converter knows the tokenizer of a model.

    Args:
        architecture: the class in the model's config.json.
        converter: the converter's script, None where no checkout was found.
    """
    kind = tokenizer_kind(tokenizer)
    if kind in (UNIGRAM, PIECE_BPE):
        if architecture in _READ_PIECES:
            return Verdict(
                True,
                f"対応（{kind}）",
                f"the GGUF converter reads this tokenizer ({kind}).",
            )
        return Verdict(
            False,
            f"llama.cpp の変換は {architecture} の sentencepiece（{kind}）を読みません。GGUF にはできません（vLLM・serve は使えます）。",
            f"llama.cpp's converter does not read sentencepiece ({kind}) for {architecture}: it cannot be converted "
            "to GGUF (vLLM and serve work).",
        )
    if kind == OTHER:
        return Verdict(
            False,
            "llama.cpp の変換が知らない種類のトークナイザーです。",
            "a kind of tokenizer that llama.cpp's converter does not know.",
        )
    known = known_hashes(converter) if converter is not None else None
    if known is None:
        return Verdict(
            None,
            "バイト単位 BPE なので、GGUF に変換できるかは llama.cpp のハッシュ表で決まります。チェックアウトがないため未確認です（--llama-cpp か環境変数 LLAMA_CPP）。",
            "byte-level BPE: GGUF conversion depends on llama.cpp's table of hashes, "
            "and no checkout was found (--llama-cpp, or the variable LLAMA_CPP).",
        )
    text, hashes = known
    obtained = hashlib.sha256(str(tokenizer.encode(text)).encode()).hexdigest()
    if obtained in hashes:
        return Verdict(
            True, "llama.cpp の変換が知っているトークナイザーです。", "llama.cpp's converter knows this tokenizer."
        )
    return Verdict(
        False,
        f"llama.cpp の変換はこのトークナイザーを知りません（ハッシュ {obtained[:12]}…）。語彙を変えていないか確かめ、llama.cpp を新しくしてください。",
        f"llama.cpp's converter does not know this tokenizer (hash {obtained[:12]}...); check that its vocabulary is "
        "the original one, and update llama.cpp.",
    )


def known_hashes(converter: Path) -> tuple[str, frozenset[str]] | None:
    """The text that the converter encodes and the hashes that it knows, read from its source without running it.

    None where this version of llama.cpp keeps them elsewhere.
    """
    for file in (converter.parent / "conversion" / "base.py", converter):
        if not file.is_file():
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "get_vocab_base_pre":
                return _text_and_hashes(node)
    return None


def _text_and_hashes(function: ast.FunctionDef) -> tuple[str, frozenset[str]] | None:
    text, hashes = None, set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "chktxt":
            text = getattr(node.value, "value", None)
        elif isinstance(node, ast.Compare) and getattr(node.left, "id", "") == "chkhsh":
            hashes |= {getattr(item, "value", None) for item in node.comparators}
    return (text, frozenset(map(str, hashes))) if isinstance(text, str) else None


def write_piece_model(tokenizer: Any, file: Path) -> None:
    """A sentencepiece file of a unigram tokenizer that has only a tokenizer.json, for the converter to read.

    Transformers 5 saves no tokenizer.model, so a trained model's folder has none.
    """
    pieces = _protocol()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    proto = pieces.ModelProto()
    proto.trainer_spec.model_type = pieces.TrainerSpec.UNIGRAM
    proto.trainer_spec.byte_fallback = bool(model.get("byte_fallback"))
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = proto.normalizer_spec.remove_extra_whitespaces = False
    kinds = pieces.ModelProto.SentencePiece
    for number, (text, score) in enumerate(model["vocab"]):
        kind = kinds.NORMAL
        if number == model.get("unk_id"):
            kind = kinds.UNKNOWN
        elif number in special:
            kind = kinds.CONTROL
        elif proto.trainer_spec.byte_fallback and _is_byte(text):
            kind = kinds.BYTE
        proto.pieces.add(piece=text, score=score, type=kind)
    file.write_bytes(proto.SerializeToString())


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def metadata(tokenizer: Any, values: Mapping[str, Value], turn_ends: tuple[int, ...]) -> dict[str, Value]:
    """The metadata with which llama.cpp gives the ids that the model was trained with.

    Args:
        tokenizer: the model's, with its chat template.
        values: the converter's metadata.
        turn_ends: ids that end an answer.
    """
    prompt = tokenizer.encode(render(tokenizer, [{"role": "user", "content": "日"}]), add_special_tokens=False)
    changes = {
        # llama.cpp and Ollama put BOS in front by themselves and leave a template's own BOS out.
        "tokenizer.ggml.add_bos_token": Value(BOOL, bool(prompt) and prompt[0] == tokenizer.bos_token_id),
        "tokenizer.ggml.add_eos_token": Value(BOOL, False),
    }
    others = [number for number in turn_ends if number != tokenizer.eos_token_id]
    if others:
        changes["tokenizer.ggml.eot_token_id"] = Value(UINT32, others[0])
    kind = tokenizer_kind(tokenizer)
    if kind not in (UNIGRAM, PIECE_BPE):
        return changes
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("日", add_special_tokens=False))
    changes["tokenizer.ggml.add_space_prefix"] = Value(BOOL, pieces[0].startswith("▁"))
    changes["tokenizer.ggml.token_type"] = _token_types(tokenizer, values["tokenizer.ggml.token_type"])
    if kind == UNIGRAM:
        merged = tokenizer.encode("日  本", add_special_tokens=False) == tokenizer.encode(
            "日 本", add_special_tokens=False
        )
        changes["tokenizer.ggml.model"] = Value(STRING, "t5")  # llama.cpp's name of the unigram search
        changes["tokenizer.ggml.remove_extra_whitespaces"] = Value(BOOL, merged)
    return changes


def _token_types(tokenizer: Any, obtained: Value) -> Value:
    """Added tokens, such as the markers of chat templates, are found as a whole in the text."""
    types = list(obtained.value)
    for number, token in tokenizer.added_tokens_decoder.items():
        if number < len(types) and types[number] not in (BYTE, UNKNOWN):
            types[number] = CONTROL if token.special else USER_DEFINED
    return Value(ARRAY, types, obtained.item)

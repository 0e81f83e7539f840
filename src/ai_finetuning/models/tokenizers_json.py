"""A sentencepiece tokenizer as a tokenizer.json, for programs that load nothing else (vLLM, `transformers serve`).

The toolkit itself never reads it: sentencepiece adds scores in single precision and applies the longest rule of its
normalization, `tokenizers` does neither, so that on rare text the two can part (docs/decisions/0072).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .probes import PROBES

# protobuf makes this class at run time.
_MODEL: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
_NORMAL, _UNKNOWN, _USER_DEFINED, _BYTE = 1, 2, 4, 6
_UNIGRAM, _BPE = 1, 2
_ROUNDING = 1e-3  # of a text's score in single precision
_LOWEST = -1e6  # of a byte piece: spelled out in a text, `<0x0A>` is six characters
# Half-width kana with their marks: one rule of the normalization for two characters, which `tokenizers` tries one by one.
_VOICED = zip("ｳｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾊﾋﾌﾍﾎ", "ヴガギグゲゴザジズゼゾダヂヅデドバビブベボ", strict=True)
_HALF_WIDTH = [(f"{kana}ﾞ", whole) for kana, whole in _VOICED] + [
    (f"{kana}ﾟ", whole) for kana, whole in zip("ﾊﾋﾌﾍﾎ", "パピプペポ", strict=True)
]


def equal_conversion(tokenizer: Any) -> str | None:
    """The text of a tokenizer.json that agrees with a SentencePieceTokenizer on every probe; None where none does.

    Compared are ids and text of the probes, and the ids of special and added tokens between them. Two segmentations
    that a unigram model finds equally likely agree (`00 0` and `0 00`): rounding decides there, each library's own.
    """
    proto = _MODEL.FromString(tokenizer.proto)
    if proto.trainer_spec.model_type not in (_UNIGRAM, _BPE) or proto.denormalizer_spec.precompiled_charsmap:
        return None
    core = _core(tokenizer, proto)
    scores = [piece.score for piece in proto.pieces] if proto.trainer_spec.model_type == _UNIGRAM else None
    return core.to_str() if _agrees(core, tokenizer, scores) else None


def _agrees(core: Tokenizer, tokenizer: Any, scores: list[float] | None) -> bool:
    added = tokenizer.added_tokens_decoder
    vocabulary = core.get_vocab(with_added_tokens=True)
    if any(vocabulary.get(token.content) != number for number, token in added.items()):
        return False
    for text in PROBES:
        ids, expected = (
            core.encode(text, add_special_tokens=False).ids,
            tokenizer.encode(text, add_special_tokens=False),
        )
        if ids != expected and not _tie(ids, expected, scores):
            return False
        if core.decode(expected, skip_special_tokens=False) != tokenizer.decode(expected):
            return False
    mixed = "東京".join(["", *(token.content for token in added.values()), ""])
    return all(core.encode(text).ids == tokenizer.encode(text) for text in (mixed, "日本語"))


def _tie(ids: list[int], expected: list[int], scores: list[float] | None) -> bool:
    if scores is None:
        return False
    return abs(sum(scores[number] for number in ids) - sum(scores[number] for number in expected)) < _ROUNDING


def _core(tokenizer: Any, proto: Any) -> Tokenizer:
    settings, trained = proto.normalizer_spec, proto.trainer_spec
    unknown = next(number for number, piece in enumerate(proto.pieces) if piece.type == _UNKNOWN)
    # Pieces of the user's own are kept whole. As added tokens they would get the blank that stands in front of a text.
    inside = not settings.precompiled_charsmap
    own = [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED]
    own = sorted((piece.replace(" ", "▁") if inside else piece for piece in own), key=len, reverse=True)
    if trained.model_type == _UNIGRAM:
        best = max((piece.score for piece in proto.pieces if piece.type == _NORMAL), default=0.0)
        pieces = [(piece.piece, _score(piece, best)) for piece in proto.pieces]
        core = Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=trained.byte_fallback))
    else:
        core = Tokenizer(
            models.BPE(
                {piece.piece: number for number, piece in enumerate(proto.pieces)},
                _merges(proto.pieces),
                unk_token=proto.pieces[unknown].piece,
                fuse_unk=True,
                byte_fallback=trained.byte_fallback,
                ignore_merges=bool(own) and inside,
            )
        )
        if own and inside:
            core.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, own))), "isolated")
    core.normalizer = normalizers.Sequence(list(_normalizers(settings)))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if settings.remove_extra_whitespaces or settings.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 2**20 if settings.remove_extra_whitespaces else 1, 0))
    steps.append(decoders.Replace(proto.pieces[unknown].piece, trained.unk_surface))
    core.decoder = decoders.Sequence(steps)
    if not inside:
        core.add_tokens([AddedToken(piece, normalized=False) for piece in own])
    for _, token in sorted(tokenizer.added_tokens_decoder.items()):
        (core.add_special_tokens if token.special else core.add_tokens)([token])
    _add_processor(core, tokenizer)
    return core


def _score(piece: Any, best: float) -> float:
    """What a unigram search adds for a piece: sentencepiece prefers the user's own to any others."""
    if piece.type == _USER_DEFINED:
        return len(piece.piece) * best - 0.1
    return _LOWEST if piece.type == _BYTE else float(piece.score)


def _normalizers(settings: Any) -> Iterable[Any]:
    if settings.precompiled_charsmap:
        yield from (normalizers.Replace(written, whole) for written, whole in _HALF_WIDTH)
        if settings.name.startswith("nmt_"):  # both are blanks there; `tokenizers` takes them for one character
            yield normalizers.Replace("\r\n", "\n\n")
        yield normalizers.NFC()
        yield normalizers.Precompiled(settings.precompiled_charsmap)
    if settings.remove_extra_whitespaces:
        yield normalizers.Replace(Regex("^ +| +$"), "")
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if settings.add_dummy_prefix:
        yield normalizers.Prepend("▁")
    yield normalizers.Replace(" ", "▁")


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """Pairs that make a piece, in the order in which sentencepiece prefers the pieces."""
    known = {piece.piece: number for number, piece in enumerate(pieces) if piece.type == _NORMAL}
    made = sorted(known, key=lambda text: -pieces[known[text]].score)
    return [
        (text[:cut], text[cut:])
        for text in made
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]


def _add_processor(core: Tokenizer, tokenizer: Any) -> None:
    front = [tokenizer.bos_token] if tokenizer.add_bos_token and tokenizer.bos_token else []
    back = [tokenizer.eos_token] if tokenizer.add_eos_token and tokenizer.eos_token else []
    if front or back:
        core.post_processor = processors.TemplateProcessing(
            single=[*front, "$A", *back],
            special_tokens=[(token, core.token_to_id(token)) for token in {*front, *back}],
        )

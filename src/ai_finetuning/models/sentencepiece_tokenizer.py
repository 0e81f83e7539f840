"""A tokenizer whose ids and text are those of SentencePieceProcessor on the maker's own file.

transformers 5 converts such files into something else: unknown characters become `</s>`, line ends and runs of blanks
disappear, `<0x0A>` is printed for a line end (docs/decisions/0072).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray
from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2
from transformers import AddedToken, PreTrainedTokenizer

from ..errors import ModelError
from .tokenizers_json import equal_conversion

# protobuf makes these classes at run time.
_MODEL: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
_TEXT: Any = sentencepiece_pb2.SentencePieceText  # type: ignore[attr-defined]

# How makers call the file; what else ends in .model comes after these.
_NAMES = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model", "sentencepiece.model")
# The keys of tokenizer_config.json under which a tokenizer may name its file.
_KEYS = ("vocab_file", "spm_file", "sp_model_file", "spiece_file", "sentencepiece_model_file")
# Written beside a tokenizer.json that was made from the file, for programs without sentencepiece: the file decides.
MARK = "ids_by_sentencepiece"
# What the classes do where tokenizer_config.json is silent (transformers 4): (adds BOS, adds EOS).
_ADDS = {
    "LlamaTokenizer": (True, False),
    "CodeLlamaTokenizer": (True, False),
    "GemmaTokenizer": (True, False),
    "T5Tokenizer": (False, True),
}
_NAMED = {"bos_token": "bos_id", "eos_token": "eos_id", "unk_token": "unk_id", "pad_token": "pad_id"}


@dataclass(frozen=True)
class _Marks:
    """Special and added tokens: what finds them in a text (the longest first, one group for each), the id of each
    group, their names by id, and the special tokens for which this holds.
    """

    pattern: re.Pattern[str]
    numbers: list[int]
    names: dict[int, str]
    special: tuple[str, ...]


class SentencePieceTokenizer(PreTrainedTokenizer):
    """sentencepiece behind the interface of transformers.

    Text between two special or added tokens is segmented by sentencepiece alone; tokens are its pieces, an unknown
    character is the unknown piece and reads ` ⁇ `, as SentencePieceProcessor.decode writes it.

    Attributes:
        proto: the bytes of the file, which are saved unchanged as tokenizer.model.
        legacy: whether the blank that the file puts in front of a text also comes behind every special token, as
            transformers 4 did; False puts it at the beginning of the text only.
        add_bos_token, add_eos_token: what a call with add_special_tokens=True adds.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(
        self,
        vocab_file: str,
        *,
        legacy: bool | None = None,
        add_bos_token: bool = False,
        add_eos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        self.vocab_file = str(vocab_file)
        self.proto = Path(vocab_file).read_bytes()
        self.legacy = legacy is not False
        self.add_bos_token, self.add_eos_token = bool(add_bos_token), bool(add_eos_token)
        self._whole = sentencepiece.SentencePieceProcessor(model_proto=self.proto)
        self._inner = self._whole if self.legacy else _without_prefix(self.proto)
        self._pieces = [self._whole.id_to_piece(number) for number in range(self._whole.get_piece_size())]
        self._numbers = {piece: number for number, piece in enumerate(self._pieces)}
        self._marks: _Marks | None = None
        self._converted: tuple[str, str | None] | None = None
        for name in ("tokenizer_file", "is_local", "local_files_only"):
            kwargs.pop(name, None)
        super().__init__(  # type: ignore[no-untyped-call]
            legacy=self.legacy, add_bos_token=add_bos_token, add_eos_token=add_eos_token, **kwargs
        )

    @property
    def vocab_size(self) -> int:
        """Pieces of the file, without added tokens."""
        return len(self._pieces)

    def get_vocab(self) -> dict[str, int]:
        """Pieces and added tokens with their ids."""
        return {**self._numbers, **self.added_tokens_encoder}

    def identity(self) -> str:
        """Everything that decides ids, as text: what a cache of tokens needs."""
        added = {number: repr(token) for number, token in self.added_tokens_decoder.items()}
        file = hashlib.sha256(self.proto).hexdigest()
        return json.dumps([file, self.legacy, self.add_bos_token, self.add_eos_token, added], ensure_ascii=False)

    def ids_and_offsets(self, text: str, *, add_special_tokens: bool = False) -> tuple[list[int], NDArray[np.int64]]:
        """Ids [tokens], and where each token's characters begin and end in the text, [tokens, 2].

        All pieces of one character have that character's range; BOS and EOS that are added have an empty one.
        """
        ids: list[int] = []
        ranges: list[NDArray[np.int64]] = []
        for begin, end, number in self._parts(text):
            if number is not None:
                ids.append(number)
                ranges.append(np.array([[begin, end]]))
            else:
                numbers, offsets = _segmented(self._processor(begin), text[begin:end])
                ids += numbers
                ranges.append(offsets + begin)
        if add_special_tokens:
            front, back = self._around()
            ids = [*front, *ids, *back]
            ranges = [_empty(0, front), *ranges, _empty(len(text), back)]
        return ids, np.concatenate([_empty(0, []), *ranges])

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """The tokens of a text; an unknown character is the unknown piece, so that tokens and ids are the same thing.

        Args:
            text: any text.
            pair, add_special_tokens: without effect, as in transformers' other Python tokenizers.
            **kwargs: split_special_tokens=True reads special tokens as the characters that they are written with.
        """
        plain = kwargs.get("split_special_tokens", self.split_special_tokens)
        ids: list[int] = []
        for begin, end, number in [(0, len(text), None)] if plain else self._parts(text):
            ids += self._processor(begin).encode(text[begin:end]) if number is None else [number]
        names = self._marked().names
        return [names[number] if number in names else self._pieces[number] for number in ids]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Ids with BOS and EOS as add_bos_token and add_eos_token say."""
        front, back = self._around()
        return [*front, *token_ids_0, *back, *([] if token_ids_1 is None else [*front, *token_ids_1, *back])]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens, as SentencePieceProcessor.decode writes it."""
        added = self.added_tokens_encoder
        return self._decode([added.get(token, self._convert_token_to_id(token)) for token in tokens])

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes the maker's file as tokenizer.model."""
        file = Path(save_directory) / ((f"{filename_prefix}-" if filename_prefix else "") + "tokenizer.model")
        file.write_bytes(self.proto)
        return (str(file),)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Writes a folder that load_tokenizer() reads back unchanged.

        For programs without this toolkit a tokenizer.json comes with it where the conversion agrees on every probe;
        else transformers reads the file by its SentencePieceBackend, whose text may differ.
        """
        written = super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        converted = self._conversion()
        (folder / "tokenizer.json").unlink(missing_ok=True)
        if converted is not None:
            (folder / "tokenizer.json").write_text(converted, encoding="utf-8")
        file = folder / "tokenizer_config.json"
        values = json.loads(file.read_text(encoding="utf-8"))
        values |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        values[MARK] = {"legacy": self.legacy}
        values["tokenizer_class"] = "PreTrainedTokenizerFast" if converted is not None else "SentencePieceBackend"
        values["legacy"] = (
            self.legacy or converted is None
        )  # without it SentencePieceBackend never puts a blank in front
        values.pop("backend", None)
        file.write_text(json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return tuple(map(str, written or ()))

    def is_unknown(self, number: int) -> bool:
        """Whether a token stands for characters that the vocabulary does not hold."""
        return number == int(self._whole.unk_id())

    def _conversion(self) -> str | None:
        """The tokenizer.json for other programs; made once for what decides it."""
        key = self.identity()
        if self._converted is None or self._converted[0] != key:
            self._converted = (key, equal_conversion(self))
        return self._converted[1]

    def _around(self) -> tuple[list[int], list[int]]:
        """(ids in front of a text, ids behind it) where special tokens are added."""
        front = [self.bos_token_id] if self.add_bos_token and self.bos_token_id is not None else []
        back = [self.eos_token_id] if self.add_eos_token and self.eos_token_id is not None else []
        return front, back

    def _processor(self, begin: int) -> Any:
        return self._whole if begin == 0 else self._inner

    def _parts(self, text: str) -> Iterator[tuple[int, int, int | None]]:
        """(begin, end, id) of every special or added token in a text, (begin, end, None) of what lies between them."""
        marks = self._marked()
        done = 0
        for match in marks.pattern.finditer(text) if marks.numbers else ():
            if match.start() > done:
                yield done, match.start(), None
            begin, end = match.span(match.lastindex or 0)
            yield begin, end, marks.numbers[(match.lastindex or 1) - 1]
            done = match.end()
        if done < len(text):
            yield done, len(text), None

    def _marked(self) -> _Marks:
        special = tuple(self.all_special_tokens)
        if self._marks is None or self._marks.special != special:
            added = self.added_tokens_decoder
            # A special token that was only named later is a piece; the pad token may be any piece, and stays text.
            later = {self._numbers[name]: AddedToken(name) for name in special if name in self._numbers}
            later.pop(self.pad_token_id, None)
            found = {**later, **added}
            ordered = sorted(
                (item for item in found.items() if item[1].content), key=lambda item: -len(item[1].content)
            )
            pattern = re.compile("|".join(_pattern(token) for _, token in ordered))
            names = {number: token.content for number, token in found.items()}
            self._marks = _Marks(pattern, [number for number, _ in ordered], names, special)
        return self._marks

    def _update_trie(self, *arguments: Any) -> None:  # called when tokens were added
        self._marks = None
        super()._update_trie(*arguments)

    def _convert_token_to_id(self, token: str) -> int:
        return self._numbers.get(token, int(self._whole.unk_id()))

    def _convert_id_to_token(self, index: int) -> str:
        return self._pieces[index] if 0 <= index < len(self._pieces) else ""

    def _decode(  # what decode() and batch_decode() call
        self,
        token_ids: int | Sequence[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """The text of ids: what SentencePieceProcessor.decode writes, with special and added tokens as they are called.

        With skip_special_tokens they are left out, but not the unknown piece: it stands for a character. Ids that the
        vocabulary does not have (rows that fill up an embedding) have no text.
        """
        numbers = [token_ids] if isinstance(token_ids, int) else token_ids
        added = dict(self._marked().names)
        skipped = set(added) & set(self.all_special_ids) if skip_special_tokens else set()
        unknown = int(self._whole.unk_id())
        if unknown != self.pad_token_id:
            skipped.discard(unknown)
        added.pop(unknown, None)
        texts: list[str] = []
        run: list[int] = []
        first = True  # whether the run begins the text
        for number in numbers:
            if number not in added and 0 <= number < len(self._pieces):
                run.append(number)
                continue
            texts.append((self._whole if first else self._inner).decode(run))
            texts.append("" if number in skipped else added.get(number, ""))
            run, first = [], first and not any(texts)
        return "".join([*texts, (self._whole if first else self._inner).decode(run)])


def _pattern(token: Any) -> str:
    """An added token in a regular expression, with the blanks that it takes along outside its group."""
    name = re.escape(token.content)
    body = f"(?<![^ ]){name}(?![^ ])" if token.single_word else name
    return (r"\s*" if token.lstrip else "") + f"({body})" + (r"\s*" if token.rstrip else "")


def _empty(place: int, ids: Sequence[int]) -> NDArray[np.int64]:
    return np.full((len(ids), 2), place, dtype=np.int64)


def _segmented(processor: Any, text: str) -> tuple[list[int], NDArray[np.int64]]:
    """Ids [tokens] and character ranges [tokens, 2] of a text without special tokens.

    sentencepiece counts bytes, and gives a character of several pieces to the last of them.
    """
    pieces = _TEXT.FromString(processor.encode(text, out_type="serialized_proto")).pieces
    count = len(pieces)
    flat = np.fromiter((edge for piece in pieces for edge in (piece.begin, piece.end)), np.int64, 2 * count)
    ranges = flat.reshape(count, 2)
    for place in np.flatnonzero(ranges[:, 0] == ranges[:, 1])[::-1]:
        if place + 1 < count and ranges[place + 1, 0] == ranges[place, 0]:
            ranges[place, 1] = ranges[place + 1, 1]
    if not text.isascii():
        begins = (np.frombuffer(text.encode("utf-8"), dtype=np.uint8) & 0xC0) != 0x80
        ranges = np.concatenate([[0], np.cumsum(begins)])[ranges]
    return [piece.id for piece in pieces], ranges


def _without_prefix(proto: bytes) -> Any:
    """A processor of the same file that puts no blank in front of a text."""
    changed = _MODEL.FromString(proto)
    changed.normalizer_spec.add_dummy_prefix = False
    return sentencepiece.SentencePieceProcessor(model_proto=changed.SerializeToString())


def pieces_file(folder: Path) -> Path | None:
    """The sentencepiece file of a model's folder, whatever it is called; None where it has none.

    What tokenizer_config.json names comes first, then the file that its class calls its own, then the usual names, then
    any *.model. A file of another kind with such a name (tiktoken's) is passed over.

    Raises:
        ModelError: several files that differ, and nothing says which one is meant.
    """
    settings = read_settings(folder)
    named = [Path(str(settings[key])).name for key in _KEYS if settings.get(key)]
    named += ["spiece.model"] if str(settings.get("tokenizer_class")).startswith("T5Tokenizer") else []
    for name in named:
        if _is_pieces(folder / name):
            return folder / name
    there = sorted((path for path in folder.glob("*.model") if _is_pieces(path)), key=_rank)
    if len({path.read_bytes() for path in there}) > 1 and there[0].name != _NAMES[0]:
        listed = ", ".join(path.name for path in there)
        raise ModelError(
            f"{folder} に sentencepiece のファイルが複数あり、どれを使うか決められません（{listed}）。tokenizer_config.json の vocab_file に名前を書いてください。",
            f"{folder} has several sentencepiece files, and nothing says which one is meant ({listed}); name it as "
            "vocab_file in tokenizer_config.json.",
        )
    return there[0] if there else None


def deciding_file(folder: Path) -> Path | None:
    """The sentencepiece file by which a folder's tokenizer is read; None where it has none, and where a tokenizer.json
    is the maker's own word (this toolkit's own one, made from the file, is not).
    """
    if (folder / "tokenizer.json").is_file() and not read_settings(folder).get(MARK):
        return None
    return pieces_file(folder)


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json as a dict; empty where there is none.

    Raises:
        ModelError: it is no JSON object.
    """
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{file} が JSON として読めません（{error}）。モデルを取得し直してください。",
            f"{file} is no JSON object ({error}); download the model again.",
        ) from error


def from_pieces(folder: Path, file: Path) -> SentencePieceTokenizer:
    """The tokenizer of a model's folder, by its sentencepiece file.

    Special and added tokens, BOS, EOS and `legacy` are those of tokenizer_config.json; what it leaves out comes from
    the sentencepiece file itself.
    """
    settings = read_settings(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    given: dict[str, Any] = {}
    listed = {**_json(folder / "special_tokens_map.json"), **settings}
    for name, ask in _NAMED.items():
        number = getattr(processor, ask)()
        if name not in listed and number >= 0:
            given[name] = processor.id_to_piece(number)
    adds = _ADDS.get(str(settings.get("tokenizer_class")).removesuffix("Fast"), (False, False))
    for name, usual in zip(("add_bos_token", "add_eos_token"), adds, strict=True):
        given[name] = usual if settings.get(name) is None else bool(settings[name])
    if isinstance(settings.get(MARK), dict):
        given["legacy"] = settings[MARK].get("legacy")
    tokenizer: SentencePieceTokenizer = SentencePieceTokenizer.from_pretrained(
        str(folder), vocab_file=str(file), local_files_only=True, **given
    )
    return tokenizer


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _rank(path: Path) -> tuple[int, str]:
    return (_NAMES.index(path.name) if path.name in _NAMES else len(_NAMES), path.name)


def _is_pieces(file: Path) -> bool:
    try:
        return file.is_file() and sentencepiece.SentencePieceProcessor(model_file=str(file)).get_piece_size() > 0
    except (RuntimeError, OSError):
        return False

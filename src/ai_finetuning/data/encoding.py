"""From bytes to text: UTF-8, CP932, EUC-JP, UTF-16, ISO-2022-JP."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import BinaryIO

from ..errors import DataError

# ISO-2022-JP, which mail is in: the plainest form of it that has all characters of a file. It escapes from ASCII to Japanese
# and back, so that its bytes are those of a UTF-8 file, too, and each of its lines looks like noise of Latin letters.
_JIS = ("iso2022_jp", "iso2022_jp_ext", "iso2022_jp_2", "iso2022_jp_3", "iso2022_jp_2004")
_TO_JAPANESE = re.compile(rb"\x1b\$(?:[@B]|\([DOPQ])")
_LONGEST_ESCAPE = 4
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
# Line ends of UTF-16 without a mark, whose text looks at least so Japanese; no text has a NUL beside its line ends.
_UTF16 = (("utf-16-le", b"\n\0"), ("utf-16-be", b"\0\n"))
_PLAUSIBLE = 0.9
# What begins so is no text, whatever its name says.
_OTHERS = (
    (b"PK\x03\x04", "Excel (.xlsx) / zip"),
    (b"\xd0\xcf\x11\xe0", "Excel (.xls) / Word (.doc)"),
    (b"\x1f\x8b", "gzip (.gz)"),
    *((b"BZh%d1AY&SY" % level, "bzip2 (.bz2)") for level in range(1, 10)),
    (b"\xfd7zXZ", "xz (.xz)"),
    (b"\x28\xb5\x2f\xfd", "Zstandard (.zst)"),
    (b"PAR1\x15", "Parquet (.parquet)"),
    (b"ARROW1\0\0", "Arrow (.arrow)"),
    (b"%PDF-1.", "PDF"),
)
# Characters that ordinary Japanese is made of.
_ORDINARY = re.compile("[\u3040-\u30ff\u4e00-\u9fff\u3000-\u303f\uff00-\uff5e\x20-\x7e\n\r\t]")
_KANA = re.compile("[\u3041-\u3093\u30a1-\u30f6]")
_SAMPLE = 200_000
_BLOCK = 2**20
# Bytes by which the encoding of a file is told that is not read before its rows are used.
_FIRST = 2**25
# A byte that the encoding does not have, as `surrogateescape` keeps it.
UNREADABLE = re.compile("[\udc80-\udcff]")


def _plausibility(text: str) -> float:
    """How Japanese a decoded text looks: the share of ordinary characters, plus the share of kana."""
    sample = text[:_SAMPLE]
    if not sample:
        return 0.0
    return (len(_ORDINARY.findall(sample)) + len(_KANA.findall(sample))) / len(sample)


def decode(raw: bytes, name: str) -> tuple[str, str]:
    """(text, encoding) of a file's bytes; see find_encoding.

    Raises:
        DataError: no encoding decodes the bytes, but for one in a thousand.
    """
    encoding, errors = find_encoding(lambda: io.BytesIO(raw), name)
    return raw.decode(encoding, errors), encoding


def find_encoding(opened: Callable[[], BinaryIO], name: str) -> tuple[str, str]:
    """(encoding, what to do with bytes that it does not have: `strict` or `surrogateescape`) of a file, in a few passes
    over its bytes with a fixed memory.

    The order: BOM, UTF-16 where its line ends are seen, ISO-2022-JP where its escapes are seen, strict UTF-8, then CP932 against EUC-JP by plausibility. Never
    `shift_jis`, which cannot read ①㈱髙 and reads ～ as another character; and no guesser's name is taken literally. At
    last the encoding in which hardly a byte is wrong: those bytes become lone surrogates, and their rows bad rows.

    Args:
        opened: gives the bytes from the beginning.
        name: of the file, for the message.

    Raises:
        DataError: none of them decodes the bytes, but for one in a thousand; or they are no text at all.
    """
    with opened() as stream:
        first = stream.read(_BLOCK)
    marked = _by_mark(first, opened, name)
    if marked is not None:
        return marked, "strict"
    if first.isascii() and _has_escapes(opened) and _first_wrong(opened, "ascii") is None:
        return _jis(opened, name), "strict"
    not_utf8 = _first_wrong(opened, "utf-8")
    if not_utf8 is None:
        return "utf-8", "strict"
    fitting = [code for code in ("cp932", "euc_jp", "euc_jis_2004") if _first_wrong(opened, code) is None]
    if fitting:
        return max(fitting, key=lambda code: _plausibility(_beginning(opened, code))), "strict"
    counts = [(*_count_wrong(opened, code), code) for code in ("utf-8", "cp932", "euc_jp")]
    wrong_bytes, size, _, encoding = min((wrong, size, _beginning(opened, code), code) for wrong, size, code in counts)
    if wrong_bytes * 1000 > size:
        raise _undecodable(first, not_utf8, name)
    return encoding, "surrogateescape"


def _by_mark(first: bytes, opened: Callable[[], BinaryIO], name: str) -> str | None:
    """The encoding that a file's first bytes tell, or its line ends; None where they tell none.

    Raises:
        DataError: bytes that it does not have, or what is no text.
    """
    kind = next((kind for mark, kind in _OTHERS if first.startswith(mark)), None)
    if kind is not None:
        raise DataError(
            f"{name} の中身は文字ではなく {kind} です。名前の拡張子を中身に合わせてください。",
            f"{name} does not hold text but {kind}; give it the extension of what it holds.",
        )
    encoding = next((encoding for mark, encoding in _BOMS if first.startswith(mark)), None)
    wrong = _first_wrong(opened, encoding) if encoding is not None else None
    if wrong is not None:
        raise _undecodable(first, wrong, name)
    ends = [code for code, end in _UTF16 if end in first] if encoding is None else []
    fitting = (code for code in ends if _first_wrong(opened, code) is None)
    return encoding or next((code for code in fitting if _plausibility(_beginning(opened, code)) >= _PLAUSIBLE), None)


def _jis(opened: Callable[[], BinaryIO], name: str) -> str:
    """The form of ISO-2022-JP that a file is in.

    Raises:
        DataError: it is in none of them, as where Windows wrote ① and ㈱ into it.
    """
    wrong = 0
    for encoding in _JIS:
        line = _first_wrong(opened, encoding)
        if line is None:
            return encoding
        wrong = max(wrong, line)
    raise DataError(
        f"{name} は ISO-2022-JP（JIS）ですが、{wrong} 行目付近に、JIS にない文字（Windows の ①、㈱、髙 など）か壊れたバイトがあります。UTF-8 で保存し直してください。",
        f"{name} is ISO-2022-JP (JIS), and near line {wrong} are characters that JIS lacks (such as ①, ㈱ and 髙 of Windows), or "
        "damaged bytes; save the file as UTF-8.",
    )


def find_first_encoding(opened: Callable[[], BinaryIO], name: str) -> tuple[str, str]:
    """find_encoding() by the first bytes of a file, up to a line end, so that a large one is not read for it. Bytes behind
    them that the encoding does not have become lone surrogates.

    Raises:
        DataError: see find_encoding.
    """
    with opened() as stream:
        first = stream.read(_FIRST)
    if len(first) < _FIRST or b"\n" not in first:
        return find_encoding(opened, name)
    first = first[: first.rindex(b"\n") + 1]
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first or _TO_JAPANESE.search(first):
        return find_encoding(opened, name)  # UTF-16 and ISO-2022-JP have no surrogates for wrong bytes
    return find_encoding(lambda: io.BytesIO(first), name)[0], "surrogateescape"


def _decoded(opened: Callable[[], BinaryIO], encoding: str, errors: str) -> Iterator[str]:
    """The text in parts, of about _BLOCK bytes each."""
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    with opened() as stream:
        while block := stream.read(_BLOCK):
            yield decoder.decode(block)
    yield decoder.decode(b"", True)


def _first_wrong(opened: Callable[[], BinaryIO], encoding: str) -> int | None:
    """The line of the first byte that an encoding does not have; None where it has all."""
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    line = 1
    with opened() as stream:
        for block in chain(iter(lambda: stream.read(_BLOCK), b""), (b"",)):
            try:
                decoder.decode(block, not block)
            except UnicodeDecodeError as error:
                # What a decoder keeps of the block before is part of one character, without a line end.
                return line + error.object[: error.start].count(b"\n")
            except UnicodeError:  # a codec that says no place
                return line
            line += block.count(b"\n")
    return None


def _has_escapes(opened: Callable[[], BinaryIO]) -> bool:
    """Whether the bytes hold an escape to Japanese, as ISO-2022-JP has it."""
    before = b""
    with opened() as stream:
        while block := stream.read(_BLOCK):
            if _TO_JAPANESE.search(before + block):
                return True
            before = block[1 - _LONGEST_ESCAPE :]
    return False


def _beginning(opened: Callable[[], BinaryIO], encoding: str) -> str:
    """As much of the text as tells how Japanese it is."""
    text = ""
    for part in _decoded(opened, encoding, "surrogateescape"):
        text += part
        if len(text) >= _SAMPLE:
            break
    return text[:_SAMPLE]


def _count_wrong(opened: Callable[[], BinaryIO], encoding: str) -> tuple[int, int]:
    """(bytes that an encoding does not have, bytes)."""
    wrong = sum(len(UNREADABLE.findall(part)) for part in _decoded(opened, encoding, "surrogateescape"))
    with opened() as stream:
        return wrong, sum(len(block) for block in iter(lambda: stream.read(_BLOCK), b""))


def _undecodable(first: bytes, line: int, name: str) -> DataError:
    from charset_normalizer import from_bytes

    guess = from_bytes(first[:100_000]).best()
    hint = f" ({guess.encoding}?)" if guess is not None else ""
    return DataError(
        f"{name} の {line} 行目付近を UTF-8、CP932、EUC-JP、UTF-16 のどれとしても読めません{hint}。UTF-8 で保存し直してください。",
        f"{name}: bytes near line {line} are neither UTF-8 nor CP932, EUC-JP or UTF-16{hint}; save the file as UTF-8.",
    )

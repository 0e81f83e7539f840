"""From bytes to text: UTF-8, CP932, EUC-JP, UTF-16, ISO-2022-JP."""

from __future__ import annotations

import re

from ..errors import DataError

_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
# Characters that ordinary Japanese is made of.
_ORDINARY = re.compile("[\u3040-\u30ff\u4e00-\u9fff\u3000-\u303f\uff00-\uff5e\x20-\x7e\n\r\t]")
_KANA = re.compile("[\u3041-\u3093\u30a1-\u30f6]")
_SAMPLE = 200_000
# A byte that the encoding does not have, as `surrogateescape` keeps it.
UNREADABLE = re.compile("[\udc80-\udcff]")


def _plausibility(text: str) -> float:
    """How Japanese a decoded text looks: the share of ordinary characters, plus the share of kana."""
    sample = text[:_SAMPLE]
    if not sample:
        return 0.0
    return (len(_ORDINARY.findall(sample)) + len(_KANA.findall(sample))) / len(sample)


def decode(raw: bytes, name: str) -> tuple[str, str]:
    """(text, encoding) of a file's bytes.

    The order: BOM, strict UTF-8, ISO-2022-JP where escapes are seen, then CP932 against EUC-JP by plausibility. Never
    `shift_jis`, which cannot read ①㈱髙 and reads ～ as another character; and no guesser's name is taken literally.

    Raises:
        DataError: none of them decodes the bytes, but for one in a thousand.
    """
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            return _strict(raw, encoding, name), encoding
    for encoding in ("utf-8", *(("iso2022_jp_2",) if b"\x1b$" in raw else ())):
        try:
            return raw.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    readings = []
    for encoding in ("cp932", "euc_jp", "euc_jis_2004"):
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        readings.append((_plausibility(text), text, encoding))
    if readings:
        _, text, encoding = max(readings, key=lambda reading: reading[0])
        return text, encoding
    return _nearly(raw, name)


def _nearly(raw: bytes, name: str) -> tuple[str, str]:
    """The reading in which hardly a byte is wrong: those bytes become lone surrogates, and their rows bad rows.

    Raises:
        DataError: more than one byte in a thousand is wrong in every encoding.
    """
    readings = [(raw.decode(encoding, "surrogateescape"), encoding) for encoding in ("utf-8", "cp932", "euc_jp")]
    wrong, text, encoding = min((len(UNREADABLE.findall(text)), text, encoding) for text, encoding in readings)
    if wrong * 1000 > len(raw):
        raise _undecodable(raw, name)
    return text, encoding


def _strict(raw: bytes, encoding: str, name: str) -> str:
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise _undecodable(raw, name, error) from None


def _undecodable(raw: bytes, name: str, error: UnicodeDecodeError | None = None) -> DataError:
    from charset_normalizer import from_bytes

    if error is None:
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as obtained:
            error = obtained
    start = error.start if error is not None else 0
    line = raw[:start].count(b"\n") + 1
    guess = from_bytes(raw[:100_000]).best()
    hint = f" ({guess.encoding}?)" if guess is not None else ""
    return DataError(
        f"{name} の {line} 行目付近を UTF-8、CP932、EUC-JP、UTF-16 のどれとしても読めません{hint}。UTF-8 で保存し直してください。",
        f"{name}: bytes near line {line} are neither UTF-8 nor CP932, EUC-JP or UTF-16{hint}; save the file as UTF-8.",
    )

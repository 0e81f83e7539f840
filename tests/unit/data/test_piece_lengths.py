"""Offsets by the lengths of pieces are the tokenizer's own, or are not told."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.support.models import SENTENCES, build_tokenizer
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from ai_finetuning.data import tokenize
from ai_finetuning.data.messages import PlainText
from ai_finetuning.data.piece_lengths import PieceLengths
from ai_finetuning.data.rendering import Prompts
from ai_finetuning.data.tokenize import Segmenter, encode
from ai_finetuning.japanese.classes import LONG, all_kinds, distinct, kinds_of, table_of
from ai_finetuning.japanese.mojibake import find_mojibake
from ai_finetuning.models.tokenizers import load_tokenizer

ALPHABET = "あ漢字鱈ABC \n\t　😀é\u0301か\u3099ﾊﾟ𠮷\x00神\u200d"


def texts() -> list[str]:
    chance = random.Random(1)
    parts = [*ALPHABET, "</s>", "<|user|>", "<unk>", "東京は", "Hello, "]
    odd = ["".join(chance.choice(parts) for _ in range(chance.randrange(40))) for _ in range(500)]
    return [*odd, *SENTENCES, "", " ", "  a", "\n"]


def compared(tokenizer) -> tuple[int, int]:
    """(texts whose offsets are told, texts); all that are told are the tokenizer's."""
    lengths, told, count = PieceLengths(tokenizer), 0, 0
    assert lengths.known
    for special in (False, True):
        core = tokenizer.backend_tokenizer
        for text, encoding in zip(texts(), core.encode_batch(texts(), add_special_tokens=special), strict=True):
            mine = lengths.offsets(encoding.ids, text, special=special)
            count += 1
            if mine is not None:
                told += 1
                assert np.array_equal(mine, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)), text
    return told, count


def framed():
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [lambda: load_tokenizer("embedded:kotoha-tiny"), build_tokenizer, framed],
    ids=["unigram", "bytes", "framed"],
)
def test_the_offsets_are_the_tokenizers_own(make):
    told, count = compared(make())
    assert told > 0.5 * count


def changed(**parts):
    tokenizer = build_tokenizer()
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": normalizers.NFKC()},
        {"post_processor": processors.ByteLevel(trim_offsets=True)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
    ],
    ids=["nfkc", "trimmed", "prefix", "whitespace"],
)
def test_other_tokenizers_keep_their_offsets(parts):
    assert not PieceLengths(changed(**parts)).known


def test_a_text_that_normalization_shortens_is_left_to_the_tokenizer():
    lengths = PieceLengths(changed(normalizer=normalizers.NFC()))
    assert lengths.known
    core = changed(normalizer=normalizers.NFC()).backend_tokenizer
    assert lengths.offsets(core.encode("か\u3099").ids, "か\u3099", special=False) is None
    assert lengths.offsets(core.encode("が").ids, "が", special=False) is not None


def test_a_text_of_the_same_length_with_other_characters_in_it_is_left_to_the_tokenizer():
    """NFC takes U+0958 apart and puts か and its voice mark together: the lengths add up, at other places."""
    tokenizer = changed(normalizer=normalizers.NFC())
    text = "\u0958あか\u3099"
    encoding = tokenizer.backend_tokenizer.encode(text)
    lengths = PieceLengths(tokenizer)
    assert lengths.offsets(encoding.ids, text, special=False) is None
    lengths._composes = False
    told = lengths.offsets(encoding.ids, text, special=False)
    assert told is not None
    assert not np.array_equal(told, np.array(encoding.offsets))


def test_rows_do_not_change_where_lengths_take_over(monkeypatch: pytest.MonkeyPatch):
    samples = [PlainText(text, f"[{number}]") for number, text in enumerate(texts()) if text.strip()]
    tokenizer = load_tokenizer("embedded:kotoha-tiny")
    before, report = encode(samples, tokenizer, max_length=16, on_long="split")
    monkeypatch.setattr(tokenize, "_MANY", 0)
    monkeypatch.setattr(tokenize, "_BATCH", 50)
    after, again = encode(samples, tokenizer, max_length=16, on_long="split")
    assert report == again
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.labels, other.labels)
        assert (one.characters, one.source) == (other.characters, other.source)


def test_lengths_that_are_not_the_tokenizers_are_found_out(monkeypatch: pytest.MonkeyPatch):
    """The first texts are encoded both ways; where one differs, the tokenizer's offsets stay."""
    monkeypatch.setattr(tokenize, "_MANY", 0)
    offsets = PieceLengths.offsets
    monkeypatch.setattr(PieceLengths, "offsets", lambda *args, **named: offsets(*args, **named) + 1)
    samples = [PlainText(text, f"[{number}]") for number, text in enumerate(SENTENCES * 3)]
    tokenizer = build_tokenizer()
    prompts = Prompts(tokenizer, "auto")
    segmenter = Segmenter(tokenizer)
    wrong = [
        tokenize.encode_some(samples, prompts, 512, "truncate", tokenize.BadRows(), segmenter)[0] for _ in range(2)
    ][1]
    monkeypatch.setattr(PieceLengths, "offsets", offsets)
    right, _ = encode(samples, tokenizer, max_length=512)
    assert [item.characters for item in wrong] == [item.characters for item in right]
    assert all(np.array_equal(one.labels, other.labels) for one, other in zip(wrong, right, strict=True))


def test_one_text_whose_offsets_are_not_told_leaves_the_others_fast(monkeypatch: pytest.MonkeyPatch):
    """A character that the vocabulary lacks in the first texts: that text keeps the tokenizer's offsets."""
    monkeypatch.setattr(tokenize, "_MANY", 0)
    tokenizer = changed(normalizer=normalizers.NFC())
    samples = [PlainText(text, f"[{number}]") for number, text in enumerate(["か\u3099" * 9, *SENTENCES * 3])]
    prompts, segmenter = Prompts(tokenizer, "auto"), Segmenter(tokenizer)
    slow: list[int] = []
    segment = tokenize.segment
    monkeypatch.setattr(tokenize, "segment", lambda items, _: slow.append(len(items)) or segment(items, tokenizer))
    rows = [tokenize.encode_some(samples, prompts, 512, "truncate", tokenize.BadRows(), segmenter)[0] for _ in range(2)]
    compared = tokenize._COMPARED // tokenize._BEGINNING
    assert slow == [compared, 1, 1]
    assert [item.characters for item in rows[0]] == [item.characters for item in rows[1]]


def test_long_texts_are_judged_as_short_ones_are():
    """A pass over a long text finds the kinds of characters that a search finds."""
    broken = "東京の首都".encode().decode("cp932", "ignore")
    for text in ("東京の町を歩きました。", broken, "鮗鮖鮴鮠鮨鮭鮪鮫鯀鯊", "a\ufffdb", "ＡＢＣ×÷°"):
        whole = find_mojibake(text * (1 + LONG // len(text)))
        assert (whole is None) == (find_mojibake((text * (1 + LONG // len(text)))[: LONG - 1]) is None)
    table = table_of(range(0xD800, 0xE000), frozenset({0x3042}))
    assert [all_kinds(kinds_of(text, table)) for text in ("", "い", "あ", "\udc80", "いあ\ud800")] == [0, 0, 2, 1, 3]
    assert distinct(["あいあ", "", "𠮷\ud800"]) == {"あ", "い", "𠮷", "\ud800"}


# A line that two segmentations fit equally well again and again.
EQUAL = "\n" + 50 * (5 * "あ" + "。")


def lines() -> list[str]:
    """Long texts whose line ends stand beside everything, and runs that two segmentations fit equally well."""
    chance = random.Random(2)
    parts = [*ALPHABET, "\n", "\n\n", "ー" * 7, "――――", "東京は日本の首都です。", "</s>", "<unk>", "▁", "。\n　"]
    odd = ["".join(chance.choice(parts) for _ in range(chance.choice((300, 2000)))) for _ in range(40)]
    return [
        *odd,
        "あ" * 3000,
        200 * "東京は日本の首都です。" + EQUAL,
        "あ\n" * 3000,
        "\n" * 3000,
        "あ" * 1023 + "\n",
        "あ" * 1024 + "\n",
        "あ" * 1024 + "\nい",
        "",
    ]


def unigram(change: Callable[[dict[str, Any]], object]) -> Any:
    """kotoha-tiny with its settings changed."""
    tokenizer = load_tokenizer("embedded:kotoha-tiny")
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    change(settings)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(settings))
    return tokenizer


def line_end_is_a_piece(settings: dict[str, Any]) -> None:
    settings["added_tokens"] = [token for token in settings["added_tokens"] if token["content"] != "\n"]
    settings["model"]["vocab"][4] = ["\n", -5.5]


def rounded(settings: dict[str, Any]) -> None:
    """Sums of such scores depend on what stands before."""
    line_end_is_a_piece(settings)
    for piece in settings["model"]["vocab"]:
        piece[1] = round(1.1 * piece[1], 4)


def goes_on(settings: dict[str, Any]) -> None:
    line_end_is_a_piece(settings)
    settings["model"]["vocab"][200] = ["\n　", -2.0]


def ends_lines(settings: dict[str, Any]) -> None:
    line_end_is_a_piece(settings)
    settings["model"]["vocab"][200] = ["。\n", -2.0]


def line_end_is_a_byte(settings: dict[str, Any]) -> None:
    line_end_is_a_piece(settings)
    settings["model"]["vocab"][4] = ["ｰ", -5.5]


def line_end_is_unknown(settings: dict[str, Any]) -> None:
    line_end_is_a_byte(settings)
    settings["model"]["byte_fallback"] = False


def takes_blanks(settings: dict[str, Any]) -> None:
    line_end_is_a_piece(settings)
    settings["added_tokens"][2]["rstrip"] = True


def takes_blanks_before(settings: dict[str, Any]) -> None:
    line_end_is_a_piece(settings)
    settings["added_tokens"][2]["lstrip"] = True


def stands_alone(settings: dict[str, Any]) -> None:
    """A line end between letters is left to the model, in which a piece goes on behind it."""
    goes_on_in_a_word(settings)
    settings["added_tokens"].append({**settings["added_tokens"][0], "id": 4, "content": "\n", "single_word": True})


def goes_on_in_a_word(settings: dict[str, Any]) -> None:
    line_end_is_a_piece(settings)
    settings["model"]["vocab"][200] = ["\nい", -2.0]


def token_goes_on(settings: dict[str, Any]) -> None:
    settings["added_tokens"][7]["content"] = "\n問："
    settings["model"]["vocab"][7][0] = "\n問："


@pytest.mark.parametrize(
    ("change", "divided"),
    [
        (lambda _: None, True),
        (line_end_is_a_piece, True),
        (ends_lines, True),
        (line_end_is_a_byte, True),
        (rounded, False),
        (goes_on, False),
        (line_end_is_unknown, False),
        (takes_blanks, False),
        (takes_blanks_before, False),
        (stands_alone, False),
        (token_goes_on, False),
    ],
)
def test_a_text_that_is_encoded_by_lines_has_the_tokens_that_it_has_as_a_whole(change, divided: bool):
    tokenizer = unigram(change)
    core, lengths, asked = tokenizer.backend_tokenizer, PieceLengths(tokenizer), lines()
    assert lengths.known
    assert any(len(lengths._parts_of(text)) > 1 for text in asked) is divided
    assert all("".join(lengths._parts_of(text)) == text for text in asked)
    whole = [encoding.ids for encoding in core.encode_batch_fast(asked, add_special_tokens=False)]
    obtained = lengths.encode(core, asked, [False] * len(asked))
    assert [ids.tolist() for ids in obtained] == whole


def test_lines_of_tokenizers_that_must_not_be_divided_have_other_tokens(monkeypatch: pytest.MonkeyPatch):
    """What keeps them whole is needed: a piece or a token that goes on behind a line end, tokens that take the blanks
    around them or stand between words alone, scores whose sums are rounded, and line ends that are one unknown token together.
    """
    monkeypatch.setattr("ai_finetuning.data.piece_lengths._divides_at_lines", lambda core: True)
    for change, line in (
        (goes_on, "\n　東京"),
        (takes_blanks, "</s>\n\n"),
        (takes_blanks_before, "\n</s>"),
        (stands_alone, "\nい"),
        (token_goes_on, "\n問：い"),
        (rounded, EQUAL),
        (line_end_is_unknown, "\n\n"),
    ):
        tokenizer = unigram(change)
        core, lengths, text = tokenizer.backend_tokenizer, PieceLengths(tokenizer), "あ" * 1024 + line
        assert lengths.encode(core, [text], [False])[0].tolist() != core.encode(text).ids, change


@pytest.mark.parametrize("make", [framed, build_tokenizer], ids=["framed", "bare"])
def test_the_tokenizers_own_tokens_stand_around_the_texts_that_get_them(make):
    core, lengths = (tokenizer := make()).backend_tokenizer, PieceLengths(tokenizer)
    special = [number % 2 == 0 for number in range(len(texts()))]
    wanted = [core.encode(text, add_special_tokens=own).ids for text, own in zip(texts(), special, strict=True)]
    assert [ids.tolist() for ids in lengths.encode(core, texts(), special)] == wanted


def test_other_ids_than_the_tokenizers_are_found_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenize, "_MANY", 0)
    monkeypatch.setattr("ai_finetuning.data.piece_lengths._divides_at_lines", lambda core: True)
    tokenizer = unigram(goes_on)
    samples = [PlainText("あ" * 1024 + "\n　東京", f"[{number}]") for number in range(3)]
    segmenter, prompts = Segmenter(tokenizer), Prompts(tokenizer, "auto")
    rows, _ = tokenize.encode_some(samples, prompts, 4096, "truncate", tokenize.BadRows(), segmenter)
    whole = tokenizer.backend_tokenizer.encode(samples[0].text).ids
    assert all(row.input_ids.tolist()[: len(whole)] == whole for row in rows)

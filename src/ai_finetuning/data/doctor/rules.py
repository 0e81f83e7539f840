"""The rules of the doctor: a table, one row a rule, in the order in which repairs are made.

A rule's `key` is what `--rule`, `--show` and the JSON report know it by and does not change. How often each rule was right
where its hits were read is in docs/data-doctor.md; a rule that was not right often enough repairs nothing by itself.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from ...errors import ConfigError
from ...japanese import language
from ...japanese.mojibake import find_mojibake
from ...japanese.style import sentences, styles
from ...messages import excerpt
from . import personal
from .numbers import find_absent_numbers
from .passages import Passage

Span = tuple[int, int]
# error: training refuses such rows, or would learn what it must not; check: somebody has to look; note: for information.
Severity = Literal["error", "check", "note"]
DROP: Literal["drop"] = "drop"

EVERY = frozenset(("system", "question", "material", "answer", "rejected", "tool", "text"))
ANSWERS = frozenset(("answer",))
ASKED = EVERY - ANSWERS - {"text", "rejected"}


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        key: its stable name.
        severity: see above.
        ja, en: what a row that it finds has.
        find: where a text has it; None for what only several rows tell (duplicates, leakage).
        where: roles of the texts that are looked at.
        fix: makes the text right, or DROP for a row to leave out; None where only a person can tell.
        safe: whether the fix is made by `--fix safe`; `--fix all` makes every one.
        mask: what takes the place of each span with `--mask`; empty where nothing does.
    """

    key: str
    severity: Severity
    ja: str
    en: str
    find: Callable[[Passage], list[Span]] | None = None
    where: frozenset[str] = EVERY
    fix: Callable[[Passage], str] | Literal["drop"] | None = None
    safe: bool = False
    mask: str = ""


def _mojibake(item: Passage) -> list[Span]:
    broken = find_mojibake(item.text)
    return [(0, len(item.text))] if broken is not None and broken.proven and broken.kind != "U+FFFD" else []


def _repaired(item: Passage) -> str:
    broken = find_mojibake(item.text)
    return item.text if broken is None or broken.repaired is None else broken.repaired


def _likely(item: Passage) -> list[Span]:
    broken = find_mojibake(item.text)
    return [(0, len(item.text))] if broken is not None and not broken.proven else []


def _of(pattern: str, flags: int = 0) -> Callable[[Passage], list[Span]]:
    compiled = re.compile(pattern, flags)
    return lambda item: [match.span() for match in compiled.finditer(item.text)]


def _put(pattern: str, by: str) -> Callable[[Passage], str]:
    compiled = re.compile(pattern)
    return lambda item: compiled.sub(by, item.text)


# Radicals that stand for the kanji of the same look, as PDF files give them. NFKC maps the Kangxi radicals (U+2F00-2FD5) and
# two of the supplement; of the rest these have a kanji of the same shape.
_RADICALS = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (0x2E9F, 0x2EF3, *range(0x2F00, 0x2FD6))}
_RADICALS |= dict(
    zip(
        "⺠⺩⺫⻁⻂⻃⻄⻆⻇⻑⻘⻝⻣⻤⻨⻩⻫⻭⻯⻲⻱⻗⻢⻔⻋⻅",
        "民王目虎衣西西角角長青食骨鬼麦黄斉歯竜亀龜雨马门车见",
        strict=True,
    )
)
_RADICAL = f"[{''.join(_RADICALS)}]"

# What a combining sequence begins: a character, and marks that NFC joins to it.
_DECOMPOSED = re.compile("[\u3046-\u30fe][\u3099\u309a]|[A-Za-z][\u0300-\u0304\u0306-\u030c\u0327\u0328]")


def _composed(item: Passage) -> str:
    return _DECOMPOSED.sub(lambda match: unicodedata.normalize("NFC", match.group()), item.text)


def _decomposed(item: Passage) -> list[Span]:
    found = _DECOMPOSED.finditer(item.text)
    return [match.span() for match in found if not unicodedata.is_normalized("NFC", match.group())]


_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#x[0-9A-Fa-f]{2,5});")


def _entities(item: Passage) -> list[Span]:
    """HTML entities in a text that is not about HTML."""
    if "&" not in item.text or re.search(r"`|</?[a-z]+[ >]", item.text) or language.asks_for_other(item.question):
        return []
    return [match.span() for match in _ENTITY.finditer(item.text)]


def _unescaped(item: Passage) -> str:
    return _ENTITY.sub(lambda match: html.unescape(match.group()), item.text) if _entities(item) else item.text


_MARK = re.compile(r"(?<=[ぁ-んァ-ヶー一-龥々。、」』）)%％0-9])(?:\s?\[[1-9]\d{0,2}\])+(?![A-Za-z(])")


def _marks(item: Passage) -> list[Span]:
    """Reference marks of encyclopaedias behind a word or a sentence; not in code, where they are indices."""
    if "[" not in item.text or "`" in item.text or "=" in item.text or language.asks_for_other(item.question):
        return []
    return [match.span() for match in _MARK.finditer(item.text)]


def _without_marks(item: Passage) -> str:
    return personal.put(item.text, [(start, stop, "") for start, stop in _marks(item)])


_LIST_MARKER = re.compile(r"\s*(?:(?:[・*•●○◦-]|\d{1,2}[.．)）、])\s*)?")
_OPENER = {"」": "「", "』": "『"}
_BRACKET = re.compile("[「」『』]")
_HEAD_ENDS = re.compile("[。！？：!?:]")


def _lost_quotes(item: Passage) -> list[Span]:
    """Heads of paragraphs whose first bracket closes a quotation that was never opened."""
    if "」" not in item.text and "』" not in item.text:
        return []
    if re.search("括弧|かっこ|カッコ", item.question):
        return []
    found, start = [], 0
    above: Counter[str] = Counter()
    for line in item.text.split("\n"):
        first = _BRACKET.search(line)
        marker = _LIST_MARKER.match(line)
        begin = marker.end() if marker is not None else 0
        if first is not None and first.group() in _OPENER:
            head = line[begin : first.start()]
            open_above = above[_OPENER[first.group()]] > above[first.group()]
            if 1 <= len(head) <= 40 and not _HEAD_ENDS.search(head) and not open_above:
                found.append((start + begin, start + first.end()))
        above.update(_BRACKET.findall(line))
        start += len(line) + 1
    return found


def _with_quotes(item: Passage) -> str:
    return personal.put(item.text, [(start, start, _OPENER[item.text[stop - 1]]) for start, stop in _lost_quotes(item)])


# What is told may change its style: stories, poems, diaries, plays, the voice of somebody else.
_TOLD = re.compile(
    "物語|小説|童話|おとぎ話|昔話|神話を|怪談|ストーリー|詩[をにで作書詠]|の詩|詠[うみん]|俳句|短歌|川柳|歌詞|日記|台本|脚本|シナリオ|セリフ|台詞|漫才"
    "|想像して|なりきっ|口調で|風に[説書話語答]"
)


def _mixed(item: Passage) -> list[Span]:
    """The sentences in the rarer style of an answer, or of its list, that mixes both."""
    found = styles(item.text)
    if not found.mixed or _TOLD.search(item.question):
        return []
    own = [part for part in sentences(item.text) if part.part == found.mixed_part]
    plain = sum(part.style == "plain" for part in own)
    rarer = "plain" if plain <= sum(part.style == "polite" for part in own) else "polite"
    return [(part.start, part.stop) for part in own if part.style == rarer]


# What says nothing in a comparison; C++ and C#, 5 % and 1.5 are others than C, 5 and 15.
_NO_LETTERS = re.compile(r"(?:[^\w.+#%]|_|(?<!\d)\.|\.(?!\d))+")


def normalised(text: str) -> str:
    """A text as questions and answers are compared: NFKC, lower case, letters, digits and what belongs to them."""
    return _NO_LETTERS.sub("", unicodedata.normalize("NFKC", text).lower())


_REPEATS = re.compile("繰り返|くりかえ|復唱|そのまま|もう一度|オウム返し|同じ(?:文|言葉)")


def _echo(item: Passage) -> list[Span]:
    answer = normalised(item.text)
    same = len(answer) >= 2 and answer == normalised(item.question) and not _REPEATS.search(item.question)
    return [(0, len(item.text))] if same else []


def _by(find: Callable[[str], list[Span]]) -> Callable[[Passage], list[Span]]:
    return lambda item: find(item.text)


def _with_question(find: Callable[[str, str], list[Span]]) -> Callable[[Passage], list[Span]]:
    return lambda item: find(item.text, f"{item.question}\n{item.material}" if item.material else item.question)


def _cut(item: Passage) -> str:
    """The answer as far as the first token of a template."""
    spans = language.find_template_token(item.text)
    return item.text[: spans[0][0]].rstrip() if spans else item.text


def _personal(key: str, find: Callable[[str], list[Span]], ja: str, en: str) -> Rule:
    mask = personal.MASKS.get(key, "")
    return Rule(key, "check" if mask else "note", ja, en, _by(find), mask=mask)


# Repairs first, in the order in which they are made; then rows to leave out; then what is only listed.
RULES: tuple[Rule, ...] = (
    Rule(
        "mojibake",
        "error",
        "文字化け（戻せるものは元の文に直します）",
        "mojibake (repaired where the bytes give the text back)",
        _mojibake,
        fix=_repaired,
        safe=True,
    ),
    Rule(
        "replacement",
        "error",
        "U+FFFD（読めなかった文字）",
        "U+FFFD, a character that could not be read",
        _of("\ufffd"),
        fix=DROP,
    ),
    Rule(
        "surrogate",
        "error",
        "壊れた文字（単独のサロゲート）",
        "a lone surrogate (half a character)",
        _of("[\ud800-\udfff]"),
        fix=DROP,
    ),
    Rule(
        "control",
        "error",
        "制御文字",
        "control characters",
        _of("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
        fix=_put("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", ""),
    ),
    Rule(
        "mojibake_likely",
        "check",
        "文字化けかもしれない文（使われる文字が不自然）",
        "perhaps mojibake: unlikely characters for Japanese",
        _likely,
        fix=DROP,
    ),
    Rule(
        "radical",
        "note",
        "漢字の代わりの部首文字（⻑、⻄ など）",
        "radicals in the place of kanji",
        _of(_RADICAL),
        fix=lambda item: re.sub(_RADICAL, lambda match: _RADICALS[match.group()], item.text),
        safe=True,
    ),
    Rule(
        "decomposed",
        "note",
        "分解された文字（NFD）",
        "decomposed characters (NFD)",
        _decomposed,
        fix=_composed,
        safe=True,
    ),
    Rule(
        "zero_width",
        "note",
        "幅のない文字",
        "characters without width",
        _of("[\u200b\u2060\ufeff\u00ad]"),
        fix=_put("[\u200b\u2060\ufeff\u00ad]", ""),
        safe=True,
    ),
    Rule(
        "no_break_space",
        "note",
        "改行しない空白（U+00A0）",
        "no-break spaces (U+00A0)",
        _of("\u00a0"),
        fix=_put("\u00a0", " "),
        safe=True,
    ),
    Rule(
        "entity",
        "note",
        "HTML の文字参照（&amp; など）",
        "HTML entities (&amp; and the like)",
        _entities,
        fix=_unescaped,
        safe=True,
    ),
    Rule("reference_mark", "note", "出典番号 [12]", "reference marks [12]", _marks, fix=_without_marks, safe=True),
    Rule(
        "quote_lost",
        "note",
        "引用符の始まりが欠けている",
        "the opening quotation mark is lost",
        _lost_quotes,
        fix=_with_quotes,
        safe=True,
    ),
    Rule(
        "template_token",
        "check",
        "ほかのモデルのテンプレートのトークン（回答）",
        "a template token of another model in an answer",
        _by(language.find_template_token),
        ANSWERS,
        fix=_cut,
    ),
    Rule(
        "template_token_asked",
        "error",
        "テンプレートのトークン（質問・システム・材料）",
        "a template token in a question, system text or material",
        _by(language.find_template_token),
        ASKED,
    ),
    Rule(
        "special_token",
        "error",
        "このモデルの特殊トークンと同じ文字列",
        "text that this model reads as a special token",
    ),
    Rule("unreadable", "error", "学習に使えない行", "a row that cannot be trained on", fix=DROP),
    Rule("loop", "check", "同じ語句の繰り返しで終わる", "ends in a loop", _by(language.find_loop), ANSWERS, DROP, True),
    Rule(
        "repeated",
        "check",
        "同じ内容の繰り返し",
        "says the same again and again",
        _by(language.find_repeated),
        ANSWERS,
        DROP,
    ),
    Rule(
        "english", "check", "英語の回答", "an answer in English", _with_question(language.find_english), ANSWERS, DROP
    ),
    Rule(
        "chinese", "check", "中国語の混入", "Chinese in an answer", _with_question(language.find_chinese), ANSWERS, DROP
    ),
    Rule(
        "foreign",
        "check",
        "ハングル・キリル文字・アラビア文字・タイ文字",
        "Hangul, Cyrillic, Arabic or Thai letters",
        _with_question(language.find_foreign),
        ANSWERS,
        DROP,
    ),
    Rule(
        "truncated",
        "check",
        "途中で終わっている",
        "stops in the middle of a sentence",
        _by(language.find_truncated),
        ANSWERS,
        DROP,
    ),
    Rule("echo", "check", "回答が質問と同じ", "the answer is the question", _echo, ANSWERS, DROP, True),
    Rule(
        "pair_equal",
        "error",
        "良い回答と悪い回答が同じ",
        "the chosen answer and the rejected one are the same",
        lambda item: [(0, len(item.text))] if item.same else [],
        frozenset(("rejected",)),
        DROP,
    ),
    Rule(
        "pair_swapped",
        "check",
        "良い回答と悪い回答が別の行と逆",
        "another row has the two answers the other way round",
    ),
    Rule(
        "pair_length",
        "note",
        "良い回答が悪い回答の 2 倍より長い（組の半分以上がそうで、長さを学んでしまう）",
        "the chosen answer is more than twice as long, as in most pairs: the model would learn length",
    ),
    Rule("near_duplicate", "check", "ほぼ同じ質問と回答", "nearly the same question and answer", fix=DROP),
    Rule("same_question", "check", "同じ質問に別の答え", "the same question with another answer"),
    Rule("leak_question", "check", "評価データと同じ質問", "the question is one of the evaluation data"),
    Rule(
        "leak_near",
        "check",
        "評価データとほぼ同じ質問と回答",
        "nearly the same question and answer as one of the evaluation data",
    ),
    Rule(
        "leak_coverage",
        "check",
        "評価データの質問の 9 割を含む",
        "holds nine tenths of a question of the evaluation data",
    ),
    Rule("style_mixed", "check", "1 つの回答に敬体と常体", "敬体 and 常体 in one answer", _mixed, ANSWERS),
    Rule(
        "simplified",
        "note",
        "簡体字だけの文字",
        "characters of simplified Chinese only",
        _by(language.find_simplified),
        ANSWERS,
    ),
    Rule(
        "traditional",
        "note",
        "繁体字だけの文字",
        "characters of traditional Chinese only",
        _by(language.find_traditional),
        ANSWERS,
    ),
    Rule(
        "latin_inside",
        "note",
        "語の途中のローマ字（御treat走）",
        "Latin letters inside a word (御treat走)",
        _by(language.find_latin_inside),
        ANSWERS,
    ),
    Rule(
        "ai_identity",
        "note",
        "AI を名乗る回答（出どころのライセンスを確認）",
        "speaks as an AI (check the licence of the source)",
        _by(language.find_ai_identity),
        ANSWERS,
    ),
    Rule(
        "number_absent",
        "note",
        "材料にない数",
        "a number that the material does not have",
        lambda item: find_absent_numbers(item.text, item.material, item.question),
        ANSWERS,
    ),
    _personal("my_number", personal.find_my_number, "マイナンバー", "an individual number (My Number)"),
    _personal("card", personal.find_card, "カード番号", "a card number"),
    _personal("mobile", personal.find_mobile, "携帯電話番号", "a mobile phone number"),
    _personal("phone", personal.find_phone, "電話番号", "a telephone number"),
    _personal("postcode", personal.find_postcode, "郵便番号", "a postcode"),
    _personal("email", personal.find_email, "メールアドレス", "an e-mail address"),
    _personal("bank", personal.find_bank, "口座番号", "a bank account number"),
    _personal("secret", personal.find_secret, "秘密の鍵・トークン", "a secret key or token"),
    _personal("address", personal.find_address, "住所（多くは施設・名所）", "an address (most are offices and sights)"),
)
BY_KEY = {rule.key: rule for rule in RULES}


def validate_keys(keys: Iterable[str], setting: str) -> None:
    """Refuses names that no rule has.

    Raises:
        ConfigError: with the setting and the known keys.
    """
    for key in keys:
        if key not in BY_KEY:
            raise ConfigError(
                f"{setting} の {excerpt(key)} という規則はありません。使えるのは {', '.join(BY_KEY)} です。",
                f"{setting} names {excerpt(key)}, and there is no such rule; known: {', '.join(BY_KEY)}.",
            )


def find(rule: Rule, item: Passage) -> list[Span]:
    """Where a passage has what a rule looks for; empty where its role is not the rule's."""
    if rule.find is None or item.role not in rule.where:
        return []
    return rule.find(item)

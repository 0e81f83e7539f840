"""敬体 (です・ます) and 常体 (だ・である): which of the two each sentence of a text is written in.

Sentence ends decide; what ends in a noun, a heading or a quotation is neither. Text only: no dictionary, no model.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

Style = Literal["polite", "plain"]
Part = Literal["body", "list", "title", "speech"]

# A text mixes both where each has so many sentences, and the rarer one this share of all.
MIXED_SENTENCES, MIXED_SHARE = 2, 0.2

_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_QUOTED = re.compile(
    r"「[^「」\n]*」|『[^『』\n]*』|“[^“”\n]*”|\"[^\"\n]*\"|（[^（）\n]*）|\([^()\n]*\)|【[^【】\n]*】"
)
# Matches at every place, with or without a mark: a long text without one is read once.
_SENTENCE = re.compile(r"[^。！？!?\n]+([。！？!?]*)")
# What stands in the place of code and quotations.
_HIDDEN = "\u3000"
# What may stand between the last word and the mark, and behind it: brackets, reference marks, blanks.
_BEHIND = _HIDDEN + " \t\r\f\v\u00a0\n。！？!?」』）)]…～〜ー♪*"
_REFERENCE = re.compile(r"\[\d{1,3}$")
# At most so many reference marks are looked behind.
_REFERENCES = 4
# The words that decide stand in so many characters.
_END = 24
_PARTICLES = re.compile(r"(?:よね|けれども?|けど|から|[かねよなわぞぜがの])$")
_POLITE = re.compile(
    r"(?:です|ます|でした|ました|ません|ませんでした|でしょう|ましょう|ください|下さい|くださいませ|いませ|ですし|ますし|"
    r"ですので|ますので|まして|ですって|っす)$"
)
_ADVERBS = re.compile(r"(?:あなた|かた|また|はた|した方|うた|まるまる|はるばる|ところ|みる?みる)$")
_PLAIN = re.compile(
    r"(?:だ|である|だった|であった|だろう|であろう|という|しまう|もらう|いう|[しみれえけげせてべめ]よう|こう|そうだ|ようだ"
    # past: inflected stems, and verbs of one kanji
    r"|[っいしきちりみびじぎけせてでねめれえべげひ]た|んだ|[見来着出似得寝経煮]た"
    # verbs in their dictionary form
    r"|[ぁ-ん一-鿿]る|[一-鿿ぁ-ん]す|[一-鿿か-ん]む|[一-鿿ぁ-ん]ぶ|[一-鿿]ぬ|[一-鿿ぁ-ん]ぐ|[一-鿿も]つ"
    r"|[言思使行違合会買払洗習従失追酔扱願問迷救誘襲漂担補賄伴争競戦向歌笑拾疑縫狙奪嫌]う"
    r"|[書行働続除描置聞引開着付届叩泣歩動驚導抱焼吹浮磨輝響招築欠傾頂抜巻解弾説貫敷咲乾]く|づく|つく|おく|いく|ていく"
    # adjectives and the negative
    r"|ない|たい|(?:やす|にく|づら|っぽ)い|[しきらよさ]い|[良高多低長短強弱早速近遠若古深浅広狭重軽悪暗白黒赤青安甘辛痛寒暑熱薄厚濃丸硬固柔鋭鈍]い"
    r"|[ぁ-ん]かった)$"
)
# Items of lists, and lines of a dialogue: a speaker's name and what is said.
_ITEM = re.compile(r"^[ \t\u3000]*(?:[・\-*•●○◦▪■□◆◇※–—+]|[(（]?\d{1,3}[.．)）:、]|[①-⑳])")
_SPEAKER = re.compile(r"^[ \t\u3000]*([^\s：:。、]{1,12})[：:]")
# Ends that look like a verb's or an adjective's and are none.
_NEITHER = re.compile(
    r"(?:はい|[おご]?願い|違い|思い|くらい|ぐらい|せい|あいさつ|など|いくつ|ひとつ|一つ|[二三四五六七八九]つ|たち)$"
)


@dataclass(frozen=True)
class Sentence:
    """A sentence that ends with a mark.

    Attributes:
        start, stop: where it stands in the text, in characters.
        style: `polite` (敬体), `plain` (常体), or None for neither.
        part: `body`, `list` in an item of a list (`title` is the first sentence of several in one), `speech` in a line of a
            dialogue.
    """

    start: int
    stop: int
    style: Style | None
    part: Part = "body"


@dataclass(frozen=True)
class Styles:
    """How many sentences of a text are in which style.

    Attributes:
        polite, plain: of all.
        mixed_part: where both are used, at least two sentences of each and the rarer one a fifth of them: the `body` of the
            text, or the items of its `list`; None where neither mixes. Items are often plain below a polite text, and
            speakers speak as they do: that is no mixture.
    """

    polite: int = 0
    plain: int = 0
    mixed_part: Part | None = None

    @property
    def mixed(self) -> bool:
        """Whether the text is written in both."""
        return self.mixed_part is not None


def _mixes(kinds: list[Style | None]) -> bool:
    polite, plain = kinds.count("polite"), kinds.count("plain")
    fewer = min(polite, plain)
    return fewer >= MIXED_SENTENCES and fewer >= MIXED_SHARE * (polite + plain)


def _hidden(match: re.Match[str]) -> str:
    """A text of the same length that says nothing."""
    return "".join("\n" if character == "\n" else _HIDDEN for character in match.group())


def sentence_style(sentence: str) -> Style | None:
    """The style of one sentence, by its end."""
    stripped = sentence.rstrip(_BEHIND)
    for _ in range(_REFERENCES):
        reference = _REFERENCE.search(stripped, max(0, len(stripped) - 4))
        stripped = stripped[: reference.start()].rstrip(_BEHIND) if reference is not None else stripped
    end = stripped[-_END:]
    if not end:
        return None
    for _ in range(3):
        if _POLITE.search(end):
            return "polite"
        shorter = _PARTICLES.sub("", end)
        if _ADVERBS.search(end) or _NEITHER.search(end):
            return None
        if _PLAIN.search(end):
            return "plain"
        if shorter == end or not shorter:
            return None
        end = shorter
    if _POLITE.search(end):
        return "polite"
    return "plain" if _PLAIN.search(end) and not (_ADVERBS.search(end) or _NEITHER.search(end)) else None


def sentences(text: str) -> list[Sentence]:
    """The sentences of a text with their style; code, quotations, parentheses and lines without a mark are left aside."""
    visible = _QUOTED.sub(_hidden, _QUOTED.sub(_hidden, _CODE.sub(_hidden, text)))
    parts = _parts(text)
    found: list[Sentence] = []
    lines: list[int] = []
    line = counted = 0
    for match in _SENTENCE.finditer(visible):
        if not match.group(1):
            continue
        start = match.start() + len(match.group()) - len(match.group().lstrip())
        line, counted = line + text.count("\n", counted, start), start
        found.append(Sentence(start, match.end(), sentence_style(match.group()), parts[line]))
        lines.append(line)
    alone = Counter(lines)
    return [
        replace(item, part="title")
        if item.part == "list" and alone[line] > 1 and (place == 0 or lines[place - 1] != line)
        else item
        for place, (item, line) in enumerate(zip(found, lines, strict=True))
    ]


def _parts(text: str) -> list[Part]:
    """Of each line, what it is. Names in front of a colon are speakers where one of them speaks again."""
    lines = text.split("\n")
    speakers = [match.group(1) if (match := _SPEAKER.match(line)) is not None else None for line in lines]
    turns = Counter(name for name in speakers if name is not None)
    talks = len(turns) > 1 and max(turns.values()) > 1
    return [
        "speech" if talks and speaker is not None else "list" if _ITEM.match(line) else "body"
        for line, speaker in zip(lines, speakers, strict=True)
    ]


def styles(text: str) -> Styles:
    """How many sentences of a text are polite and how many plain, and where it mixes both."""
    found = sentences(text)
    kinds = [item.style for item in found]
    parts: tuple[Part, ...] = ("body", "list")
    mixed = next((part for part in parts if _mixes([item.style for item in found if item.part == part])), None)
    return Styles(kinds.count("polite"), kinds.count("plain"), mixed)

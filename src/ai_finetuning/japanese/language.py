"""Which language an answer is in, and what does not belong into one: by the characters alone, without a model.

Every `find_*` takes a text (and, where it matters, the question that it answers) and returns the spans, in characters,
of what it found; an empty list where it found nothing. Thresholds come from reading hits in public answers of Japanese
models; docs/data-doctor.md says how often each rule was right.
"""

from __future__ import annotations

import functools
import re

Span = tuple[int, int]

_KANJI = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff々〆"
_KANA = "\u3041-\u309f\u30a0-\u30ff\uff66-\uff9f"
_JAPANESE = re.compile(f"[{_KANA}{_KANJI}\u3000-\u303f\uff01-\uff60\uffe0-\uffe6]")
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_UNCOUNTED = re.compile(r"[\s\d０-９]")

# Questions that ask for another language, for code or for data.
_ASKS_OTHER = re.compile(
    r"英語|英文|英訳|英単語|英会話|翻訳|訳し|訳せ|語で|(?:日本|韓国|中国|ロシア|アラビア|タイ|フランス|ドイツ|スペイン|外国)語|ハングル|漢文|漢詩"
    r"|コード|プログラム|スクリプト|関数|正規表現|コマンド|歌詞"
    r"|(?i:python|java|json|sql|html|css|yaml|xml|csv|regex|bash|linux|excel|vba|code|english|translate|translation|latex|markdown)"
)
_ENGLISH_SENTENCE = re.compile(r"[^.!?。！？\n]+")
_LATIN_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*")
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the a an is are was were be been to of in on at and or but that this it as for with by from not you i we they he "
        "she his her their your my can will would should have has had do does there which who when if so",
    )
)
ENGLISH_SHARE, ENGLISH_WORDS, ENGLISH_STOP_WORDS = 0.3, 8, 2

# A stretch of text without kana, as Chinese is written.
_NO_KANA = re.compile(f"[{_KANJI}][{_KANJI}，、。；：？！“”‘’《》（）,;:?!()\\s0-9]{{5,}}")
_ONE_KANA, _SENTENCES_END = re.compile(f"[{_KANA}]"), re.compile(r"[。！？!?]\s*\Z")
_ONE_KANJI = re.compile(f"[{_KANJI}]")
# Words of one character that Chinese sentences are built with and Japanese compounds hardly hold several of.
_CHINESE_WORDS = re.compile("[的了是在我你他她它这這那也就都很们們吗嗎呢吧着把让給给跟没沒您啊于]")
# Those among them that no Japanese compound of kanji has, in the places where they stand.
_CHINESE_ALONE = re.compile(
    "[你她它这這很们們吗嗎呢吧让给跟您啊于]|[没沒]有|(?<![完終修満魅校読未])了(?![解承])|我(?![々流慢田孫国])|他(?![社者方人国県日言])"
    "|是(?![非正認])|那(?![覇須珂智])|把(?!握)"
)
CHINESE_KANJI, CHINESE_SIMPLIFIED, CHINESE_WORDS = 6, 2, 4
# With so many kanji one simplified character and one such word are enough.
CHINESE_SENTENCE = 8

_SCRIPTS = {
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "cyrillic": "\u0400-\u052f",
    "arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "thai": "\u0e00-\u0e7f",
}
# At least two letters: one alone is a sign in an emoticon or a formula.
_FOREIGN = {name: re.compile(f"[{letters}]{{2,}}") for name, letters in _SCRIPTS.items()}
_ANY_FOREIGN = re.compile(f"[{''.join(_SCRIPTS.values())}]")

_LATIN_INSIDE = re.compile(f"(?<=[{_KANJI}])([a-z]{{3,}})(?=[{_KANA}{_KANJI}])")
# Units and names that are written so in the middle of Japanese.
_LATIN_WORDS = frozenset(
    re.findall(
        r"\w+",
        "kcal mol rpm ppm ppb bps kbps mbps kwh mph wifi foo bar baz hoge http https www com org json html csv pdf app web "
        "iphone ipad docomo note mail email tel fax twitter slack zoom youtube google facebook instagram line amazon api url css "
        "server client link site version blog wiki git github docker linux windows excel word python java podcast online "
        "sin cos tan log exp lim max min",
    )
)

# The loop rule: a period of at most so many characters, three times and over at least this many.
LOOP_PERIOD, LOOP_TIMES, LOOP_CHARACTERS = 160, 3, 48
_SAYS_SOMETHING = re.compile(r"[^\W_]|[!！?？。、…]")
# Shares of different n-grams below which a text says the same again and again.
REPEATED_N, REPEATED_SHARE, REPEATED_CHARACTERS, REPEATED_MOST = 20, 0.6, 60, 1 << 17

_REFUSAL = re.compile(
    r"(?:申し訳(?:あり|ござい)ません|申し訳ない|すみません|恐れ入ります|残念ながら|ごめんなさい)[^。\n]{0,60}?"
    r"(?:お?答え|回答|お?手伝い|提供|対応|実行|支援|生成|作成|アクセス|お伝え|判断)[^。\n]{0,12}?"
    r"(?:でき(?:ません|ない|かねます)|いたしかねます|しかねます|控え)"
    r"|(?:その|この|そのような)(?:質問|ご質問|要求|ご要望|リクエスト)に?は?[^。\n]{0,10}(?:お?答え|応じ|対応)[^。\n]{0,8}(?:ません|かねます|ない)"
    r"|I(?:'m| am) sorry,? but I (?:can(?:'|no)t|am (?:not able|unable))"
    r"|I (?:can(?:'|no)t|am unable to) (?:help|assist|provide|answer|fulfill)",
)
_AI_IDENTITY = re.compile(
    r"(?:AI|ＡＩ|人工知能|言語モデル)(?:アシスタント)?(?:として|なので|であり|ですので|であるため)|(?<![A-Za-z])[Aa]s an AI(?![A-Za-z])"
)
_TEMPLATE_TOKEN = re.compile(
    r"<\|[A-Za-z0-9_/▁\-]{1,40}\|>|<｜[A-Za-z0-9_▁ ]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>"
    r"|^###\s?(?:応答|指示|入力|回答|Instruction|Response|Input|Human|Assistant)\s?[:：]"
    r"|GPT4 Correct (?:User|Assistant):|^(?:USER|ASSISTANT|Human|Assistant):\s",
    re.MULTILINE,
)
_LIST_END = re.compile(r"^\s*(?:[・\-*•●○◦]|\d{1,3}[.．)）:、])")
_CUT = re.compile(
    f"(?:[、,，]|[{_KANJI}](?:を|に|は|が|の|と|で|へ|も|や)|ために|ので|のに|ですが|ますが|ましたが|でしたが|によって|により|として|に対して|について|ことが|ことを|ことに)$"
)
TRUNCATED_CHARACTERS, TRUNCATED_LINE = 40, 15


def ja_share(text: str) -> float:
    """The share of Japanese among the characters of a text: kana, kanji, U+3000-303F and full-width forms. Blanks, digits
    and code fences are not counted; 0.0 where nothing is left.
    """
    counted = _UNCOUNTED.sub("", _FENCE.sub("", text))
    return len(_JAPANESE.findall(counted)) / len(counted) if counted else 0.0


def asks_for_other(question: str) -> bool:
    """Whether a question asks for another language, a translation, code or data, so that an answer may hold them."""
    return _ASKS_OTHER.search(question) is not None


def find_english(text: str, question: str = "") -> list[Span]:
    """The English sentences of an answer that is not in Japanese, unless the question asks for that: the share of Japanese
    is below 0.3, and a sentence has at least eight Latin words, two of them stop words. The share alone is no rule: lists
    of names have it too.
    """
    if asks_for_other(question) or ja_share(text) >= ENGLISH_SHARE:
        return []
    found = []
    for sentence in _ENGLISH_SENTENCE.finditer(_FENCE.sub(lambda fence: " " * len(fence.group()), text)):
        words = _LATIN_WORD.findall(sentence.group())
        stop = sum(word.lower() in _STOP_WORDS for word in words)
        if len(words) >= ENGLISH_WORDS and stop >= ENGLISH_STOP_WORDS:
            found.append(_trimmed(text, *sentence.span()))
    return found


def _trimmed(text: str, start: int, stop: int) -> Span:
    part = text[start:stop]
    return start + len(part) - len(part.lstrip()), stop - len(part) + len(part.rstrip())


@functools.cache
def _characters_of(known: str, unknown: tuple[str, ...]) -> re.Pattern[str]:
    """The ideographs that one encoding has and others lack."""

    def has(character: str, encoding: str) -> bool:
        try:
            character.encode(encoding)
        except UnicodeEncodeError:
            return False
        return True

    ideographs = map(chr, range(0x4E00, 0xA000))
    chosen = [item for item in ideographs if has(item, known) and not any(has(item, other) for other in unknown)]
    return re.compile(f"[{''.join(chosen)}]")


def _simplified() -> re.Pattern[str]:
    return _characters_of("gb2312", ("cp932", "euc_jis_2004"))


def _traditional() -> re.Pattern[str]:
    return _characters_of("big5", ("cp932", "euc_jis_2004"))


def find_simplified(text: str) -> list[Span]:
    """Characters that only simplified Chinese has: in GB 2312, and neither in CP932 nor in JIS X 0213."""
    return [match.span() for match in _simplified().finditer(text)]


def find_traditional(text: str) -> list[Span]:
    """Characters that only traditional Chinese has: in Big5, and neither in CP932 nor in JIS X 0213."""
    return [match.span() for match in _traditional().finditer(text)]


def find_chinese(text: str, question: str = "") -> list[Span]:
    """Stretches of Chinese, unless the question asks for another language: at least six kanji without kana, two of them
    simplified-only, or four words of one character (three different ones) that Chinese sentences are built with; of at
    least eight kanji one of each; in a whole answer of sentences without any kana one of them is enough.
    """
    if asks_for_other(question):
        return []
    without_kana = _SENTENCES_END.search(text) is not None and _ONE_KANA.search(text) is None
    found = []
    for stretch in _NO_KANA.finditer(text):
        part = stretch.group()
        kanji = len(_ONE_KANJI.findall(part))
        if kanji < CHINESE_KANJI:
            continue
        words, simplified = _CHINESE_WORDS.findall(part), len(_simplified().findall(part))
        built = len(words) >= CHINESE_WORDS and len(set(words)) >= CHINESE_WORDS - 1
        both = bool(words) and simplified > 0 and kanji >= CHINESE_SENTENCE
        one = without_kana and (_CHINESE_ALONE.search(part) or simplified or _traditional().search(part))
        if built or both or one or simplified >= CHINESE_SIMPLIFIED:
            found.append(_trimmed(text, *stretch.span()))
    return found


def find_foreign(text: str, question: str = "") -> list[Span]:
    """Words in Hangul, Cyrillic, Arabic or Thai letters, unless the question asks for another language or has them too."""
    if not _ANY_FOREIGN.search(text) or asks_for_other(question):
        return []
    found: list[Span] = []
    for pattern in _FOREIGN.values():
        if not pattern.search(question):
            found += [match.span() for match in pattern.finditer(text)]
    return sorted(found)


def find_latin_inside(text: str) -> list[Span]:
    """Latin letters in the middle of a Japanese word (`御treat走`): a kanji, three or more lower-case letters, then kana or
    a kanji. Units and names that are written so are left aside.
    """
    return [match.span(1) for match in _LATIN_INSIDE.finditer(text) if match.group(1) not in _LATIN_WORDS]


def find_loop(text: str) -> list[Span]:
    """The loop that a text ends in: its tail repeats with a period of at most 160 characters, at least three times and over
    at least 48 characters. The span begins with the second time.
    """
    text = text.rstrip()
    length = len(text)
    if length < LOOP_CHARACTERS:
        return []
    probe = text[-16:]
    start = length - 16
    while True:
        start = text.rfind(probe, max(0, length - 16 - LOOP_PERIOD), start + 15)
        if start < 0:
            return []
        period = length - 16 - start
        over = max(LOOP_TIMES * period, LOOP_CHARACTERS)
        if over <= length and text[length - over + period :] == text[length - over : length - period]:
            if not _SAYS_SOMETHING.search(text[length - period :]):
                return []
            first = length - over
            while first and text[first - 1] == text[first - 1 + period]:
                first -= 1
            return [(first + period, length)]


def find_repeated(text: str) -> list[Span]:
    """The whole text (its first 131,072 characters) where it says the same again and again: below 60 % of its runs of 20
    characters are different.
    """
    text = text[:REPEATED_MOST]
    runs = len(text) - REPEATED_N + 1
    if len(text) < REPEATED_CHARACTERS:
        return []
    different = len({text[start : start + REPEATED_N] for start in range(runs)})
    return [(0, len(text))] if different < REPEATED_SHARE * runs else []


def find_refusal(text: str) -> list[Span]:
    """Sentences that decline to answer (お答えできません, I'm sorry, but I can't)."""
    return [match.span() for match in _REFUSAL.finditer(text)]


def find_ai_identity(text: str) -> list[Span]:
    """Places where an answer speaks as a language model (AI言語モデルとして, As an AI)."""
    return [match.span() for match in _AI_IDENTITY.finditer(text)]


def find_template_token(text: str) -> list[Span]:
    """Marks of prompt templates: `<|im_end|>`, `[INST]`, `</s>`, `### 応答:`, `GPT4 Correct User:` and the like."""
    return [match.span() for match in _TEMPLATE_TOKEN.finditer(text)]


def find_truncated(text: str) -> list[Span]:
    """The end of a text of at least 40 characters that stops in the middle of a sentence: after a comma, a kanji with a
    particle, or a connective (ために, ので, ですが). Items of lists and last lines of fewer than 15 characters (verses, signatures)
    are left aside.
    """
    text = text.rstrip()
    if len(text) < TRUNCATED_CHARACTERS:
        return []
    line = text[text.rfind("\n") + 1 :]
    found = _CUT.search(line[-TRUNCATED_LINE:])
    whole = found is None or len(line) < TRUNCATED_LINE or _LIST_END.match(line)
    return [] if found is None or whole else [(len(text) - len(found.group()), len(text))]

"""What does not belong into a Japanese answer is found by its characters, and what does is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ai_finetuning.japanese import language
from ai_finetuning.japanese.language import Span

QUESTION = "日本の首都について教えてください。"
ENGLISH = "Tokyo is the capital of Japan and it has been the seat of the government since 1868."
# (rule, the part of the text that it finds or None, text)
FOUND: tuple[tuple[Callable[..., list[Span]], str, str], ...] = (
    (language.find_english, ENGLISH[:-1], ENGLISH),
    (language.find_chinese, "东京是日本的首都，人口很多。", "东京是日本的首都，人口很多。"),
    (language.find_chinese, "我是一個學生，也是他們的朋友，你在那裡吗", "答え: 我是一個學生，也是他們的朋友，你在那裡吗です"),
    (language.find_foreign, "안녕하세요", "こんにちはは안녕하세요です。"),
    (language.find_foreign, "Привет", "Приветと言います。"),
    (language.find_simplified, "东", "これは东京です。"),
    (language.find_traditional, "說", "これは說です。"),
    (language.find_latin_inside, "treat", "御treat走になりました。"),
    (language.find_latin_inside, "inger", "生ingerを使います。"),
    (language.find_loop, "はい" * 59, "はい" * 60),
    (language.find_repeated, "州政府、" * 40, "州政府、" * 40),
    (language.find_refusal, "申し訳ありませんが、そのご質問にはお答えできません", "申し訳ありませんが、そのご質問にはお答えできません。"),
    (language.find_ai_identity, "AIとして", "私はAIとして答えます。"),
    (language.find_template_token, "<|im_end|>", "終わりです。<|im_end|>"),
    (language.find_template_token, "### 応答:", "指示です。\n### 応答: はい"),
    (language.find_template_token, "[INST]", "[INST] はい"),
    (language.find_truncated, "日に", "この条約は長い交渉のすえ、各国の代表者により最終的に承認されて2019年7月29日に"),
)  # fmt: skip
ANSWERED = "東京です。江戸時代から政治の中心で、いまも多くの省庁と企業の本社が集まっています。"
LEFT_ALONE: tuple[tuple[Callable[..., list[Span]], str], ...] = (
    (language.find_english, "Wonderwall, Champagne Supernova, Don't Look Back in Anger, Live Forever, Some Might Say"),
    (language.find_chinese, "経済的、社会的、文化的、政治的な影響"),
    (language.find_chinese, "東京都千代田区霞が関、東京特許許可局許可局長"),
    (language.find_foreign, "(´ω｀) と α、β、Ж"),
    (language.find_simplified, "国、学、会、来、与、余、台、体、点、虫"),
    (language.find_traditional, "嚙む、鹼、繫ぐ、髙島屋、學校"),
    (language.find_latin_inside, "約kcalとして、最大mol数、JavaScriptを使う、値foo数"),
    (language.find_loop, "2、3、5、7、11、13、17、19、23、29、31、37、41、43、47、53、59、61、67、71"),
    (language.find_loop, "一つ目\n" + "-" * 60),
    (language.find_repeated, ANSWERED + "また、人口は約一千四百万人で、日本の人口のおよそ一割にあたります。"),
    (language.find_refusal, "申し訳ございません、その日は満室でございます。"),
    (language.find_refusal, "この問題は解決できません。理由は二つあります。"),
    (language.find_ai_identity, "ChatGPTはOpenAIが作った言語モデルです。"),
    (language.find_template_token, "a < b | c > d、<b>太字</b>、### 見出し、[1]"),
    (language.find_truncated, ANSWERED),
    (
        language.find_truncated,
        "買うものは次のとおりです。順番はありませんので、店で見つけた順で結構です。\n- 牛乳を、\n- 卵、",
    ),
)


@pytest.mark.parametrize(("rule", "part", "text"), FOUND)
def test_what_does_not_belong_is_found(rule: Callable[..., list[Span]], part: str, text: str):
    assert part in [text[start:stop] for start, stop in rule(text)]


@pytest.mark.parametrize(("rule", "text"), LEFT_ALONE)
def test_japanese_is_left_alone(rule: Callable[..., list[Span]], text: str):
    assert rule(text) == []


@pytest.mark.parametrize(
    ("rule", "text", "question"),
    [
        (language.find_english, ENGLISH, "英語で答えてください。"),
        (language.find_chinese, "东京是日本的首都，人口很多。", "中国語に訳してください。"),
        (language.find_foreign, "안녕하세요", "韓国語のあいさつは？"),
        (language.find_foreign, "안녕하세요", "「안녕」の続きは？"),
    ],
)
def test_what_the_question_asks_for_is_left_alone(rule: Callable[..., list[Span]], text: str, question: str):
    assert rule(text, QUESTION)
    assert rule(text, question) == []


def test_the_share_of_japanese_leaves_blanks_digits_and_code_aside():
    assert language.ja_share("東京、2020 年") == 1.0
    assert language.ja_share("東京ab") == 0.5
    assert language.ja_share("東京\n```\nprint(1)\n```") == 1.0
    assert language.ja_share("123 \n") == 0.0


def test_a_loop_of_sentences_is_found_and_twice_is_none():
    sentence = "この件については、担当の部署に確認したうえで、あらためてご連絡いたします。"
    assert language.find_loop("はじめに。" + sentence * 2) == []
    assert language.find_loop("はじめに。" + sentence * 3) == [(4 + len(sentence), 5 + 3 * len(sentence))]

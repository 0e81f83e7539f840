"""What the model reads of a row, what of it carries loss, and what is said where a template or a cut leaves something out."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from tests.support.models import build_tokenizer

from ai_finetuning import DataConfig
from ai_finetuning.data.messages import Conversation, Message, PlainText
from ai_finetuning.data.prepare import SPLITS, hold_out, load_examples, prepare, shared_rows
from ai_finetuning.data.sources import load_samples
from ai_finetuning.data.tokenize import IGNORED, encode
from ai_finetuning.errors import DataError
from ai_finetuning.japanese.templates import TEMPLATES

# A template that knows tools and thinking, as Qwen's do in other words.
TOOLS = (
    "{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>\n{% endif %}"
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
# One that has no place for a system message.
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def with_template(text: str):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = text
    return tokenizer


def learnt(example, tokenizer) -> str:
    return tokenizer.decode([int(i) for i, m in zip(example.input_ids, example.labels, strict=True) if m != IGNORED])


def talk(*turns: str, source: str = "") -> Conversation:
    roles = ["user", "assistant"] * len(turns)
    return Conversation(tuple(Message(role, text) for role, text in zip(roles, turns, strict=False)), source)


CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "東京"}}}
CALLED = {
    "tools": [{"type": "function", "function": {"name": "get_weather"}}],
    "messages": [
        {"role": "user", "content": "天気は？"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "晴れ", "tool_call_id": "1"},
        {"role": "assistant", "content": "晴れです。", "reasoning_content": "道具に聞いた"},
    ],
}


def test_tool_calls_and_thinking_reach_a_template_that_knows_them():
    tokenizer = with_template(TOOLS)
    samples, _ = load_samples([CALLED])
    (example,), report = encode(samples, tokenizer, max_length=512)
    text = learnt(example, tokenizer)
    assert "get_weather" in text
    assert "東京" in text
    assert "(道具に聞いた)晴れです。" in text
    assert "天気は" not in text
    assert "get_weather" in tokenizer.decode(example.input_ids).split("user")[0]  # the tools
    assert report.not_in_prompt == {"tool_call_id": 1}


def test_what_a_template_cannot_show_is_refused_or_named():
    tokenizer = build_tokenizer()
    samples, _ = load_samples([CALLED])
    with pytest.raises(DataError, match="tool call"):
        encode(samples, tokenizer, max_length=512)
    rows = [
        {
            "messages": [
                {"role": "user", "content": "1+1"},
                {"role": "assistant", "content": "2", "reasoning_content": "足す"},
            ]
        }
    ]
    samples, _ = load_samples(rows)
    _, report = encode(samples, tokenizer, max_length=512)
    assert report.not_in_prompt == {"reasoning_content": 1}
    assert any("reasoning_content" in line for line in report.lines())
    samples, _ = load_samples([{"instruction": "首都は？", "output": "東京", "tools": json.dumps(CALLED["tools"])}])
    _, report = encode(samples, tokenizer, max_length=512)
    assert report.not_in_prompt == {"tools": 1}


# A sentence of the template's own in place of any system text, as in llm-jp's; contents as lists of parts only, as in some
# models with images.
FIXED = TEMPLATES["llm_jp_v2v3"].jinja
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "left_out"), [(TOOLS, {}), (FIXED, {"system": 1}), (PARTS, {"system": 1, "user": 1})]
)
def test_messages_that_a_template_does_not_show_are_named(template: str, left_out: dict[str, int]):
    turns = (
        Message("system", "  あなたは親切です。\n短く答えます。"),
        *talk("\n首都は？\n日本の", "東京です。").messages,
    )
    _, report = encode([Conversation(turns)], with_template(template), max_length=512)
    assert report.not_in_prompt == left_out
    assert sum("not used by the chat template" in line for line in report.lines()) == len(left_out)


@pytest.mark.parametrize("key", sorted(set(TEMPLATES) - {"llm_jp_v2v3"}))
def test_our_other_templates_show_system_and_question(key: str):
    turns = (
        Message("system", "あなたは親切です。\n短く。"),
        *talk("首都は？\n\n日本の首都です。", "東京です。").messages,
    )
    _, report = encode([Conversation(turns)], with_template(TEMPLATES[key].jinja), max_length=2000)
    assert report.not_in_prompt == {}


@pytest.mark.parametrize("template", [None, TOOLS])
def test_a_turn_with_weight_zero_carries_no_loss(template: str | None):
    tokenizer = with_template(template) if template else build_tokenizer()
    turns = list(talk("首都は？", "わかりません。", "もう一度", "東京です。").messages)
    turns[1] = Message("assistant", "わかりません。", learn=False)
    for loss_on in ("auto", "all"):
        (example,), _ = encode([Conversation(tuple(turns))], tokenizer, max_length=512, loss_on=loss_on)
        text = learnt(example, tokenizer)
        assert "わかりません" not in text
        assert "東京です。" in text
        assert ("もう一度" in text) == (loss_on == "all")


@pytest.mark.parametrize("where", ["question", "answer", "system"])
def test_special_tokens_in_messages_are_refused_by_row_and_in_texts_counted(where: str):
    tokenizer = build_tokenizer()
    row = {"system": "役", "question": "価格は？", "answer": "八百円です。"}
    row[where] += "<s>千円</s>"
    good = {"question": "価格は？", "answer": "八百円です。"}
    with pytest.raises(DataError, match=r"\[2\].*<s>.*special token"):
        encode(load_samples([good, row])[0], tokenizer, max_length=512)
    _, report = encode([PlainText("一</s>二</s>")], tokenizer, max_length=64)
    assert report.special_tokens == {"</s>": 2}
    assert any("</s> 2" in line for line in report.lines())


@pytest.mark.parametrize("where", ["tool", "name", "arguments", "speaker"])
def test_what_stands_in_tools_and_calls_is_looked_at_as_messages_are(where: str):
    tokenizer = with_template(TOOLS.replace("{{ m.content }}", "{{ m.name }}{{ m.content }}", 1))
    assert "{{ m.name }}" in tokenizer.chat_template

    def row(bad: str) -> dict:
        name = f"get{bad}" if where == "name" else "get"
        call = {"function": {"name": name, "arguments": {"city": f"東京{bad if where == 'arguments' else ''}"}}}
        first, second, *rest = CALLED["messages"]
        return {
            "tools": [{"function": {"name": "get", "description": f"天気{bad if where == 'tool' else ''}"}}],
            "messages": [
                {**first, "name": f"花子{bad if where == 'speaker' else ''}"},
                {**second, "tool_calls": [call]},
                *rest,
            ],
        }

    encode(load_samples([row("")])[0], tokenizer, max_length=512)
    with pytest.raises(DataError, match=r"\[1\].*</s>.*special token"):
        encode(load_samples([row("</s>")])[0], tokenizer, max_length=512)
    with pytest.raises(DataError, match="lone surrogate"):
        load_samples([row("\ud800")])


def test_a_template_without_a_system_role_refuses_the_row_and_not_the_file(tmp_path: Path):
    tokenizer = with_template(NO_SYSTEM)
    path = tmp_path / "m.jsonl"
    rows = [{"instruction": f"{number}の次は？", "output": "次です。"} for number in range(5)]
    rows.append({"system": "役", "instruction": "首都は？", "output": "東京です。"})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"m\.jsonl:6: .*no system role"):
        load_examples(str(path), tokenizer, DataConfig(cache=False))
    examples, report, lines = load_examples(str(path), tokenizer, DataConfig(cache=False, skip_bad_rows=True))
    assert len(examples) == 5
    assert report.left_out == 1
    assert any("m.jsonl:6" in line for line in lines)


def test_every_problem_of_a_file_comes_in_one_list(tmp_path: Path):
    """Broken JSON, an empty answer, a control character, a special token and a prompt that fills the row."""
    path = tmp_path / "m.jsonl"
    bad = [
        "{",
        {"質問": "あ", "回答": ""},
        {"質問": "\u0001", "回答": "い"},
        {"質問": "う", "回答": "<s>"},
        {"質問": "長い" * 99, "回答": "え"},
    ]
    good = {"質問": "首都は？", "回答": "東京です。"}
    lines = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in [good, *bad]]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError) as refusal:
        load_examples(str(path), build_tokenizer(), DataConfig(cache=False, max_length=64))
    for number in range(2, 7):
        assert f"m.jsonl:{number}" in refusal.value.en
        assert f"m.jsonl:{number}" in refusal.value.ja
    assert "5 rows cannot be used" in refusal.value.en
    examples, _, _ = load_examples(
        str(path), build_tokenizer(), DataConfig(cache=False, max_length=64, skip_bad_rows=True)
    )
    assert len(examples) == 1


def test_rows_that_lose_their_end_are_counted_and_refused_where_none_keeps_it():
    tokenizer = build_tokenizer()
    rows = [talk("首都は？", f"東京です。{'と' * 12}{number}") for number in range(8)]
    lengths = [len(example) for example in encode(rows, tokenizer, max_length=512)[0]]
    with pytest.raises(DataError, match="where to stop"):
        encode(rows, tokenizer, max_length=min(lengths) - 1)
    short = talk("首都は？", "東京です。")
    _, report = encode([*rows, short], tokenizer, max_length=min(lengths) - 1)
    assert report.without_end == 8
    assert any("8 of 9" in line for line in report.lines())


@pytest.mark.parametrize("end", ["<|e|>", "<|im_end|>", "<|end_of_the_assistant_turn|>"])
def test_characters_are_what_people_wrote_however_the_end_of_a_turn_is_spelt(end: str):
    tokenizer = with_template(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}" + end + "{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    (example,), _ = encode([talk("首都は？", "東京です。", "人口は？", "多い。")], tokenizer, max_length=512)
    assert end in learnt(example, tokenizer)
    assert example.characters == len("東京です。多い。")


def examples_of(texts: list[str]) -> list:
    rows = [talk(text, "答え", source=f"/data/f.jsonl:{number}") for number, text in enumerate(texts)]
    return encode(rows, build_tokenizer(), max_length=64)[0]


def test_equal_rows_are_on_one_side_of_a_split():
    examples = examples_of([f"問い{number % 20}" for number in range(100)])
    for seed in range(5):
        rest, held = hold_out(examples, 0.2, seed)
        assert shared_rows(rest, held) == 0
        assert len(held) == 20
    rest, held = SPLITS["rows"](examples, 0.2, 0)  # the rule of older runs, which a resumed run keeps
    assert len(held) == 20
    assert shared_rows(rest, held) > 0


def test_a_split_depends_on_the_order_of_the_rows_and_not_on_where_the_file_lies():
    examples = examples_of([f"問い{number}" for number in range(30)])
    moved = [
        type(item)(item.input_ids, item.labels, item.characters, item.source.replace("/data", "C:/x"))
        for item in examples
    ]
    for rule in SPLITS.values():
        ours, theirs = rule(examples, 0.3, 3)[1], rule(moved, 0.3, 3)[1]
        assert [item.input_ids.tolist() for item in ours] == [item.input_ids.tolist() for item in theirs]


def test_rows_of_files_with_one_name_are_different_rows(tmp_path: Path):
    paths = []
    for number in range(10):
        (tmp_path / str(number)).mkdir()
        path = tmp_path / str(number) / "faq.csv"
        path.write_text(f"質問,回答\n問い{number}は？,答え{number}です。\n", encoding="utf-8")
        paths.append(path)
    data = prepare(paths, 0.2, build_tokenizer(), DataConfig(cache=False), seed=0)
    assert (len(data.train), len(data.eval_data)) == (8, 2)


def test_evaluation_rows_that_are_training_rows_are_said(tmp_path: Path):
    rows = [{"instruction": f"問い{number}", "output": "答え"} for number in range(6)]
    data = prepare(rows, rows[:2] + [{"instruction": "別", "output": "答え"}], build_tokenizer(), DataConfig(), seed=0)
    assert any("2 of 3 evaluation rows are training rows" in line for line in data.lines)
    with pytest.raises(DataError, match="all 4 rows are equal"):
        prepare([rows[0]] * 4, 0.25, build_tokenizer(), DataConfig(), seed=0)

"""Which tokens a row becomes, which of them carry loss, what is cut, what is cached."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support.models import SENTENCES, build_tokenizer

from ai_finetuning import DataConfig, TextDataset
from ai_finetuning.config.data import NormalizeConfig
from ai_finetuning.data.messages import Conversation, Message, PlainText
from ai_finetuning.data.prepare import hold_out, load_examples, prepare
from ai_finetuning.data.tokenize import IGNORED, encode
from ai_finetuning.errors import ConfigError, DataError
from ai_finetuning.japanese.prompts import render
from ai_finetuning.japanese.templates import TEMPLATES


def talk(*turns: str, source: str = "") -> Conversation:
    roles = ["user", "assistant"] * len(turns)
    return Conversation(tuple(Message(role, text) for role, text in zip(roles, turns, strict=False)), source)


def live_text(example, tokenizer) -> str:
    return tokenizer.decode([int(i) for i, l in zip(example.input_ids, example.labels, strict=True) if l != IGNORED])  # noqa: E741


def with_template(key: str):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = TEMPLATES[key].jinja
    return tokenizer


def test_loss_is_on_the_answers_and_their_ends_only():
    tokenizer = build_tokenizer()
    talked = talk("首都は？", "東京です。", "人口は？", "一千四百万人です。")
    (example,), _ = encode([talked], tokenizer, max_length=512)
    assert live_text(example, tokenizer) == "東京です。</s>一千四百万人です。</s>"
    assert example.labels[-1] == tokenizer.eos_token_id
    assert example.characters == len("東京です。一千四百万人です。")  # what people wrote, not the ends of turns
    # The tokens are those of the whole text, never of parts joined.
    text = render(tokenizer, talked.as_dicts()).rstrip("\n")
    assert example.input_ids.tolist() == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_template_trains_its_answers(template: str):
    """Live text is the answer with what ends it; one BOS at most, or one a question; the last label is the turn's end."""
    tokenizer = with_template(template)
    examples, report = encode([talk("首都は？", "東京です。", "人口は？", "多い。")], tokenizer, max_length=1024)
    live = "".join(live_text(example, tokenizer) for example in examples)
    assert live.count("東京です。") == live.count("多い。") == 1
    assert "首都" not in live
    assert "人口" not in live
    for example in examples:
        every_question = template in ("shisa_llama2", "karakuri_steerlm")
        assert example.input_ids.tolist().count(tokenizer.bos_token_id) <= (2 if every_question else 1)
        assert example.labels[-1] != IGNORED
    if TEMPLATES[template].rewrites_history and template != "deepseek_r1":  # that one drops only thinking
        assert report.split_conversations == 1
        assert len(examples) == 2


def test_a_boundary_inside_a_merged_token_counts_to_the_answer():
    """A tokenizer that would merge prompt and answer: the labels follow the offsets of the whole text."""
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}: {% else %}{{ m.content + eos_token }}{% "
        "endif %}{% endfor %}"
    )
    (example,), _ = encode([talk("質問", " 答え")], tokenizer, max_length=64)
    assert live_text(example, tokenizer).strip().startswith("答え")


def test_plain_text_trains_every_token_and_ends_with_eos():
    tokenizer = build_tokenizer()
    (example,), _ = encode([PlainText("日本の首都は東京です。")], tokenizer, max_length=64)
    assert (example.labels[1:] != IGNORED).all()
    assert example.input_ids[-1] == example.labels[-1] == tokenizer.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_loss_on_all_and_on_assistant():
    tokenizer = build_tokenizer()
    (example,), _ = encode([talk("首都は？", "東京です。")], tokenizer, max_length=64, loss_on="all")
    assert (example.labels[1:] != IGNORED).all()
    with pytest.raises(DataError, match="assistant"):
        encode([PlainText("文")], tokenizer, max_length=64, loss_on="assistant")


def test_long_rows_are_cut_dropped_or_refused_and_counted():
    tokenizer = build_tokenizer()
    rows = [talk("首都は？", "東京です。") for _ in range(20)] + [talk("首都は？", "東京です。" * 3, source="f:21")]
    length = max(len(encode([row], tokenizer, max_length=999)[0][0]) for row in rows[:20])
    examples, report = encode(rows, tokenizer, max_length=length + 2)
    assert len(examples) == 21
    assert report.over_long == 1
    assert report.lost_label_tokens > 0
    line = " ".join(report.lines())
    assert "1" in line
    assert "%" in line
    assert "characters" in line  # how many fit
    dropped, report = encode(rows, tokenizer, max_length=length + 2, on_long="drop")
    assert len(dropped) == 20
    assert report.dropped == 1
    with pytest.raises(DataError, match="f:21"):
        encode(rows, tokenizer, max_length=length + 2, on_long="error")


def test_losing_a_fifth_of_the_answers_is_refused():
    tokenizer = build_tokenizer()
    with pytest.raises(DataError, match="of the label tokens"):
        encode([talk("首都は？", "東京です。" * 30)], tokenizer, max_length=40)


def test_a_prompt_that_fills_the_row_is_refused_with_its_place():
    tokenizer = build_tokenizer()
    with pytest.raises(DataError, match="faq.csv:7"):
        encode([talk("首都は？" * 50, "東京です。", source="faq.csv:7")], tokenizer, max_length=32)


def test_text_dataset_items_stack_in_a_plain_loader():
    tokenizer = build_tokenizer()
    dataset = TextDataset(SENTENCES, tokenizer, max_length=32)
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    assert {key: tuple(value.shape) for key, value in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (4, 32)
    )
    item = dataset[0]
    size = int(item["attention_mask"].sum())
    assert (item["labels"][size:] == -100).all()
    assert (item["input_ids"][size:] == tokenizer.pad_token_id).all()
    assert (item["labels"][:size] == item["input_ids"][:size]).all()
    assert item["input_ids"][size - 1] == tokenizer.eos_token_id


def test_text_dataset_is_a_plain_causal_lm_loss(tiny_model_dir: Path):
    """What a user's own loop gets from the items: the model's stock loss equals the one over unpadded tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    dataset = TextDataset(SENTENCES[:3], build_tokenizer(), max_length=48)
    batch = torch.utils.data.default_collate([dataset[index] for index in range(3)])
    with torch.no_grad():
        padded = model(**batch).loss
        parts = [
            (model(input_ids=ids[None], labels=ids[None]).loss, len(ids) - 1)
            for ids in (torch.tensor(item.input_ids, dtype=torch.int64) for item in dataset.examples)
        ]
    mean = sum(loss * count for loss, count in parts) / sum(count for _, count in parts)
    assert padded == pytest.approx(float(mean), abs=1e-5)


def test_text_dataset_cuts_with_one_line(logged):
    TextDataset(["あ" * 300, "短い。"], build_tokenizer(), max_length=16)
    assert logged().count("1 of 2 texts (50%) are cut at max_length 16") == 1
    for bad in ([], "文", ["文", ""], ["文", 3]):
        with pytest.raises(DataError):
            TextDataset(bad, build_tokenizer())
    for length in (0, -1, 16.0, "16", True, None):
        with pytest.raises(ConfigError, match="max_length is .*at least 1"):
            TextDataset(["文"], build_tokenizer(), length)  # type: ignore[arg-type]


def test_held_out_rows_are_whole_sources_and_the_seed_decides():
    rows = [talk(f"問い{i}", "答え", source=f"f:{i}") for i in range(20)]
    examples, _ = encode(rows, build_tokenizer(), max_length=64)
    rest, held = hold_out(examples, 0.2, 1)
    assert len(held) == 4
    assert {item.source for item in rest}.isdisjoint(item.source for item in held)
    assert [item.source for item in hold_out(examples, 0.2, 1)[1]] == [item.source for item in held]
    assert [item.source for item in hold_out(examples, 0.2, 2)[1]] != [item.source for item in held]
    with pytest.raises(DataError):
        hold_out(examples, 0.001, 1)


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file, and a function that counts how often it is really tokenized."""
    from ai_finetuning.data import pieces as module

    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "首都は？", "output": "東京です。"}\n', encoding="utf-8")
    calls = []
    original = module.encode_some

    def counting(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, "encode_some", counting)

    def load(tokenizer=None, **settings):
        before = len(calls)
        result = load_examples(str(path), tokenizer or build_tokenizer(), DataConfig(**settings))
        return result, len(calls) > before

    return path, load


def test_the_token_cache_gives_the_same_rows(cached):
    _, load = cached
    (first, report, lines), tokenized = load()
    (second, again, more), again_tokenized = load()
    assert (tokenized, again_tokenized) == (True, False)
    assert lines == more
    assert report == again
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.labels, other.labels)
        assert (one.characters, one.source) == (other.characters, other.source)


def test_any_change_misses_the_cache(cached, monkeypatch: pytest.MonkeyPatch):
    path, load = cached
    load()
    assert not load()[1]
    assert load(max_length=100)[1]
    assert load(system_prompt="短く")[1]
    assert load(normalize=NormalizeConfig(narrow_ascii=True))[1]
    assert load(tokenizer=with_template("alpaca_ja"))[1]
    other = copy.deepcopy(build_tokenizer())
    other.add_tokens(["首都"])
    assert load(tokenizer=other)[1]
    from ai_finetuning.data.store import preparing

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "code_version", lambda: "another version")
        assert load()[1]
    path.write_text(path.read_text(encoding="utf-8").replace("東京", "京都"), encoding="utf-8")
    (examples, _, _), tokenized = load()
    assert tokenized
    assert "京都" in live_text(examples[0], build_tokenizer())
    assert not load(packing=True)[1]  # packing changes rows, not tokens


@pytest.mark.parametrize("name", ["tokens.bin", "runs.bin", "tokens.json"])
@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: bytes([raw[0] ^ 1]) + raw[1:]])
def test_a_damaged_cache_entry_is_made_again(cached, tmp_path: Path, name: str, damage):
    _, load = cached
    (first, _, _), _ = load()
    whole = np.array(first[0].input_ids)
    (entry,) = (tmp_path / "cache").rglob(name)
    entry.write_bytes(damage(entry.read_bytes()))
    (again, _, _), tokenized = load()
    assert tokenized
    assert np.array_equal(again[0].input_ids, whole)


def test_slow_tokenizers_get_exact_labels_by_prefixes():
    """A tokenizer without offsets: labels by prefixes of the whole text, equal to those by offsets."""
    fast = build_tokenizer()

    class Slow:
        is_fast = False

        def __getattr__(self, name):
            return getattr(fast, name)

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": fast(text, add_special_tokens=add_special_tokens)["input_ids"]}

    rows = [talk("首都は？", "東京です。", "人口は？", "一千四百万人です。"), PlainText("日本の首都は東京です。")]
    for row in rows:
        (one,), _ = encode([row], fast, max_length=256)
        (other,), _ = encode([row], Slow(), max_length=256)
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.labels.tolist() == other.labels.tolist()


def test_prepare_says_everything_once(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_bytes("質問,回答\r\n首都は？,東京ﾃﾞｽ。\r\n人口は？,多い。\r\n".encode("cp932"))
    data = prepare(str(path), 0.5, build_tokenizer(), DataConfig(), seed=0)
    text = "\n".join(data.lines)
    assert "cp932" in text
    assert "half_width_kana 3" in text
    assert "rows for evaluation: 1" in text
    assert len(data.train) == len(data.eval_data) == 1
    assert json.dumps(data.digest)


def test_long_texts_are_split_into_rows_that_predict_every_token_once():
    tokenizer = build_tokenizer()
    text = "".join(SENTENCES) * 5
    (whole,), _ = encode([PlainText(text, "w")], tokenizer, max_length=9999)
    parts, report = encode([PlainText(text, "w")], tokenizer, max_length=50, on_long="split")
    assert all(len(part) <= 50 for part in parts)
    predicted = [int(label) for part in parts for label in part.labels if label != IGNORED]
    assert predicted == [int(label) for label in whole.labels if label != IGNORED]
    assert sum(part.characters for part in parts) == pytest.approx(len(text), abs=len(parts))
    assert report.over_long == report.lost_label_tokens == 0
    assert {part.source for part in parts} == {"w"}
    with pytest.raises(DataError, match="split"):
        encode([talk("首都は？", "東京です。" * 30)], tokenizer, max_length=40, on_long="split")


@pytest.mark.parametrize("threads", ["true", "false"])
def test_rows_encoded_together_are_those_encoded_one_by_one(threads: str, monkeypatch: pytest.MonkeyPatch):
    """Several batches of texts and conversations mixed, by many threads: ids, labels, characters and order are the
    serial ones.
    """
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
    tokenizer = build_tokenizer()
    samples = []
    for number in range(700):
        text = f"{SENTENCES[number % 12]}{number}"
        if number % 3:
            samples.append(talk(text, text[::-1] * (number % 7 + 1), source=f"rows:{number}"))
        else:
            samples.append(PlainText(text * (20000 if number == 300 else 1), f"rows:{number}"))
    together, _ = encode(samples, tokenizer, max_length=2**20)
    alone = [encode([sample], tokenizer, max_length=2**20)[0][0] for sample in samples]
    assert [(item.source, item.characters) for item in together] == [(item.source, item.characters) for item in alone]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.input_ids, other.input_ids)
        assert np.array_equal(one.labels, other.labels)


def test_a_tokenizer_that_was_told_to_cut_and_pad_does_neither():
    """What is set on the tokenizer for other uses does not reach the rows."""
    plain, reported = build_tokenizer(), copy.deepcopy(build_tokenizer())
    reported.backend_tokenizer.enable_truncation(4)
    reported.backend_tokenizer.enable_padding(length=64)
    samples = [talk("首都は？", "東京です。"), PlainText("今日は良い天気ですね。")]
    for one, other in zip(*(encode(samples, item, max_length=64)[0] for item in (plain, reported)), strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.labels.tolist() == other.labels.tolist()

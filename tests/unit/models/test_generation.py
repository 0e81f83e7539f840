"""generate_japanese on a real model that was made to say known things."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.support.models import build_model, build_tokenizer
from tests.sweep.families import config_of
from transformers import AutoModelForCausalLM

from ai_finetuning import JapaneseModel
from ai_finetuning.errors import ConfigError, ModelError
from ai_finetuning.japanese.templates import TEMPLATES
from ai_finetuning.models.generation import (
    Answer,
    clean_answer,
    encode_prompts,
    generate_answers,
    generate_text,
    is_looping,
    stream_text,
)
from ai_finetuning.models.tokenizers import PromptStyle, prompt_style

QUESTION = [{"role": "user", "content": "首都は？"}]


@pytest.fixture(scope="module")
def parrot(tiny_model_dir: Path):
    """A function: a model trained in seconds to answer one question with one text under one template."""
    from ai_finetuning.japanese.prompts import render

    def train(answer: str, template: str | None = None, extra: list[str] | None = None, steps: int = 60):
        tokenizer = copy.deepcopy(build_tokenizer())
        if extra:
            tokenizer.add_special_tokens({"additional_special_tokens": extra})
        if template:
            tokenizer.chat_template = TEMPLATES[template].jinja
        model = build_model(vocab_size=len(tokenizer), hidden_size=64)
        text = render(tokenizer, QUESTION, add_generation_prompt=True) + answer
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        return model.eval(), tokenizer

    return train


def answer_of(model, tokenizer, **options) -> str:
    return generate_text(model, tokenizer, [QUESTION], do_sample=False, **{"max_new_tokens": 60} | options)[0]


def test_only_the_answer_up_to_its_end(parrot):
    model, tokenizer = parrot("東京です。</s>もっと話す")
    assert answer_of(model, tokenizer) == "東京です。"


def test_a_stop_string_ends_families_without_turn_tokens(parrot):
    model, tokenizer = parrot("東京です。\n\n### 指示:\n次は", "alpaca_ja")
    assert answer_of(model, tokenizer) == "東京です。"


def test_nl_tokens_become_line_ends_both_ways(parrot):
    model, tokenizer = parrot("東京です。<NL>京都ではない。</s>", "rinna_nl", ["<NL>"])
    assert answer_of(model, tokenizer) == "東京です。\n京都ではない。"
    assert (
        "".join(stream_text(model, tokenizer, QUESTION, do_sample=False, max_new_tokens=60))
        == "東京です。\n京都ではない。"
    )


def test_no_half_characters_at_the_end(parrot):
    """Byte-level tokens of 鷗 cut in the middle: the broken character is left out."""
    model, tokenizer = parrot("鷗鷗鷗</s>")
    whole = tokenizer.encode("鷗", add_special_tokens=False)
    assert len(whole) == 3
    for count in range(1, 9):
        answer = answer_of(model, tokenizer, max_new_tokens=count)
        assert answer == "鷗" * (count // 3)


@pytest.mark.parametrize("text", ["東京です。</s>", "鷗とか、🍣とか。</s>", "一行目\n二行目</s>"])
def test_streamed_pieces_are_the_whole_answer(parrot, text: str):
    model, tokenizer = parrot(text)
    pieces = list(stream_text(model, tokenizer, QUESTION, do_sample=False, max_new_tokens=40))
    assert "".join(pieces) == answer_of(model, tokenizer) == text.removesuffix("</s>")
    assert not any("\ufffd" in piece for piece in pieces)


def test_closing_a_stream_stops_the_work(tiny_model_dir: Path):
    model, tokenizer = build_model(), build_tokenizer()
    import threading

    before = threading.active_count()
    stream = stream_text(model, tokenizer, QUESTION, max_new_tokens=900, do_sample=True)
    assert len(next(stream)) < 100
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


def test_batches_answer_each_question_as_if_it_were_alone(tiny_model_dir: Path):
    model = JapaneseModel(str(tiny_model_dir), torch_dtype=torch.float32)
    questions = ["首都は？", "日本で一番高い山の名前と高さを教えてください。"]
    together = model.generate_batch(questions, max_new_tokens=12, do_sample=False)
    alone = [model.generate_japanese(question, max_new_tokens=12, do_sample=False) for question in questions]
    assert together == alone


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
@pytest.mark.parametrize("batch_size", [3, 32])
def test_many_questions_get_the_answers_they_get_alone_in_their_order(kind: str, batch_size: int):
    """Batches padded on the left, sorted by length, with a cache: in fp32 the greedy answers are those of one at a
    time without.
    """
    model, tokenizer = build_model(kind, vocab_size=400, seed=3), build_tokenizer()
    conversations = [
        [{"role": "user", "content": "首都は？" * (number * 5 % 7 + 1) + str(number)}] for number in range(10)
    ]
    together = generate_text(model, tokenizer, conversations, max_new_tokens=12, do_sample=False, batch_size=batch_size)
    alone = [
        generate_text(model, tokenizer, [item], max_new_tokens=12, do_sample=False, use_cache=False)[0]
        for item in conversations
    ]
    assert together == alone
    assert len(set(alone)) > 1


def test_memory_that_runs_out_halves_the_batch_and_loses_no_answer(logged):
    """A model that fits three rows at a time."""
    model, tokenizer = build_model(seed=3), build_tokenizer()
    conversations = [[{"role": "user", "content": "首都は？" * (number % 4 + 1)}] for number in range(9)]
    whole = generate_text(model, tokenizer, conversations, max_new_tokens=6, do_sample=False)
    sizes = []

    def small(module, arguments, options) -> None:
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("no room for more than three rows")

    model.register_forward_pre_hook(small, with_kwargs=True)
    obtained = generate_text(model, tokenizer, conversations, max_new_tokens=6, do_sample=False, batch_size=8)
    assert obtained == whole
    assert sizes[:2] == [8, 4]
    assert max(sizes[2:]) == 2
    assert "batches of 4" in logged()


def test_memory_for_not_even_one_answer_is_an_error():
    model = build_model()

    def none(module, arguments, options) -> None:
        raise torch.OutOfMemoryError("nothing fits")

    model.register_forward_pre_hook(none, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError):
        generate_text(model, build_tokenizer(), [QUESTION] * 4, max_new_tokens=2)


def test_a_model_that_cannot_compute_is_refused_by_both_ways_of_asking():
    """As one whose config.json and weights do not belong together."""
    model, tokenizer = build_model(), build_tokenizer()
    model.lm_head = torch.nn.Linear(7, 7, bias=False)
    with pytest.raises(ModelError, match=r"cannot generate an answer .*shapes cannot be multiplied"):
        generate_text(model, tokenizer, [QUESTION], max_new_tokens=2)
    with pytest.raises(ModelError, match="cannot generate an answer"):
        list(stream_text(model, tokenizer, QUESTION, max_new_tokens=2))


@pytest.mark.parametrize(
    "values",
    [
        {"num_return_sequences": 3, "do_sample": True},
        {"num_beams": 3},
        {"return_dict_in_generate": True, "output_scores": True},
        {"stop_strings": ["鷗鷗"]},
        {"token_healing": True},
        {"penalty_alpha": 0.6},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda values: next(iter(values)),
)
def test_how_an_answer_is_made_is_not_a_generation_configs_to_say(values: dict):
    """Such values are for a maker's own scripts: with them answers changed places, were lost, or could not be streamed."""
    model, tokenizer = build_model(), build_tokenizer()
    conversations = [QUESTION, [{"role": "user", "content": "今日は良い天気ですね。"}]]

    def answers() -> list[object]:
        drawn = generate_text(model, tokenizer, conversations, max_new_tokens=6, do_sample=True, seed=[1, 2])
        greedy = generate_text(model, tokenizer, conversations, max_new_tokens=6, do_sample=False)
        streamed = "".join(stream_text(model, tokenizer, QUESTION, max_new_tokens=6, do_sample=False))
        return [drawn, greedy, streamed]

    expected = answers()
    for name, value in values.items():  # as they are read from a file, unchecked
        setattr(model.generation_config, name, value)
    assert answers() == expected


def test_a_generation_config_that_needs_what_is_not_here_is_refused():
    model, tokenizer = build_model(), build_tokenizer()
    model.generation_config.cache_implementation = "offloaded"  # on a CPU
    if torch.cuda.is_available():
        pytest.skip("a GPU has it")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        generate_text(model, tokenizer, [QUESTION], max_new_tokens=2)


def test_an_empty_prompt_is_refused_by_its_reason():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(ModelError, match="prompt is empty"):
        generate_text(build_model(), tokenizer, [QUESTION], max_new_tokens=2)


def test_ends_that_are_no_ids_are_left_out():
    model, tokenizer = build_model(), build_tokenizer()
    plain = prompt_style(tokenizer, model.generation_config)
    for listed in ({"a": 1}, [{"a": 1}, 5], [[1]], "x"):
        model.generation_config.eos_token_id = listed
        expected = {*plain.stop_token_ids} | ({5} if listed == [{"a": 1}, 5] else set())
        assert {*prompt_style(tokenizer, model.generation_config).stop_token_ids} <= expected


def test_the_documented_call_loads_on_first_use_and_a_seed_repeats_it(tiny_model_dir: Path):
    model = JapaneseModel(str(tiny_model_dir))
    assert model.model is None
    one = model.generate_japanese(
        "首都は？", input_text="日本", max_new_tokens=8, temperature=0.7, top_p=0.9, top_k=50, do_sample=True, seed=1
    )
    assert model.model is not None
    assert one == model.generate_japanese("首都は？", "日本", 8, seed=1)


def test_history_and_system_reach_the_prompt(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    from ai_finetuning.models import generation

    model = JapaneseModel(str(tiny_model_dir), torch_dtype=torch.float32)
    prompts = []
    original = generation.render

    def seen(*args, **kwargs):
        prompts.append(original(*args, **kwargs))
        return prompts[-1]

    monkeypatch.setattr(generation, "render", seen)
    past = [{"role": "user", "content": "日本語で"}, {"role": "assistant", "content": "はい。"}]
    model.generate_japanese("首都は？", history=past, system="短く。", max_new_tokens=2)
    assert (
        prompts[-1]
        == "<|system|>\n短く。\n<|user|>\n日本語で\n<|assistant|>\nはい。</s>\n<|user|>\n首都は？\n<|assistant|>\n"
    )


def test_generation_leaves_the_training_mode_alone(tiny_model_dir: Path):
    model = build_model().train()
    generate_text(model, build_tokenizer(), [QUESTION], max_new_tokens=2)
    assert model.training


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"max_new_tokens": 0}, {"batch_size": 0}],
)
def test_values_out_of_range_are_refused(options: dict):
    with pytest.raises(ConfigError, match=next(iter(options))):
        generate_text(build_model(), build_tokenizer(), [QUESTION], **options)


def test_a_prompt_longer_than_the_model_is_refused():
    with pytest.raises(ConfigError, match="at most 1024"):
        generate_text(build_model(), build_tokenizer(), [[{"role": "user", "content": "首都は？" * 500}]])


def test_endless_loops_are_seen():
    assert is_looping("前置き。" + "同じことを何度も何度も言い続ける文です。" * 5)
    assert is_looping("はい。" * 40)
    assert not is_looping("日本の首都は東京です。" * 2)
    assert not is_looping("短い")


def test_case_40_tables_are_no_loop():
    row = "| 2026-04-{:02d} | 対応済み | 担当: 総務部の佐藤 |\n"
    assert not is_looping("".join(row.format(day) for day in range(1, 29)))
    assert not is_looping("|---" * 60 + "|")
    assert not is_looping("・" * 200)
    assert not is_looping("| 項目 | 値 |\n" + "|  |  |\n" * 40)


HEADED = "手順です。\n\n### 手順1\n＃＃＃重要\n「USER: 利用者」と ### 入力: を見ます。"


@pytest.mark.parametrize("template", ["alpaca_ja", "calm2", "stockmark", "rakuten_vicuna"])
def test_case_40_headings_of_a_trained_answer_stay(parrot, template: str):
    model, tokenizer = parrot(f"{HEADED}</s>", template, steps=120)
    assert answer_of(model, tokenizer, max_new_tokens=120) == HEADED
    assert "".join(stream_text(model, tokenizer, QUESTION, do_sample=False, max_new_tokens=120)) == HEADED


@pytest.mark.parametrize(("template", "opening"), [("calm2", "\nUSER: "), ("stockmark", "\n\n### Input:\n")])
def test_case_40_the_next_question_ends_an_answer(parrot, template: str, opening: str):
    model, tokenizer = parrot(f"東京です。{opening}次は", template)
    assert generate_answers(model, tokenizer, [QUESTION], do_sample=False, max_new_tokens=60) == [
        Answer("東京です。", "stop")
    ]


def test_a_loop_is_told(parrot, logged):
    model, tokenizer = parrot("東京は良い所です。" * 14)
    obtained = generate_answers(model, tokenizer, [QUESTION], do_sample=False, max_new_tokens=400)
    assert obtained[0].end == "loop"
    assert logged() == ""
    pieces = list(stream_text(model, tokenizer, QUESTION, do_sample=False, max_new_tokens=400))
    assert "".join(pieces) == obtained[0].text
    assert "repeated the same words" in logged()


def test_the_end_at_max_new_tokens_is_known():
    model, tokenizer = build_model(), build_tokenizer()
    options = {"max_new_tokens": 3, "do_sample": True, "suppress_tokens": list(range(6))}
    assert [item.end for item in generate_answers(model, tokenizer, [QUESTION], seed=0, **options)] == ["length"]
    ends = []
    list(stream_text(model, tokenizer, QUESTION, ended=ends.append, **options))
    assert ends == ["length"]


def test_near_the_last_position_no_answer_is_shorter_for_its_neighbours():
    """A long question leaves itself few positions, and its batch as many as each has alone."""
    model, tokenizer = build_model(seed=3), build_tokenizer()
    conversations = [[{"role": "user", "content": "首都は？" * count}] for count in (1, 40, 3, 40, 2)]
    options = {"max_new_tokens": 40, "do_sample": False, "suppress_tokens": list(range(6))}
    long = len(encode_prompts(model, tokenizer, conversations[1:2])[0])
    model.config.max_position_embeddings = long + 5
    together = generate_answers(model, tokenizer, conversations, **options)
    alone = [generate_answers(model, tokenizer, [item], **options)[0] for item in conversations]
    assert together == alone
    assert [item.end for item in together] == ["length", "positions", "length", "positions", "length"]


def test_cleaning():
    style = PromptStyle((2,), ("<NL>ユーザー: ",), "<NL>")
    assert clean_answer(" 東京<NL>です\ufffd<NL>ユーザー: 次", style) == "東京\nです"
    assert clean_answer("ユーザー: 次", style) == ""
    assert clean_answer("規約の「ユーザー: 利用者」は<NL>こうです", style) == "規約の「ユーザー: 利用者」は\nこうです"
    assert prompt_style(build_tokenizer()).stop_token_ids == (2,)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_bigcode", "biogpt", "mpt", "llama"])
def test_an_answer_ends_at_the_last_position(family: str, caplog: pytest.LogCaptureFixture):
    """Learned positions are a table: the token behind its end is an IndexError."""
    config = config_of(family)
    for name in ("n_positions", "max_position_embeddings", "max_seq_len"):
        if hasattr(config, name):
            setattr(config, name, 64)
    config.vocab_size = 400
    if family == "mpt":
        config.attn_config.alibi = False
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_config(config).eval(), build_tokenizer()
    conversations = [QUESTION, [{"role": "user", "content": "首都はどこですか、教えてください。"}]]
    # Random, and never at an end of its own.
    options = {"max_new_tokens": 512, "temperature": 2.0, "suppress_tokens": list(range(6))}
    assert all(generate_text(model, tokenizer, conversations, seed=0, **options))
    assert "the model takes 64 tokens, question and answer together, so that 2 answers ended early" in caplog.text
    caplog.clear()
    assert list(stream_text(model, tokenizer, QUESTION, **options))
    assert "the model takes 64 tokens, question and answer together, so that 1 answers ended early" in caplog.text


def test_a_token_without_an_embedding_is_refused_by_name():
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.add_tokens(["<unused>"])
    model = build_model(vocab_size=len(tokenizer) - 1)
    assert answer_of(model, tokenizer, max_new_tokens=2) is not None
    with pytest.raises(ConfigError, match="contains the token <unused>"):
        generate_text(model, tokenizer, [[{"role": "user", "content": "<unused>とは？"}]])

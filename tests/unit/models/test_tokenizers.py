"""Tokenizers segment as their models were trained, pad on a token of their own, and have a template."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
from tests.support.models import SENTENCES, build_tokenizer

from ai_finetuning.errors import ConfigError
from ai_finetuning.japanese.templates import TEMPLATES
from ai_finetuning.models import tokenizers as module
from ai_finetuning.models.probes import PROBES
from ai_finetuning.models.tokenizers import ensure_pad, load_tokenizer, prompt_style, warn_without_end


@pytest.fixture(scope="module", params=[True, False], ids=["dummy prefix", "no prefix"])
def unigram(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as many Japanese models have it: a sentencepiece unigram model, LlamaTokenizer, no tokenizer.json."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("unigram")
    (folder / "text.txt").write_text("\n".join([*SENTENCES, *PROBES] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=700,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=3,
        minloglevel=2,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        add_dummy_prefix=request.param,
    )
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 700}), encoding="utf-8")
    return folder


def test_a_unigram_model_without_tokenizer_json_is_read_by_sentencepiece(unigram: Path):
    """transformers 5 alone segments it otherwise, silently; ids have to be sentencepiece's own."""
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(unigram / "tokenizer.model"))
    assert module.check_tokenizer_parity(unigram), "transformers became right by itself: the reading by hand can go"
    tokenizer = load_tokenizer(str(unigram))
    assert module.parity_problems(tokenizer, unigram / "tokenizer.model") == []
    for text in [*PROBES, *SENTENCES]:
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text, out_type=int)
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_it_gives_exact_labels(unigram: Path):
    from ai_finetuning.data.messages import Conversation, Message
    from ai_finetuning.data.tokenize import IGNORED, encode

    tokenizer = load_tokenizer(str(unigram), chat_template="alpaca_ja")
    sample = Conversation((Message("user", "日本の首都は？"), Message("assistant", "東京です。")))
    (example,), _ = encode([sample], tokenizer, max_length=256)
    live = [int(i) for i, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(live, skip_special_tokens=True).strip() == "東京です。"
    assert live[-1] == tokenizer.eos_token_id


def test_pad_is_never_eos(logged):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.pad_token = tokenizer.eos_token
    ensure_pad(tokenizer, 400)
    assert tokenizer.pad_token == "<pad>"
    tokenizer.pad_token = None
    ensure_pad(tokenizer, 400)
    assert tokenizer.pad_token == "<pad>"
    assert "padding with <pad>, apart from eos </s>" in logged()


@pytest.mark.parametrize("pad", ["<PAD>", "<PAD|LLM-jp>", "[PAD]"])
def test_a_pad_token_of_the_vocabulary_is_preferred_to_the_unknown_one(pad: str):
    """llm-jp's vocabularies name it; the unknown token was taken."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, pad: 3, "あ": 4}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    ensure_pad(tokenizer, 5)
    assert tokenizer.pad_token == pad
    assert tokenizer.pad_token_id == 3
    assert len(tokenizer) == 5


def test_a_tokenizer_without_any_spare_token_does_not_outgrow_the_model():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"</s>": 0, "あ": 1, "い": 2}, unk_token="あ"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    ensure_pad(tokenizer, embedding_rows=3)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id < 3


@pytest.mark.parametrize("switch", ["truncation", "padding"])
def test_switches_saved_in_a_tokenizer_json_make_no_other_tokenizer(switch: str, tmp_path: Path, logged):
    """Whoever saved it had asked for batches: it segments as it always did."""
    tokenizer = build_tokenizer()
    expected = tokenizer.encode("日本の首都は東京です。" * 20)
    core = tokenizer.backend_tokenizer
    if switch == "truncation":
        core.enable_truncation(8)
    else:
        core.enable_padding(length=64)
    tokenizer.save_pretrained(tmp_path)
    assert switch in (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    assert load_tokenizer(str(tmp_path)).encode("日本の首都は東京です。" * 20) == expected
    assert "differently" not in logged()


def test_the_end_of_an_answer_is_a_token_whatever_the_tokenizer_was_saved_with(tmp_path: Path, logged):
    """Some tools save `split_special_tokens: true`: the end of every answer was then learnt as the characters of `</s>`."""
    from transformers import AutoTokenizer

    plain = build_tokenizer()
    plain.split_special_tokens = True
    plain.save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "tokenizer_config.json"
    values = json.loads(file.read_text(encoding="utf-8")) | {"split_special_tokens": True}
    file.write_text(json.dumps(values), encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path / "m"))
    assert tokenizer.encode("東京です。</s>")[-1] == tokenizer.eos_token_id
    assert "split_special_tokens" in logged()
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.encode("東京です。</s>")[-1] == tokenizer.eos_token_id


def test_templates_come_from_the_user_then_the_tokenizer_then_alpaca(tiny_model_dir: Path, tmp_path: Path, logged):
    assert load_tokenizer(str(tiny_model_dir)).chat_template == build_tokenizer().chat_template
    assert load_tokenizer(str(tiny_model_dir), chat_template="calm2").chat_template == TEMPLATES["calm2"].jinja
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    assert load_tokenizer(str(tiny_model_dir), chat_template=str(own)).chat_template == own.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="calm2"):
        load_tokenizer(str(tiny_model_dir), chat_template="calm_2")
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model_dir, bare)
    (bare / "chat_template.jinja").unlink()
    assert load_tokenizer(str(bare)).chat_template == TEMPLATES["alpaca_ja"].jinja
    assert "alpaca_ja" in logged()


def test_how_far_a_prompt_is_known_is_said_where_the_catalogs_template_is_used(logged):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = None
    module.choose_template(tokenizer, "elyza/ELYZA-japanese-Llama-2-13b-instruct", None)
    assert "llama2_ja of elyza/ELYZA-japanese-Llama-2-13b-instruct is unconfirmed" in logged()
    module.choose_template(tokenizer, "elyza/Llama-3-ELYZA-JP-8B", None)
    assert "the tokenizer of elyza/Llama-3-ELYZA-JP-8B comes with a chat template" in logged()
    module.choose_template(tokenizer, "Rakuten/RakutenAI-3.0", None)  # the catalog has no template for it either
    assert "alpaca_ja of Rakuten/RakutenAI-3.0 is unconfirmed" in logged()
    module.choose_template(tokenizer, "any/model", "sarashina22")
    assert "sarashina22 (model.chat_template) is an unconfirmed prompt format" in logged()


def test_a_golden_prompt_is_used_without_a_word(logged):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = None
    for name in ("tokyotech-llm/Swallow-7b-instruct-hf", "matsuo-lab/weblab-10b-instruction-sft"):
        module.choose_template(tokenizer, name, None)
    module.choose_template(tokenizer, "any/model", "calm2")
    assert logged() == ""


def test_the_tokenizers_own_template_wins_over_the_catalogs(logged):
    tokenizer = copy.deepcopy(build_tokenizer())
    for name in ("elyza/ELYZA-japanese-Llama-2-7b-instruct", "Qwen/Qwen3-8B", "cyberagent/calm2-7b-chat"):
        assert module.choose_template(tokenizer, name, None) == tokenizer.chat_template
    assert logged() == ""


def test_stops_are_eos_the_models_list_and_the_turn_end():
    from transformers import GenerationConfig

    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|eot_id|>", "<|eom|>"]})
    tokenizer.chat_template = TEMPLATES["llama3"].jinja
    eot, eom = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|eom|>"])
    style = prompt_style(tokenizer, GenerationConfig(eos_token_id=[tokenizer.eos_token_id, eom]))
    assert set(style.stop_token_ids) == {tokenizer.eos_token_id, eot, eom}
    tokenizer.chat_template = TEMPLATES["rinna_nl"].jinja
    assert prompt_style(tokenizer).newline == "<NL>"
    assert prompt_style(tokenizer).stop_strings == ("<NL>ユーザー: ",)


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {}),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ({"early_stopping": "x", "temperature": 0.5}, {}),
        ({"num_return_sequences": 3, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"cache_implementation": "no such", "max_new_tokens": 32}, {"max_new_tokens": 32}),
    ],
)
def test_a_generation_config_that_is_refused_loses_only_what_has_no_effect(tmp_path, values, left, caplog):
    """As published models bring them (case 20)."""
    from transformers import GenerationConfig

    from ai_finetuning.models.tokenizers import repair_generation_config

    config = GenerationConfig(eos_token_id=2)
    for name, value in values.items():
        setattr(config, name, value)
    caplog.set_level("INFO", logger="ai_finetuning")
    repair_generation_config(config)
    config.save_pretrained(tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path).to_diff_dict()
    assert {name: value for name, value in saved.items() if name != "transformers_version"} == {
        "eos_token_id": 2
    } | left
    assert [name for name in values.keys() - left.keys() if name not in caplog.text] == []


@pytest.mark.parametrize(
    ("eos", "template", "said"),
    [
        ("</s>", "{% for m in messages %}{{ m.content }}\n{% endfor %}", False),
        (None, "{% for m in messages %}{{ m.content }}<s>{% endfor %}", False),
        (None, "{% for m in messages %}{{ m.content }}\n{% endfor %}", True),
        (None, "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", False),  # refused row by row
    ],
)
def test_answers_that_nothing_ends_are_said(eos: str | None, template: str, said: bool, logged):
    tokenizer = build_tokenizer(template)
    tokenizer.eos_token = eos
    warn_without_end(tokenizer)
    assert ("model.special_tokens.eos_token" in logged()) is said

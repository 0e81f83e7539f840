"""Ids and text of a sentencepiece file are SentencePieceProcessor's own, for every way in which makers lay it out."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
from tests.support.commands import call
from tests.support.sentencepieces import SIX, each_layout, prose, write_tokenizer
from transformers import AutoTokenizer

from ai_finetuning.errors import ModelError
from ai_finetuning.models.probes import PROBES
from ai_finetuning.models.sentencepiece_tokenizer import SentencePieceTokenizer, from_pieces, pieces_file
from ai_finetuning.models.tokenizers import load_tokenizer


def reference_of(folder: Path) -> sentencepiece.SentencePieceProcessor:
    (file,) = folder.glob("*.model")
    return sentencepiece.SentencePieceProcessor(model_file=str(file))


def likelihood(reference: sentencepiece.SentencePieceProcessor, ids: list[int]) -> float:
    return sum(reference.get_score(number) for number in ids)


def random_texts(count: int) -> list[str]:
    """Strings of characters from many scripts, with blanks, marks, line ends and controls."""
    ranges = [(32, 127), (0xA0, 0x250), (0x300, 0x330), (0x2000, 0x2070), (0x3000, 0x3100), (0x4E00, 0x9FFF)]
    ranges += [(0xAC00, 0xAD00), (0xE000, 0xE010), (0xFF00, 0xFFE0), (0x1F300, 0x1F600)]
    pool = [chr(code) for low, high in ranges for code in range(low, high)] + list(" \n\r\t\0") * 300
    draw = random.Random(7)
    return ["".join(draw.choices(pool, k=draw.randint(1, 30))) for _ in range(count)]


@each_layout
def test_ids_and_text_are_sentencepieces_own(layout: str, sentencepieces: dict[str, Path], shared: Path):
    folder = sentencepieces[layout]
    reference, tokenizer = reference_of(folder), load_tokenizer(str(folder))
    for text in ["", "\n\n\n", " ", "\a\x00\ufeff", "<0x0A>とかの▁", *PROBES, *prose(shared), *random_texts(400)]:
        expected = reference.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == expected
        assert tokenizer.decode(expected) == reference.decode(expected)
        assert tokenizer.decode(expected, skip_special_tokens=True) == reference.decode(expected)
        pieces = tokenizer.convert_ids_to_tokens(expected)
        assert tokenizer.convert_tokens_to_ids(pieces) == expected
        assert tokenizer.convert_tokens_to_string(pieces) == reference.decode(expected)


def test_there_are_forty_probes():
    assert len(PROBES) == len(set(PROBES)) == 40


@each_layout
def test_a_saved_tokenizer_is_the_same_for_this_toolkit_and_others(
    layout: str, sentencepieces: dict[str, Path], shared: Path, tmp_path: Path
):
    """Twice saved, copied, pickled; and for a program that knows nothing but AutoTokenizer."""
    folder = sentencepieces[layout]
    reference, tokenizer = reference_of(folder), load_tokenizer(str(folder))
    tokenizer.save_pretrained(tmp_path / "one")
    load_tokenizer(str(tmp_path / "one")).save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "tokenizer.model").read_bytes() == (folder / SIX[layout][0]).read_bytes()
    again = load_tokenizer(str(tmp_path / "two"))
    plain = AutoTokenizer.from_pretrained(str(tmp_path / "two"))
    texts = [*PROBES, *prose(shared)[:100], "<s>東京</s>大阪"]
    for other in (again, copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):  # noqa: S301
        assert [other.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
        assert other.special_tokens_map == tokenizer.special_tokens_map
        assert other.chat_template == tokenizer.chat_template
    for text in texts[:-1]:
        ids, obtained = reference.encode(text), plain.encode(text, add_special_tokens=False)
        assert plain.decode(ids) == reference.decode(ids)
        # `0001` and `NNN` have two equally likely segmentations in a unigram model: rounding chooses.
        assert obtained == ids or likelihood(reference, obtained) == pytest.approx(likelihood(reference, ids), abs=1e-3)


@each_layout
def test_ranges_cover_the_text_that_the_tokens_came_from(layout: str, sentencepieces: dict[str, Path]):
    tokenizer = load_tokenizer(str(sentencepieces[layout]))
    text = "髙﨑さん</s>A 鷗🍣\n終わり"
    ids, ranges = tokenizer.ids_and_offsets(text)
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert [int(edge) for edge in ranges[ids.index(tokenizer.eos_token_id)]] == [4, 8]
    assert (ranges[:, 0] <= ranges[:, 1]).all()
    covered = {place for begin, end in ranges.tolist() for place in range(begin, end)}
    assert covered == set(range(len(text)))
    if SIX[layout][2].get("byte_fallback"):
        bird = text.index("鷗")
        of_bird = [number for number, edges in zip(ids, ranges.tolist(), strict=True) if edges == [bird, bird + 1]]
        assert tokenizer.decode(of_bird) == "鷗"


@pytest.mark.parametrize("layout", ["llama, unigram", "rinna, unigram", "T5, unigram without bytes"])
def test_a_row_ends_once_and_learns_all_of_its_answer(layout: str, sentencepieces: dict[str, Path]):
    """transformers turned unknown characters into </s>, and dropped line ends."""
    from ai_finetuning.data.messages import Conversation, Message
    from ai_finetuning.data.tokenize import IGNORED, encode

    tokenizer = load_tokenizer(str(sentencepieces[layout]))
    answer = "def f(x):\n\treturn x  # 髙﨑𠮷"
    sample = Conversation((Message("user", "例を\n𠮷野家で"), Message("assistant", answer)))
    (example,), _ = encode([sample], tokenizer, max_length=512)
    ids = example.input_ids.tolist()
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    live = [number for number, label in zip(ids, example.labels.tolist(), strict=True) if label != IGNORED]
    assert live[-1] == tokenizer.eos_token_id
    reference = reference_of(sentencepieces[layout])
    assert tokenizer.decode(live[:-1]).strip() == reference.decode(reference.encode(answer)).strip()


def test_bos_eos_and_legacy_are_as_the_configuration_says(sentencepieces: dict[str, Path], tmp_path: Path):
    folder = sentencepieces["llama, unigram"]
    reference = reference_of(folder)
    inner = reference.encode("大阪")[1:] if reference.id_to_piece(reference.encode("大阪")[0]) == "▁" else None
    for settings, front, back in (
        ({}, [1], []),  # LlamaTokenizer's own
        ({"add_bos_token": False, "add_eos_token": True}, [], [2]),
        ({"tokenizer_class": "T5Tokenizer"}, [], [2]),
        ({"tokenizer_class": "PreTrainedTokenizer"}, [], []),
    ):
        shutil.copytree(folder, tmp_path / "model", dirs_exist_ok=True)
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | settings
        (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
        tokenizer = load_tokenizer(str(tmp_path / "model"))
        assert tokenizer.encode("東京") == [*front, *reference.encode("東京"), *back]
        assert tokenizer("東京")["attention_mask"] == [1] * len(tokenizer.encode("東京"))
        ids, ranges = tokenizer.ids_and_offsets("東京", add_special_tokens=True)
        assert ids == tokenizer.encode("東京")
        assert len(ranges) == len(ids)
        assert tokenizer.encode("<s>大阪", add_special_tokens=False) == [1, *reference.encode("大阪")]
        assert tokenizer.decode(tokenizer.encode("<s>大阪", add_special_tokens=False)) == "<s>大阪"
        tokenizer.save_pretrained(tmp_path / "saved")
        assert load_tokenizer(str(tmp_path / "saved")).encode("東京") == tokenizer.encode("東京")
    values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | {"legacy": False}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    ids = tokenizer.encode("<s>大阪", add_special_tokens=False)
    assert ids[0] == 1
    assert not tokenizer.convert_ids_to_tokens(ids)[1].startswith("▁")
    assert inner is None or ids[1:] == inner
    assert tokenizer.decode(ids) == "<s>大阪"
    assert tokenizer.decode(tokenizer.encode("大阪 東京"), skip_special_tokens=True) == "大阪 東京"


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("layout", ["llama, unigram", "llama, BPE"])
def test_pieces_of_the_makers_own_are_kept_whole_by_others_too(layout: str, legacy: bool, shared: Path, tmp_path: Path):
    """A line end and roles as pieces, with a blank in front of a text: not one in front of every line."""
    own = ["\n", "<|user|>", "<|user|>さん"]
    file = write_tokenizer(layout, tmp_path / "model", prose(shared), user_defined_symbols=own)
    config = json.loads((file.parent / "tokenizer_config.json").read_text(encoding="utf-8")) | {"legacy": legacy}
    (file.parent / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file))
    tokenizer = load_tokenizer(str(file.parent))
    tokenizer.save_pretrained(tmp_path / "saved")
    plain = AutoTokenizer.from_pretrained(str(tmp_path / "saved"))
    for text in [*PROBES, "<|user|>さん、\n  東京<|user|>", *prose(shared)[:100]]:
        ids = reference.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        obtained = plain.encode(text, add_special_tokens=False)
        assert obtained == ids or likelihood(reference, obtained) == pytest.approx(likelihood(reference, ids), abs=1e-3)
        assert tokenizer.decode(ids) == reference.decode(ids)
        assert plain.decode(ids) == reference.decode(ids) or not legacy
    text = "<s>東京</s>大阪\n"
    assert load_tokenizer(str(tmp_path / "saved")).encode(text) == tokenizer.encode(text)
    assert plain.encode(text) == tokenizer.encode(text) or not legacy
    assert (tmp_path / "saved" / "tokenizer.json").is_file() is legacy  # `tokenizers` cannot tell where a text begins


def test_added_tokens_and_markers_are_found_whole(sentencepieces: dict[str, Path], tmp_path: Path):
    tokenizer = load_tokenizer(str(sentencepieces["llama, BPE"]))
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|user|><|end|>"]})
    tokenizer.add_tokens(["甲乙丙"])
    assert len(tokenizer) == size + 3
    ids = tokenizer.encode("<|user|><|end|>甲乙丙です", add_special_tokens=False)
    assert ids[:2] == [size + 1, size + 2]
    assert tokenizer.decode(ids) == "<|user|><|end|>甲乙丙です"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "甲乙丙です"
    as_text = tokenizer.encode("<|user|></s>", add_special_tokens=False, split_special_tokens=True)
    assert as_text == reference_of(sentencepieces["llama, BPE"]).encode("<|user|></s>")
    tokenizer.eos_token = "<|user|>"  # as model.special_tokens names one
    assert tokenizer.decode(tokenizer.encode("日<|user|>", add_special_tokens=False), skip_special_tokens=True) == "日"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).eos_token == "<|user|>"
    assert load_tokenizer(str(tmp_path)).encode("甲乙丙<|user|>") == tokenizer.encode("甲乙丙<|user|>")
    assert tokenizer.decode([tokenizer.vocab_size + 5000, 9]) == tokenizer.decode([9])  # rows that fill up an embedding


def test_the_file_is_found_whatever_its_name(shared: Path, tmp_path: Path):
    file = write_tokenizer("llama, BPE", tmp_path / "a", prose(shared))
    tiktoken = "".join(f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256))
    (tmp_path / "a" / "aaa.model").write_text(tiktoken, encoding="utf-8")
    assert pieces_file(tmp_path / "a") == file
    other = file.rename(file.with_name("zzz.model"))
    assert pieces_file(tmp_path / "a") == other
    shutil.copyfile(other, tmp_path / "a" / "again.model")
    assert pieces_file(tmp_path / "a") in (other, other.with_name("again.model"))  # the same bytes twice
    second = write_tokenizer("T5, unigram without bytes", tmp_path / "b", prose(shared))
    shutil.copyfile(second, tmp_path / "a" / "second.model")
    with pytest.raises(ModelError, match=r"several sentencepiece files.*name it as vocab_file"):
        pieces_file(tmp_path / "a")
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"vocab_file": "/elsewhere/second.model"}', encoding="utf-8")
    assert pieces_file(tmp_path / "a") == tmp_path / "a" / "second.model"
    assert isinstance(from_pieces(tmp_path / "b", second), SentencePieceTokenizer)


def test_a_makers_tokenizer_json_stays_his_word(sentencepieces: dict[str, Path], tmp_path: Path, logged):
    """Where the sentencepiece file beside it says something else, that is said."""
    folder = sentencepieces["llama, BPE"]
    shutil.copytree(folder, tmp_path / "model")
    load_tokenizer(str(folder)).save_pretrained(tmp_path / "saved")
    values = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text(encoding="utf-8"))
    shutil.copyfile(tmp_path / "saved" / "tokenizer.json", tmp_path / "model" / "tokenizer.json")
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    assert load_tokenizer(str(tmp_path / "model")).is_fast
    assert "probes differently" not in logged()
    shutil.copyfile(
        sentencepieces["T5, unigram without bytes"] / "spiece.model", tmp_path / "model" / "tokenizer.model"
    )
    assert load_tokenizer(str(tmp_path / "model")).is_fast
    assert "tokenizer.json and tokenizer.model tokenize" in logged()


@pytest.mark.parametrize(
    "settings", [{"tokenizer_class": "QWenTokenizer"}, {"tokenizer_class": "Qwen2Tokenizer"}, None]
)
def test_a_vocabulary_that_nothing_reads_is_refused_before_anything_loads(
    settings: dict[str, str] | None, tiny_model_dir: Path, tmp_path: Path, logged
):
    """transformers makes an empty vocabulary of it, and every prompt is unknown characters."""
    shutil.copytree(tiny_model_dir, tmp_path / "qwen")
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / "qwen" / name).unlink()
    if settings is not None:
        (tmp_path / "qwen" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "qwen" / "qwen.tiktoken").write_text("IQ== 0\n", encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "首都は？", "output": "東京です。"}\n', encoding="utf-8")
    assert call("data", "stats", str(tmp_path / "rows.jsonl"), "--model", str(tmp_path / "qwen")) == 78
    text = logged()
    assert "only in qwen.tiktoken" in text
    assert "cannot be loaded" not in text
    assert "a version with tokenizer.json" in text


def test_an_empty_vocabulary_is_refused(tiny_model_dir: Path, tmp_path: Path):
    shutil.copytree(tiny_model_dir, tmp_path / "empty")
    core = json.loads((tmp_path / "empty" / "tokenizer.json").read_text(encoding="utf-8"))
    core["model"] |= {"vocab": {}, "merges": []}
    (tmp_path / "empty" / "tokenizer.json").write_text(json.dumps(core), encoding="utf-8")
    with pytest.raises(ModelError, match="a vocabulary of 0 pieces for 400 rows of embeddings"):
        load_tokenizer(str(tmp_path / "empty"))


def test_answers_keep_their_lines_and_end_at_a_stop_string(sentencepieces: dict[str, Path]):
    """Line ends are byte pieces here: they were printed as <0x0A>, and "\\n\\n### " never ended an answer."""
    import torch
    from tests.support.models import build_model

    from ai_finetuning.japanese.prompts import render
    from ai_finetuning.models.generation import generate_text, stream_text

    tokenizer = load_tokenizer(str(sentencepieces["llama, BPE"]), chat_template="alpaca_ja")
    question, answer = [{"role": "user", "content": "首都は？"}], "東京:\n    字下げ  二つ\n\t鷗"
    text = render(tokenizer, question, add_generation_prompt=True) + answer + "\n\n### 指示:\n次の質問はこれです。"
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    model = build_model(vocab_size=len(tokenizer), hidden_size=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval()
    steps: list[int] = []
    model.register_forward_hook(lambda *_: steps.append(1))
    options = {"max_new_tokens": 90, "do_sample": False}
    assert generate_text(model, tokenizer, [question], **options) == [answer]
    assert len(steps) <= len(tokenizer.encode(answer + "\n\n### 指示:", add_special_tokens=False))
    pieces = list(stream_text(model, tokenizer, question, **options))
    assert "".join(pieces) == answer
    assert len(pieces) > 5

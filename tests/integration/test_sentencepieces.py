"""The whole way of a model whose tokenizer is a sentencepiece file: train, show, generate, chat, serve, merge, export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from tests.support.commands import call, start
from tests.support.llama_cpp import write_checkout
from tests.support.patience import patience
from tests.support.ports import free_port
from tests.support.sentencepieces import SIX
from tests.support.servers import needs_server, until_it_answers

from ai_finetuning.config.data import DataConfig
from ai_finetuning.data.prepare import load_examples
from ai_finetuning.data.stats import shown_tokens
from ai_finetuning.export.gguf_file import read_header
from ai_finetuning.inference.session import Chat, open_model
from ai_finetuning.models.generation import generate_text
from ai_finetuning.models.probes import PROBES
from ai_finetuning.models.tokenizers import load_tokenizer

ANSWER = "def f(x):\n\treturn  x  # 髙﨑"
ROWS = [{"instruction": f"{number}の次は\n何ですか？", "output": ANSWER} for number in range(6)]
QUICK = ("rinna, unigram", "a file alone, BPE")
LAYOUTS = [layout if layout in QUICK else pytest.param(layout, marks=pytest.mark.slow) for layout in SIX]


def reference_of(folder: Path) -> sentencepiece.SentencePieceProcessor:
    (file,) = folder.glob("*.model")
    return sentencepiece.SentencePieceProcessor(model_file=str(file))


def validate_tokenizer(folder: Path, reference: sentencepiece.SentencePieceProcessor) -> None:
    """The tokenizer in a folder gives the ids and the text of the maker's file."""
    tokenizer = load_tokenizer(str(folder))
    for text in (*PROBES, ANSWER):
        ids = reference.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_makers_ids_and_text_all_the_way(
    layout: str, sentencepieces: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = sentencepieces[layout]
    reference = reference_of(folder)
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    settings = [f"model={folder}", "method=lora", f"data.train={rows}", f"training.output_dir={out}"]
    options = ["data.max_length=400", "learning_rate=1e-3", "num_epochs=1", "batch_size=3"]
    assert call("train", *settings, *options, "gradient_accumulation_steps=1") == 0
    assert (out / "tokenizer.model").read_bytes() == (folder / SIX[layout][0]).read_bytes()
    validate_tokenizer(out, reference)

    capsys.readouterr()
    assert call("data", "show", str(rows), "--model", str(folder), "--max-length", "400") == 0
    assert "<0x" not in capsys.readouterr().out
    tokenizer = load_tokenizer(str(folder))
    examples, _, _ = load_examples(str(rows), tokenizer, DataConfig(max_length=400))
    shown = "".join(token.text for token in shown_tokens(examples[0], tokenizer)).replace("‥", "")
    assert shown == tokenizer.decode(examples[0].input_ids.tolist())
    assert reference.decode(reference.encode(ANSWER)) in shown

    check_answers(str(out), reference)
    assert call("generate", "--greedy", "--max-new-tokens", "24", str(out), "首都は？") == 0
    assert "<0x" not in capsys.readouterr().out

    assert call("merge", str(out), "--out", str(tmp_path / "merged")) == 0
    assert call("export", "vllm", str(folder), "--out", str(tmp_path / "vllm")) == 0
    for place in (tmp_path / "merged", tmp_path / "vllm"):
        validate_tokenizer(place, reference)
    checkout = write_checkout(tmp_path / "llama.cpp")
    gguf = tmp_path / "model.gguf"
    assert call("export", "gguf", str(folder), "--out", str(gguf), "--llama-cpp", str(checkout)) == 0
    pieces = [reference.id_to_piece(number) for number in range(reference.get_piece_size())]
    assert read_header(gguf).values["tokenizer.ggml.tokens"].value == pieces


def check_answers(name: str, reference: sentencepiece.SentencePieceProcessor) -> None:
    """The greedy answer in fp32 (in bf16 these random weights have ties) against SentencePieceProcessor.decode of its ids, whole and streamed."""
    opened = open_model(name, dtype="float32")
    messages = [{"role": "user", "content": "首都は？"}]
    options = {"max_new_tokens": 24, "do_sample": False}
    answers = generate_text(opened.model, opened.tokenizer, [messages], **options)
    assert "".join(Chat(opened).stream("首都は？", **options)) == answers[0]
    prompt = opened.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = opened.tokenizer.encode(prompt, add_special_tokens=False)
    asked = torch.tensor([ids])  # with its mask: these models' pad id is their unknown piece
    with torch.no_grad():
        drawn = opened.model.generate(asked, attention_mask=torch.ones_like(asked), **options)[0, len(ids) :].tolist()
    eos = opened.tokenizer.eos_token_id
    whole = reference.decode(drawn[: drawn.index(eos)] if eos in drawn else drawn)
    assert answers[0]
    assert whole.strip().rstrip("\ufffd").strip().startswith(answers[0])  # a stop string may end it earlier


@needs_server
@pytest.mark.slow
@pytest.mark.parametrize("layout", SIX)
def test_served_answers_are_those_of_generate(layout: str, sentencepieces: dict[str, Path]):
    """A folder as its maker published it, by the OpenAI client, whole and streamed."""
    import openai

    folder = sentencepieces[layout]
    port = free_port()
    process = start("serve", str(folder), "--port", str(port), "--device", "cpu")
    try:
        until_it_answers(process, port)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        messages = [{"role": "user", "content": "首都は？"}]
        options = {"model": str(folder), "messages": messages, "max_tokens": 24, "temperature": 0.0}
        text = client.chat.completions.create(**options).choices[0].message.content or ""
        chunks = [chunk for chunk in client.chat.completions.create(**options, stream=True) if chunk.choices]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text.rstrip("\ufffd")
    finally:
        process.terminate()
        process.communicate(timeout=patience(30))
    opened = open_model(str(folder), dtype="float32")
    answer = generate_text(opened.model, opened.tokenizer, [messages], max_new_tokens=24, do_sample=False)[0]
    assert text.strip().startswith(answer)
    assert answer

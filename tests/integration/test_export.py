"""GGUF, Ollama and vLLM: what lands on disk means the same to the other program as to ours."""

from __future__ import annotations

import copy
import json
import os
import re
import struct
from pathlib import Path

import pytest
from tests.support.commands import call
from tests.support.llama_cpp import TEXT, write_checkout
from tests.support.models import build_tokenizer, save_tiny_model
from tests.support.runs import train_lora

from ai_finetuning.errors import ConfigError, InputNotFoundError, ModelError
from ai_finetuning.export.gguf import export_gguf, find_converter, validate_converter
from ai_finetuning.export.gguf_file import (
    ARRAY,
    BOOL,
    BYTE,
    CONTROL,
    FLOAT32,
    INT32,
    STRING,
    UNKNOWN,
    USER_DEFINED,
    Value,
    read_header,
    rewrite,
)
from ai_finetuning.export.gguf_tokenizer import assess, known_hashes, tokenizer_kind, write_piece_model
from ai_finetuning.export.ollama import modelfile, prompt_of
from ai_finetuning.export.source import model_folder
from ai_finetuning.export.vllm import adapter_obstacles, problems_of
from ai_finetuning.japanese.prompts import render
from ai_finetuning.japanese.templates import TEMPLATES
from ai_finetuning.models.probes import PROBES
from ai_finetuning.models.tokenizers import load_tokenizer


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write_checkout(tmp_path / "llama.cpp")


def test_the_tokens_of_a_gguf_are_those_of_training(kotoha: str, checkout: Path, tmp_path: Path, logged):
    """Unigram search, markers found whole, no blank and no BOS in front; the weights byte for byte as converted."""
    out = tmp_path / "out" / "k.gguf"
    assert call("export", "gguf", kotoha, "--out", str(out), "--llama-cpp", str(checkout)) == 0
    header = read_header(out)
    values = {key.removeprefix("tokenizer.ggml."): value.value for key, value in header.values.items()}
    tokenizer = load_tokenizer(kotoha)
    assert values["model"] == "t5"
    assert (values["add_bos_token"], values["add_eos_token"], values["add_space_prefix"]) == (False, False, False)
    assert values["remove_extra_whitespaces"] is False
    kinds = dict(zip(values["tokens"], values["token_type"], strict=True))
    assert {kinds[token] for token in ("<|user|>", "<|assistant|>", "</s>", "<pad>")} == {CONTROL}
    assert (kinds["\n"], kinds["<0x0A>"]) == (USER_DEFINED, BYTE)
    assert values["tokens"] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert out.read_bytes()[header.data_offset :] == bytes(range(32))
    assert header.data_offset % 32 == 0
    assert "unknown tokens in llama.cpp" in logged()
    assert [path.name for path in out.parent.iterdir()] == ["k.gguf"]


def test_a_unigram_tokenizer_without_its_sentencepiece_file_gets_one(kotoha: str, tmp_path: Path):
    import sentencepiece

    tokenizer = load_tokenizer(kotoha)
    write_piece_model(tokenizer, tmp_path / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert [pieces.IdToPiece(number) for number in range(len(tokenizer))] == tokenizer.convert_ids_to_tokens(
        range(len(tokenizer))
    )
    assert pieces.IsUnknown(tokenizer.unk_token_id)
    assert pieces.IsControl(tokenizer.eos_token_id)
    plain = [text for text in PROBES if "\n" not in text]
    assert [pieces.encode(text) for text in plain] == [
        tokenizer.encode(text, add_special_tokens=False) for text in plain
    ]


def test_metadata_of_every_type_survives_a_rewrite(tmp_path: Path):
    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    pairs = [
        string("general.alignment") + struct.pack("<II", 4, 64),
        string("名前") + struct.pack("<I", 8) + string("日本語"),
        string("half") + struct.pack("<If", 6, 0.5),
        string("yes") + struct.pack("<I?", 7, True),
        string("names") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string(""),
        string("wide") + struct.pack("<IQ", 10, 2**40),
    ]
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, len(pairs)) + b"".join(pairs)
    head += string("w") + struct.pack("<IQIQ", 1, 4, 0, 0)
    source, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    source.write_bytes(head + b"\0" * (-len(head) % 64) + b"DATA" * 4)
    rewrite(source, target, {"名前": Value(STRING, "とても長い新しい名前" * 5), "types": Value(ARRAY, [1, -2], INT32)})
    header = read_header(target)
    assert header.values == read_header(source).values | {
        "名前": Value(STRING, "とても長い新しい名前" * 5),
        "types": Value(ARRAY, [1, -2], INT32),
    }
    assert header.values["half"] == Value(FLOAT32, 0.5)
    assert header.values["yes"] == Value(BOOL, True)
    assert header.tensor_names == ["w"]
    assert header.data_offset % 64 == 0
    assert target.read_bytes()[header.data_offset :] == b"DATA" * 4
    for raw in (source.read_bytes()[:60], b"PK" + source.read_bytes()[2:]):
        (tmp_path / "bad.gguf").write_bytes(raw)
        with pytest.raises(ModelError, match="cannot be read as GGUF"):
            read_header(tmp_path / "bad.gguf")


def test_the_converters_table_is_read_without_running_it(checkout: Path, kotoha: str):
    script = find_converter(str(checkout))
    text, hashes = known_hashes(script)
    assert text == TEXT
    assert len(hashes) == 1
    assert assess(build_tokenizer(), "LlamaForCausalLM", script).known is True
    other = copy.deepcopy(build_tokenizer())
    other.add_tokens(["3.3"])
    assert assess(other, "LlamaForCausalLM", script).known is False
    assert assess(build_tokenizer(), "LlamaForCausalLM", None).known is None
    unigram = load_tokenizer(kotoha)
    assert tokenizer_kind(unigram) == "unigram"
    assert assess(unigram, "LlamaForCausalLM", None).known is True
    assert assess(unigram, "GPTNeoXForCausalLM", script).known is False


def test_the_dry_run_says_whether_a_gguf_can_be_made(
    tiny_model_dir: Path,
    kotoha: str,
    checkout: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / "rows.jsonl").write_text('{"text": "東京です。"}\n' * 4, encoding="utf-8")
    arguments = ["train", f"data.train={tmp_path / 'rows.jsonl'}", "--dry-run", f"output_dir={tmp_path / 'o'}"]
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    elsewhere = tmp_path / "some" / "where"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(elsewhere))
    for model, variable, words in (
        (kotoha, "", "the GGUF converter reads this tokenizer"),
        (str(tiny_model_dir), "", "no checkout was found"),
        (str(tiny_model_dir), str(checkout), "converter knows this tokenizer"),
    ):
        monkeypatch.setenv("LLAMA_CPP", variable)
        assert call(*arguments, f"model={model}") == 0
        assert words in capsys.readouterr().out


def test_without_a_checkout_the_two_commands_are_printed(
    kotoha: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for verb, out in (("gguf", "m.gguf"), ("ollama", "folder")):
        assert call("export", verb, kotoha, "--out", out) == 66
        logged = capsys.readouterr().err
        assert "git clone --depth 1 https://github.com/ggml-org/llama.cpp" in logged
        assert f"aift export {verb} {kotoha} --out {out} --llama-cpp llama.cpp" in logged
    assert not list(tmp_path.iterdir())


def test_refused_exports_leave_nothing(kotoha: str, tiny_model_dir: Path, checkout: Path, tmp_path: Path):
    place = tmp_path / "place"
    place.mkdir()
    (place / "mine.gguf").write_bytes(b"mine")
    script = validate_converter(str(checkout), "")
    with pytest.raises(ConfigError, match="exists already"):
        export_gguf(model_folder(kotoha), place / "mine.gguf", script)
    with pytest.raises(ConfigError, match="--type"):
        export_gguf(model_folder(kotoha), place / "new.gguf", script, outtype="q4_k_m")
    with pytest.raises(InputNotFoundError, match="no convert_hf_to_gguf.py"):
        validate_converter(str(place), "")
    # The stand-in reads tokenizer.model only, so for a BPE model it fails as a real converter may.
    with pytest.raises(ModelError, match="converter failed"):
        export_gguf(tiny_model_dir, place / "new.gguf", script)
    assert call("export", "ollama", kotoha, "--out", str(place), "--llama-cpp", str(checkout)) == 78
    from ai_finetuning.models.loading import load_causal_lm

    load_causal_lm(str(tiny_model_dir), load_in_4bit=True).save_pretrained(tmp_path / "nf4")
    build_tokenizer().save_pretrained(tmp_path / "nf4")
    for verb in ("gguf", "ollama", "vllm"):
        assert (
            call(
                "export",
                verb,
                str(tmp_path / "nf4"),
                "--out",
                str(place / "x"),
                *(["--llama-cpp", str(checkout)] if verb != "vllm" else []),
            )
            == 78
        )
    assert call("export", "vllm", str(tmp_path / "nowhere"), "--out", str(place / "x")) == 66
    assert [path.name for path in place.iterdir()] == ["mine.gguf"]
    assert (place / "mine.gguf").read_bytes() == b"mine"


def test_a_place_without_rights_is_told(kotoha: str, checkout: Path, tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    for verb in ("gguf", "ollama"):
        assert call("export", verb, kotoha, "--out", str(tmp_path / "file" / "x"), "--llama-cpp", str(checkout)) == 74


def test_a_disk_without_room_is_told_before_anything_is_written(
    kotoha: str, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from ai_finetuning.export import gguf

    monkeypatch.setattr(gguf, "free_disk_bytes", lambda place: 1_000_000)
    out = tmp_path / "place" / "k.gguf"
    assert call("export", "gguf", kotoha, "--out", str(out), "--llama-cpp", str(checkout)) == 74
    assert "are needed" in capsys.readouterr().err
    assert not list(out.parent.iterdir())


class Go:
    """As much of Go's text/template as a TEMPLATE here uses: strings, fields, if/else, range, len, slice, eq, not."""

    def __init__(self, template: str) -> None:
        self.tokens = re.split(r"(\{\{ .*? \}\})", template)

    def render(self, system: str, messages: list[dict[str, str]]) -> str:
        self.place, self.system, self.messages = 0, system, messages
        return self._block(None, False, True)[0]

    def _value(self, action: str, message: dict[str, str] | None, last: bool):
        if action.startswith('"'):
            return json.loads(action)
        fields = {".System": self.system, "$last": last, "not $last": not last}
        if action in fields:
            return fields[action]
        assert message is not None
        if obtained := re.fullmatch(r'eq \.Role "(\w+)"', action):
            return message["role"] == obtained[1]
        return {".Content": message["content"]}[action]

    def _block(self, message, last: bool, live: bool) -> tuple[str, str]:
        text = ""
        while self.place < len(self.tokens):
            token = self.tokens[self.place]
            self.place += 1
            if not token.startswith("{{ "):
                text += token
                continue
            action = token[3:-3]
            if action in ("end", "else") or action.startswith("else if"):
                return text, action
            if action.startswith("if "):
                text += self._if(action[3:], message, last, live)
            elif action == "range $i, $_ := .Messages":
                start = self.place
                for number, item in enumerate(self.messages):
                    self.place = start
                    text += self._block(item, number == len(self.messages) - 1, live)[0]
            elif action != "$last := eq (len (slice $.Messages $i)) 1" and live:
                text += self._value(action, message, last)
        return text, ""

    def _if(self, condition: str, message, last: bool, live: bool) -> str:
        holds = live and bool(self._value(condition, message, last))
        text, closed = self._block(message, last, holds)
        chosen = text if holds else ""
        if closed.startswith("else if"):
            return chosen + self._if(closed[len("else if ") :], message, last, live and not holds)
        if closed == "else":
            other, _ = self._block(message, last, live and not holds)
            return chosen or (other if live and not holds else "")
        return chosen


SYSTEM = {"role": "system", "content": "短く {{ 答えて }}。"}
TALK = [
    {"role": "user", "content": '日本の"首都"は？'},
    {"role": "assistant", "content": "東京です。"},
    {"role": "user", "content": "人口は？"},
    {"role": "assistant", "content": "多いです。"},
    {"role": "user", "content": "面積は？"},
]


@pytest.mark.parametrize("key", TEMPLATES)
def test_every_familys_ollama_template_writes_what_training_wrote(key: str):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = TEMPLATES[key].jinja
    prompt = prompt_of(tokenizer)
    text = modelfile("m.gguf", tokenizer)
    template = re.search(r'^TEMPLATE """(.*)"""$', text, re.DOTALL | re.MULTILINE)[1]
    assert template == prompt.go()
    for length in (1, 3, 5):
        for messages in (TALK[:length], [SYSTEM, *TALK[:length]]):
            system = messages[0]["content"] if messages[0] is SYSTEM else ""
            expected = render(tokenizer, messages, add_generation_prompt=True).removeprefix("<s>")
            assert Go(template).render(system, messages) == expected
    assert 'PARAMETER stop "</s>"' in text
    for stop in TEMPLATES[key].stop_strings:
        assert f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" in text


def test_a_prompt_in_go_written_by_hand():
    """One golden, so that renderer, cutting and interpreter cannot be wrong together."""
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = TEMPLATES["qwen3_chatml"].jinja
    assert prompt_of(tokenizer).go() == (
        '{{ if .System }}{{ "<|im_start|>system\\n" }}{{ .System }}{{ "<|im_end|>\\n<|im_start|>user\\n" }}{{ else }}'
        '{{ "<|im_start|>user\\n" }}{{ end }}{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages '
        "$i)) 1 }}"
        '{{ if eq .Role "user" }}{{ .Content }}{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}'
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}{{ "<|im_end|>\\n<|im_start|>user\\n" '
        "}}{{ end }}{{ end }}{{ end }}"
    )


def test_a_template_that_changes_contents_is_left_out_and_told(logged):
    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | replace('。', '.') }}{% endfor %}"
    text = modelfile("m.gguf", tokenizer)
    assert "TEMPLATE" not in text
    assert text.startswith("FROM ./m.gguf\n")
    assert "cannot be written as an Ollama TEMPLATE" in logged()


def test_an_ollama_folder_is_whole(kotoha: str, checkout: Path, tmp_path: Path):
    out = tmp_path / "ollama"
    assert call("export", "ollama", kotoha, "--out", str(out), "--llama-cpp", str(checkout)) == 0
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "model-q8_0.gguf"]
    assert (out / "Modelfile").read_text(encoding="utf-8").startswith("FROM ./model-q8_0.gguf\n")


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "adapter"
    train_lora(tiny_model_dir, folder, num_epochs=1)
    return folder


def test_what_vllm_reads_is_there(adapter: Path, tiny_model_dir: Path, tmp_path: Path, logged):
    bare = save_tiny_model(tmp_path / "bare")
    for name in ("chat_template.jinja", "generation_config.json"):
        (bare / name).unlink(missing_ok=True)
    assert problems_of(bare) == ["chat_template.jinja", "generation_config.json: eos_token_id"]
    for number, model in enumerate((adapter, bare)):
        out = tmp_path / f"vllm{number}"
        assert call("export", "vllm", str(model), "--out", str(out)) == 0
        assert problems_of(out) == []
        assert json.loads((out / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"] == 2
        assert not list(out.glob("adapter_*"))
    assert "--enable-lora --lora-modules adapter=" in logged()
    assert "--max-lora-rank 8" in logged()


def test_adapters_that_vllm_cannot_put_on_are_told(tiny_model_dir: Path, adapter: Path, tmp_path: Path, logged):
    assert adapter_obstacles(adapter) == []
    train_lora(tiny_model_dir, tmp_path / "a", lora={"modules_to_save": ["lm_head"], "use_dora": True}, num_epochs=1)
    assert adapter_obstacles(tmp_path / "a") == ["modules_to_save=['lm_head']", "use_dora=True"]
    assert call("export", "vllm", str(tmp_path / "a"), "--out", str(tmp_path / "v")) == 0
    assert "does not take this adapter" in logged()


def test_an_adapter_is_merged_once_and_again_when_it_changes(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged
):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    import shutil

    mine = tmp_path / "mine"
    shutil.copytree(adapter, mine)
    first = model_folder(str(mine))
    assert "merging the adapter" in logged()
    assert model_folder(str(mine)) == first
    assert "merged earlier" in logged()
    assert problems_of(first) == []
    settings = json.loads((mine / "adapter_config.json").read_text(encoding="utf-8"))
    (mine / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 1}), encoding="utf-8")
    assert model_folder(str(mine)) != first


@pytest.mark.skipif(not os.environ.get("LLAMA_CPP"), reason="LLAMA_CPP names no checkout of llama.cpp")
def test_a_real_converter_keeps_the_models_numbers(kotoha: str, tmp_path: Path):
    out = tmp_path / "k.gguf"
    assert call("export", "gguf", kotoha, "--out", str(out), "--type", "f32") == 0
    header = read_header(out)
    assert len(header.tensor_names) == 57
    assert UNKNOWN in header.values["tokenizer.ggml.token_type"].value
    assert header.values["tokenizer.chat_template"].value == load_tokenizer(kotoha).chat_template

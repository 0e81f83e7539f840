"""Models from somebody else: nothing but safetensors is opened, and no code, kernel or request comes with them."""

from __future__ import annotations

import http.server
import json
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ai_finetuning.apps.cli.main import run
from ai_finetuning.convert.quantize import QuantizationOptimizer
from ai_finetuning.errors import HubError, ModelError
from ai_finetuning.export.source import model_folder
from ai_finetuning.export.vllm import export_vllm
from ai_finetuning.inference.session import open_model
from ai_finetuning.japanese.prompts import render, validate_template
from ai_finetuning.japanese.templates import TEMPLATES
from ai_finetuning.models import hub
from ai_finetuning.models.adapters import add_lora, load_adapter, target_modules
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.models.source import find_model, find_tokenizer, validate_safetensors
from ai_finetuning.models.tokenizers import load_tokenizer
from ai_finetuning.system import network


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.fixture
def received(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model's folder that may be changed, with a pickle beside its weights."""
    folder = tmp_path / "received"
    shutil.copytree(tiny_model_dir, folder)
    for name in ("evil.bin", "pytorch_model.bin", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    return folder


def with_index(folder: Path, content: object, name: str = "model.safetensors.index.json") -> None:
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def with_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def index_of(*files: object) -> dict[str, object]:
    return {"metadata": {}, "weight_map": {f"w{n}": file for n, file in enumerate(files)}}


FOLDERS: dict[str, Callable[[Path], object]] = {
    "an index of pickles": lambda folder: with_index(folder, index_of("evil.bin")),
    "one pickle among many": lambda folder: with_index(folder, index_of("decoy.safetensors", "evil.bin")),
    "the folder above": lambda folder: with_index(folder, index_of("../x.safetensors")),
    "an absolute path": lambda folder: with_index(folder, index_of("/x.safetensors")),
    "another system's path": lambda folder: with_index(folder, index_of("..\\x.safetensors")),
    "no name": lambda folder: with_index(folder, index_of(None)),
    "no map": lambda folder: with_index(folder, {"weight_map": ["evil.bin"]}),
    "no JSON": lambda folder: with_index(folder, "{"),
    "deep JSON": lambda folder: with_index(folder, "[" * 100_000),
    "only a decoy": lambda folder: (folder / "model.safetensors").rename(folder / "decoy.safetensors"),
    "a pickle that config.json names": lambda folder: with_config(folder, transformers_weights="adapter_model.bin"),
    "an index that config.json names": lambda folder: with_named_index(folder),
}


def with_named_index(folder: Path) -> None:
    with_config(folder, transformers_weights="x.safetensors.index.json")
    with_index(folder, index_of("evil.bin"), "x.safetensors.index.json")


def train(folder: Path) -> None:
    rows = folder.parent / "rows.jsonl"
    rows.write_text('{"instruction": "首都は？", "output": "東京です。"}\n' * 8, encoding="utf-8")
    out = folder.parent / "out"
    code = run(["train", f"model={folder}", "method=lora", f"data.train={rows}", f"training.output_dir={out}"])
    if code == 78:
        raise ModelError("", "refused")


LOADERS: dict[str, Callable[[Path], object]] = {
    "generate": lambda folder: load_causal_lm(str(folder)),
    "serve": lambda folder: model_folder(str(folder)),  # what it starts transformers' server on
    "export": lambda folder: export_vllm(str(folder), folder.parent / "exported"),
    "quantize": lambda folder: QuantizationOptimizer(str(folder)).quantize_to_4bit(str(folder.parent / "quantized")),
    "train": train,
}


@pytest.mark.parametrize("prepare", FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_only_plain_safetensors_names_reach_transformers(
    received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare, load
):
    """Refused before torch.load could be asked, by every way to the weights."""
    import torch
    import transformers

    def opened(*args: object, **kwargs: object) -> None:
        raise AssertionError("transformers or torch.load was reached")

    prepare(received)
    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", opened)
    with pytest.raises(ModelError):
        load(received)
    assert not (tmp_path / "boom").exists()


def test_models_with_pickles_beside_their_safetensors_load(received: Path, tmp_path: Path):
    """Makers keep both; the pickles stay closed."""
    (received / "pytorch_model.bin.index.json").write_text(json.dumps(index_of("evil.bin")))
    assert load_causal_lm(str(received)).num_parameters() > 0
    with_index(received, index_of("decoy.safetensors"))
    validate_safetensors(find_model(str(received)))
    assert not (tmp_path / "boom").exists()


KERNELS: dict[str, dict[str, object]] = {
    "attn_implementation": {"attn_implementation": "attacker/kernel"},
    "_attn_implementation": {"_attn_implementation": "attacker/kernel@main:forward"},
    "_attn_implementation_internal": {"_attn_implementation_internal": "attacker/kernel"},
    "experts_implementation": {"experts_implementation": "attacker/kernel"},
    "by part": {"attn_implementation": {"": "attacker/kernel"}},
    "of a part": {"text_config": {"attn_implementation": "paged|attacker/kernel"}},
    "kernel_config": {"kernel_config": {"RMSNorm": ["attacker/kernel:Norm"]}},
}


@pytest.mark.parametrize("values", KERNELS.values(), ids=KERNELS)
def test_a_kernel_that_config_json_names_is_never_asked_for(
    received: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, object]
):
    """With a stand-in for the package `kernels` on the path, which would note what it is asked for."""
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'asked')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(package.parent))
    with_config(received, **values)
    with pytest.raises(ModelError, match="attacker/kernel"):
        load_causal_lm(str(received))
    for look in (find_model, find_tokenizer, model_folder):
        with pytest.raises(ModelError, match="attacker/kernel"):
            look(str(received))
    assert not (tmp_path / "asked").exists()


def test_attentions_that_transformers_has_itself_are_taken(received: Path):
    with_config(received, attn_implementation="eager", layer_types=["full_attention"] * 2, _name_or_path="a/b")
    assert load_causal_lm(str(received)).num_parameters() > 0


def test_a_config_json_that_is_no_object_is_refused(received: Path):
    for text in ("[]", "{", "[" * 100_000):
        (received / "config.json").write_text(text)
        for look in (find_model, find_tokenizer):
            with pytest.raises(ModelError):
                look(str(received))


@pytest.mark.parametrize("key", ["text_config", "quantization_config", "architectures"])
@pytest.mark.parametrize("value", [3, "x", True])
def test_a_part_of_a_config_json_that_is_no_group_is_refused_before_it_is_read(received: Path, key: str, value: object):
    with_config(received, **{key: value})
    for look in (find_model, find_tokenizer):
        with pytest.raises(ModelError, match=f"{key} in its config.json"):
            look(str(received))


class Hub(http.server.ThreadingHTTPServer):
    """Notes what it is asked, and with which token; `private` asks who is there."""

    private = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        token = self.headers.get("Authorization")
        self.server.asked.append((self.path, token))
        self.send_response(401 if self.server.private and token != "Bearer hf_secret" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def asked_hub(monkeypatch: pytest.MonkeyPatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ask", [open_model, model_folder], ids=["generate", "merge"])
def test_the_base_that_an_adapter_names_is_said_and_asked_for_without_the_token(
    tmp_path: Path, asked_hub: Hub, logged, ask
):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "attacker/beacon"}))
    (adapter / "adapter_model.safetensors").touch()
    with pytest.raises(HubError):
        ask(str(adapter))
    assert "names attacker/beacon as its base" in logged()
    assert asked_hub.asked
    assert {token for _, token in asked_hub.asked} == {None}


def test_a_private_model_is_asked_for_again_with_the_token(asked_hub: Hub):
    asked_hub.private = True
    with pytest.raises(HubError):
        hub.preflight("own/private")
    assert [token for _, token in asked_hub.asked] == [None, "Bearer hf_secret"]


@pytest.mark.parametrize(
    ("url", "carries"),
    [
        ("https://huggingface.co/x", True),
        ("http://127.0.0.1:8000/x", True),
        ("http://[::1]:8000/x", True),
        ("http://localhost/x", True),
        ("http://mirror.example/x", False),
        ("http://127.0.0.1.evil.example/x", False),
        ("http://localhost@evil.example/x", False),
        ("ftp://localhost.example/x", False),
    ],
)
def test_no_token_goes_unencrypted_over_a_network(url: str, carries: bool):
    assert network.carries_tokens(url) is carries


def test_huggingface_hub_sends_no_token_to_an_unencrypted_mirror(asked_hub: Hub, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "0")
    assert "authorization" in build_hf_headers()
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.invalid")
    with pytest.raises(HubError):
        hub.preflight("own/private", limit_seconds=0.5)
    assert "authorization" not in build_hf_headers()


def within(seconds: float, call: Callable[[], object]) -> object:
    before = time.monotonic()
    obtained = call()
    assert time.monotonic() - before < seconds
    return obtained


def with_template(folder: Path, text: str):
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "text", ["{{ 1 }}" + "a" * 70_000, "{% for a in x %}" * 7 + "{% endfor %}" * 7, "{% for" * 200_000]
)
def test_a_chat_template_has_a_size(received: Path, text: str):
    with pytest.raises(ModelError, match="chat template is too large"):
        within(5, lambda: with_template(received, text))


def test_honest_templates_count_and_print_the_date(received: Path):
    text = "{% for a in range(1, 3) %}{{ a }}{% endfor %}{{ strftime_now('%Y-%m-%d') }}{{ strftime_now( \"%d 'b'\" ) }}"
    assert render(with_template(received, text), [{"role": "user", "content": "a"}]) == "122026-01-0101 'b'"
    for template in TEMPLATES.values():
        validate_template(template.jinja)


def with_targets(folder: Path, **values: object) -> Path:
    add_lora(load_causal_lm("embedded:kotoha-tiny", dtype="float32"), r=4, alpha=8).save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


@pytest.mark.parametrize(
    "pattern", ["(([a-z0-9_.])+)+#", "(?:.*?(?:layers).*?(?:self_attn|mlp).*?(?:[a-z]*_proj).*?)", r".*\.(q|v)_proj"]
)
def test_layers_of_an_adapter_are_found_in_bounded_time(tmp_path: Path, pattern: str):
    """Expressions that may be endless are not matched: the file says which layers it has."""
    plain = with_targets(tmp_path / "plain")
    layers = target_modules(load_adapter(load_causal_lm("embedded:kotoha-tiny"), plain))
    folder = with_targets(tmp_path / "received", target_modules=pattern)
    if pattern.startswith(r".*\."):  # short: matched as it is, and the file has more
        with pytest.raises(ModelError):
            load_adapter(load_causal_lm("embedded:kotoha-tiny"), folder)
        return
    obtained = within(10, lambda: load_adapter(load_causal_lm("embedded:kotoha-tiny"), folder))
    assert {name.split(".")[-1] for name in target_modules(obtained)} == {name.split(".")[-1] for name in layers}


ENDLESS = [
    "(([a-z0-9_.])+)+#",
    "[a-z]?" * 30 + "[a-z]" * 30,
    "(.|[a-z])" * 30 + "#",
    ".*.*.*.*.*.*#",
    "(?P<a>.)+(?P=a)#",
]


@pytest.mark.parametrize(
    ("key", "endless"),
    [("exclude_modules", ENDLESS[0]), ("alpha_pattern", ENDLESS[0]), *(("rank_pattern", one) for one in ENDLESS)],
)
def test_other_patterns_of_an_adapter_are_bounded(tmp_path: Path, key: str, endless: str):
    folder = with_targets(tmp_path / "received", **{key: endless if key == "exclude_modules" else {endless: 8}})
    with pytest.raises(ModelError, match=key):
        within(10, lambda: load_adapter(load_causal_lm("embedded:kotoha-tiny"), folder))

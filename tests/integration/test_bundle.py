"""`aift bundle`: a model carried into a network without internet is the one that was carried, or is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from tests.support.commands import call, spawn
from tests.support.hub import COMMIT, Hub
from tests.support.llama_cpp import write_checkout

from ai_finetuning.errors import DataError, InputNotFoundError
from ai_finetuning.export import llama_cpp
from ai_finetuning.export.bundle import verify_bundle
from ai_finetuning.export.gguf import find_converter, validate_converter
from ai_finetuning.models import catalog

NAME = "example/tiny"


@pytest.fixture
def repository(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A hub's repository in two shards, with code, a pickle and a second copy of the weights beside them."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "repository"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) >= 2
    for name in ("modeling_evil.py", "pytorch_model.bin", "consolidated.safetensors", "training.png", "LICENSE"):
        (folder / name).write_bytes(name.encode())
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n", encoding="utf-8")
    return folder


def test_a_model_of_the_hub_is_carried_without_code_and_verified(tmp_path: Path, repository: Path, logged):
    out = tmp_path / "持ち込み"
    with Hub(NAME, repository) as hub:
        code, output = spawn("bundle", NAME, "--out", str(out), **hub.variables(tmp_path / "home"))
    assert code == 0, output
    assert "apache-2.0" in output
    assert "aift bundle verify" in output
    manifest = json.loads((out / "bundle.json").read_text(encoding="utf-8"))
    assert (manifest["model"], manifest["revision"], manifest["licence"]) == (NAME, COMMIT, "apache-2.0")
    carried = {path.name for path in out.iterdir()}
    assert {"config.json", "tokenizer.json", "LICENSE", "README.md", "model.safetensors.index.json"} <= carried
    assert not carried & {"modeling_evil.py", "pytorch_model.bin", "consolidated.safetensors", "training.png", ".cache"}
    for line in (out / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
        assert (out / name).read_bytes() == (repository / name).read_bytes()
    assert call("bundle", "verify", str(out)) == 0
    assert call("generate", str(out), "質問", "--max-new-tokens", "2", "--greedy") == 0


def test_a_download_that_broke_off_goes_on_by_the_same_command(tmp_path: Path, repository: Path):
    out, home = tmp_path / "out", tmp_path / "home"
    shard = sorted(repository.glob("model-*.safetensors"))[-1].name
    with Hub(NAME, repository) as hub:
        hub.spoilt = {shard}
        code, output = spawn("bundle", NAME, "--out", str(out), **hub.variables(home))
        assert code == 69
        assert shard in output
        assert not (out / "bundle.json").exists()
        assert not (out / shard).exists()
        with pytest.raises(InputNotFoundError, match="same command again"):
            verify_bundle(out)
        hub.spoilt, hub.asked = set(), []
        code, output = spawn("bundle", NAME, "--out", str(out), **hub.variables(home))
    assert code == 0, output
    first = sorted(repository.glob("model-*.safetensors"))[0].name
    assert not any(path.endswith(first) for path in hub.asked)  # it was here already
    verify_bundle(out)


@pytest.fixture
def bundle(tmp_path: Path, tiny_model_dir: Path) -> Path:
    out = tmp_path / "bundle"
    assert call("bundle", str(tiny_model_dir), "--out", str(out)) == 0
    return out


def _truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def _flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def _add(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")


def _link(folder: Path) -> None:
    (folder / "config.json").rename(folder.parent / "elsewhere.json")
    (folder / "config.json").symlink_to(folder.parent / "elsewhere.json")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_truncate, "model.safetensors: 1,000 bytes"),
        (_flip, "model.safetensors: other content"),
        (_add, "adapter_config.json: was not bundled"),
        (_link, "config.json: missing"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    ],
)
def test_what_changed_on_the_way_is_named(bundle: Path, change, named: str):
    verify_bundle(bundle)
    change(bundle)
    with pytest.raises(DataError) as refused:
        verify_bundle(bundle)
    assert named in refused.value.en
    assert call("bundle", "verify", str(bundle)) == 65


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "a/b.json", "..", "additional_chat_templates/../x"])
def test_a_manifest_names_files_of_its_folder_only(bundle: Path, name: str):
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"size": 1, "sha256": "0" * 64}
    (bundle / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(DataError, match=r"bundle\.json"):
        verify_bundle(bundle)


def test_a_bundle_is_still_the_model_of_the_catalog(bundle: Path):
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    manifest["model"] = "cyberagent/calm2-7b-chat"
    (bundle / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    row = catalog.lookup(str(bundle))
    assert row is not None
    assert row.template == "calm2"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_manifest_that_never_ends_is_none(tmp_path: Path):
    """Every model's folder is asked for one; a pipe in its place would be waited for."""
    os.mkfifo(tmp_path / "bundle.json")
    assert catalog.lookup(str(tmp_path)) is None


def test_what_cannot_be_bundled_is_refused_with_the_way_out(tmp_path: Path, bundle: Path, logged):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "example/base"}', encoding="utf-8")
    assert call("bundle", str(adapter), "--out", str(tmp_path / "a")) == 78
    assert "example/base" in logged()
    assert call("bundle", str(bundle), "--out", str(bundle)) == 78  # not empty
    assert call("bundle", str(bundle)) == 64
    assert call("bundle", "verify") == 64
    assert call("bundle", "verify", str(tmp_path)) == 66


def _archive(path: Path, checkout: Path, *evil: tarfile.TarInfo) -> Path:
    """An archive shaped like the one on PyPI around a checkout."""
    inside = f"{path.name.removesuffix('.tar.gz')}/vendor/llama.cpp"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(checkout / "convert_hf_to_gguf.py", f"{inside}/convert_hf_to_gguf.py")
        for member in evil:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive that is the one whose content is known; it holds members that a careless reader would follow."""
    evil = []
    for name in (
        "../../escape",
        "/tmp/aift-escape",
        f"{llama_cpp.ARCHIVE.removesuffix('.tar.gz')}/vendor/llama.cpp/conversion/../../../../escape",
        f"{llama_cpp.ARCHIVE.removesuffix('.tar.gz')}/setup.py",
    ):
        member = tarfile.TarInfo(name)
        member.size = 3
        evil.append(member)
    link = tarfile.TarInfo(f"{llama_cpp.ARCHIVE.removesuffix('.tar.gz')}/vendor/llama.cpp/conversion/link.py")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = _archive(tmp_path / llama_cpp.ARCHIVE, write_checkout(tmp_path / "checkout"), *evil, link)
    monkeypatch.setattr(llama_cpp, "SIZE", path.stat().st_size)
    monkeypatch.setattr(llama_cpp, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_gguf_without_git_takes_the_archive_with_the_known_content(kotoha: str, tmp_path: Path, pinned: Path):
    out = tmp_path / "k.gguf"
    assert call("export", "gguf", kotoha, "--out", str(out), "--llama-cpp", str(pinned)) == 0
    assert out.read_bytes()[:4] == b"GGUF"
    script = find_converter(str(pinned))
    assert script is not None
    assert {path.name for path in script.parent.rglob("*")} == {"convert_hf_to_gguf.py"}
    assert not (tmp_path / "escape").exists()
    assert not Path("/tmp/aift-escape").exists()


def test_another_archive_is_not_run(tmp_path: Path, pinned: Path):
    with pinned.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match="nothing in it is run"):
        validate_converter(str(pinned), "")
    assert find_converter(str(pinned), lenient=True) is None
    with pytest.raises(DataError):
        find_converter(beside=pinned.parent)


def test_the_converter_lies_beside_the_model(kotoha: str, tmp_path: Path, pinned: Path, monkeypatch):
    """The archive that lies in the folder already is taken; export finds it beside the model, wherever one stands."""
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    out = tmp_path / "carried"
    index = tmp_path / "index" / "simple" / "llama-cpp-python"
    index.mkdir(parents=True)
    with Hub(NAME, tmp_path) as hub:
        hub.pages[f"/simple/{index.name}/"] = f'<a href="../files/{pinned.name}#sha256=0">x</a>'.encode()
        hub.pages[f"/simple/files/{pinned.name}"] = pinned.read_bytes()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{hub.server_port}/simple")
        monkeypatch.setenv("NO_PROXY", "*")
        assert call("bundle", kotoha, "--out", str(out), "--gguf") == 0
    bundle = verify_bundle(out)
    assert bundle.model == kotoha
    assert llama_cpp.ARCHIVE in bundle.files
    assert call("export", "gguf", str(out), "--out", str(tmp_path / "m.gguf")) == 0


@pytest.mark.parametrize(
    "page",
    [b"", b'<a href="other.tar.gz">x</a>', b'<a href="http://192.0.2.1/ARCHIVE">x</a>', b'<a href="ARCHIVE">x</a>'],
)
def test_without_the_right_archive_on_the_index_the_way_out_is_said(tmp_path: Path, monkeypatch, page: bytes, logged):
    with Hub(NAME, tmp_path) as hub:
        hub.pages["/simple/llama-cpp-python/"] = page.replace(b"ARCHIVE", llama_cpp.ARCHIVE.encode())
        hub.pages[f"/simple/llama-cpp-python/{llama_cpp.ARCHIVE}"] = b"something else"
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{hub.server_port}/simple")
        monkeypatch.setenv("NO_PROXY", "*")
        assert call("bundle", "embedded:kotoha-tiny", "--out", str(tmp_path / "out"), "--gguf") == 69
    assert llama_cpp.ARCHIVE in logged()
    assert [path.name for path in (tmp_path / "out").glob("*.tar.gz")] == []


@pytest.mark.slow
def test_the_archive_of_pypi_converts(kotoha: str, tmp_path: Path):
    """AIFT_LLAMA_CPP_ARCHIVE names the real file; CI machines without a network have none."""
    named = os.environ.get("AIFT_LLAMA_CPP_ARCHIVE", "")
    if not Path(named).is_file():
        pytest.skip(f"AIFT_LLAMA_CPP_ARCHIVE does not name {llama_cpp.ARCHIVE}")
    assert call("export", "gguf", kotoha, "--out", str(tmp_path / "k.gguf"), "--llama-cpp", named) == 0

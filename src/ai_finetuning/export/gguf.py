"""GGUF through a llama.cpp checkout: runs its unchanged converter, then corrects the tokenizer's metadata."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from ..errors import ConfigError, DataError, InputNotFoundError, ModelError, StorageError
from ..execution.output_folder import free_disk_bytes, no_space, not_written
from ..messages import notice, warn
from ..models.source import find_model, weight_file_bytes
from ..models.tokenizers import load_tokenizer, prompt_style
from ..system.files import is_private, refuse_links_outside, staging_folder
from . import llama_cpp
from .gguf_file import BYTE, Header, read_header, rewrite
from .gguf_tokenizer import UNIGRAM, assess, metadata, tokenizer_kind, write_piece_model

TYPES = ("f32", "f16", "bf16", "q8_0")
VARIABLE, SCRIPT = "LLAMA_CPP", "convert_hf_to_gguf.py"
# None depends on the folder where the user stands: a data set or a cloned repository could bring a converter.
_PLACES = ("~/llama.cpp", "~/src/llama.cpp", "/opt/llama.cpp", "/usr/local/src/llama.cpp")
# Bytes of a weight: q8_0 has a 16-bit scale for 32 weights.
_BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.0625}


def find_converter(checkout: str | None = None, *, lenient: bool = False, beside: Path | None = None) -> Path | None:
    """The converter's script: in the named checkout or archive, that of `$LLAMA_CPP`, one in a usual place that only
    this user or root can write to, or in the archive that `aift bundle --gguf` put beside a model; None where there is
    none.

    Args:
        lenient: None also where a checkout was named and is none.
        beside: a model's folder.

    Raises:
        InputNotFoundError: a checkout was named and the script is not in it.
        DataError: an archive was named, and it is not the one whose content is known.
    """
    named = checkout or os.environ.get(VARIABLE)
    if named and Path(named).expanduser().is_file():
        return _unpacked_script(Path(named).expanduser(), lenient=lenient)
    for place in (named,) if named else _PLACES:
        script = (Path(place).expanduser() / SCRIPT).resolve()
        if script.is_file() and (named or (is_private(script) and is_private(script.parent))):
            return script
    if named and not lenient:
        raise InputNotFoundError(
            f"{named} に {SCRIPT} がありません。llama.cpp のチェックアウトか {llama_cpp.ARCHIVE} を指定してください（--llama-cpp か環境変数 {VARIABLE}）。",
            f"{named} has no {SCRIPT}; name a checkout of llama.cpp or {llama_cpp.ARCHIVE} (--llama-cpp, or the variable "
            f"{VARIABLE}).",
        )
    if beside is not None and (beside / llama_cpp.ARCHIVE).is_file():
        return _unpacked_script(beside / llama_cpp.ARCHIVE, lenient=lenient)
    return None


def _unpacked_script(archive: Path, *, lenient: bool) -> Path | None:
    try:
        return llama_cpp.unpacked(archive.resolve()) / SCRIPT
    except DataError:
        if lenient:
            return None
        raise


def validate_converter(checkout: str | None, command: str, *, beside: Path | None = None) -> Path:
    """The converter's script.

    Args:
        command: what the user typed, for the way out.
        beside: the model's folder, which `aift bundle --gguf` may have put the converter into.

    Raises:
        InputNotFoundError: there is no checkout; names the commands to type.
    """
    script = find_converter(checkout, beside=beside)
    if script is None:
        clone = f"\n  git clone --depth 1 https://github.com/ggml-org/llama.cpp\n  {command} --llama-cpp llama.cpp"
        file = f"\n  {command} --llama-cpp {llama_cpp.ARCHIVE}"
        raise InputNotFoundError(
            f"GGUF への変換には llama.cpp の変換プログラムが必要です（ビルドは不要）。次の 2 つを実行してください:{clone}\n"
            f"git がなければ、PyPI の llama-cpp-python から {llama_cpp.ARCHIVE} を取得して指定します:{file}",
            f"converting to GGUF needs llama.cpp's converter (no build needed). Run these two commands:{clone}\n"
            f"Without git, fetch {llama_cpp.ARCHIVE} of llama-cpp-python from PyPI and name it:{file}",
        )
    notice(f"変換プログラム {script} を実行します。", f"the converter is {script}.")
    return script


def export_gguf(folder: Path, out: Path, converter: Path, *, outtype: str = "q8_0") -> Header:
    """Writes a model's folder as one GGUF file with which llama.cpp tokenizes text as in training.

    Args:
        folder: a whole 16-bit model (see source.py).
        out: a file that is not there yet.
        converter: from validate_converter.
        outtype: one of TYPES.

    Returns:
        The header of the file, read back.

    Raises:
        ConfigError: another type, or a file that is there. ModelError: the converter does not know the model or its
            tokenizer.
        StorageError: it cannot be written.
    """
    validate_output(out, outtype)
    refuse_links_outside(folder)
    tokenizer = load_tokenizer(str(folder))
    architecture = find_model(str(folder)).architecture
    verdict = assess(tokenizer, architecture, converter)
    if verdict.known is False:
        raise ModelError(verdict.ja, verdict.en)
    weights = weight_file_bytes(folder)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        needed = int(weights * _BYTES[outtype])  # two files of it for a moment, from weights of two bytes
        if free_disk_bytes(out.parent) < needed:
            raise no_space(out.parent, needed)
        with staging_folder(out) as staging:
            raw, fixed = staging / "converted.gguf", staging / "fixed.gguf"
            with _prepared(folder, tokenizer) as prepared:
                _run(converter, prepared, raw, outtype)
            ends = prompt_style(tokenizer, generation_config(folder)).stop_token_ids
            values = read_header(raw).values
            rewrite(raw, fixed, metadata(tokenizer, values, ends))
            header = read_header(fixed)
            _refuse_other_tokens(header, tokenizer)
            os.replace(fixed, out)
    except OSError as error:
        if isinstance(error, StorageError | InputNotFoundError):
            raise
        raise not_written(out, error) from error
    _say(out, header, tokenizer)
    return header


def validate_type(outtype: str) -> None:
    """Raises ConfigError for a type that is not in TYPES."""
    if outtype not in TYPES:
        raise ConfigError(
            f"--type が {outtype!r} です。{', '.join(TYPES)} のいずれかにしてください。",
            f"--type is {outtype!r}; it must be one of {', '.join(TYPES)}.",
        )


def validate_output(out: Path, outtype: str) -> None:
    """Raises ConfigError for another type or a file that is there already."""
    validate_type(outtype)
    if out.exists():
        raise ConfigError(
            f"出力先 {out} はすでにあります。別の名前を指定してください。",
            f"{out} exists already; choose another name.",
        )


def generation_config(folder: Path) -> Any:
    """A model folder's GenerationConfig, None where it has none."""
    return GenerationConfig.from_pretrained(str(folder)) if (folder / "generation_config.json").is_file() else None


@contextmanager
def _prepared(folder: Path, tokenizer: Any) -> Iterator[Path]:
    """A folder for the converter: links to the weights, the tokenizer as it is in force, a tokenizer.model where one
    is needed.
    """
    with tempfile.TemporaryDirectory(prefix="aift-gguf-") as name:
        place = Path(name)
        for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
            (place / path.name).symlink_to(path.resolve())
        for file in ("config.json", "generation_config.json"):
            if (folder / file).is_file():
                shutil.copyfile(folder / file, place / file)
        tokenizer.save_pretrained(place)
        pieces = place / "tokenizer.model"
        if not pieces.exists() and (folder / pieces.name).is_file():
            shutil.copyfile(folder / pieces.name, pieces)
        elif not pieces.exists() and tokenizer_kind(tokenizer) == UNIGRAM:
            write_piece_model(tokenizer, pieces)
        yield place


def _run(converter: Path, folder: Path, out: Path, outtype: str) -> None:
    """Runs the converter in a process of its own, without a shell and without the network."""
    command = [sys.executable, str(converter), str(folder), "--outfile", str(out), "--outtype", outtype]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False
    )
    if done.returncode == 0 and out.is_file():
        return
    lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {done.returncode}"
    raise ModelError(
        f"llama.cpp の変換が失敗しました: {last} llama.cpp を新しくするか、対応するモデルか確かめてください。",
        f"llama.cpp's converter failed: {last} Update llama.cpp, or check that it supports this model.",
    )


def _refuse_other_tokens(header: Header, tokenizer: Any) -> None:
    """Raises ModelError where the file's vocabulary is not the tokenizer's."""
    tokens = header.values["tokenizer.ggml.tokens"].value
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    expected = {number: text for text, number in tokenizer.get_vocab().items()} | added
    # Blanks of added tokens are written as blanks.
    wrong = [
        number
        for number, text in expected.items()
        if number >= len(tokens) or tokens[number].replace("▁", " ") != text.replace("▁", " ")
    ]
    if wrong:
        raise ModelError(
            f"GGUF の語彙がトークナイザーと違います（{len(wrong)} 個、例: {expected[wrong[0]]!r}）。保存を取り消しました。",
            f"the GGUF's vocabulary differs from the tokenizer's ({len(wrong)} tokens differ, such as "
            f"{expected[wrong[0]]!r}); the output was deleted.",
        )


def _say(out: Path, header: Header, tokenizer: Any) -> None:
    size = out.stat().st_size / 1e6
    notice(
        f"{out} を書き出しました（{size:.1f} MB、テンソル {len(header.tensor_names)}）。",
        f"wrote {out} ({size:.1f} MB, {len(header.tensor_names)} tensors).",
    )
    if tokenizer_kind(tokenizer) == UNIGRAM and BYTE in header.values["tokenizer.ggml.token_type"].value:
        warn(
            "語彙にない文字（絵文字など）は、llama.cpp では未知語になります（ggml-org/llama.cpp#28862 が直るまで）。",
            "characters outside the vocabulary (emoji and the like) become unknown tokens in llama.cpp, until "
            "ggml-org/llama.cpp#28862 is fixed.",
        )

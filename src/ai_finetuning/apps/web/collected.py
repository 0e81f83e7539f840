"""Training data that people make in a conversation: answers that they rate, correct or keep, each kind in a file of rows
that stands among the uploads and grows.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ...errors import InputNotFoundError, StorageError, UsageError
from ...system.files import read_bounded, write_in_place
from . import uploads
from .site import Language, Site

# Which upload each kind goes to.
_INDEX, _LOCK, _LARGEST = ".collected.json", ".collected.lock", 65_536
# What the files are called, by kind: their objective says what learns from them.
SHOWN = {
    "rating": ("会話の評価.jsonl", "rated-answers.jsonl"),
    "pair": ("会話で直した回答.jsonl", "corrected-answers.jsonl"),
    "row": ("会話から追加した回答.jsonl", "kept-answers.jsonl"),
}
# What a row is about: a later one about the same takes its place.
_ABOUT = {"rating": ("prompt", "completion"), "pair": ("prompt", "rejected"), "row": ("messages",)}
# What was made of an earlier state of a file, and nobody but its page reads. A division stays: a run may be reading it.
_MADE = "table-*"


def row_of(kind: str, conversation: Sequence[Mapping[str, str]], values: Mapping[str, Any]) -> dict[str, Any]:
    """A row of training data, in the columns that `objective` kto, preference and sft read.

    Args:
        kind: `rating`: an answer with `good` true or false; `pair`: an answer and, as `edited`, a better one; `row`: an
            answer to learn.
        conversation: the messages before the answer, the system text among them.
        values: `answer`, and `good` or `edited`.

    Raises:
        UsageError: no such kind, an answer without text, or an edited answer that is the same.
    """
    answer, prompt = values.get("answer"), [dict(turn) for turn in conversation]
    if not isinstance(answer, str) or not answer.strip() or not prompt or prompt[-1]["role"] != "user":
        raise UsageError("保存する回答がありません。", "there is no answer to save.")
    if kind == "rating" and isinstance(values.get("good"), bool):
        # Beside a prompt of messages the answer is one too.
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], "label": values["good"]}
    if kind == "pair":
        edited = values.get("edited")
        if not isinstance(edited, str) or not edited.strip() or edited.strip() == answer.strip():
            raise UsageError("回答を直してから保存してください。", "change the answer, then save it.")
        return {"prompt": prompt, "chosen": edited.strip(), "rejected": answer}
    if kind == "row":
        return {"messages": [*prompt, {"role": "assistant", "content": answer}]}
    raise UsageError("この評価は保存できません。", "this cannot be saved.")


def add(site: Site, kind: str, row: Mapping[str, Any], language: Language) -> uploads.Upload:
    """Writes a row to the file of its kind, which is made where it is missing; returns the upload. Whoever rates or corrects
    an answer once more has changed their mind: the row takes the place of the former one.

    Raises:
        StorageError: it cannot be written.
    """
    line = json.dumps(row, ensure_ascii=False) + "\n"
    try:
        site.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(str(site.data / _LOCK)):
            index = _index(site.data)
            upload = _known(site, index.get(kind))
            if upload is None:
                upload = _new(site, kind, line, language)
                write_in_place(site.data / _INDEX, json.dumps(index | {kind: upload.id}).encode())
                return upload
            content = "".join(_others(upload.file, kind, row)) + line
            write_in_place(upload.file, content.encode())
            for folder in upload.folder.glob(_MADE):
                shutil.rmtree(folder, ignore_errors=True)
            uploads.change(upload, size=len(content.encode()), share=None, grown=upload.grown + 1)
            return uploads.find(site, upload.id)
    except OSError as error:
        raise StorageError(
            f"{site.data} に書けません（{error.strerror or error}）。空き容量と権限を確認してください。",
            f"{site.data} cannot be written ({error.strerror or error}); check space and rights.",
        ) from error


def _others(file: Path, kind: str, row: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a file that are not about the same as a row."""
    for line in file.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            if all(json.loads(line).get(key) == row[key] for key in _ABOUT[kind]):
                continue
        if line.strip():
            yield line + "\n"


def _new(site: Site, kind: str, line: str, language: Language) -> uploads.Upload:
    part = site.data / f".new-{kind}.jsonl"
    try:
        part.write_text(line, encoding="utf-8")
        return uploads.adopt(site, part, SHOWN[kind][0 if language == "ja" else 1])
    finally:
        part.unlink(missing_ok=True)


def _known(site: Site, id: object) -> uploads.Upload | None:
    """The upload of a kind, unless somebody has removed it."""
    if isinstance(id, str):
        with contextlib.suppress(InputNotFoundError, UsageError):
            return uploads.find(site, id)
    return None


def _index(data: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(read_bounded(data / _INDEX, _LARGEST))
        return values if isinstance(values, dict) else {}
    return {}

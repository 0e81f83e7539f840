"""Tasks for lm-evaluation-harness: the same prompts and choices as ours, so that its numbers can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError, StorageError
from ..messages import argument, notice
from .tasks import Task

PREFIX = "aift_"


def export(tasks: Sequence[Task], tokenizer: Any, folder: Path) -> list[Path]:
    """A YAML and a JSON Lines file for each task with choices; run them with `lm_eval --include_path FOLDER --tasks
    aift_NAME`. Answers, instructions and prose are measured here only, which is said.

    Raises:
        ConfigError: no task has choices. StorageError: the folder cannot be written.
    """
    chosen = [task for task in tasks if task.kind == "choices"]
    if not chosen:
        raise ConfigError(
            "書き出せる選択問題がありません。--tasks-from で jcommonsenseqa などのフォルダーを指定してください。",
            "there are no questions with choices to export; name a folder with such sets (jcommonsenseqa, ...) with --tasks-from.",
        )
    left = [task.title for task in tasks if task.kind != "choices"]
    if left:
        notice(
            f"書き出さない課題（選択問題ではありません）: {', '.join(left)}",
            f"not exported (no choices): {', '.join(left)}",
        )
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task in chosen:
            rows = [
                {"id": item.name, "prompt": question.prompt, "choices": list(question.choices), "right": item.right}
                for item, question in zip(task.items, task.questions(tokenizer), strict=True)
            ]
            data = folder / f"{PREFIX}{task.name}.jsonl"
            data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            described = folder / f"{PREFIX}{task.name}.yaml"
            described.write_text(
                yaml.safe_dump(description(task, data), allow_unicode=True, sort_keys=False), encoding="utf-8"
            )
            written += [described, data]
    except OSError as error:
        raise StorageError(
            f"{argument(folder)} に書き込めませんでした（{error.strerror or error}）。書き込める場所を指定してください。",
            f"{argument(folder)} could not be written ({error.strerror or error}); choose a writable folder.",
        ) from error
    return written


def description(task: Task, data: Path) -> dict[str, Any]:
    """The task as lm-evaluation-harness 0.4 describes one. The solved examples stand in the prompts."""
    return {
        "task": f"{PREFIX}{task.name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "num_fewshot": 0,
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
        "metadata": {"version": 1.0},
    }

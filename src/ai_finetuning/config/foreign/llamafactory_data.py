"""LLaMA-Factory's data: names in `dataset`, and dataset_info.json that says what they are.

Read in src/llamafactory/data/parser.py and hparams/data_args.py of github.com/hiyouga/LLaMA-Factory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import ConfigError, Reason
from ..yaml_text import MAX_BYTES
from .beside import places
from .datasets import Rows, check_tags, share_or_rows
from .draft import Draft
from .preference import llamafactory_objective
from .prompts import named_template
from .training_parts import NOT_USED
from .values import is_off, mapping, names, number, shown, text, truth, word

INFO = "dataset_info.json"
# Their columns of `formatting: alpaca` -> our roles, with the names that they have where nothing is said.
_ALPACA = (("prompt", "instruction", "instruction"), ("query", "input", "input"), ("response", "output", "output"))
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_PICTURES = ("images", "videos", "audios")
# Columns of answers that are compared, by our roles.
_COMPARED = {"preference": (("chosen", "chosen"), ("rejected", "rejected")), "kto": (("kto_tag", "label"),)}
# What rows are of which the stage is another one.
_WRONG_ROWS = {
    "sft": Reason(
        "選好データではありません（ranking も kto_tag もありません）",
        "no preference data (neither ranking nor kto_tag)",
    ),
    "preference": Reason("選好データです（stage: dpo 用）", "preference data (for stage: dpo)"),
    "kto": Reason("良し悪しの印の付いたデータです（stage: kto 用）", "marked answers (for stage: kto)"),
}


def data(draft: Draft) -> None:
    """`dataset`, `eval_dataset`, `val_size` and what dataset_info.json says of the names."""
    info, folder = _info(draft)
    plain = word(draft.get("stage") or "sft") == "pt"
    if not draft.on("dataset"):
        draft.drop("dataset", NOT_USED)
    else:
        rows = _rows(draft, "dataset", info, folder, plain)
        if draft.on("max_samples"):
            rows.limits = []
        rows.put(draft, "dataset")
    draft.attempt(lambda part: _held_out(part, info, folder, plain))
    draft.drop("dataset_dir", Reason(f"{INFO} の場所です", f"it says where {INFO} is"))
    _form(draft, plain)


def _held_out(draft: Draft, info: Mapping[str, Any] | None, folder: Path | None, plain: bool) -> None:
    if draft.on("eval_dataset"):
        rows = _rows(draft, "eval_dataset", info, folder, plain)
        if rows.problems:
            draft.refuse("eval_dataset", Reason.joined(rows.problems))
        else:
            draft.take("eval_dataset", "data.eval", rows.train[0] if len(rows.train) == 1 else rows.train)
    else:
        draft.drop("eval_dataset", NOT_USED)
    if draft.on("val_size"):
        draft.take("val_size", "data.eval", share_or_rows(draft.read("val_size", number), "val_size"))
    else:
        draft.drop("val_size", NOT_USED)


def _form(draft: Draft, plain: bool) -> None:
    """Prompt, packing and labels."""
    if "template" in draft.values:
        if plain:
            draft.drop("template", Reason("プレーンテキストにプロンプトはありません", "plain text has no prompt"))
        elif draft.read("template", word) in ("default", "empty", "fewshot"):
            draft.refuse(
                "template",
                Reason(
                    f"テンプレート {shown(draft.values['template'])} はありません",
                    f"there is no template {shown(draft.values['template'])}",
                ),
            )
        else:
            named_template(draft, "template", draft.read("template", word))
    neat, packed = draft.on("neat_packing"), draft.get("packing")
    isolated = Reason("まとめた文書は互いに参照しません", "packed documents do not see each other here")
    if neat:
        draft.take("neat_packing", "data.packing", True)
        draft.convert("packing", isolated, "data.packing")
    elif packed is not None and not is_off(packed):
        draft.take("packing", "data.packing", truth(packed), isolated)
        draft.drop("neat_packing", NOT_USED)
    else:
        if plain and packed is None:
            draft.set("data.packing", True, Reason("stage: pt の既定", "default of stage: pt"))
        draft.drop("packing", NOT_USED)
        draft.drop("neat_packing", NOT_USED)
    if plain and draft.settings.get("data.packing"):
        draft.set(
            "data.on_long",
            "split",
            Reason("stage: pt は文書をつないで切り分けます", "stage: pt joins and cuts documents"),
        )
    if draft.on("train_on_prompt"):
        draft.take("train_on_prompt", "data.loss_on", "all", Reason("loss_on: all", "loss_on: all"))
    else:
        draft.drop("train_on_prompt", NOT_USED)


def _info(draft: Draft) -> tuple[Mapping[str, Any] | None, Path | None]:
    """dataset_info.json and the folder that its file names are relative to."""
    given = draft.get("dataset_dir")
    if isinstance(given, Mapping):
        return given, None
    named = text(given) if given is not None and not str(given).upper().startswith(("REMOTE:", "ONLINE")) else None
    above = places(draft.folder)
    said = [base / named for base in above] if named else []
    for place in (*said, draft.folder, *[base / "data" for base in above]):
        path = place / INFO
        if path.is_file():
            return _read(path), place
    return None, None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        loaded = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} を読めません（{type(error).__name__}）。JSON か確かめてください。",
            f"{path} cannot be read ({error}); is it JSON?",
        ) from None
    return loaded if isinstance(loaded, Mapping) else {}


def _rows(draft: Draft, key: str, info: Mapping[str, Any] | None, folder: Path | None, plain: bool) -> Rows:
    rows = Rows()
    online = str(draft.get("dataset_dir", "")).upper() == "ONLINE"
    for name in draft.read(key, names):
        block = info.get(name) if info is not None and not online else None
        if isinstance(block, Mapping):
            objective = "pt" if plain else llamafactory_objective(draft)
            rows.attempt(partial(_one, name, block, folder, objective, rows))
            continue
        rows.add(name)
        if not online:
            rows.remarks.append(
                Reason(
                    f"{name} のファイルが分かりません（{INFO} に{'ありません' if info is not None else 'が見つかりません'}）。data.train を書き換えてください",
                    f"the file of {name} is not known ({INFO} {'lacks it' if info is not None else 'is not there'}): "
                    "change data.train",
                )
            )
    return rows


def _one(name: str, block: Mapping[str, Any], folder: Path | None, objective: str, rows: Rows) -> None:
    """One entry of dataset_info.json, for objective sft, preference or kto, or `pt` (plain text)."""
    columns = {key: value for key, value in mapping(block.get("columns") or {}).items()}
    is_of = "kto" if "kto_tag" in columns else "preference" if block.get("ranking") else "sft"
    if is_of != ("sft" if objective == "pt" else objective):
        what = _WRONG_ROWS[is_of]
        rows.problems.append(Reason(f"{name} は{what.ja}", f"{name} is {what.en}"))
    if any(column in columns for column in _PICTURES):
        rows.problems.append(
            Reason(
                f"{name} には画像・動画・音声があります（テキストだけ学習できます）",
                f"{name} has pictures, video or sound (text only here)",
            )
        )
    _place(name, block, folder, rows)
    _columns(block, columns, objective, rows)


def _columns(block: Mapping[str, Any], columns: Mapping[str, Any], objective: str, rows: Rows) -> None:
    """The columns of an entry by our roles."""
    for theirs, role in _COMPARED.get(objective, ()):
        rows.column(role, columns.get(theirs, theirs))
    for role in ("system", "tools", "history") if objective != "pt" else ():
        if role in columns:
            rows.column(role, columns[role])
    if str(block.get("formatting", "alpaca")).lower() != "alpaca":
        rows.column("messages", columns.get("messages", "conversations"))
        tags = mapping(block.get("tags") or {})
        check_tags({ours: tags[theirs] for theirs, ours in _TAGS.items() if theirs in tags}, rows)
        return
    for theirs, role, usual in _ALPACA:
        column = columns.get(theirs, usual)
        if objective == "pt" and theirs == "prompt":
            rows.column("text", column)
        elif objective == "pt" or (objective == "preference" and theirs == "response"):
            continue
        elif theirs in columns or "columns" not in block:
            rows.column(role, column)


def _place(name: str, block: Mapping[str, Any], folder: Path | None, rows: Rows) -> None:
    """Where the rows are: a file beside dataset_info.json, or a hub id."""
    if block.get("hf_hub_url"):
        rows.add(str(block["hf_hub_url"]))
    elif block.get("file_name"):
        rows.add(str(folder / str(block["file_name"])) if folder is not None else str(block["file_name"]))
    elif block.get("script_url"):
        rows.problems.append(Reason(f"{name} はスクリプトで読み込むデータです", f"{name} is loaded by a script"))
    else:
        rows.problems.append(
            Reason(
                f"{name} の場所が file_name にも hf_hub_url にもありません",
                f"{name} has neither file_name nor hf_hub_url",
            )
        )
    if block.get("num_samples"):
        rows.problems.append(
            Reason(f"{name} は行数（num_samples）を抜き出します", f"{name} draws a number of rows (num_samples)")
        )
    for part in ("subset", "folder", "split"):
        if block.get(part) and block[part] != "train":
            rows.remarks.append(
                Reason(
                    f"{name} の {part}（{block[part]}）は指定できません。保存したフォルダーを data.train に書いてください",
                    f"{part} {block[part]} of {name} cannot be named; save it and name the folder in data.train",
                )
            )

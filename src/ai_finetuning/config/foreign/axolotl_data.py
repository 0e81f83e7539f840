"""Axolotl's data: `datasets`, `pretraining_dataset` and `test_datasets`, and how their rows become prompts.

Read in src/axolotl/utils/schemas/datasets.py and src/axolotl/prompt_strategies of github.com/axolotl-ai-cloud/axolotl.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from ...errors import Reason
from .datasets import ROLES, Rows, check_tags, share_or_rows
from .draft import Draft
from .preference import axolotl_objective, axolotl_rows
from .prompts import TEMPLATE_KEYS, jinja_of, jinja_of_formats, named_template
from .training_parts import NOT_USED
from .values import is_off, mapping, names, number, shown, text, truth, whole, word

# Their `type` -> the form of the prompt. What is not here is another kind of data, or a form with words of its own.
FORMS = {
    "alpaca": "alpaca",
    "alpaca:instruct": "alpaca",
    "alpaca:chat": "alpaca:chat",
    "alpaca:chatml": "chatml",
    "alpaca:phi": "alpaca:phi",
    "alpaca.load_no_prompt": "chat",
    "chat_template": "chat",
    "chat_template.default": "chat",
    "sharegpt": "chat",
    "completion": "plain",
    "pretrain": "plain",
}
_COUNT = re.compile(r"^train\[:(\d[\d_]*)\]$")
_LEARNT = ("assistant", "gpt", "model", "bot")
PLAIN, CHAT = "plain", "chat"
# Columns and keys of reasoning and tools, which no row is read with.
# Keys of messages by which our reader leaves a turn out of the loss as well.
_OBEYED = (("message_field_training", "training"), ("message_field_training", "train"))
_LEFT_OUT = ("field_thinking", "template_thinking_key", "field_tools", "split_thinking")
_PARTS = ("name", "revision", "data_files")


def data(draft: Draft) -> None:
    """Training data, held-out data, prompts and what happens to long rows."""
    rows, objective = Rows(), axolotl_objective(draft)
    for key in ("datasets", "dataset", "pretraining_dataset"):
        if draft.on(key):
            for block in draft.read(key, _blocks):
                usual = "pretrain" if key == "pretraining_dataset" else None
                rows.attempt(partial(_one, block, usual, objective, rows))
            rows.put(draft, key)
        else:
            draft.drop(key, NOT_USED)
    if "data.train" not in draft.settings and not any(
        draft.on(key) for key in ("datasets", "dataset", "pretraining_dataset")
    ):
        draft.missing("datasets", Reason("学習データの指定がありません", "it names no training data"))
    draft.attempt(_held_out)
    _prompt(draft, rows)
    _long(draft, rows)
    draft.attempt(_labels)


def _blocks(value: object) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else mapping(item) for item in items]


def _held_out(draft: Draft) -> None:
    share = draft.get("val_set_size")
    if draft.on("test_datasets"):
        paths = []
        for block in draft.read("test_datasets", _blocks):
            paths += _files(block)
        reason = Reason("評価データのファイル", "files of evaluation data")
        draft.take("test_datasets", "data.eval", paths[0] if len(paths) == 1 else paths, reason)
    else:
        draft.drop("test_datasets", NOT_USED)
    if share is not None and not is_off(share) and number(share) > 0:
        draft.take("val_set_size", "data.eval", share_or_rows(number(share), "val_set_size"))
    elif share is not None:
        draft.convert("val_set_size", Reason("0 は評価データなし", "0: no evaluation data"))


def _files(block: Mapping[str, Any]) -> list[str]:
    """Where the rows of one entry are; `path: json` with data_files names a reader and its files."""
    files = block.get("data_files")
    if files and str(block.get("path", "")).lower() in ("json", "csv", "parquet", "text", "arrow"):
        return [str(name) for name in (files if isinstance(files, list) else [files])]
    return [text(block["path"])] if block.get("path") else []


def _one(block: dict[str, Any], usual: str | None, objective: str, rows: Rows) -> None:
    """One entry of `datasets`."""
    kind = block.get("type", usual)
    form = _form(kind, block, rows) if objective == "sft" else _compared(block, objective, rows)
    paths = _files(block)
    for path in paths:
        rows.add(path)
    if not paths:
        rows.problems.append(Reason("path がありません", "path is missing"))
    if form == PLAIN:
        rows.column("text", block.get("field") or block.get("text_column") or "text")
    elif form == CHAT and objective == "sft" and kind not in ("alpaca.load_no_prompt",):
        _messages(block, rows)
    if form is not None:
        rows.forms.append(form)
    _selection(block, rows, paths)


def _form(kind: Any, block: Mapping[str, Any], rows: Rows) -> str | None:
    if isinstance(kind, Mapping):
        return _own_form(kind, rows)
    name = str(kind or "").strip().lower()
    if any(key in block for key in ("field_chosen", "field_rejected")):
        rows.problems.append(Reason("選好データです", "it is preference data"))
        return None
    form = FORMS.get(name) or (CHAT if name.startswith("sharegpt") else None)
    if form is None:
        rows.problems.append(
            Reason(
                f"データの形 type: {name or '（なし）'} は読めません", f"rows of type: {name or '(none)'} are not read"
            )
        )
    return form


def _compared(block: Mapping[str, Any], objective: str, rows: Rows) -> str | None:
    """Pairs of answers, or marked ones."""
    found = axolotl_rows(block, objective)
    if found is None:
        rows.problems.append(
            Reason(
                f"rl のデータの形 type: {shown(block.get('type') or '（なし）')} は読めません",
                f"rows of type: {shown(block.get('type') or '(none)')} are not read with rl",
            )
        )
        return None
    form, columns = found
    for role, name in columns.items():
        rows.column(role, name)
    called = mapping(block.get("message_property_mappings") or {})
    check_tags({"role": called.get("role"), "content": called.get("content")}, rows)
    return form


def _own_form(kind: Mapping[str, Any], rows: Rows) -> str | None:
    """A prompt of the user's: fields and `format`."""
    for key, role in (
        ("field_instruction", "instruction"),
        ("field_input", "input"),
        ("field_output", "output"),
        ("field_system", "system"),
    ):
        if kind.get(key):
            rows.column(role, kind[key])
    with_input = kind.get("format")
    without = kind.get("no_input_format") or with_input
    if not with_input:
        return "alpaca"
    return "format:" + jinja_of_formats(str(with_input), str(without))


def _messages(block: Mapping[str, Any], rows: Rows) -> None:
    """Rows of `type: chat_template`."""
    rows.column("messages", block.get("field_messages") or "messages")
    called = mapping(block.get("message_property_mappings") or {})
    tags = {
        "role": called.get("role", block.get("message_field_role")),
        "content": called.get("content", block.get("message_field_content")),
    }
    check_tags(tags, rows)
    for ours, theirs in mapping(block.get("roles") or {}).items():
        known = ROLES.get(str(ours), ("tool",) if ours == "tool" else ())
        for name in theirs if isinstance(theirs, list) else [theirs]:
            if str(name) not in known:
                rows.problems.append(
                    Reason(
                        f"役割 {shown(name)} は読めません（{', '.join(sum(ROLES.values(), ()))}）",
                        f"the role {shown(name)} is not known ({', '.join(sum(ROLES.values(), ()))})",
                    )
                )
    _learnt_turns(block, rows)
    if block.get("drop_system_message"):
        rows.remarks.append(Reason("システムメッセージは行のまま残ります", "system messages of the rows stay"))
    key = next((name for name in _LEFT_OUT if block.get(name)), None)
    if key is not None:
        rows.remarks.append(
            Reason(f"{key}（{shown(block[key])}）は使われません", f"{key} ({shown(block[key])}) is not used")
        )


def _learnt_turns(block: Mapping[str, Any], rows: Rows) -> None:
    """Which turns carry loss: the assistant's, with the end of each."""
    if any(role not in _LEARNT for role in names(block.get("roles_to_train") or [])):
        rows.problems.append(
            Reason(
                "assistant 以外の発話は学習しません（roles_to_train）",
                "only the assistant's turns are learnt (roles_to_train)",
            )
        )
    if block.get("train_on_eos") not in (None, "turn"):
        rows.problems.append(
            Reason(
                f"train_on_eos: {block['train_on_eos']} はありません（発話ごとの終わりを学習します）",
                f"train_on_eos: {block['train_on_eos']} is not there (the end of every turn is learnt)",
            )
        )
    for key in ("message_field_training", "message_field_training_detail"):
        if block.get(key) and (key, block[key]) not in _OBEYED:
            rows.problems.append(
                Reason(
                    f"発話ごとの学習の指定（{key}: {shown(block[key])}）は読めません",
                    f"which turns are learnt ({key}: {shown(block[key])}) is not read",
                )
            )


def _selection(block: Mapping[str, Any], rows: Rows, paths: list[str]) -> None:
    """Which rows of a data set; our reader takes all of `train`."""
    split = str(block.get("split") or "train").replace(" ", "")
    counted = _COUNT.match(split)
    if counted:
        rows.limits.append(int(counted.group(1).replace("_", "")))
    elif split != "train":
        rows.remarks.append(
            Reason(
                f"split {split} は指定できず、train 全体を読みます。行数は data.max_samples で、ほかの split は保存したフォルダーで指定できます",
                f"split {split} cannot be named, all of train is read: data.max_samples limits the rows, another split "
                "is saved to a folder and named",
            )
        )
    for key in _PARTS:
        value = block.get(key)
        if value and not (key == "data_files" and paths and paths[0] != block.get("path")):
            rows.remarks.append(
                Reason(
                    f"{key}（{shown(value)}）は指定できません。取得したファイルを data.train に書いてください",
                    f"{key} ({shown(value)}) cannot be named; download the files and name them in data.train",
                )
            )
    if whole(block.get("shards") or 1) > 1:
        rows.problems.append(Reason("データの一部（shards）は指定できません", "a shard of the data cannot be named"))


def _prompt(draft: Draft, rows: Rows) -> None:
    """One prompt for the run: of the data's type, or `chat_template`."""
    forms = set(rows.forms) - {PLAIN}
    own = sorted(forms - {CHAT})
    path = "model.chat_template"
    if len(own) > 1 or (own and CHAT in forms):
        named = [form.split(":", 1)[0] if form.startswith("format:") else form for form in sorted(forms)]
        draft.refuse(
            "datasets",
            Reason(
                f"データごとにプロンプトが違います（{', '.join(named)}）。1 回の学習で使えるのは 1 つです",
                f"the data sets have different prompts ({', '.join(named)}); a run has one",
            ),
        )
    elif own:
        form = own[0]
        jinja = (
            form.removeprefix("format:") if form.startswith("format:") else TEMPLATE_KEYS.get(form) or jinja_of(form)
        )
        name = "format" if form.startswith("format:") else form
        draft.set(
            path, jinja, Reason(f"datasets の type のプロンプト（{name}）", f"the prompt of the data's type ({name})")
        )
        draft.drop(
            "chat_template", Reason("データの type のプロンプトが使われます", "the prompt of the data's type is used")
        )
        draft.drop(
            "chat_template_jinja",
            Reason("データの type のプロンプトが使われます", "the prompt of the data's type is used"),
        )
    elif not forms:
        for key in ("chat_template", "chat_template_jinja"):
            draft.drop(key, Reason("プレーンテキストにプロンプトはありません", "plain text has no prompt"))
    else:
        _chosen(draft, _of_rows(draft))


def _of_rows(draft: Draft) -> str | None:
    """A template that the entries name themselves."""
    found = [
        word(block["chat_template"])
        for key in ("datasets", "dataset")
        if draft.on(key)
        for block in draft.read(key, _blocks)
        if block.get("chat_template")
    ]
    return found[0] if found else None


def _chosen(draft: Draft, of_rows: str | None) -> None:
    path = "model.chat_template"
    if draft.on("chat_template_jinja"):
        draft.take("chat_template_jinja", path, draft.values["chat_template_jinja"])
        draft.convert("chat_template", Reason("chat_template_jinja の内容", "the text of chat_template_jinja"), path)
        return
    draft.drop("chat_template_jinja", NOT_USED)
    if draft.on("chat_template"):
        named_template(draft, "chat_template", draft.read("chat_template", word))
    elif of_rows is not None:
        named_template(draft, "datasets.chat_template", of_rows)


def _long(draft: Draft, rows: Rows) -> None:
    """Rows longer than sequence_len: theirs are left out, texts are cut into rows."""
    key = "excess_length_strategy"
    choices = {"drop": "drop", "truncate": "truncate", "raise": "error"}
    plain = PLAIN in rows.forms
    only_plain = plain and set(rows.forms) == {PLAIN}
    if draft.on(key) and draft.read(key, word) in choices and not only_plain:
        draft.take(key, "data.on_long", choices[draft.read(key, word)], Reason("on_long", "on_long"))
        return
    if only_plain:
        draft.set("data.on_long", "split", Reason("長い文書は行に切り分けられます", "long documents are cut into rows"))
    else:
        draft.set(
            "data.on_long", "drop", Reason("長い行は除かれます（相手の既定）", "long rows are left out: their default")
        )
    draft.drop(key, NOT_USED)


def _labels(draft: Draft) -> None:
    if draft.on("train_on_inputs") and draft.read("train_on_inputs", truth):
        draft.take("train_on_inputs", "data.loss_on", "all", Reason("loss_on: all", "loss_on: all"))
    else:
        draft.drop(
            "train_on_inputs", Reason("応答だけを学習します。本ツールと同じです", "answers only are learnt, as here")
        )

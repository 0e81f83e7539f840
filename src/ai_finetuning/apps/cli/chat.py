"""aift chat"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from ...errors import ToolkitError, localized
from ...messages import notice, on_one_line, printable, warn
from .answers import (
    BASE,
    BITS,
    COMPARE,
    GREEDY,
    MAX_NEW_TOKENS,
    MODEL,
    SYSTEM,
    TEMPERATURE,
    empty_answer,
    print_comparison,
    say_cut,
    say_system,
    validate_adapter,
)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "chat",
        help=localized("モデルと対話します（/help でコマンド一覧）。", "Talks with a model (/help lists commands)."),
    )(chat)


def chat(
    model: str = MODEL,
    system: str | None = SYSTEM,
    base: str | None = BASE,
    bits: int | None = BITS,
    compare: bool = COMPARE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = TEMPERATURE,
    greedy: bool = GREEDY,
) -> int:
    """A conversation in the terminal; with a pipe, every line is a question."""
    from ...models.sampling import validate_sampling

    validate_sampling(max_new_tokens=max_new_tokens, temperature=temperature, do_sample=not greedy)
    from ...models.hub import validate_name

    validate_name(model, base)
    from ...inference.session import Chat, open_model

    opened = open_model(model, base=base, bits=bits)
    if compare:
        validate_adapter("--compare", opened.has_adapter, model)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "do_sample": not greedy}
    session = Session(Chat(opened, system), options, compare=compare)
    _say_banner(model, session)
    return converse(session)


@dataclass
class Session:
    """A conversation in a terminal or a pipe.

    Attributes:
        talk: an inference.session.Chat.
        options: of the answers.
        compare: both answers are shown, without and with the adapter.
        adapter: the adapter is in use.
        refused: exit code of the last question that could not be asked; 0 where there was none.
    """

    talk: Any
    options: dict[str, Any]
    compare: bool = False
    adapter: bool = True
    refused: int = 0


def _say_banner(model: str, session: Session) -> None:
    opened = session.talk.opened
    name, base = on_one_line(model), on_one_line(str(opened.base_name))
    if opened.has_adapter:
        notice(f"アダプター {name}（ベース {base}）", f"adapter {name} (base {base})")
    else:
        notice(f"モデル {name}", f"model {name}")
    say_system(opened.system, session.talk.system)
    notice(
        "終わるには /exit か Ctrl-D、コマンドの一覧は /help です。", "/exit or Ctrl-D ends, /help lists the commands."
    )


def converse(session: Session) -> int:
    """Answers until the input ends; returns the exit code: of a pipe, that of the last question that was refused."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # input() then edits lines and knows the former ones, in memory only
    elif isinstance(sys.stdin, io.TextIOWrapper):  # bytes of a pipe that are no text are refused line by line
        sys.stdin.reconfigure(errors="surrogateescape")
    while True:
        try:
            line = input(localized("あなた> ", "you> ") if terminal else "")
        except EOFError:
            return 0 if terminal else session.refused
        except KeyboardInterrupt:
            print()
            return 0
        try:
            if not _turn(_decoded(line).strip(), session):
                return 0 if terminal else session.refused
        except ToolkitError as error:
            session.refused = error.exit_code
            warn(f"この質問には答えられません: {error.ja}", f"this question cannot be answered: {error.en}")
        except KeyboardInterrupt:
            print()
            notice(
                "回答を止めました（この質問と回答は履歴に残しません）。",
                "answer stopped; question and answer are not kept.",
            )


def _decoded(line: str) -> str:
    """A line whose bytes are not in the terminal's encoding, such as CP932 out of a pipe, by the rules of data files.

    Raises:
        DataError: bytes of no known encoding.
    """
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        from ...data.encoding import decode

        raw = line.encode(sys.stdin.encoding or "utf-8", "surrogateescape")
        return decode(raw, localized("標準入力", "standard input"))[0]
    return line


def _turn(line: str, session: Session) -> bool:
    """One line of the user; False ends the conversation."""
    if line[:1] in ("/", "／"):
        name, _, rest = line.partition(" ")
        if "　" in name:
            name, _, rest = line.partition("　")
        return _command(unicodedata.normalize("NFKC", name).lower(), rest.strip(), session)
    if line:
        _answer(line, session)
    return True


def _answer(line: str, session: Session) -> None:
    talk, options = session.talk, session.options
    if session.compare:
        print_comparison(*talk.compare(line, **options))
    else:
        something = False
        with talk.opened.adapter(session.adapter), contextlib.closing(talk.stream(line, **options)) as pieces:
            for piece in pieces:
                something = True
                print(printable(piece), end="", flush=True)
        print("" if something else empty_answer())
    say_cut(talk.ends, options["max_new_tokens"])


def _command(name: str, rest: str, session: Session) -> bool:
    """Carries out a /command; False ends the conversation."""
    if name in ("/quit", "/exit", "/bye"):
        return False
    act = _COMMANDS.get(name)
    if act is None or (name in ("/compare", "/adapter") and not session.talk.opened.has_adapter):
        if name != "/help":
            print(
                localized(f"{printable(name)} というコマンドは使えません。", f"{printable(name)} is no command here.")
            )
        _help(session, rest)
    else:
        act(session, rest)
    return True


def _help(session: Session, rest: str) -> None:
    lines = [
        ("/reset", "履歴を消します", "clears history"),
        ("/undo", "最後の質問と回答を取り消します", "takes the last question and answer back"),
        ("/system TEXT", 'システムプロンプトを変えます（"" でなし）', 'changes the system prompt ("" for none)'),
        ("/save FILE", "会話を JSONL で保存します", "writes the conversation as JSONL"),
        ("/exit", "終わります（/quit、Ctrl-D も）", "ends (also /quit, Ctrl-D)"),
    ]
    if session.talk.opened.has_adapter:
        lines[2:2] = [
            ("/adapter", "アダプターを切り替えます", "switches the adapter"),
            ("/compare", "アダプターなし・ありを並べます", "shows both"),
        ]
    print("\n".join(f"{name} {localized(ja, en)}" for name, ja, en in lines))


def _reset(session: Session, rest: str) -> None:
    session.talk.clear()
    print(localized("履歴を消しました。", "history cleared."))


def _undo(session: Session, rest: str) -> None:
    if session.talk.undo():
        print(localized("最後の質問と回答を取り消しました。", "the last question and answer are taken back."))
    else:
        print(localized("取り消すものがありません。", "nothing to take back."))


def _compare(session: Session, rest: str) -> None:
    session.compare = not session.compare
    print(localized(f"比較表示: {_on_off(session.compare)}", f"compare: {_on_off(session.compare)}"))


def _adapter(session: Session, rest: str) -> None:
    session.adapter = not session.adapter
    print(localized(f"アダプター: {_on_off(session.adapter)}", f"adapter: {_on_off(session.adapter)}"))


def _on_off(on: bool) -> str:
    return localized("オン", "on") if on else localized("オフ", "off")


def _system(session: Session, rest: str) -> None:
    if rest:
        session.talk.system = "" if rest in ('""', "''", "「」") else rest
    system = session.talk.opened.system if session.talk.system is None else session.talk.system
    none = localized("なし", "none")
    print(localized("システムプロンプト: ", "system prompt: ") + (printable(system) if system else none))


def _save(session: Session, rest: str) -> None:
    """Writes the conversation as a row that `aift train` reads; never over a file."""
    talk = session.talk
    if not rest or not talk.history:
        print(localized("使い方: /save ファイル名（会話のあとで）", "usage: /save FILE, after a question"))
        return
    system = talk.opened.system if talk.system is None else talk.system
    head = [{"role": "system", "content": system}] if system else []
    row = json.dumps({"messages": [*head, *talk.history]}, ensure_ascii=False)
    path = Path(rest.strip("\"'"))
    try:
        path = path.expanduser()
        with path.open("x", encoding="utf-8") as file:
            file.write(row + "\n")
    except (OSError, ValueError, RuntimeError) as error:
        exists = isinstance(error, FileExistsError)
        reason = localized("すでにあります", "it exists") if exists else getattr(error, "strerror", None) or error
        print(
            localized(
                f"{printable(str(path))} に保存できません（{reason}）。別の名前を指定してください。",
                f"{printable(str(path))} cannot be written ({reason}); choose another name.",
            )
        )
        return
    print(localized(f"{printable(str(path))} に保存しました。", f"saved as {printable(str(path))}."))


_COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "/reset": _reset,
    "/undo": _undo,
    "/compare": _compare,
    "/adapter": _adapter,
    "/system": _system,
    "/save": _save,
}

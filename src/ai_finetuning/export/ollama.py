"""A folder for Ollama: a GGUF and the Modelfile that names its prompt and its stops.

The Go template is not translated from the Jinja one but cut out of what the renderer of training and chat writes, then
compared with it on other conversations: so the two cannot drift apart, and a prompt that Go cannot write is reported.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..execution.output_folder import new_folder, validate_new_folder
from ..japanese.default_system import split_default_system
from ..japanese.prompts import render
from ..messages import notice, warn
from ..models.tokenizers import load_tokenizer, prompt_style
from .gguf import export_gguf, generation_config

# Letters that stand for contents; no template of ours changes them, and no text of a template holds them.
_SYSTEM, _FIRST, _ANSWER, _NEXT = "甲甲甲", "乙乙乙", "丙丙丙", "丁丁丁"
_TALK = (
    {"role": "user", "content": "日本の首都は？"},
    {"role": "assistant", "content": "東京です。"},
    {"role": "user", "content": "人口は？"},
    {"role": "assistant", "content": "約 1,400 万人です。"},
    {"role": "user", "content": "では、\n面積は？"},
)


@dataclass(frozen=True)
class Prompt:
    """The fixed texts of a prompt, around and between the contents of a conversation.

    Attributes:
        bare: in front of the first question, where there is no system text.
        before_system, after_system: around the system text; None where the template knows no system text.
        to_answer: between a question and its answer.
        to_question: between an answer and the next question.
        asks: behind the last question.
    """

    bare: str
    before_system: str | None
    after_system: str
    to_answer: str
    to_question: str
    asks: str

    def fill(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What the Go template writes for a conversation that ends with a question."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = messages[1:] if system is not None else messages
        with_system = system is not None and self.before_system is not None
        text = f"{self.before_system}{system}{self.after_system}" if with_system else self.bare
        between = {"user": self.to_answer, "assistant": self.to_question}
        return (
            text
            + "".join(turn["content"] + between[turn["role"]] for turn in turns[:-1])
            + turns[-1]["content"]
            + self.asks
        )

    def go(self) -> str:
        """The Go template; contents come from Ollama's .System and .Messages."""
        head = _literal(self.bare)
        if self.before_system is not None:
            head = (
                "{{ if .System }}"
                + _literal(self.before_system)
                + "{{ .System }}"
                + _literal(self.after_system)
                + "{{ else }}"
                + head
                + "{{ end }}"
            )
        asks, to_answer = _literal(self.asks), _literal(self.to_answer)
        behind = asks if asks == to_answer else "{{ if $last }}" + asks + "{{ else }}" + to_answer + "{{ end }}"
        user = '{{ if eq .Role "user" }}{{ .Content }}' + behind
        assistant = (
            '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}'
            + _literal(self.to_question)
            + "{{ end }}{{ end }}"
        )
        last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        return head + "{{ range $i, $_ := .Messages }}" + last + user + assistant + "{{ end }}"


def _literal(text: str) -> str:
    """Text as a Go string, so that nothing in between trims its blanks and line ends."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""


def prompt_of(tokenizer: Any) -> Prompt | None:
    """The fixed texts of a tokenizer's chat template without BOS (Ollama adds it); None where they do not make up
    its prompts.
    """
    talk = [
        {"role": "user", "content": _FIRST},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _NEXT},
    ]
    try:
        bare, to_answer, to_question, asks = _cut(_rendered(tokenizer, talk), (_FIRST, _ANSWER, _NEXT))
    except (DataError, ValueError):
        return None
    try:
        before, after, *_ = _cut(
            _rendered(tokenizer, [{"role": "system", "content": _SYSTEM}, *talk]), (_SYSTEM, _FIRST)
        )
    except (DataError, ValueError):  # no system text, or a template that leaves it out
        before, after = None, ""
    prompt = Prompt(bare, before, after, to_answer, to_question, asks)
    head = [{"role": "system", "content": "短く。"}] if before is not None else []
    one_line = prompt_style(tokenizer).newline is not None  # rinna's <NL>: told where the Modelfile is written
    turns = [dict(turn, content=turn["content"].replace("\n", "")) if one_line else turn for turn in _TALK]
    same = all(
        prompt.fill(messages) == _rendered(tokenizer, messages)
        for length in (1, 3, 5)
        for messages in (turns[:length], [*head, *turns[:length]])
    )
    return prompt if same else None


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    text = render(tokenizer, messages, add_generation_prompt=True)
    bos = tokenizer.bos_token
    return text[len(bos) :] if bos and text.startswith(bos) else text


def _cut(text: str, contents: Sequence[str]) -> list[str]:
    """The text before, between and behind the contents.

    Raises:
        ValueError: a content is not there exactly once, in this order.
    """
    parts = []
    for content in contents:
        if text.count(content) != 1:
            raise ValueError(content)
        part, text = text.split(content)
        parts.append(part)
    return [*parts, text]


def modelfile(gguf: str, tokenizer: Any, generation: Any = None) -> str:
    """The Modelfile's text.

    Args:
        gguf: name of the GGUF beside it.
        tokenizer: with its chat template.
        generation: the model's GenerationConfig, whose eos list are stops too.
    """
    style = prompt_style(tokenizer, generation)
    body, system = split_default_system(str(tokenizer.chat_template or ""))
    if system is not None:  # a line of its own, so that `ollama show` names it and a user can change it
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = body
    prompt = prompt_of(tokenizer)
    lines = [f"FROM ./{gguf}", *_system_line(system)]
    if prompt is None or '"""' in prompt.go():
        warn(
            "このチャットテンプレートは Ollama の TEMPLATE に書けません（会話の内容を書き換えるため）。TEMPLATE を省きます。Ollama は GGUF 内のテンプレートから選びます。"
            "答えを確かめてください。",
            "this chat template cannot be written as an Ollama TEMPLATE (it rewrites messages); omitting "
            "TEMPLATE, so Ollama uses the template inside the GGUF. Check its answers.",
        )
    else:
        lines.append(f'TEMPLATE """{prompt.go()}"""')
        if style.newline is not None:
            warn(
                f"このモデルは改行を {style.newline} と書きますが、Ollama の TEMPLATE は置き換えをしません。改行のない質問を送るか、送る側で置き換えてください。",
                f"this model writes line ends as {style.newline}, and an Ollama TEMPLATE cannot replace text: send "
                "questions without line ends, or replace them before.",
            )
    stops = [tokenizer.convert_ids_to_tokens(number) for number in style.stop_token_ids]
    lines += [
        f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}"
        for stop in dict.fromkeys([*stops, *style.stop_strings])
    ]
    return "\n".join(lines) + "\n"


def _system_line(system: str | None) -> list[str]:
    """SYSTEM with the text that the model was trained with; nothing quotes three quotation marks."""
    if not system:
        return []
    if '"""' in system or system.endswith('"'):
        warn(
            'システムプロンプトに """ があるため Modelfile に書けません。Ollama では自分で指定してください。',
            'the system prompt holds """ and cannot be written into a Modelfile; give it to Ollama yourself.',
        )
        return []
    return [f'SYSTEM """{system}"""']


def export_ollama(folder: Path, out: Path, converter: Path, *, outtype: str = "q8_0") -> Path:
    """Writes a folder with a GGUF and its Modelfile.

    Args:
        folder: a whole 16-bit model (see source.py).
        out: a folder that is not there yet, or is empty.
        converter: from gguf.validate_converter.
        outtype: one of gguf.TYPES.

    Raises:
        ConfigError, ModelError, StorageError: as export_gguf; nothing is left then.
    """
    validate_new_folder(out)
    tokenizer = load_tokenizer(str(folder))
    with new_folder(out) as staging:
        name = f"model-{outtype}.gguf"
        export_gguf(folder, staging / name, converter, outtype=outtype)
        text = modelfile(name, tokenizer, generation_config(folder))
        (staging / "Modelfile").write_text(text, encoding="utf-8")
    notice(f"{out / 'Modelfile'} を書きました。", f"wrote {out / 'Modelfile'}.")
    return out / "Modelfile"

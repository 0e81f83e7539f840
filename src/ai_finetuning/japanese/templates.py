"""Chat templates of the Japanese model families, as Jinja text that goes onto a tokenizer.

Sources of the prompt formats: docs/design/japanese.md. `verified` means that the form was read in a source of the
model's makers or of a public evaluation, multi-turn form included; the others say so when they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

_WITHOUT_INPUT = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
_WITH_INPUT = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
_HONEST = "あなたは誠実で優秀な日本人のアシスタントです。"
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# Splits a leading system message off: `system` is its text or the default, `turns` the rest.
_HEAD = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = SYSTEM -%}{%- set turns = messages -%}{%- endif -%}"
)


@dataclass(frozen=True)
class ChatTemplate:
    """One family's prompt.

    Attributes:
        key: name in the catalog and in `model.chat_template`.
        jinja: the template.
        turn_end: what ends an assistant's turn; `{eos}` is the tokenizer's eos token.
        system_default: the system text where the conversation has none.
        stop_strings: texts that end an answer besides turn_end, in families without turn tokens.
        newline: what line ends are written as (rinna's `<NL>`), None for line ends.
        verified: whether the whole form was read in a source.
        rewrites_history: whether earlier answers are rendered otherwise than the last.
    """

    key: str
    jinja: str
    turn_end: str = "{eos}"
    system_default: str | None = None
    stop_strings: tuple[str, ...] = ()
    newline: str | None = None
    verified: bool = True
    rewrites_history: bool = False


def _quoted(text: str) -> str:
    """A Jinja string literal; line ends become the escape that Jinja reads as a line end."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def _turns(
    user: tuple[str, str],
    assistant: tuple[str, str],
    generation: str,
    *,
    eos: bool = True,
    user_content: str = "message['content']",
) -> str:
    """The loop over user and assistant turns: text before and after each content, and what asks for an answer."""
    end = " + eos_token" if eos else ""
    return (
        "{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}"
        f"{{{{- {_quoted(user[0])} + {user_content} + {_quoted(user[1])} -}}}}"
        "{%- elif message['role'] == 'assistant' -%}"
        f"{{{{- {_quoted(assistant[0])} + message['content']{end} + {_quoted(assistant[1])} -}}}}"
        "{%- else -%}{{- raise_exception('roles other than user and assistant are not known here') -}}{%- endif -%}"
        "{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{- {_quoted(generation)} -}}}}{{%- endif -%}}"
    )


def _head(default: str | None) -> str:
    return _HEAD.replace("SYSTEM", "none" if default is None else _quoted(default))


def _headings(
    preamble: str, colon: str, *, bos: bool = False, fixed_system: bool = False, material: bool = True
) -> str:
    """`### 指示:` and `### 応答:` under a preamble; the assistant's part is opened by the user's.

    Args:
        preamble: the sentence on top.
        colon: what follows `指示`.
        bos: print the bos token first.
        fixed_system: the preamble stands even where the conversation has a system text.
        material: a question with material (`input`) has a section `### 入力` and the sentence for it on top.
    """
    opening = _quoted(preamble)
    content = "message['content']"
    if material:
        opening = f"({_quoted(_WITH_INPUT)} if turns[0]['input'] else {opening})"
        content = (
            "(message['instruction'] + " + _quoted("\n\n### 入力" + colon) + " + message['input']"
            " if message['input'] else message['content'])"
        )
    system = opening if fixed_system else f"(system if system is not none else {opening})"
    body = _turns(("\n\n### 指示" + colon, "\n\n### 応答" + colon), ("", ""), "", user_content=content)
    return _head(None) + ("{{- bos_token -}}" if bos else "") + "{{- " + system + " -}}" + body


def _chatml(default: str | None, prompt_extra: str = "") -> str:
    system = "{%- if system is not none -%}{{- '<|im_start|>system\\n' + system + '<|im_end|>\\n' -}}{%- endif -%}"
    body = _turns(
        ("<|im_start|>user\n", "<|im_end|>\n"),
        ("<|im_start|>assistant\n", "<|im_end|>\n"),
        "<|im_start|>assistant\n" + prompt_extra,
        eos=False,
    )
    return _head(default) + system + body


def _llama2(default: str | None, *, after: str, next_open: str, close: str = " [/INST] ") -> str:
    """[INST] with the system text inside the first user turn."""
    return (
        _head(default)
        + "{{- bos_token -}}{%- for message in turns -%}{%- if message['role'] == 'user' -%}"
        + "{%- if loop.first -%}{{- '[INST] ' -}}"
        + "{%- if system is not none -%}{{- '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}"
        + f"{{%- else -%}}{{{{- {_quoted(next_open)} -}}}}{{%- endif -%}}"
        + f"{{{{- message['content'] + {_quoted(close)} -}}}}"
        + f"{{%- else -%}}{{{{- message['content'] + eos_token + {_quoted(after)} -}}}}{{%- endif -%}}{{%- endfor -%}}"
    )


_GEMMA = (
    _head(None)
    + "{{- bos_token -}}{%- for message in turns -%}"
    + "{%- set role = 'model' if message['role'] == 'assistant' else 'user' -%}"
    + "{{- '<start_of_turn>' + role + '\\n' -}}"
    + "{%- if loop.first and system is not none -%}{{- system + '\\n\\n' -}}{%- endif -%}"
    + "{{- message['content'] | trim + '<end_of_turn>\\n' -}}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)
_LLAMA3 = (
    _head(None)
    + "{{- bos_token -}}{%- if system is not none -%}"
    + "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system | trim + '<|eot_id|>' -}}{%- endif -%}"
    + "{%- for message in turns -%}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    + " + message['content'] | trim + '<|eot_id|>' -}}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
# The full-width bars (U+FF5C) and low lines (U+2581) are part of the tokens: never NFKC-normalise a rendered prompt.
_DEEPSEEK = (
    _head(None)
    + "{{- bos_token -}}{%- if system is not none -%}{{- system -}}{%- endif -%}"
    + "{%- for message in turns -%}{%- if message['role'] == 'user' -%}{{- '<｜User｜>' + message['content'] -}}"
    + "{%- else -%}{%- set content = message['content'] -%}"
    + (
        "{%- if not loop.last and '</think>' in content -%}{%- set content = content.split('</think>')[-1] | trim "
        "-%}{%- endif -%}"
    )
    + "{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' -}}{%- endif -%}{%- endfor -%}"
    + "{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}{%- endif -%}"
)


def _harmony(system_block: str) -> str:
    """gpt-oss and llm-jp-4: channels; the last answer ends with <|return|>, earlier ones with <|end|>."""
    return (
        _head(None)
        + system_block
        + "{%- if system is not none -%}{{- '<|start|>developer<|message|>' + system + '<|end|>' -}}{%- endif -%}"
        + "{%- for message in turns -%}{%- if message['role'] == 'user' -%}"
        + "{{- '<|start|>user<|message|>' + message['content'] + '<|end|>' -}}{%- else -%}"
        + "{{- '<|start|>assistant<|channel|>final<|message|>' + message['content'] -}}"
        + "{{- '<|return|>' if loop.last else '<|end|>' -}}{%- endif -%}{%- endfor -%}"
        + "{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
    )


_NL = " | replace('\\n', '<NL>')"
_RINNA = (
    _head(None)
    + "{%- if system is not none -%}{{- system"
    + _NL
    + " + '<NL>' -}}{%- endif -%}"
    + "{%- for message in turns -%}{%- if message['role'] == 'user' -%}{{- 'ユーザー: ' + message['content']"
    + _NL
    + " + '<NL>システム: ' -}}{%- else -%}{{- message['content']"
    + _NL
    + " -}}{{- eos_token if loop.last else '<NL>' -}}{%- endif -%}{%- endfor -%}"
)
_PHI4 = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + "
    "'<|im_end|>' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant<|im_sep|>' -}}{%- endif -%}"
)
_SARASHINA = (
    "{%- for message in messages -%}{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
_STEERLM = (
    "[ATTR] helpfulness: 4 correctness: 4 coherence: 4 complexity: 4 verbosity: 4 quality: 4 toxicity: 0 humor: 0 "
    "creativity: 0 [/ATTR]"
)
_HEADING_STOPS = ("### 指示:", "### 入力:", "\n### ", "＃＃＃")

TEMPLATES: dict[str, ChatTemplate] = {
    item.key: item
    for item in (
        ChatTemplate(
            "alpaca_ja",
            _headings(_WITHOUT_INPUT, ":\n"),
            system_default=_WITHOUT_INPUT,
            stop_strings=_HEADING_STOPS,
        ),
        ChatTemplate(
            "stablelm_ja",
            _headings(_WITH_INPUT, ": \n"),
            system_default=_WITH_INPUT,
            stop_strings=_HEADING_STOPS,
        ),
        ChatTemplate(
            "stablelm_ja_alpha",
            _headings(_WITH_INPUT, ": \n"),
            system_default=_WITH_INPUT,
            stop_strings=_HEADING_STOPS,
        ),
        ChatTemplate(
            "llm_jp_v2v3",
            _headings(_WITHOUT_INPUT, ":\n", bos=True, fixed_system=True, material=False),
            system_default=_WITHOUT_INPUT,
            stop_strings=_HEADING_STOPS,
        ),
        ChatTemplate(
            "weblab_alpaca",
            _headings(_WITHOUT_INPUT, ":\n"),
            system_default=_WITHOUT_INPUT,
            stop_strings=_HEADING_STOPS,
        ),
        ChatTemplate(
            "nekomata",
            _headings(_WITH_INPUT, ":\n"),
            system_default=_WITH_INPUT,
            stop_strings=_HEADING_STOPS,
        ),
        ChatTemplate(
            "stockmark2",
            _headings(_WITHOUT_INPUT, ":\n", bos=True, material=False),
            stop_strings=_HEADING_STOPS,
            verified=False,
        ),
        ChatTemplate(
            "rinna_nl", _RINNA, stop_strings=("ユーザー:", "<NL>ユーザー"), newline="<NL>", rewrites_history=True
        ),
        ChatTemplate(
            "rinna_bilingual",
            _head(None)
            + "{%- if system is not none -%}{{- system + '\\n' -}}{%- endif -%}"
            + (
                "{%- for message in turns -%}{%- if message['role'] == 'user' -%}{{- 'ユーザー: ' + message['content'] + "
                "'\\nシステム: ' -}}"
            )
            + (
                "{%- else -%}{{- message['content'] -}}{{- eos_token if loop.last else '\\n' -}}{%- endif -%}{%- "
                "endfor -%}"
            ),
            stop_strings=("ユーザー:",),
            rewrites_history=True,
        ),
        ChatTemplate(
            "calm2",
            _head(None)
            + "{%- if system is not none -%}{{- system + '\\n' -}}{%- endif -%}"
            + _turns(("USER: ", "\nASSISTANT: "), ("", "\n"), ""),
            stop_strings=("USER:",),
        ),
        ChatTemplate(
            "calm3_chatml",
            _chatml("あなたは親切なAIアシスタントです。"),
            "<|im_end|>",
            "あなたは親切なAIアシスタントです。",
        ),
        # Sources differ on the multi-turn form (with or without a new [INST]).
        ChatTemplate(
            "llama2_ja", _llama2(_HONEST, after="", next_open="[INST] "), system_default=_HONEST, verified=False
        ),
        ChatTemplate("swallow_llama2_v01", _llama2(None, after="", next_open="[INST] ")),
        ChatTemplate("shisa_llama2", _llama2(None, after="", next_open="[INST] ", close=" [/INST]"), verified=False),
        ChatTemplate(
            "stockmark",
            _head(None)
            + "{{- bos_token -}}{%- if system is not none -%}{{- system + '\\n\\n' -}}{%- endif -%}"
            + _turns(("### Input:\n", "\n\n### Output:\n"), ("", "\n"), ""),
            stop_strings=("### Input:",),
        ),
        ChatTemplate(
            "rakuten_vicuna",
            _head(_VICUNA)
            + "{{- bos_token + ' ' + system + ' ' -}}"
            + _turns(("USER: ", " ASSISTANT: "), ("", " "), ""),
            system_default=_VICUNA,
            stop_strings=("USER:",),
        ),
        ChatTemplate("sarashina22", _SARASHINA, verified=False),
        ChatTemplate("deepseek_r1", _DEEPSEEK, "<｜end▁of▁sentence｜>", rewrites_history=True),
        ChatTemplate(
            "qwen25_chatml",
            _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
            "<|im_end|>",
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        ),
        ChatTemplate("qwen3_chatml", _chatml(None), "<|im_end|>"),
        ChatTemplate("gemma", _GEMMA, "<end_of_turn>"),
        ChatTemplate("llama3", _LLAMA3, "<|eot_id|>"),
        ChatTemplate(
            "mistral_inst",
            _llama2(None, after="", next_open="[INST] ", close="[/INST]").replace(
                "'<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n'", "system + '\\n\\n'"
            ),
            verified=False,
        ),
        ChatTemplate("phi4", _PHI4, "<|im_end|>"),
        ChatTemplate("gpt_oss_harmony", _harmony(""), "<|return|>", verified=False, rewrites_history=True),
        ChatTemplate(
            "llm_jp_4_harmony",
            _harmony(
                "{{- bos_token + '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + "
                "'\\nReasoning: medium<|end|>' -}}"
            ),
            "<|return|>",
            verified=False,
            rewrites_history=True,
        ),
        ChatTemplate(
            "karakuri_steerlm",
            _head(None)
            + (
                "{{- bos_token -}}{%- if system is not none -%}{%- set lead = '<<SYS>>\\n' + system + "
                "'\\n<</SYS>>\\n\\n' -%}{%- else -%}{%- set lead = '' -%}{%- endif -%}"
            )
            + (
                "{%- for message in turns -%}{%- if message['role'] == 'user' -%}{{- '[INST] ' + (lead if loop.first "
                "else '') + message['content'] + "
            )
            + _quoted(f" {_STEERLM} [/INST]")
            + " -}}{%- else -%}{{- message['content'] + eos_token -}}{%- endif -%}{%- endfor -%}",
            verified=False,
        ),
    )
}


def template_text(expected: str) -> str:
    """The Jinja text of a chat template that is given by its key, as a file or as text.

    Raises:
        ConfigError: it is none of these.
    """
    if expected in TEMPLATES:
        return TEMPLATES[expected].jinja
    if "{{" in expected or "{%" in expected:
        return expected
    if Path(expected).is_file():
        return Path(expected).read_text(encoding="utf-8")
    raise ConfigError(
        f"model.chat_template が {expected!r} です。テンプレート名（{', '.join(TEMPLATES)}）、ファイル、Jinja の文のいずれかにしてください。",
        f"model.chat_template is {expected!r}; give a template's name ({', '.join(TEMPLATES)}), a file or Jinja text.",
    )

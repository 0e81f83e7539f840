"""Parts of chat templates, as Jinja text: templates.py joins them into the prompts of the model families.

Every loop over turns refuses roles that it does not know; a message is never rendered as another's.
"""

from __future__ import annotations

CONTENT = "message['content']"
# Splits a leading system message off: `system` is its text or the default, `turns` the rest.
_HEAD = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set system = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set system = SYSTEM -%}{%- set turns = messages -%}{%- endif -%}"
)
_REFUSE = "{{- raise_exception('the role ' + message['role'] + ' is not known here') -}}"
BOS = "{{- bos_token -}}"


def quoted(text: str) -> str:
    """A Jinja string literal; line ends become the escape that Jinja reads as a line end."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def head(default: str | None = None) -> str:
    """Sets `system` (the conversation's, else the default, else none) and `turns`."""
    return _HEAD.replace("SYSTEM", "none" if default is None else quoted(default))


def around(before: str, after: str, content: str = CONTENT) -> str:
    """A content between two fixed texts; `content` is a Jinja expression."""
    return f"{{{{- {quoted(before)} + {content} + {quoted(after)} -}}}}"


def answer(before: str = "", after: str = "") -> str:
    """An assistant's content, then the eos token."""
    return around(before, after, f"{CONTENT} + eos_token")


def if_system(text: str) -> str:
    """A part that stands only where there is a system text."""
    return "{%- if system is not none -%}" + text + "{%- endif -%}"


def loop(user: str, assistant: str, generation: str = "", *, other: str = "") -> str:
    """All turns.

    Args:
        user, assistant: Jinja text of one turn.
        generation: fixed text that asks for an answer, where the user's turn does not.
        other: further `elif` branches.
    """
    text = (
        "{%- for message in turns -%}{%- if message['role'] == 'user' -%}"
        + user
        + "{%- elif message['role'] == 'assistant' -%}"
        + assistant
        + other
        + "{%- else -%}"
        + _REFUSE
        + "{%- endif -%}{%- endfor -%}"
    )
    if generation:
        text += "{%- if add_generation_prompt -%}{{- " + quoted(generation) + " -}}{%- endif -%}"
    return text


def headings(
    preamble: str,
    with_material: str | None = None,
    *,
    colon: str = ":\n",
    answer_colon: str | None = None,
    fixed_system: bool = False,
) -> str:
    """`### 指示` and `### 応答` under a sentence; the assistant's part is opened by the user's.

    Args:
        preamble: the sentence on top.
        with_material: the one for a question with material (`input`), which then has a section `### 入力`; None knows no
            such section.
        colon: what follows a heading.
        answer_colon: what follows `### 応答`, if something else.
        fixed_system: the sentence stands even where the conversation has a system text.
    """
    opening, content = quoted(preamble), CONTENT
    if with_material is not None:
        opening = f"({quoted(with_material)} if turns[0]['input'] else {opening})"
        heading = quoted("\n\n### 入力" + colon)
        content = f"(message['instruction'] + {heading} + message['input'] if message['input'] else {CONTENT})"
    top = opening if fixed_system else f"(system if system is not none else {opening})"
    end = colon if answer_colon is None else answer_colon
    user = around(f"\n\n### 指示{colon}", f"\n\n### 応答{end}", content)
    return "{{- " + top + " -}}" + loop(user, answer())


def chatml() -> str:
    """`<|im_start|>role`, the system text first, if there is any."""
    return if_system(around("<|im_start|>system\n", "<|im_end|>\n", "system")) + loop(
        around("<|im_start|>user\n", "<|im_end|>\n"),
        around("<|im_start|>assistant\n", "<|im_end|>\n"),
        "<|im_start|>assistant\n",
    )


_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_CALLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call><|im_end|>\n"
)
_SYSTEM_AND_TOOLS = (
    "{%- if tools -%}{{- '<|im_start|>system\\n' -}}"
    + if_system("{{- system + '\\n\\n' -}}")
    + "{{- "
    + quoted(_TOOLS)
    + " -}}{%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}{{- "
    + quoted(_CALLS)
    + " -}}{%- else -%}"
    + if_system(around("<|im_start|>system\n", "<|im_end|>\n", "system"))
    + "{%- endif -%}"
)
# Calls stand behind the content of their turn, one a block.
_TOOL_CALLS = (
    "{%- for call in message['tool_calls'] or [] -%}{%- set asked = call['function'] or call -%}"
    "{{- '\\n' if content or not loop.first else '' -}}"
    "{{- '<tool_call>\\n{\"name\": \"' + asked['name'] + '\", \"arguments\": ' -}}"
    "{{- asked['arguments'] if asked['arguments'] is string else asked['arguments'] | tojson -}}"
    "{{- '}\\n</tool_call>' -}}{%- endfor -%}"
)
# Results of tools that follow each other share one user's turn.
_TOOL_RESULT = (
    "{%- elif message['role'] == 'tool' -%}"
    "{{- '<|im_start|>user' if loop.first or turns[loop.index0 - 1]['role'] != 'tool' else '' -}}"
    "{{- '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' -}}"
    "{{- '<|im_end|>\\n' if loop.last or turns[loop.index0 + 1]['role'] != 'tool' else '' -}}"
)
# The last question of a person: only answers behind it show their thinking.
_LAST_QUESTION = (
    "{%- set last = namespace(question=-1) -%}{%- for message in turns -%}{%- if message['role'] == 'user' and not "
    "(message['content'].startswith('<tool_response>') and message['content'].endswith('</tool_response>')) -%}"
    "{%- set last.question = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- if last.question < 0 -%}{%- set last.question = turns | length - 1 -%}{%- endif -%}"
)
# Thinking is a field of its own, or stands in the content.
_SPLIT_THINKING = (
    "{%- set content = message['content'] or '' -%}{%- set thought = message['reasoning_content'] or '' -%}"
    "{%- if not thought and '</think>' in content -%}"
    "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
)


def qwen(*, thinks: bool) -> str:
    """Qwen's ChatML with tools.

    Args:
        thinks: the last answer has a `<think>` block, an empty one where there is no thinking.
    """
    if thinks:
        content = (
            _SPLIT_THINKING
            + "{%- if loop.index0 > last.question and (loop.last or thought) -%}"
            + "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') -}}"
            + "{%- else -%}{{- content -}}{%- endif -%}"
        )
    else:
        content = "{%- set content = message['content'] or '' -%}{{- content -}}"
    assistant = "{{- '<|im_start|>assistant\\n' -}}" + content + _TOOL_CALLS + "{{- '<|im_end|>\\n' -}}"
    turns = loop(around("<|im_start|>user\n", "<|im_end|>\n"), assistant, "<|im_start|>assistant\n", other=_TOOL_RESULT)
    return _SYSTEM_AND_TOOLS + (_LAST_QUESTION if thinks else "") + turns


def inst(
    opens: str,
    closes: str,
    assistant: str,
    *,
    system_closes: str | None = "\n<</SYS>>\n\n",
    bos_every_turn: bool = False,
) -> str:
    """`[INST]`, with the system text inside the first user turn.

    Args:
        opens, closes: around a question.
        assistant: Jinja text of an answer.
        system_closes: what ends the `<<SYS>>` block; None writes the system text and an empty line, without a block.
        bos_every_turn: each question begins with the bos token, not only the first.
    """
    plain = "{{- system + '\\n\\n' -}}"
    system = plain if system_closes is None else around("<<SYS>>\n", system_closes, "system")
    first = "{%- if loop.first -%}" + if_system(system) + "{%- endif -%}"
    user = (BOS if bos_every_turn else "") + f"{{{{- {quoted(opens)} -}}}}" + first + around("", closes)
    return ("" if bos_every_turn else BOS) + loop(user, assistant)


def harmony(identity: str = "") -> str:
    """Channels; the last answer ends with <|return|>, earlier ones with <|end|>. There is always a system block, whose
    date render() freezes; the system text of a conversation is the developer's message.

    Args:
        identity: lines on top of the system block.
    """
    block = (
        "{{- "
        + quoted(f"<|start|>system<|message|>{identity}Current date: ")
        + " + strftime_now('%Y-%m-%d') + "
        + quoted(
            "\n\nReasoning: medium\n\n"
            "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        )
        + " -}}"
    )
    opens = "<|start|>assistant<|channel|>"
    assistant = (
        "{%- set last = loop.last and not add_generation_prompt -%}"
        "{%- set thought = message['reasoning_content'] or message['thinking'] -%}"
        "{%- if last and thought -%}"
        + around(f"{opens}analysis<|message|>", "<|end|>", "thought")
        + "{%- endif -%}"
        + around(f"{opens}final<|message|>", "")
        + "{{- '<|return|>' if last else '<|end|>' -}}"
    )
    developer = around("<|start|>developer<|message|># Instructions\n\n", "\n\n<|end|>", "system")
    turns = loop(around("<|start|>user<|message|>", "<|end|>"), assistant, "<|start|>assistant")
    return block + if_system(developer) + turns


def speakers(newline: str, system: str) -> str:
    """rinna's `ユーザー: ` and `システム: `, each on a line of its own; only the last answer has the eos token.

    Args:
        newline: what a line end is written as, within contents too.
        system: Jinja text for the system text.
    """
    content = CONTENT if newline == "\n" else f"{CONTENT} | replace('\\n', {quoted(newline)})"
    user = around("ユーザー: ", f"{newline}システム: ", f"({content})")
    assistant = f"{{{{- {content} -}}}}{{{{- eos_token if loop.last else {quoted(newline)} -}}}}"
    return if_system(system) + loop(user, assistant)


GEMMA = BOS + loop(
    "{{- '<start_of_turn>user\\n' -}}{%- if loop.first -%}"
    + if_system("{{- system + '\\n\\n' -}}")
    + "{%- endif -%}"
    + around("", "<end_of_turn>\n", f"({CONTENT} | trim)"),
    around("<start_of_turn>model\n", "<end_of_turn>\n", f"({CONTENT} | trim)"),
    "<start_of_turn>model\n",
)


def headers(opens: str, opened: str, closes: str, content: str = CONTENT) -> str:
    """Each turn, the system text too, behind the name of its role between two marks."""
    return if_system(around(f"{opens}system{opened}", closes, content.replace(CONTENT, "system"))) + loop(
        around(f"{opens}user{opened}", closes, content),
        around(f"{opens}assistant{opened}", closes, content),
        f"{opens}assistant{opened}",
    )


# The full-width bars (U+FF5C) and low lines (U+2581) are part of the tokens: never NFKC-normalise a rendered prompt.
# Only the last answer keeps its thinking.
DEEPSEEK = (
    BOS
    + if_system("{{- system -}}")
    + loop(
        around("<｜User｜>", ""),
        "{%- set content = message['content'] -%}"
        "{%- if not loop.last and '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}"
        "{%- elif loop.last and message['reasoning_content'] -%}"
        "{%- set content = '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' + content -%}{%- endif -%}"
        + around("<｜Assistant｜>", "<｜end▁of▁sentence｜>", "content"),
        "<｜Assistant｜>",
    )
)

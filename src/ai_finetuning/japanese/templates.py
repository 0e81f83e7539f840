"""Chat templates of the Japanese model families, as Jinja text that goes onto a tokenizer.

A template is `golden` where a test compares it with a string whose source is named (tests/fixtures/golden_prompts.yaml),
else `unconfirmed`; which model has which, and by what source, is in models/catalog.yaml and docs/templates.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from . import jinja_parts as jinja
from .default_system import split_default_system

# How far a prompt is known: compared with a string of a named source; written by the template that the model's own
# tokenizer has; neither.
PromptStatus = Literal["golden", "tokenizer", "unconfirmed"]

_WITHOUT_INPUT = "以下は、タスクを説明する指示です。要求を適切に満たす応答を書きなさい。"
_WITH_INPUT = "以下は、タスクを説明する指示と、文脈のある入力の組み合わせです。要求を適切に満たす応答を書きなさい。"
_SWALLOW = "リクエストを適切に完了するための回答を記述してください。"
_SWALLOW_WITHOUT = f"以下に、あるタスクを説明する指示があります。{_SWALLOW}"
_SWALLOW_WITH = f"以下に、あるタスクを説明する指示があり、それに付随する入力が更なる文脈を提供しています。{_SWALLOW}"
_PLAMO = (
    "以下はタスクを説明する指示で、文脈を説明した入力とペアになっています。"
    "要求を適切に補完するよう応答を書いてください。"
)
_HONEST = "あなたは誠実で優秀な日本人のアシスタントです。"
_HELPFUL = "あなたは役立つアシスタントです。"
_KIND = "あなたは親切なAIアシスタントです。"
_QWEN = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_CHATGPT = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
_LLM_JP = "You are LLM-jp-4, a large language model trained by LLM-jp.\nKnowledge cutoff: 2025-12\n"
_STEERLM = (
    " [ATTR] helpfulness: 4 correctness: 4 coherence: 4 complexity: 4 verbosity: 4 quality: 4 toxicity: 0 humor: 0 "
    "creativity: 0 [/ATTR] [/INST]"
)
# What opens the next question, from the line end in front of it: a heading that is alone on its line. Anything less, such
# as `### ` or `USER:` somewhere in a line, is ordinary text.
_HEADING_STOPS = ("\n### 指示:\n", "\n### 指示: \n")


@dataclass(frozen=True)
class ChatTemplate:
    """One family's prompt.

    Attributes:
        key: name in the catalog and in `model.chat_template`.
        jinja: the template.
        turn_end: what ends an assistant's turn; `{eos}` is the tokenizer's eos token.
        system_default: the system text where the conversation has none.
        stop_strings: texts that end an answer besides turn_end, in families without turn tokens: what opens the next
            question, with the line end in front of it; the beginning of an answer is the beginning of a line as well.
        newline: what line ends are written as (rinna's `<NL>`), None for line ends.
        status: `golden` or `unconfirmed`.
        rewrites_history: whether earlier answers are rendered otherwise than the last.
    """

    key: str
    jinja: str
    turn_end: str = "{eos}"
    system_default: str | None = None
    stop_strings: tuple[str, ...] = ()
    newline: str | None = None
    status: PromptStatus = "golden"
    rewrites_history: bool = False

    @property
    def verified(self) -> bool:
        """Whether the form was compared with a string whose source is named."""
        return self.status == "golden"


def _headings(key: str, preamble: str, text: str) -> ChatTemplate:
    return ChatTemplate(key, jinja.head() + text, system_default=preamble, stop_strings=_HEADING_STOPS)


def _llama2(key: str, text: str, system: str | None = None) -> ChatTemplate:
    return ChatTemplate(key, jinja.head(system) + text, system_default=system)


def _chatml(key: str, text: str, system: str | None = None, rewrites_history: bool = False) -> ChatTemplate:
    return ChatTemplate(key, jinja.head(system) + text, "<|im_end|>", system, rewrites_history=rewrites_history)


def _harmony(key: str, identity: str, status: PromptStatus = "unconfirmed") -> ChatTemplate:
    text = jinja.head() + jinja.harmony(identity)
    return ChatTemplate(key, text, "<|return|>", status=status, rewrites_history=True)


def _speakers(key: str, newline: str, system: str) -> ChatTemplate:
    return ChatTemplate(
        key,
        jinja.head() + jinja.speakers(newline, system),
        stop_strings=(f"{newline}ユーザー: ",),
        newline=None if newline == "\n" else newline,
        rewrites_history=True,
    )


_STABLE = jinja.headings(_WITH_INPUT, _WITH_INPUT, colon=": \n")
_IN_BLANKS = jinja.around(" ", "", f"{jinja.CONTENT} + ' ' + eos_token")

TEMPLATES: dict[str, ChatTemplate] = {
    item.key: item
    for item in (
        _headings("alpaca_ja", _WITHOUT_INPUT, jinja.headings(_WITHOUT_INPUT, _WITH_INPUT)),
        _headings("stablelm_ja", _WITH_INPUT, _STABLE),
        _headings("stablelm_ja_alpha", _WITH_INPUT, _STABLE),
        _headings("llm_jp_v2v3", _WITHOUT_INPUT, jinja.BOS + jinja.headings(_WITHOUT_INPUT, fixed_system=True)),
        # Answers follow the colon of `### 応答:` without a line end.
        _headings(
            "swallow_instruct", _SWALLOW_WITHOUT, jinja.headings(_SWALLOW_WITHOUT, _SWALLOW_WITH, answer_colon=":")
        ),
        _headings("weblab_alpaca", _WITHOUT_INPUT, jinja.headings(_WITHOUT_INPUT, _WITH_INPUT, answer_colon=":")),
        _headings("plamo_instruct", _PLAMO, jinja.headings(_PLAMO, _PLAMO)),
        _headings("nekomata", _WITH_INPUT, jinja.headings(_WITH_INPUT, _WITH_INPUT)),
        ChatTemplate(
            "stockmark2",
            jinja.head()
            + jinja.BOS
            + jinja.if_system("{{- system + '\\n\\n' -}}")
            + jinja.loop(
                "{{- '' if loop.first else '\\n\\n' -}}" + jinja.around("### 指示:\n", "\n\n### 応答:\n"),
                jinja.answer(),
            ),
            stop_strings=_HEADING_STOPS,
        ),
        _speakers("rinna_nl", "<NL>", "{{- system | replace('\\n', '<NL>') + '<NL>' -}}"),
        _speakers("rinna_bilingual", "\n", "{{- system + '\\n' -}}"),
        _speakers("youri_chat", "\n", "{{- '設定: ' + system + '\\n' -}}"),
        ChatTemplate(
            "calm2",
            jinja.head()
            + jinja.if_system("{{- system + '\\n' -}}")
            + jinja.loop(jinja.around("USER: ", "\nASSISTANT: "), jinja.answer("", "\n")),
            stop_strings=("\nUSER: ",),
        ),
        _chatml("calm3_chatml", jinja.chatml(), _KIND),
        _chatml("chatml", jinja.chatml()),
        _chatml("chatml_bos", jinja.BOS + jinja.chatml()),
        _llama2("llama2_ja", jinja.inst("[INST] ", " [/INST] ", jinja.answer()), _HONEST),
        # The block is closed by <<SYS>> once more: so the makers write it.
        _llama2(
            "stablelm_beta", jinja.inst("[INST] ", " [/INST] ", jinja.answer(), system_closes="\n<<SYS>>\n\n"), _HELPFUL
        ),
        _llama2("swallow_llama2_v01", jinja.inst("[INST] ", " [/INST] ", jinja.answer())),
        _llama2("shisa_llama2", jinja.inst("[INST] ", " [/INST]", _IN_BLANKS, bos_every_turn=True)),
        _llama2("karakuri_steerlm", jinja.inst("[INST] ", _STEERLM, _IN_BLANKS, bos_every_turn=True)),
        _llama2("karakuri_steerlm_8x7b", jinja.inst("[INST] ", _STEERLM, jinja.answer())),
        # Mistral's three tokenizers: v1 (7B v0.1 and v0.2, Mixtral 8x7B), v3 (7B v0.3), v3-tekken (Nemo).
        _llama2("mistral_v1", jinja.inst(" [INST] ", " [/INST]", jinja.answer(" "), system_closes=None)),
        _llama2("mistral_v3", jinja.inst("[INST] ", "[/INST]", jinja.answer(" "), system_closes=None)),
        _llama2("mistral_tekken", jinja.inst("[INST]", "[/INST]", jinja.answer(), system_closes=None)),
        ChatTemplate(
            "stockmark",
            jinja.head()
            + jinja.BOS
            + jinja.if_system("{{- system + '\\n\\n' -}}")
            + jinja.loop(jinja.around("### Input:\n", "\n\n### Output:\n"), jinja.answer("", "\n")),
            stop_strings=("\n### Input:\n",),
        ),
        ChatTemplate(
            "rakuten_vicuna",
            jinja.head(_VICUNA)
            + "{{- bos_token + ' ' + system + ' ' -}}"
            + jinja.loop(jinja.around("USER: ", " ASSISTANT: "), jinja.answer("", " ")),
            system_default=_VICUNA,
            stop_strings=("\nUSER: ",),
        ),
        ChatTemplate(
            "stablelm2_ja",
            jinja.head() + jinja.headers("<|", "|>\n", "\n", f"({jinja.CONTENT} | trim + eos_token)"),
        ),
        ChatTemplate(
            "sarashina22",
            jinja.head()
            + jinja.if_system(jinja.around("<|system|>", "", "system"))
            + jinja.loop(jinja.around("<|user|>", ""), jinja.answer("<|assistant|>"), "<|assistant|>"),
            status="unconfirmed",
        ),
        ChatTemplate("deepseek_r1", jinja.head() + jinja.DEEPSEEK, "<｜end▁of▁sentence｜>", rewrites_history=True),
        _chatml("qwen25_chatml", jinja.qwen(thinks=False), _QWEN),
        _chatml("qwen3_chatml", jinja.qwen(thinks=True), rewrites_history=True),
        ChatTemplate("gemma", jinja.head() + jinja.GEMMA, "<end_of_turn>"),
        ChatTemplate(
            "llama3",
            jinja.head()
            + jinja.BOS
            + jinja.headers("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>", f"({jinja.CONTENT} | trim)"),
            "<|eot_id|>",
        ),
        ChatTemplate("phi4", jinja.head() + jinja.headers("<|im_start|>", "<|im_sep|>", "<|im_end|>"), "<|im_end|>"),
        _harmony("gpt_oss_harmony", _CHATGPT, "golden"),
        _harmony("harmony", ""),
        # Golden for the alpha tokenizer; the released ones may differ.
        _harmony("llm_jp_4_harmony", _LLM_JP),
    )
}
# Keys that settings written before may hold.
_RENAMED = {"mistral_inst": "mistral_v3"}
# Texts that earlier versions wrote into the folders of runs, by the first 16 digits of their SHA-256.
_FORMER: dict[str, tuple[str, ...]] = {
    "alpaca_ja": ("e60902b2bf26e1f9", "aa9ecdbeb8e63b36"),
    "stablelm_ja": ("750a7fdc1eb18a60", "90f6a16634a76409"),
    "stablelm_ja_alpha": ("750a7fdc1eb18a60", "90f6a16634a76409"),
    "llm_jp_v2v3": ("b722953b985b9833", "271566ee1bc2b45d"),
    "weblab_alpaca": ("e60902b2bf26e1f9", "aa9ecdbeb8e63b36"),
    "nekomata": ("2d9452c12b83aaa5", "517f1aece841a1cd"),
    "stockmark2": ("3b70040b08bee3bd", "579c432be9592513"),
    "rinna_nl": ("3f79610987007349",),
    "rinna_bilingual": ("a829ea32797647c2",),
    "calm2": ("4cbe2f00f2e4941b",),
    "calm3_chatml": ("431e5adbcbddec8e",),
    "llama2_ja": ("9cd90ea5f9398205", "51346b3884193842"),
    "swallow_llama2_v01": ("c269ff3c96ff81b6",),
    "shisa_llama2": ("b4abe30bebe3ac33",),
    "stockmark": ("4ce1f6d7ba43e61b",),
    "rakuten_vicuna": ("9f8d2b8fe168f87a",),
    "sarashina22": ("b5ce6abceee56698",),
    "deepseek_r1": ("b2777ee9d6d403f9",),
    "qwen25_chatml": ("961ff94e008966bf",),
    "qwen3_chatml": ("2063f2564a335797",),
    "gemma": ("4b563e2eda0df7af",),
    "llama3": ("4e996998e8e9da9f",),
    "mistral_inst": ("a6d33853bb094deb",),
    "phi4": ("49973b4a3e59ad08",),
    "gpt_oss_harmony": ("2e1c3c454afbbe74",),
    "llm_jp_4_harmony": ("a1f45ef24558416b",),
    "karakuri_steerlm": ("ee394519b7e9a245",),
}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def template_of(text: str | None) -> ChatTemplate | None:
    """The template that a text is, or was in an earlier version; None for any other text."""
    if text is None:
        return None
    text = split_default_system(text)[0]
    current = next((item for item in TEMPLATES.values() if item.jinja == text), None)
    if current is not None:
        return current
    former = next((key for key, digests in _FORMER.items() if _digest(text) in digests), None)
    return TEMPLATES[_RENAMED.get(former, former)] if former is not None else None


def was_written_for(key: str | None, text: str) -> bool:
    """Whether an earlier version wrote this text where `model.chat_template` was the key."""
    return _digest(text) in _FORMER.get(key or "", ())


def template_text(expected: str) -> str:
    """The Jinja text of a chat template that is given by its key, as a file or as text.

    Raises:
        ConfigError: it is none of these.
    """
    key = _RENAMED.get(expected, expected)
    if key in TEMPLATES:
        return TEMPLATES[key].jinja
    if "{{" in expected or "{%" in expected:
        return expected
    if Path(expected).is_file():
        return Path(expected).read_text(encoding="utf-8")
    raise ConfigError(
        f"model.chat_template が {expected!r} です。テンプレート名（{', '.join(TEMPLATES)}）、ファイル、Jinja の文のいずれかにしてください。",
        f"model.chat_template is {expected!r}; give a template's name ({', '.join(TEMPLATES)}), a file or Jinja text.",
    )

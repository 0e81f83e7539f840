"""From a name to a tokenizer that tokenizes as the model was trained, with its own pad token and a chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import HubError, ModelError
from ..japanese.prompts import render
from ..japanese.templates import TEMPLATES, ChatTemplate, template_text
from ..messages import notice, warn
from . import catalog
from .source import ModelSource, find_tokenizer
from .special_tokens import keep_turn_ends, turn_end_ids

# Texts whose segmentation differs where a unigram model is run as BPE, or where normalisation differs.
PROBES = (
    "日本の首都は東京です。",
    "吾輩は猫である。名前はまだ無い。",
    "国境の長いトンネルを抜けると雪国であった。",
    "株式会社の代表取締役社長",
    "お問い合わせありがとうございます。担当者より折り返しご連絡いたします。",
    "東京特許許可局",
    "すもももももももものうち",
    "機械学習と自然言語処理",
    "カタカナとひらがな、漢字と English の混在",
    "１２３４５と12345",
    "「こんにちは」と言った。",
    "改行\n\nのある文",
    "、。！？（）〜ー・",
    "𠮷野家で鷗外を読む",
    "🍣を食べた",
    "あいうえおかきくけこさしすせそ",
    "昨日、私は友達と一緒に映画を見に行きました。",
    "次の文章を要約してください。",
    "### 指示:",
    "  先頭の空白",
)
# Tokens that models reserve for padding, in the order in which they are preferred.
_PADS = (
    "<PAD|LLM-jp>",
    "<|finetune_right_pad_id|>",
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|padding|>",
    "<|endoftext|>",
    "<unk>",
    "<|unk|>",
    "[UNK]",
    "<s>",
    "<|startoftext|>",
    "<|begin_of_text|>",
)


@dataclass(frozen=True)
class PromptStyle:
    """How a model's answers end and are written.

    Attributes:
        stop_token_ids: any of them ends an answer.
        stop_strings: texts that end an answer.
        newline: what the model writes for a line end, or None.
        verified: whether the template's form was read in a source.
    """

    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()
    newline: str | None = None
    verified: bool = True


def load_tokenizer(
    name: str | ModelSource, *, chat_template: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer, checked against sentencepiece, padded on its own token, with a chat template.

    Args:
        name: hub id, alias, `embedded:NAME` or folder; or a model that find_model() has found.
        chat_template: a key of japanese.templates, a file or Jinja text; None takes the tokenizer's, then the
            catalog's.
        trust_remote_code: run code from the repository.

    Raises:
        ModelError: the tokenizer tokenizes differently from its sentencepiece model does, or cannot be loaded.
        HubError, InputNotFoundError: it cannot be found.
    """
    # A folder that holds only a tokenizer will do, such as an adapter's.
    obtained = name if isinstance(name, ModelSource) else find_tokenizer(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            obtained.path, trust_remote_code=trust_remote_code, local_files_only=obtained.local_only
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        kind = ModelError if Path(obtained.path).is_dir() else HubError
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise kind(
            f"{obtained.name} のトークナイザーを読み込めません（{reason}）。tokenizer.json か tokenizer.model が必要です。",
            f"the tokenizer of {obtained.name} cannot be loaded ({reason}); it needs tokenizer.json or tokenizer.model.",
        ) from error
    tokenizer = _with_parity(tokenizer, obtained.path)
    ensure_pad(tokenizer, _embedding_rows(obtained))
    tokenizer.chat_template = choose_template(tokenizer, obtained.name, chat_template)
    return tokenizer


def _files(name: str, *names: str) -> dict[str, Path]:
    """Those of the named files that are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    folder = Path(name)
    obtained = {}
    for file in names:
        path = folder / file if folder.is_dir() else try_to_load_from_cache(name, file)
        if isinstance(path, str | Path) and Path(path).is_file():
            obtained[file] = Path(path)
    return obtained


def _embedding_rows(source: ModelSource) -> int | None:
    values = source.config
    cached = _files(source.path, "config.json").get("config.json") if not values else None
    if cached is not None:
        values = json.loads(cached.read_text(encoding="utf-8"))
    rows: int | None = values.get("vocab_size") or values.get("text_config", {}).get("vocab_size")
    return rows


def parity_problems(tokenizer: Any, model_file: Path, texts: Sequence[str] = PROBES) -> list[str]:
    """Texts that a tokenizer tokenizes differently from its sentencepiece model."""
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    return [
        text
        for text in texts
        if tokenizer.encode(text, add_special_tokens=False) != reference.encode(text, out_type=int)
    ]


def check_tokenizer_parity(folder: str | Path) -> list[str]:
    """Japanese probes that AutoTokenizer tokenizes differently from the folder's sentencepiece model; empty where all
    agree.

    transformers 5 builds Llama tokenizers as BPE: a unigram model without tokenizer.json is then segmented in a way
    that the model never saw, without an error (docs/design/japanese.md).
    """
    files = _files(str(folder), "tokenizer.model")
    if not files:
        return []
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    return parity_problems(tokenizer, files["tokenizer.model"])


def _with_parity(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    files = _files(name, "tokenizer.model", "tokenizer.json")
    # A tokenizer.json is the maker's own word (GPT-style files called tokenizer.model are no sentencepiece).
    if "tokenizer.json" in files:
        return _as_in_file(tokenizer, name, files["tokenizer.json"])
    if "tokenizer.model" not in files:
        return tokenizer
    problems = parity_problems(tokenizer, files["tokenizer.model"])
    if not problems:
        return tokenizer
    # "legacy" decides whether sentencepiece puts a blank in front of the text, as the model file says, or never.
    for legacy in (False, True):
        repaired = _sentencepiece_backend(tokenizer, files["tokenizer.model"], legacy=legacy)
        left = parity_problems(repaired, files["tokenizer.model"])
        if not left:
            break
    else:
        raise ModelError(
            f"{name} のトークナイザーが sentencepiece と一致しません（{len(PROBES)} 文中 {len(left)} 文、例: {left[0]!r}）。"
            "モデルが学習していないトークン分割になるため使いません。tokenizer.json のある版を使ってください。",
            f"the tokenizer of {name} tokenizes differently from its sentencepiece model ({len(left)} of {len(PROBES)} "
            f"probes, such as {left[0]!r}); the model was not trained on such tokens. Use a version with "
            "tokenizer.json.",
        )
    notice(
        f"{name} のトークナイザーは transformers の変換でトークン分割が変わる（{len(problems)}/{len(PROBES)} 文）ため、sentencepiece で直接読み込みました。",
        f"{name}: transformers' conversion changes the tokenization ({len(problems)} of {len(PROBES)} probes); "
        "using its sentencepiece model directly.",
    )
    return repaired


def _as_in_file(tokenizer: PreTrainedTokenizerBase, name: str, file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, if it tokenizes as its tokenizer.json says; else that file read as it is.

    transformers 5 chooses a class by the model's type, and some of them put their own rules over the file's.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    reference = Tokenizer.from_file(str(file))
    if all(
        tokenizer.encode(text, add_special_tokens=False) == reference.encode(text, add_special_tokens=False).ids
        for text in PROBES
    ):
        return tokenizer
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    notice(
        f"{name}: {type(tokenizer).__name__} では tokenizer.json とトークン分割が変わるため、tokenizer.json をそのまま使います。",
        f"{name}: {type(tokenizer).__name__} tokenizes differently from tokenizer.json; using the file itself.",
    )
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    plain = make(tokenizer_file=str(file), **special)
    plain.chat_template = tokenizer.chat_template
    keep_turn_ends(tokenizer, plain)
    return plain


def _sentencepiece_backend(
    tokenizer: PreTrainedTokenizerBase, model_file: Path, *, legacy: bool
) -> PreTrainedTokenizerBase:
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    make: Callable[..., PreTrainedTokenizerBase] = SentencePieceBackend
    return make(vocab_file=str(model_file), legacy=legacy, **special)


def ensure_pad(tokenizer: Any, embedding_rows: int | None = None) -> None:
    """Gives the tokenizer a pad token other than eos; the vocabulary never outgrows the model's embeddings."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    vocabulary = tokenizer.get_vocab()
    chosen = next((token for token in _PADS if token in vocabulary and token != tokenizer.eos_token), None)
    if chosen is None and embedding_rows is not None and len(tokenizer) < embedding_rows:
        chosen = "<pad>"
    if chosen is None:
        eos = tokenizer.eos_token_id
        chosen = next(token for token, number in sorted(vocabulary.items(), key=lambda item: item[1]) if number != eos)
    tokenizer.pad_token = chosen
    notice(
        f"パディングには {chosen} を使います（eos {tokenizer.eos_token} とは別にして、文末の学習を守ります）。",
        f"padding with {chosen}, apart from eos {tokenizer.eos_token}, so that the end of each answer stays in the "
        "loss.",
    )


def choose_template(tokenizer: Any, name: str, expected: str | None) -> str:
    """The chat template in force, as Jinja text.

    Raises:
        ConfigError: a name that is neither a template's key, a file nor Jinja text.
    """
    if expected is not None:
        return template_text(expected)
    if tokenizer.chat_template:
        return str(tokenizer.chat_template)
    row = catalog.lookup(name)
    template = row.chat_template if row is not None else None
    if template is not None:
        if not template.verified:
            warn(
                f"{name} のプロンプト形式 {template.key} は未確認です。モデルの説明ページと見比べてください（model.chat_template で変更可）。",
                f"the prompt format {template.key} of {name} is unconfirmed; compare it with the model's page "
                "(model.chat_template changes it).",
            )
        return template.jinja
    notice(
        f"{name} にはチャットテンプレートがないため、会話には alpaca_ja（### 指示: / ### 応答:）を使います。model.chat_template で変更できます。",
        f"{name} has no chat template; conversations use alpaca_ja (### 指示: / ### 応答:). Change it with "
        "model.chat_template.",
    )
    return TEMPLATES["alpaca_ja"].jinja


def known_template(tokenizer: Any) -> ChatTemplate | None:
    """The catalog's template that a tokenizer carries, recognised by its text; a saved folder needs no other note of
    it.
    """
    return next((item for item in TEMPLATES.values() if item.jinja == tokenizer.chat_template), None)


def prompt_style(tokenizer: Any, generation_config: Any = None) -> PromptStyle:
    """How answers end: eos, the model's own list, and the token that the template puts behind an answer."""
    template = known_template(tokenizer)
    ids = {tokenizer.eos_token_id, _turn_end_id(tokenizer), *turn_end_ids(tokenizer)}
    listed = getattr(generation_config, "eos_token_id", None)
    ids |= set(listed) if isinstance(listed, list | tuple) else {listed}
    stops = tuple(sorted(item for item in ids if isinstance(item, int)))
    if template is None:
        return PromptStyle(stops)
    return PromptStyle(stops, template.stop_strings, template.newline, template.verified)


def save_generation_config(config: Any, tokenizer: Any, folder: Path) -> None:
    """generation_config.json whose eos list has every token that ends an answer, so that any server stops there."""
    stops = prompt_style(tokenizer, config).stop_token_ids
    config.eos_token_id = list(stops) if len(stops) > 1 else (stops[0] if stops else config.eos_token_id)
    config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(folder)


def _turn_end_id(tokenizer: Any) -> int | None:
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "回答"}]
    text = render(tokenizer, messages)
    tail = text[text.rindex("回答") + 2 :].strip() if "回答" in text else ""
    ids = tokenizer.encode(tail, add_special_tokens=False) if tail else []
    specials = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return ids[0] if len(ids) >= 1 and ids[0] in specials else None

"""From a name to a tokenizer that tokenizes as the model was trained, with its own pad token and a chat template."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import DataError, HubError, ModelError, refusing
from ..japanese.default_system import default_system, split_default_system, with_default_system
from ..japanese.prompts import render, validate_template
from ..japanese.templates import TEMPLATES, ChatTemplate, template_of, template_text
from ..messages import notice, warn
from ..system.files import refuse_links_outside
from . import catalog
from .hub import Located
from .probes import PROBES as PROBES
from .sentencepiece_tokenizer import deciding_file, from_pieces, pieces_file, read_settings
from .source import ModelSource, find_tokenizer, read_config, warn_of_code
from .special_tokens import keep_turn_ends, turn_end_ids

# Tokens that models reserve for padding, in the order in which they are preferred.
_PADS = (
    "<PAD|LLM-jp>",
    "<|finetune_right_pad_id|>",
    "<pad>",
    "<PAD>",
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
# A tokenizer with fewer pieces than this part of a model's embedding rows is not that model's.
_SMALLEST_SHARE = 10
# Files other than sentencepiece's from which transformers makes a tokenizer.
_READ = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model", "tokenizer.model")


@dataclass(frozen=True)
class PromptStyle:
    """How a model's answers end and are written.

    Attributes:
        stop_token_ids: any of them ends an answer.
        stop_strings: texts that end an answer.
        newline: what the model writes for a line end, or None.
        verified: whether the template is the tokenizer's own, or was compared with a string whose source is named.
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
        ModelError: the tokenizer tokenizes differently from its sentencepiece model does, or cannot be loaded;
            a template of its folder is a link out of it.
        HubError, InputNotFoundError: it cannot be found.
    """
    # A folder that holds only a tokenizer will do, such as an adapter's.
    obtained = name if isinstance(name, ModelSource) else find_tokenizer(name)
    rows = _embedding_rows(obtained)
    # A template is any text, and goes wherever the tokenizer is saved.
    refuse_links_outside(Path(obtained.path), names="*.jinja")
    with refusing(
        ModelError if Path(obtained.path).is_dir() else HubError,
        f"{obtained.name} のトークナイザーを読み込めません（{{reason}}）。tokenizer.json か sentencepiece の *.model が必要です。",
        f"the tokenizer of {obtained.name} cannot be loaded ({{reason}}); it needs tokenizer.json or a sentencepiece "
        "*.model.",
    ):
        tokenizer = _loaded(obtained, trust_remote_code)
        refuse_empty(tokenizer, obtained.name, rows)
        _read_special_tokens(tokenizer, obtained.name)
        ensure_pad(tokenizer, rows)
    tokenizer.chat_template = choose_template(tokenizer, obtained.name, chat_template)
    validate_template(tokenizer.chat_template)
    return tokenizer


def _loaded(source: ModelSource, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer that the maker's files describe: tokenizer.json, else the sentencepiece file, else what
    transformers finds.
    """
    folder = _folder(source)
    by_code = trust_remote_code and folder is not None and "auto_map" in read_settings(folder)
    if folder is not None and not by_code:
        pieces = deciding_file(folder)
        if pieces is not None:
            return from_pieces(folder, pieces)
        _refuse_unreadable(folder, source.name)
    if by_code:
        warn_of_code(source.name)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        source.path, trust_remote_code=trust_remote_code, local_files_only=source.local_only
    )
    if folder is None or by_code or not (folder / "tokenizer.json").is_file():
        return tokenizer
    # A tokenizer.json is the maker's own word.
    tokenizer = _as_in_file(tokenizer, source.name, folder / "tokenizer.json")
    _compare(tokenizer, source.name, folder)
    return tokenizer


def _read_special_tokens(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Switches off that special tokens are read as the characters that they are written with: the prompt is a text here,
    and its marks, and the end of every answer, would be learnt as characters that end nothing.
    """
    if getattr(tokenizer, "split_special_tokens", False):
        tokenizer.split_special_tokens = False
        tokenizer.init_kwargs.pop("split_special_tokens", None)
        notice(
            f"{name} の tokenizer_config.json の split_special_tokens は使いません（回答の終わりなどの特殊トークンが、ただの文字として学習されてしまうため）。",
            f"{name}: split_special_tokens of its tokenizer_config.json is not used; special tokens, such as the end of an "
            "answer, would be learnt as plain characters.",
        )


def _folder(source: ModelSource) -> Path | None:
    """Where the tokenizer's files are on this machine; they are downloaded where the hub may be asked."""
    if Path(source.path).is_dir():
        return Path(source.path)
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    if not source.local_only:
        # transformers downloads the files that it knows by name; a sentencepiece file may have any.
        return Path(
            snapshot_download(source.path, allow_patterns=["*.model", "*token*.json", "*.jinja", "config.json"])
        )
    found = (try_to_load_from_cache(source.path, file) for file in ("tokenizer_config.json", "config.json"))
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def _compare(tokenizer: PreTrainedTokenizerBase, name: str, folder: Path) -> None:
    """Says where a maker's tokenizer.json and sentencepiece file segment the probes differently."""
    pieces = pieces_file(folder)
    different = parity_problems(tokenizer, pieces) if pieces is not None else []
    if pieces is not None and different:
        notice(
            f"{name}: tokenizer.json と {pieces.name} のトークン分割が {len(PROBES)} 文中 {len(different)} 文で違います（例: {different[0]!r}）。"
            "tokenizer.json を使います。",
            f"{name}: tokenizer.json and {pieces.name} tokenize {len(different)} of {len(PROBES)} probes differently "
            f"(such as {different[0]!r}); using tokenizer.json.",
        )


def refuse_empty(tokenizer: Any, name: str, embedding_rows: int | None = None) -> None:
    """Raises ModelError for a tokenizer that does not read text: transformers makes one from files that it does not
    know, without an error. One that has pieces, but none for Japanese, is counted by its data (data/vocabulary.py).
    """
    known = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    if known and len(known) * _SMALLEST_SHARE > (embedding_rows or 0):
        return
    asked = f"（埋め込みは {embedding_rows} 行）" if embedding_rows else ""
    rows = f" for {embedding_rows} rows of embeddings" if embedding_rows else ""
    raise ModelError(
        f"{name} のトークナイザーは語彙が {len(known)} 語しかなく{asked}、文章を読めません。tokenizer.json か sentencepiece の *.model "
        "のある版を使ってください。",
        f"the tokenizer of {name} has a vocabulary of {len(known)} pieces{rows} and cannot read text; use a version with "
        "tokenizer.json or a sentencepiece *.model.",
    )


def _refuse_unreadable(folder: Path, name: str) -> None:
    """Raises ModelError for a folder whose only vocabulary is in a format that needs the repository's own code."""
    unread = sorted(path.name for path in folder.glob("*.tiktoken"))
    if unread and not any((folder / file).is_file() for file in _READ):
        raise ModelError(
            f"{name} のトークナイザーのファイルは {', '.join(unread)} だけで、リポジトリー内のコードなしでは読めません。tokenizer.json のある版を使ってください"
            "（Qwen は Qwen1.5 以降にあります）。",
            f"{name} has its vocabulary only in {', '.join(unread)}, which nothing but code from its repository reads; use "
            "a version with tokenizer.json (Qwen has one from Qwen1.5 on).",
        )


def _embedding_rows(source: ModelSource) -> int | None:
    if not source.config and not Path(source.path).is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(source.path, "config.json")
        if isinstance(cached, str):
            source = replace(
                source, config=read_config(Located(source.name, str(Path(cached).parent), local_only=True))
            )
    rows = source.config.get("vocab_size") or source.text.get("vocab_size")
    return rows if isinstance(rows, int) else None


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
    """Probes that plain AutoTokenizer tokenizes differently from the folder's sentencepiece model; empty where all
    agree.

    transformers 5 builds Llama tokenizers as BPE: a unigram model without tokenizer.json is then segmented in a way
    that the model never saw, without an error (docs/design/japanese.md). load_tokenizer() reads such a folder by
    sentencepiece itself.
    """
    file = pieces_file(Path(folder))
    if file is None:
        return []
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    return parity_problems(tokenizer, file)


def _as_in_file(tokenizer: PreTrainedTokenizerBase, name: str, file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer, if it tokenizes as its tokenizer.json says; else that file read as it is.

    transformers 5 chooses a class by the model's type, and some of them put their own rules over the file's.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    reference = Tokenizer.from_file(str(file))
    reference.no_truncation()  # of whoever saved the file; every call of the tokenizer says its own
    reference.no_padding()
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
    if chosen in vocabulary and (tokenizer.is_fast or chosen not in _PADS):
        tokenizer.pad_token = chosen
    else:  # a name that is nobody's yet; in Python, a marker that decode() leaves out
        tokenizer.add_special_tokens({"pad_token": chosen})
    notice(
        f"パディングには {chosen} を使います（eos {tokenizer.eos_token} とは別にして、文末の学習を守ります）。",
        f"padding with {chosen}, apart from eos {tokenizer.eos_token}, so that the end of each answer stays in the "
        "loss.",
    )


def choose_template(tokenizer: Any, name: str, expected: str | None) -> str:
    """The chat template in force, as Jinja text; the system text that the model was trained with stays in it.

    Raises:
        ConfigError: a name that is neither a template's key, a file nor Jinja text.
    """
    if expected is not None:
        text = template_text(expected)
        chosen = template_of(text)
        if chosen is not None and not chosen.verified:
            warn(
                f"model.chat_template に指定された {chosen.key} は未確認のプロンプト形式です。モデルの説明ページと見比べてください。",
                f"{chosen.key} (model.chat_template) is an unconfirmed prompt format; compare it with the model's page.",
            )
        given = split_default_system(text)[1]
        return text if given is not None else with_default_system(text, default_system(tokenizer))
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several by name, as transformers reads them; the one that it takes without a name
        own = own.get("default")
    if isinstance(own, str) and own:
        return own
    if own:
        raise ModelError(
            f"{name} のチャットテンプレートは文字列ではなく {type(own).__name__} です。model.chat_template で指定してください。",
            f"the chat template of {name} is a {type(own).__name__}, not text; name one with model.chat_template.",
        )
    row = catalog.lookup(name)
    if row is not None and row.prompt is not None:
        template = row.chat_template or TEMPLATES["alpaca_ja"]
        _say_how_far_known(name, row, template)
        return template.jinja
    notice(
        f"{name} にはチャットテンプレートがないため、会話には alpaca_ja（### 指示: / ### 応答:）を使います。model.chat_template で変更できます。",
        f"{name} has no chat template; conversations use alpaca_ja (### 指示: / ### 応答:). Change it with "
        "model.chat_template.",
    )
    return TEMPLATES["alpaca_ja"].jinja


def _say_how_far_known(name: str, row: catalog.CatalogRow, template: ChatTemplate) -> None:
    if row.prompt == "unconfirmed":
        warn(
            f"{name} のプロンプト形式 {template.key} は未確認です。モデルの説明ページと見比べてください（model.chat_template で変更可）。",
            f"the prompt format {template.key} of {name} is unconfirmed; compare it with the model's page "
            "(model.chat_template changes it).",
        )
    elif row.prompt == "tokenizer":
        warn(
            f"{name} のトークナイザーには本来チャットテンプレートがありますが、このコピーにはないため {template.key} を使います。元のトークナイザーの "
            "chat_template.jinja を置くか、model.chat_template で指定してください。",
            f"the tokenizer of {name} comes with a chat template, but this copy has none; using {template.key}. Put the "
            "original chat_template.jinja beside it, or name one with model.chat_template.",
        )


def known_template(tokenizer: Any) -> ChatTemplate | None:
    """The catalog's template that a tokenizer carries, recognised by its text, that of an earlier version included; a
    saved folder needs no other note of it.
    """
    return template_of(tokenizer.chat_template)


def prompt_style(tokenizer: Any, generation_config: Any = None) -> PromptStyle:
    """How answers end: eos, the model's own list, and the token that the template puts behind an answer."""
    template = known_template(tokenizer)
    listed = getattr(generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, _turn_end_id(tokenizer), *turn_end_ids(tokenizer)]
    ids += listed if isinstance(listed, list | tuple) else [listed]
    stops = tuple(sorted({item for item in ids if isinstance(item, int)}))  # of the model's list only what are ids
    if template is None:
        return PromptStyle(stops)
    return PromptStyle(stops, template.stop_strings, template.newline, template.verified)


def warn_without_end(tokenizer: Any) -> None:
    """Says so where neither the tokenizer nor the chat template has a token that ends an answer: none is learnt."""
    try:
        ended = tokenizer.eos_token_id is not None or bool(prompt_style(tokenizer).stop_token_ids)
    except (DataError, ModelError):  # a template that refuses every row refuses them by its own reason
        return
    if not ended:
        warn(
            "このトークナイザーには eos トークンがなく、チャットテンプレートの応答の後にもトークンがないため、モデルは回答の終わりを学べません（max_new_tokens まで続きます）。"
            "model.special_tokens.eos_token に語彙のトークンを指定してください。",
            "the tokenizer has no eos token, and the chat template puts no token behind an answer: the model learns no end of "
            "its answers, which go on up to max_new_tokens. Name a token of the vocabulary as model.special_tokens.eos_token.",
        )


def repair_generation_config(config: Any) -> None:
    """Makes a generation config one that transformers agrees to save, and says what it has lost.

    Makers publish values that are refused (a temperature without do_sample). They have no effect: these go.
    """
    default = type(config)()
    lost: list[str] = []
    for _ in range(2):  # an error of one value hides those of the others
        named = [name for name in re.findall(r"`(\w+)`", _refusal(config)) if hasattr(default, name)]
        for name in dict.fromkeys(named):
            if name != "do_sample" and getattr(config, name) != getattr(default, name):
                setattr(config, name, getattr(default, name))
                lost.append(name)
    if _refusal(config):
        kept = ("bos_token_id", "eos_token_id", "pad_token_id")
        lost += [name for name in config.to_diff_dict() if name not in kept]
        config.__dict__.update(default.__dict__ | {name: getattr(config, name) for name in kept})
    if lost:
        notice(
            f"ベースの generation_config の {', '.join(lost)} は、ほかの値と合わず効果がないため、外して保存します。",
            f"{', '.join(lost)} of the base's generation_config contradict its other values and have no effect: saving "
            "it without.",
        )


def _refusal(config: Any) -> str:
    """Why transformers would not save a generation config; empty where it would."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return str(error)
    return ""


def save_generation_config(config: Any, tokenizer: Any, folder: Path) -> None:
    """generation_config.json whose eos list has every token that ends an answer, so that any server stops there."""
    stops = prompt_style(tokenizer, config).stop_token_ids
    config.eos_token_id = list(stops) if len(stops) > 1 else (stops[0] if stops else config.eos_token_id)
    config.pad_token_id = tokenizer.pad_token_id
    repair_generation_config(config)
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

"""Tokens that a user gives a tokenizer: special ones, new ones, those that end a turn; and the embedding rows for them."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Sequence
from typing import Any

import torch

from ..config.model import ModelConfig
from ..errors import ConfigError, ModelError
from ..japanese.prompts import render
from ..messages import notice, warn
from .adapters import embedding_weights

# In tokenizer_config.json, so that whoever loads the saved tokenizer stops at them.
_TURN_ENDS = "turn_end_tokens"
_MOST_CANDIDATES = 2000


def with_tokens(tokenizer: Any, config: ModelConfig) -> Any:
    """The tokenizer with the tokens of the configuration; a changed copy, or itself where there are none.

    Raises:
        ConfigError: a special token or an end of a turn that is not in the vocabulary.
    """
    if not (config.special_tokens or config.extra_tokens or config.turn_end_tokens):
        return tokenizer
    from transformers import AddedToken

    changed = copy.deepcopy(tokenizer)
    for token in config.extra_tokens or ():
        if token in changed.get_vocab():
            notice(
                f"model.extra_tokens の {token} はすでに語彙にあるので、そのまま使います。",
                f"model.extra_tokens: {token} is in the vocabulary already and stays as it is.",
            )
        else:
            changed.add_tokens([AddedToken(token, normalized=False)])
    for part, token in (config.special_tokens or {}).items():
        _validate_known(changed, f"model.special_tokens[{part}]", token)
        setattr(changed, part, token)
    ends = list(config.turn_end_tokens or ())
    for token in ends:
        _validate_known(changed, "model.turn_end_tokens", token)
    if ends:
        # Special, so that the text is cut around them and answers do not show them.
        changed.add_tokens([AddedToken(token, normalized=False, special=True) for token in ends], special_tokens=True)
        changed.init_kwargs[_TURN_ENDS] = ends
    return changed


def _validate_known(tokenizer: Any, name: str, token: str) -> None:
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return
    near = _near(token, vocabulary, [str(item) for item in tokenizer.added_tokens_decoder.values()])
    ja = f"もしかして: {', '.join(near)}。" if near else ""
    en = f"did you mean {', '.join(near)}? " if near else ""
    raise ConfigError(
        f"{name} が {token!r} ですが、語彙にありません。{ja}新しいトークンなら model.extra_tokens にも書いてください。",
        f"{name} is {token!r}, which is not in the vocabulary; {en}A new token has to be in model.extra_tokens too.",
    )


def _near(token: str, vocabulary: Sequence[str], special: Sequence[str]) -> list[str]:
    """Tokens that look alike: among the special ones, else among those that contain its letters."""
    core = re.sub(r"\W|_", "", token)
    inside = [item for item in vocabulary if core and core in item][:_MOST_CANDIDATES]
    return difflib.get_close_matches(token, special, n=3) or difflib.get_close_matches(token, inside, n=3)


def turn_end_ids(tokenizer: Any) -> set[int]:
    """Ids of the tokens that the user named as ends of turns, from the tokenizer as it is or as it was saved."""
    vocabulary = tokenizer.get_vocab()
    return {vocabulary[token] for token in _turn_ends(tokenizer) if token in vocabulary}


def keep_turn_ends(source: Any, target: Any) -> None:
    """Hands the ends of turns on to a tokenizer that takes another one's place."""
    if _turn_ends(source):
        target.init_kwargs[_TURN_ENDS] = list(_turn_ends(source))


def _turn_ends(tokenizer: Any) -> Sequence[str]:
    ends: Sequence[str] = (getattr(tokenizer, "init_kwargs", None) or {}).get(_TURN_ENDS) or ()
    return ends


def warn_of_unused_turn_ends(tokenizer: Any) -> None:
    """Says so where the chat template ends no answer with one of the tokens: they are then learnt nowhere."""
    ends = _turn_ends(tokenizer)
    if not ends or not tokenizer.chat_template:
        return
    text = render(tokenizer, [{"role": "user", "content": "A"}, {"role": "assistant", "content": "回答"}])
    if not any(token in text.rpartition("回答")[2] for token in ends):
        warn(
            f"チャットテンプレートの応答の後に model.turn_end_tokens（{', '.join(ends)}）がないため、学習対象になりません。",
            f"the chat template puts none of model.turn_end_tokens ({', '.join(ends)}) behind an answer, so they are not "
            "learnt.",
        )


def rows_for(tokenizer: Any, extra_tokens: Sequence[str] | None) -> int:
    """Embedding rows that the new tokens need: the largest of their ids, and one; 0 without new tokens."""
    vocabulary = tokenizer.get_vocab()
    return max((vocabulary[token] + 1 for token in extra_tokens or ()), default=0)


def validate_growth(rows: int, there: int, *, trains_embedding: bool) -> None:
    """Refuses new tokens for which there are no rows, and whose new rows would never be trained or saved.

    Args:
        rows: that the tokens need.
        there: that the model has.
        trains_embedding: embedding and head train, and are saved.

    Raises:
        ConfigError: with the ways out.
    """
    if rows > there and not trains_embedding:
        raise ConfigError(
            f"model.extra_tokens には埋め込みが {rows} 行必要ですが、モデルには {there} 行しかありません。増やした行を学習して保存できるように、method: full にするか、"
            "lora.modules_to_save に埋め込みと出力層（embed_tokens と lm_head など）を入れてください。",
            f"model.extra_tokens needs {rows} embedding rows and the model has {there}. So that new rows are trained and "
            "saved, use method: full, or put embedding and head (such as embed_tokens and lm_head) into "
            "lora.modules_to_save.",
        )


@torch.no_grad()
def grow_embedding(model: Any, rows: int) -> None:
    """Gives a model more embedding rows, in place; the new ones are the mean of the others, in embedding and head.

    Raises:
        ModelError: the model's rows cannot be changed.
    """
    before = model.get_input_embeddings().weight.shape[0]
    try:
        model.resize_token_embeddings(rows, mean_resizing=False)
    except (NotImplementedError, ValueError, AttributeError) as error:
        raise ModelError(
            f"このモデルの埋め込みは増やせません（{error}）。model.extra_tokens を使わないでください。",
            f"the embedding of this model cannot grow ({error}); leave model.extra_tokens out.",
        ) from error
    for weight in embedding_weights(model):
        weight[before:] = weight[:before].float().mean(dim=0).to(weight.dtype)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        bias[before:] = bias[:before].float().mean().to(bias.dtype)


def note_special_ids(model: Any, tokenizer: Any, config: ModelConfig) -> None:
    """Writes the ids of the special tokens that the user gave into the model's own configuration."""
    for part in config.special_tokens or ():
        name = f"{part}_id"
        for holder in (model.config, model.generation_config):
            if holder is not None and hasattr(holder, name):
                setattr(holder, name, getattr(tokenizer, name))

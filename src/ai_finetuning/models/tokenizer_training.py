"""A sentencepiece unigram tokenizer (arXiv:1804.10959) from texts, written for sentencepiece and for transformers
alike.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import ConfigError, DataError, ModelError
from ..messages import excerpt

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
# One turn: role token, text, end. Nothing else, so that a small model spends no token on form.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_LONGEST_LINE = 4000
_CHECKED = 2000
_GRID = 256


def train_tokenizer(
    texts: Iterable[str], folder: Path, *, vocabulary: int = 8192, character_coverage: float = 0.9995
) -> Path:
    """Writes tokenizer.model, tokenizer.json and the configuration with a chat template.

    Identity normalisation, no blank put in front, byte fallback; the line end and the role tokens are pieces of their
    own.

    Args:
        texts: what to learn from; only the first 4,000 characters of a line count.
        folder: is made.
        vocabulary: pieces, all of those included.
        character_coverage: share of characters that get pieces; the rest falls back to bytes.

    Raises:
        ConfigError: a vocabulary too small for its fixed pieces or too large for the texts. DataError: no text.
        ModelError: the two files would not give the same ids.
    """
    import sentencepiece

    lines = [line for text in texts for line in _lines(text)]
    if not lines:
        raise DataError("トークナイザーの学習に使う文がありません。", "there is no text to train a tokenizer on.")
    fixed = 256 + 4 + len(ROLES) + 1
    if vocabulary <= fixed:
        raise ConfigError(
            f"語彙数が {vocabulary} です。{fixed} より大きくしてください（バイト 256 個と特殊トークンを含みます）。",
            f"the vocabulary size is {vocabulary}; it must be more than {fixed} (256 bytes and special tokens are part "
            "of it).",
        )
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=written,
            vocab_size=vocabulary,
            model_type="unigram",
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            character_coverage=character_coverage,
            user_defined_symbols=["\n", *ROLES],
            split_digits=True,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=PAD,
            bos_piece=BOS,
            eos_piece=EOS,
            unk_piece=UNK,
            max_sentence_length=4 * _LONGEST_LINE,
            input_sentence_size=150_000,
            shuffle_input_sentence=True,
            num_threads=2,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0][-200:]
        raise ConfigError(
            f"語彙数 {vocabulary} のトークナイザーを作れません（{reason}）。語彙数を減らすか、文を増やしてください。",
            f"a tokenizer of {vocabulary} pieces cannot be made ({reason}); choose a smaller vocabulary, or provide "
            "more text.",
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(_on_grid(written.getvalue()))
    _write_fast(folder)
    _require_parity(folder, lines)
    return folder


def _lines(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        if line.strip():
            yield line[:_LONGEST_LINE]


def _on_grid(model: bytes) -> bytes:
    """The model with scores rounded to 1/256.

    sentencepiece adds scores in single precision and tokenizers in double: off the grid they round near ties
    differently (one line in 500 of real prose did). On it both sums are exact for texts of a few thousand characters.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # protobuf makes it at run time
    proto.ParseFromString(model)
    for piece in proto.pieces:
        piece.score = round(piece.score * _GRID) / _GRID
    return bytes(proto.SerializeToString())


def _write_fast(folder: Path) -> None:
    """tokenizer.json with the same pieces and scores, read by transformers as it is."""
    import sentencepiece
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = [(reference.id_to_piece(index), reference.get_score(index)) for index in range(reference.get_piece_size())]
    core = Tokenizer(models.Unigram(pieces, unk_id=reference.unk_id(), byte_fallback=True))
    core.normalizer = normalizers.Replace(Regex(" "), "▁")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(token, normalized=False) for token in (PAD, BOS, EOS, UNK, *ROLES)])
    core.add_tokens([AddedToken("\n", normalized=False)])
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    tokenizer = make(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def _require_parity(folder: Path, lines: Sequence[str]) -> None:
    """Refuses a pair of files that would segment the same text differently.

    Raises:
        ModelError: with an example.
    """
    from transformers import AutoTokenizer

    from .probes import PROBES
    from .tokenizers import parity_problems

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    step = max(1, len(lines) // _CHECKED)
    different = parity_problems(tokenizer, folder / "tokenizer.model", [*PROBES, *lines[::step][:_CHECKED]])
    if different:
        raise ModelError(
            f"tokenizer.json と tokenizer.model のトークン分割が違います（例: {excerpt(different[0])}）。",
            f"tokenizer.json and tokenizer.model tokenize differently (such as {excerpt(different[0])}).",
        )

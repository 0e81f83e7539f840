"""ModelConfig: which model, and how it is loaded."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .limits import PositiveFloat, Rule
from .section import require, section

# As much as models/sizes.py allows a config.json.
_Layers = Annotated[int, Field(ge=1, le=1000)]
_Heads = Annotated[int, Field(ge=1, le=2**16)]
_Width = Annotated[int, Field(ge=1, le=2**20)]
_Positions = Annotated[int, Field(ge=1, le=2**27)]


@section
class ArchitectureConfig:
    """A new Llama-architecture model (arXiv:2302.13971), for method: pretrain."""

    SECTION: ClassVar[str] = "model.architecture"

    hidden_size: _Width = 256
    """Width of the hidden states.
    ja: 隠れ状態の次元数。
    """
    num_hidden_layers: _Layers = 8
    """Number of layers.
    ja: 層の数。
    """
    num_attention_heads: _Heads = 4
    """Attention heads; each has hidden_size / num_attention_heads features.
    ja: アテンションのヘッド数。1 つのヘッドの次元は hidden_size / num_attention_heads です。
    """
    num_key_value_heads: _Heads | None = None
    """Heads of keys and values; null for as many as attention heads.
    ja: キーと値のヘッド数。null はアテンションのヘッド数と同じです。
    """
    intermediate_size: _Width | None = None
    """Width of the gated layer; null for 8/3 of hidden_size, rounded up to 32.
    ja: ゲート付き中間層の次元数。null は hidden_size の 8/3（32 の倍数に切り上げ）です。
    """
    max_position_embeddings: _Positions = 1024
    """Maximum sequence length, in tokens.
    ja: 系列の最大長（トークン数）。
    """
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary position embedding.
    ja: 回転位置埋め込み（RoPE）の基数。
    """
    tie_word_embeddings: bool = True
    """Share one matrix between input embedding and output head.
    ja: 入力の埋め込みと出力層で 1 つの行列を共有するかどうか。
    """

    def __post_init__(self) -> None:
        heads, pairs = self.num_attention_heads, self.num_key_value_heads
        require(
            self.hidden_size % (2 * heads) == 0,
            "model.architecture.hidden_size",
            self.hidden_size,
            f"num_attention_heads ({heads}) の 2 倍で割り切れる数にしてください。",
            f"it must be a multiple of twice num_attention_heads ({heads}).",
        )
        require(
            pairs is None or heads % pairs == 0,
            "model.architecture.num_key_value_heads",
            pairs,
            f"num_attention_heads ({heads}) を割り切る数にしてください。",
            f"it must divide num_attention_heads ({heads}).",
        )


_Token = Annotated[str, Field(pattern=r"[\s\S]"), Rule("トークンを書いてください。", "it must be a token.")]
_Tokens = Annotated[
    Annotated[list[_Token], Field(min_length=1)] | None,
    Rule("トークンのリストか null（None）にしてください。", "it must be a list of tokens or null (None)."),
]


@section
class ModelConfig:
    """A model by hub id, folder or embedded name."""

    SECTION: ClassVar[str] = "model"

    name: Annotated[str, Field(pattern=r"\S"), Rule("モデル名を書いてください。", "it must name a model.")] = (
        "embedded:kotoha-tiny"
    )
    """Hub id, local folder, or embedded:kotoha-tiny, the small model that ships with the toolkit and needs no download.
    ja: ハブの ID、フォルダー、または embedded:kotoha-tiny（同梱の小さなモデル。ダウンロード不要）。
    """
    chat_template: str | None = None
    """Name of a template in the catalog, a file, or Jinja text; null takes the tokenizer's own, then the catalog's.
    ja: チャットテンプレート。カタログの名前、ファイル、または Jinja の文。null はトークナイザーのもの、なければカタログのもの。
    """
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the frozen weights.
    ja: 凍結した重みのデータ型。
    """
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention implementation; auto takes the fastest one that model and device allow.
    ja: アテンションの実装。auto はモデルとデバイスで使える最も速いもの。
    """
    trust_remote_code: bool = False
    """Run code from the model's repository: only for repositories that you trust, and only on the command line; in a
    file true is refused.
    ja: モデルのリポジトリにあるコードを実行するかどうか。信頼できるリポジトリに限り、コマンドラインでだけ true にできます（設定ファイルの true は拒否します）。
    """
    architecture: ArchitectureConfig | None = None
    """Sizes of a new model, for method: pretrain; null reads config.json beside the tokenizer in the folder `name`.
    ja: 新しいモデルの大きさ（method: pretrain 用）。null は `name` のフォルダーにある config.json に従います。
    """
    special_tokens: dict[Literal["bos_token", "eos_token", "pad_token", "unk_token"], _Token] | None = None
    """Tokens of the vocabulary that take these parts instead of the tokenizer's own: {eos_token: <|im_end|>}.
    ja: トークナイザーの設定の代わりに使う、語彙にあるトークン。例: {eos_token: <|im_end|>}
    """
    extra_tokens: _Tokens = None
    """New tokens. They take spare rows of the embedding; where there are none it grows, which takes method full or
    pretrain, or embedding and head in lora.modules_to_save.
    ja: 新しく加えるトークン。埋め込みの空いた行を使います。空きがなければ行を増やしますが、method が full か pretrain のとき、または lora.modules_to_save に埋め込みと出力層があるときに限ります。
    """
    turn_end_tokens: _Tokens = None
    """Tokens of the vocabulary that end an assistant's turn: they carry loss and stop generation, as eos does.
    ja: アシスタントの発話を終える、語彙にあるトークン。eos と同じく学習対象になり、生成を止めます。
    """

"""DataConfig: what is read, and how it becomes tokens."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..errors import ConfigError
from .limits import AtLeastOne, Fraction, PositiveFloat
from .mixture import ROWS, Sources, sources_of
from .section import section


@section
class NormalizeConfig:
    """Which characters of the text are brought into one form; templates and special tokens never are."""

    SECTION: ClassVar[str] = "data.normalize"

    newlines: bool = True
    """Change CRLF and CR to LF.
    ja: CRLF と CR を LF に統一します。
    """
    bom: bool = True
    """Remove U+FEFF.
    ja: U+FEFF（BOM）を取り除きます。
    """
    compose: bool = True
    """Compose combining sequences (NFC); compatibility ideographs in people's names stay.
    ja: 結合文字を合成します（NFC）。人名の互換漢字はそのまま残します。
    """
    widen_kana: bool = True
    """Change half-width katakana to full-width.
    ja: 半角カタカナを全角にします。
    """
    strip_control: bool = False
    """Remove control and zero-width characters; otherwise rows with control characters are refused.
    ja: 制御文字とゼロ幅文字を取り除きます。false なら制御文字のある行は使わずに知らせます。
    """
    narrow_ascii: bool = False
    """Change full-width letters and digits to half-width.
    ja: 全角英数字を半角にします。
    """
    wave_dash: bool = False
    """Change the full-width tilde U+FF5E to the wave dash U+301C.
    ja: 全角チルダ U+FF5E を波ダッシュ U+301C にします。
    """
    collapse_blank_lines: bool = False
    """Change three and more line ends to two.
    ja: 3 つ以上続く改行を 2 つにします。
    """


@section
class ReplayConfig:
    """Rows of an earlier training among the new ones, against forgetting what they taught."""

    SECTION: ClassVar[str] = "data.replay"

    path: str | list[str] | None = None
    """Data of the earlier training: file, folder or hub id, or a list of them; null replays nothing. Its rows are
    never evaluation data.
    ja: 以前の学習に使ったデータ。ファイル、フォルダー、ハブの ID、またはそのリスト。null なら使いません。評価には使いません。
    """
    share: Fraction | None = None
    """Share of the label tokens of the run that comes from these rows (0.1).
    ja: 学習対象トークンのうち、以前のデータの行が占める割合（0.1 など）。
    """
    distill: PositiveFloat | None = dataclasses.field(default=None, kw_only=True)
    """Let these rows teach what the base, without its adapter, predicts of them instead of their own tokens: the weight of
    that divergence (KL, in nats per token) against the loss of the new rows (4). LoRA and QLoRA on one device or with
    ddp; null teaches the tokens.
    ja: これらの行の文字ではなく、アダプターなしのベースモデルの予測を保つように学習します。値は、新しい行の損失に対する予測の差（KL、1 トークンあたり nat）の重みです（4 など）。LoRA と QLoRA で、1 台のデバイスか ddp のときに使えます。null なら行の文字を学習します。
    """


@section
class DoctorConfig:
    """What the data doctor, and training by the same rules, leaves aside."""

    SECTION: ClassVar[str] = "data.doctor"

    ignore: list[str] = dataclasses.field(default_factory=list)
    """Keys of rules that are not applied ([loop, leak_near]); in training: `mojibake`, `mojibake_likely`,
    `replacement`, `loop`, `template_token`, `template_token_asked` and those of leakage.
    ja: 使わない規則のキー（[loop, leak_near] など）。学習では mojibake、mojibake_likely、replacement、loop、template_token、template_token_asked と、評価データの混入の規則に効きます。
    """


@section
class DataConfig:
    """Training and evaluation data, and how rows become tokens."""

    SECTION: ClassVar[str] = "data"

    train: str | list[str | dict[str, Any]] | None = None
    """Training data: file, folder or hub id, or a list of them; or a folder that `aift data prepare` wrote. An item of a list
    may be a mapping of a path with its weight (share of the run) or its epochs (passes in each epoch), max_samples (most
    rows), and by (tokens, so that weights count label tokens instead of rows); docs/data.md has examples.
    ja: 学習データ。ファイル、フォルダー、ハブの ID、またはそのリスト。用意したフォルダー（docs/scale.ja.md）も指定できます。リストの中では {path: FILE, weight: 0.7} でそのデータの割合、{path: FILE, epochs: 2} で 1 エポックあたりの回数を指定できます。max_samples は使う行数の上限、by: tokens は割合を行ではなく学習対象トークンで数える指定です（docs/data.ja.md）。
    """
    eval: str | list[str] | Fraction | None = None
    """Evaluation data: a file or a list of files, or a share of the training rows (0.1).
    ja: 評価データ。ファイルかそのリスト、または学習データから分ける割合（0.1 など）。
    """
    max_length: Annotated[int, Field(ge=8)] = 512
    """Maximum length of a row, in tokens.
    ja: 1 行の最大長（トークン数）。
    """
    packing: bool = False
    """Pack several short documents into a row, isolated from each other.
    ja: 短い文書をいくつか 1 行にまとめるかどうか。文書同士は互いに参照しません。
    """
    group_by_length: bool = True
    """Without packing: put rows of similar length into one micro-batch.
    ja: packing を使わないとき、長さの近い行を同じマイクロバッチに入れるかどうか。
    """
    on_long: Literal["truncate", "drop", "error", "split"] = "truncate"
    """What happens to rows longer than max_length: truncate, drop, stop with an error, or split plain texts into rows.
    ja: max_length より長い行の扱い。切り詰める、除く、エラーにする、または（プレーンテキストを）複数の行に分けます。
    """
    system_prompt: str | None = None
    """System message for conversations that have none; saved with the model, whose answers take it by default.
    ja: システムメッセージのない会話に付けるシステムメッセージ。モデルと一緒に保存し、回答時の既定にします。
    """
    columns: dict[str, str] | None = None
    """Roles of columns, where their names do not tell: {instruction: 本文, output: 答え}.
    ja: 列名から分からないときの列の役割。例: {instruction: 本文, output: 答え}
    """
    sheet: str | None = None
    """Sheet of an Excel workbook; null takes the first visible one whose heading fits.
    ja: Excel のシート名。null なら、見出しの合う最初の表示シートを読みます。
    """
    skip_bad_rows: bool = False
    """Skip and count rows that cannot be used, instead of stopping.
    ja: 使えない行で止まらずに、数を記録して読み飛ばすかどうか。
    """
    loss_on: Literal["auto", "assistant", "all"] = "auto"
    """Which tokens get labels; auto: the assistant's in conversations, all of a plain text.
    ja: 学習対象トークン。auto は、会話ではアシスタントの応答、プレーンテキストではすべてです。
    """
    cache: bool = True
    """Keep tokens of files between runs, in the user's cache folder, and read them from there; false makes them in memory.
    ja: ファイルのトークンをユーザーのキャッシュフォルダーに残し、そこから読むかどうか。false ならメモリー上で作ります。
    """
    max_samples: AtLeastOne | None = dataclasses.field(default=None, kw_only=True)
    """At most so many rows of each file, folder or data set in `train`: the first ones, before evaluation rows are
    taken out. `eval` is read whole.
    ja: `train` のファイル、フォルダー、データセットそれぞれから使う行数の上限。先頭から使い、評価用に分けるのはその後です。`eval` は全部使います。
    """
    streaming: bool = dataclasses.field(default=False, kw_only=True)
    """Read, encode and train rows as they come, in the order of the files, without preparing them: for a first look at
    large data. It needs schedule.max_steps; packing, grouping by length, shares as `eval`, replay and entries with shares
    need all rows first (docs/scale.md).
    ja: データを用意せずに、行をファイルの順に読みながら学習します。大きなデータを最初に試すための設定です。schedule.max_steps が必要です。packing、長さによるグループ分け、割合での評価データ、replay、割合のある項目には全部の行が要るので使えません（docs/scale.ja.md）。
    """
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig, kw_only=True)
    """Rows of an earlier training among the new ones.
    ja: 新しい行に混ぜる、以前の学習のデータ。
    """
    doctor: DoctorConfig = dataclasses.field(default_factory=DoctorConfig, kw_only=True)
    """Rules of the data doctor that are left aside.
    ja: 使わないデータ診断の規則。
    """
    normalize: NormalizeConfig = dataclasses.field(default_factory=NormalizeConfig)
    """Normalization of characters.
    ja: 文字の正規化。
    """

    def __post_init__(self) -> None:
        if self.train == []:
            raise ConfigError(
                "data.train が空のリストです。学習データのファイルを 1 つ以上指定してください。",
                "data.train is an empty list; name at least one file of training data.",
            )
        for name, value in (("train", self.train), ("eval", self.eval), ("replay.path", self.replay.path)):
            if isinstance(value, list) and any(isinstance(item, str) and not item.strip() for item in value):
                raise ConfigError(
                    f"data.{name} のリストに空の名前（''）があります。ファイル名を書くか、その項目を消してください。",
                    f"a name in the list of data.{name} is empty (''); write the file's name, or remove it.",
                )
        sources = sources_of(self.train)
        if sources is not None and self.replay.path is not None and self.replay.share is not None:
            _refuse_beside_replay(sources, self.replay.share)


def _refuse_beside_replay(sources: Sources, share: float) -> None:
    """Refuses entries of `train` whose weights and the share of replayed rows do not go together.

    Raises:
        ConfigError: weights that count rows, or that leave nothing to entries that are passed whole.
    """
    weights = [entry.weight for entry in sources.entries if entry.weight is not None]
    if any(entry.weight is not None and entry.by == ROWS for entry in sources.entries):
        raise ConfigError(
            "data.train の weight は行を数え、data.replay.share は学習対象トークンを数えます。weight のある項目に by: tokens を付けてください。",
            "the weights of data.train count rows, and data.replay.share counts label tokens: give the entries with a weight "
            "by: tokens.",
        )
    if len(weights) < len(sources.entries) and sum(weights) + share >= 1:
        raise ConfigError(
            f"data.train の weight と data.replay.share の合計が {sum(weights) + share:g} です。回数で使う項目の分が残りません。1 未満にしてください。",
            f"the weights of data.train and data.replay.share sum to {sum(weights) + share:g}, which leaves nothing to the entries "
            "that are passed whole; it must be less than 1.",
        )

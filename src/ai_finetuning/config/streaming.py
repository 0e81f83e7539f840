"""What does not go with `data.streaming`: whatever needs all rows, or their number, before the first step."""

from __future__ import annotations

from .data import DataConfig
from .mixture import sources_of
from .preference import Objective
from .section import explicitly_set, require
from .training import TrainingConfig


def refuse_beside_streaming(data: DataConfig, training: TrainingConfig, objective: Objective) -> None:
    """Refuses settings that streamed rows cannot follow.

    Raises:
        ConfigError: with the setting and the way out.
    """
    grouped = "group_by_length" in explicitly_set(data) and data.group_by_length
    for name, value, holds, ja, en in (
        (
            "training.schedule.max_steps",
            training.schedule.max_steps,
            training.schedule.max_steps is not None,
            "行数が分からないので、ステップ数を指定してください。",
            "the number of rows is not known, so say how many steps to train.",
        ),
        (
            "data.packing",
            data.packing,
            not data.packing,
            "行を詰めるには、全部の行の長さが要ります。false にするか",
            "packing needs the lengths of all rows. Set it to false",
        ),
        (
            "data.group_by_length",
            data.group_by_length,
            not grouped,
            "長さで分けるには、全部の行の長さが要ります。false にするか",
            "grouping needs the lengths of all rows. Set it to false",
        ),
        (
            "data.eval",
            data.eval,
            not isinstance(data.eval, float),
            "割合を分けるには、全部の行が要ります。評価用のファイルを指定するか",
            "a share is taken of all rows. Name a file of evaluation data",
        ),
        (
            "data.replay.path",
            data.replay.path,
            data.replay.path is None,
            "混ぜる割合を数えるには、全部の行が要ります。消すか",
            "its share is counted over all rows. Remove it",
        ),
        (
            "data.train",
            data.train,
            sources_of(data.train) is None,
            "項目ごとの割合や回数を数えるには、全部の行が要ります。ファイル名だけのリストにするか",
            "shares and passes of entries are counted over all rows. Give a list of file names alone",
        ),
        (
            "data.max_samples",
            data.max_samples,
            data.max_samples is None,
            "max_steps で長さを決めてください。消すか",
            "max_steps says how much is read. Remove it",
        ),
        (
            "training.evals_per_epoch",
            training.evals_per_epoch,
            training.evals_per_epoch is None,
            "1 エポックのステップ数が分かりません。eval_steps を使うか",
            "the steps of an epoch are not known. Use eval_steps",
        ),
        (
            "training.saves_per_epoch",
            training.saves_per_epoch,
            training.saves_per_epoch is None,
            "1 エポックのステップ数が分かりません。save_steps を使うか",
            "the steps of an epoch are not known. Use save_steps",
        ),
        (
            "objective",
            objective,
            objective == "sft",
            "回答の比較には、学習の前に全部の行を見ることが要ります。",
            "comparing answers needs a look at all rows before the first step.",
        ),
    ):
        out_ja = (
            "、data.streaming を消してください。" if ja.endswith("か") else "または data.streaming を消してください。"
        )
        out_en = ", or remove data.streaming." if not en.endswith(".") else " Or remove data.streaming."
        require(
            holds,
            name,
            value,
            f"data.streaming: true では使えません。{ja}{out_ja}",
            f"not with data.streaming: {en}{out_en}",
        )

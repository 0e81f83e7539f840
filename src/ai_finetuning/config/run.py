"""RunConfig: all sections of one run, and the rules that hold between them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from ..errors import ConfigError
from .data import DataConfig
from .fields import field_names
from .lora import LoRAConfig
from .model import ModelConfig
from .parallel import ParallelConfig
from .preference import LOSSES, Objective, PreferenceConfig, loss_of
from .section import explicitly_set, require, section, with_values
from .streaming import refuse_beside_streaming
from .training import MultiGPUTrainingConfig, TrainingConfig


@section
class RunConfig:
    """What `aift train` runs: the YAML's sections."""

    SECTION: ClassVar[str] = ""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The model.
    ja: モデル。
    """
    method: Literal["full", "lora", "qlora", "pretrain"] = "lora"
    """What trains: all weights, LoRA adapters, LoRA adapters on a quantized base, or a new model from scratch.
    ja: 学習方法。全重み、LoRA アダプター、量子化したベースの LoRA アダプター、または新しいモデルの事前学習。
    """
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    """The data.
    ja: データ。
    """
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    """The training settings.
    ja: 学習の設定。
    """
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    """The adapter; for method lora and qlora.
    ja: アダプター（method が lora か qlora のとき）。
    """
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    """The parallel strategy.
    ja: 並列化の方法。
    """
    objective: Objective = dataclasses.field(default="sft", kw_only=True)
    """What is learnt from: answers (sft), pairs of a better and a worse answer (preference: DPO and its kin), or answers
    marked good or bad (kto). Beside any method but pretrain.
    ja: 何から学ぶか。回答（sft）、良い回答と悪い回答の組（preference。DPO とその仲間）、良し悪しの印が付いた回答（kto）。pretrain 以外のどの method とも組み合わせられます。
    """
    preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig, kw_only=True)
    """The loss over pairs or marked answers; for objective preference and kto.
    ja: 回答の組、または印の付いた回答の損失（objective が preference か kto のとき）。
    """

    @property
    def trains_all(self) -> bool:
        """Whether every weight trains, and the whole model is saved."""
        return self.method in ("full", "pretrain")

    @property
    def uses_qlora(self) -> bool:
        """Whether adapters train on a quantized base: `method: qlora` and `lora.use_qlora: true` say the same."""
        return self.method == "qlora" or (self.method == "lora" and self.lora.use_qlora)

    @property
    def effective_method(self) -> Literal["full", "lora", "qlora", "pretrain"]:
        """The method that the run trains with: qlora wherever the base is quantized for it."""
        return "qlora" if self.uses_qlora else self.method

    @property
    def loss_settings(self) -> PreferenceConfig:
        """The preference section with its loss and beta filled in; for objective preference and kto."""
        name = loss_of(self.objective, self.preference)
        beta = LOSSES[name].beta if self.preference.beta is None else self.preference.beta
        return with_values(self.preference, loss=name, beta=beta)

    @property
    def objective_text(self) -> str:
        """Objective, loss and its numbers on one line; empty for sft."""
        if self.objective == "sft":
            return ""
        settings, usual = self.loss_settings, PreferenceConfig()
        changed = [
            f"{name} {getattr(settings, name):g}"
            for name in LOSSES[str(settings.loss)].settings
            if getattr(settings, name) != getattr(usual, name)
        ]
        return f"{self.objective}, {settings.loss} ({', '.join([f'beta {settings.beta:g}', *changed])})"

    def validate(self) -> None:
        """Checks the rules between sections.

        A section that is changed in place checks its own rules only, so a run checks these once more.

        Raises:
            ConfigError: two settings that do not go together.
        """
        method, given = self.effective_method, explicitly_set(self.lora)
        if self.model.architecture is not None and method != "pretrain":
            raise ConfigError(
                f"model.architecture は最初から学習するとき（method: pretrain）だけ使えます。いまは method: {method} です。",
                f"model.architecture is for training from scratch (method: pretrain); the method is {method}.",
            )
        if self.trains_all and self.lora.use_qlora:
            raise ConfigError(
                f"method が {method} で lora.use_qlora が true です。量子化した重みはそのままでは学習できません。method: qlora にしてください。",
                f"method is {method} and lora.use_qlora is true; quantized weights cannot be trained in "
                "full: use method: qlora.",
            )
        if self.training.optimizer.name == "muon" and not self.trains_all:
            raise ConfigError(
                "training.optimizer.name: muon は全部の重みを学習するとき（method: full, pretrain）だけ使えます。いまは method: "
                f"{method} です。adamw にしてください。",
                "training.optimizer.name: muon is for training all weights (method: full, pretrain); the method "
                f"is {method}: use adamw.",
            )
        if self.method == "qlora" and not self.lora.use_qlora and "use_qlora" in given:
            raise ConfigError(
                "method が qlora で lora.use_qlora が false です。どちらかに揃えてください。",
                "method is qlora and lora.use_qlora is false; set both to the same method.",
            )
        if self.trains_all and given:
            names = ", ".join(sorted(given))
            raise ConfigError(
                f"method が {method} なので lora の設定（{names}）は使われません。lora を消すか method: lora にしてください。",
                f"method is {method}, so lora settings ({names}) have no effect; remove them or use method: lora.",
            )

        self._refuse_two_ways_to_say_one_thing()
        replay = self.data.replay
        require(
            replay.path is not None or replay.share is None,
            "data.replay.share",
            replay.share,
            "data.replay.path に以前の学習データのファイルも指定してください。",
            "name the data of the earlier training with data.replay.path too.",
        )
        require(
            replay.share is not None or replay.path is None,
            "data.replay.path",
            replay.path,
            "data.replay.share に学習対象トークンのうちの割合（0.1 など）も指定してください。",
            "give its share of the label tokens with data.replay.share too (0.1).",
        )
        self._refuse_a_base_that_is_not_there()
        require(
            not self.training.save_only_model or self.parallel.max_restarts == 0,
            "parallel.max_restarts",
            self.parallel.max_restarts,
            "training.save_only_model が true のときは、途中から再開できるチェックポイントがありません。0 にしてください。",
            "with training.save_only_model there is no checkpoint to restart from; set it to 0.",
        )
        self._refuse_a_strategy_of_training()
        self._refuse_for_objective()
        if self.data.streaming:
            refuse_beside_streaming(self.data, self.training, self.objective)

    def _refuse_for_objective(self) -> None:
        """What pairs of answers, or marked ones, do not go together with; and their settings where nobody reads them."""
        objective, usual = self.objective, PreferenceConfig()
        if objective == "sft":  # a default that a file writes out asks for nothing
            given = [
                name for name in field_names(PreferenceConfig) if getattr(self.preference, name) != getattr(usual, name)
            ]
            if given:
                names = ", ".join(f"preference.{name}" for name in given)
                raise ConfigError(
                    f"objective が sft なので {names} は使われません。回答の組から学ぶなら objective: preference、良し悪しの印から学ぶなら objective: kto にするか、preference を消してください。",
                    f"objective is sft, so {names} would have no effect: use objective: preference (pairs of answers) or "
                    "objective: kto (marked answers), or remove it.",
                )
            return
        name = self.preference.loss
        if name is not None and LOSSES[name].objective != objective:
            others = ", ".join(loss for loss, facts in LOSSES.items() if facts.objective == objective)
            raise ConfigError(
                f"preference.loss が {name} で objective が {objective} です。{name} は objective: {LOSSES[name].objective} の損失です。objective を変えるか、損失を {others} から選んでください。",
                f"preference.loss is {name} and objective is {objective}; {name} belongs to objective: "
                f"{LOSSES[name].objective}. Change the objective, or choose a loss of {others}.",
            )
        with_values(self.preference, loss=loss_of(objective, self.preference))  # refuses what that loss does not read
        self._refuse_beside_pairs()

    def _refuse_beside_pairs(self) -> None:
        data, objective = self.data, self.objective
        for holds, name, value, ja, en in (
            (
                self.method != "pretrain",
                "method",
                self.method,
                "まだ何も話せないモデルに、回答の好みは教えられません。先に学習したモデルに method: full、lora、qlora のどれかを使ってください。",
                "a model that cannot talk yet has no answers to prefer. Use method: full, lora or qlora on a trained model.",
            ),
            (
                not data.packing,
                "data.packing",
                data.packing,
                "組は最初からパディングなしで計算するので速くならず、1 ステップの組の数が変わってしまいます。false にしてください。",
                "answers are computed without padding anyway, and the number of pairs in a step would change. Set it to "
                "false.",
            ),
            (
                data.loss_on != "all",
                "data.loss_on",
                data.loss_on,
                "比べるのは回答だけです。auto にしてください。",
                "only answers are compared. Use auto.",
            ),
            (
                data.on_long != "split",
                "data.on_long",
                data.on_long,
                "回答は切り分けられません。truncate、drop、error のどれかにしてください。",
                "answers cannot be divided. Use truncate, drop or error.",
            ),
            (
                data.replay.path is None,
                "data.replay.path",
                data.replay.path,
                "以前の学習の行には良い回答と悪い回答の組がありません。消してください（良い回答の確率を保つには preference.sft_weight: 1）。",
                "rows of an earlier training are no pairs of answers. Remove it (preference.sft_weight: 1 keeps the "
                "better answers likely).",
            ),
        ):
            require(
                holds,
                name,
                value,
                f"objective: {objective} では使えません。{ja}",
                f"not with objective {objective}: {en}",
            )

    def _refuse_a_base_that_is_not_there(self) -> None:
        replay = self.data.replay
        for holds, ja, en in (
            (
                replay.path is not None,
                "data.replay.path と data.replay.share も指定してください。",
                "name the rows with data.replay.path and data.replay.share too.",
            ),
            (
                not self.trains_all,
                "全部の重みを学習すると、比べるベースモデルが残りません。method: lora か qlora にするか、data.replay.distill を消してください。",
                "training all weights leaves no base to compare with: use method: lora or qlora, or leave "
                "data.replay.distill out.",
            ),
            (
                self.lora.adapter is None,
                "続きから学習するアダプター（lora.adapter）が学んだことを、ベースモデルは知りません。data.replay.distill を消してください。",
                "the base does not know what the adapter that training goes on from (lora.adapter) has learnt: leave "
                "data.replay.distill out.",
            ),
        ):
            require(replay.distill is None or holds, "data.replay.distill", replay.distill, ja, en)

    def _refuse_two_ways_to_say_one_thing(self) -> None:
        training = self.training
        for number, other, value in (
            ("warmup_steps", "schedule.warmup_ratio", training.schedule.warmup_ratio),
            ("save_steps", "saves_per_epoch", training.saves_per_epoch),
            ("eval_steps", "evals_per_epoch", training.evals_per_epoch),
        ):
            require(
                value is None or number not in explicitly_set(training),
                f"training.{other}",
                value,
                f"training.{number} も {getattr(training, number)} です。どちらか一方にしてください。",
                f"training.{number} is {getattr(training, number)} too: give only one of them.",
            )

    def _refuse_a_strategy_of_training(self) -> None:
        """MultiGPUTrainingConfig brings a ParallelConfig; the run's own is the one that counts."""
        if not isinstance(self.training, MultiGPUTrainingConfig) or explicitly_set(self.parallel):
            return
        given = ", ".join(sorted(explicitly_set(self.training.parallel)))
        if given:
            raise ConfigError(
                f"training の {given} は RunConfig では使われません。RunConfig(..., parallel=config.parallel) のように parallel も渡してください。",
                f"{given} of training would have no effect in a RunConfig; pass parallel as well: "
                "RunConfig(..., parallel=config.parallel).",
            )

    def __post_init__(self) -> None:
        self.validate()

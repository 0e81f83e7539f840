"""Preference methods of other tools as our objective and its loss: what several of their keys say together.

Read in src/llamafactory/train/dpo/trainer.py and hparams/finetuning_args.py of github.com/hiyouga/LLaMA-Factory,
src/axolotl/core/builders/rl.py and core/trainers/dpo of github.com/axolotl-ai-cloud/axolotl, and trl/trainer's dpo_config,
kto_config, cpo_config and orpo_config of github.com/huggingface/trl.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import Reason
from ..preference import LOSSES
from .draft import Draft
from .rows import CACHE, EVALUATION, SPEED
from .training_parts import NOT_USED
from .values import Unfit, names, number, shown, text, truth, word

# Our settings -> their keys, the first one that is used.
Keys = Mapping[str, tuple[str, ...]]
_OURS = {"margin": 1.0, "label_smoothing": 0.0, "sft_weight": 0.0, "desirable_weight": 1.0, "undesirable_weight": 1.0}
_THEIR_DEFAULT = Reason("相手の既定値", "their default")
_KTO_DIFFERS = Reason(
    "相手は比べる基準（z）をマイクロバッチごとに、ファイルの順で計算します。本ツールは 1 ステップ全体で計算し、行は混ぜます",
    "their reference point (z) is of one micro-batch, in the order of the file; ours is of the whole step, and rows are "
    "shuffled",
)
_ORPO_DIFFERS = Reason(
    "TRL の ORPO は質問の文にも尤度の項を掛けます。本ツールは回答だけです",
    "TRL's likelihood term covers the prompt as well; here the answer alone",
)
_SMOOTHING_DIFFERS = Reason(
    "TRL 1.16 は loss_type が sigmoid だと label_smoothing を黙って無視します。本ツールは適用します（conservative DPO）。同じにするには消してください",
    "TRL 1.16 ignores label_smoothing with sigmoid, without a word; here it is applied (conservative DPO). For the same "
    "run remove it",
)
_SFT_DIFFERS = Reason(
    "本ツールでは組ごとの平均です（TRL はマイクロバッチの全トークンの平均で、切り方によって変わります）",
    "here it is a mean of each pair's own (TRL takes the mean token of a micro-batch, which depends on how rows are cut)",
)
_REFERENCE = Reason(
    "参照モデルは学習を始めるときのモデルです。別のモデルは指定できません",
    "the reference is the model as the run begins; another one cannot be named",
)


def _lacking(loss: str) -> Reason:
    listed = ", ".join(LOSSES)
    return Reason(f"損失 {loss} はありません（{listed}）", f"there is no loss {loss} ({listed})")


def settle(draft: Draft, loss: str, keys: Keys, defaults: Mapping[str, float]) -> None:
    """Objective, loss and its numbers.

    Args:
        keys: theirs, by our names.
        defaults: their numbers where the file gives none.
    """
    facts = LOSSES[loss]
    draft.set("objective", facts.objective)
    draft.set("preference.loss", loss)
    for name, theirs in keys.items():
        _number(draft, loss, name, theirs, defaults.get(name))
    if draft.settings.get("data.packing"):
        del draft.settings["data.packing"]
        for key in ("packing", "neat_packing", "sample_packing"):
            draft.drop(key, Reason("組はパディングなしで計算します", "pairs are computed without padding anyway"))
    draft.settings.pop("data.loss_on", None)
    draft.comments.pop("data.loss_on", None)
    for key in ("train_on_prompt", "train_on_inputs", "completion_only_loss", "assistant_only_loss"):
        draft.drop(key, Reason("比べるのは回答だけです", "answers are compared, and nothing else"))


def _number(draft: Draft, loss: str, name: str, theirs: tuple[str, ...], usual: float | None) -> None:
    path, present = f"preference.{name}", [key for key in theirs if key in draft.values]
    if name != "beta" and name not in LOSSES[loss].settings:
        for key in present:
            if name == "sft_weight" and draft.on(key):
                draft.refuse(
                    key,
                    Reason(f"損失 {loss} にこの項は足せません", f"no such term is added to the loss {loss} here"),
                )
            else:
                draft.drop(key, Reason(f"損失 {loss} では使われません", f"the loss {loss} does not read it"))
        return
    used = next((key for key in present if draft.on(key) or _is_zero(draft.values[key]) and _OURS.get(name) != 0), None)
    if used is not None:
        draft.take(used, path, draft.read(used, number))
    elif not present and usual is not None and usual != _OURS.get(name, LOSSES[loss].beta):
        draft.set(path, usual, _THEIR_DEFAULT)
    for key in present:
        if key != used:
            draft.drop(key, NOT_USED)


def _is_zero(value: object) -> bool:
    """Whether a number is written out as 0, which is not `off` where the setting has another default."""
    try:
        return number(value) == 0
    except Unfit:
        return False


def _differs(draft: Draft, key: str, reason: Reason, setting: str) -> None:
    """Marks a key that became a setting of ours which is not quite theirs."""
    if draft.on(key) and f"preference.{setting}" in draft.settings:
        draft.convert(key, reason, f"preference.{setting}", differs=True)


# LLaMA-Factory -----------------------------------------------------------------------------------------------------
_FACTORY_LOSSES = ("sigmoid", "hinge", "ipo", "orpo", "simpo")
_FACTORY: Keys = {
    "beta": ("pref_beta",),
    "label_smoothing": ("dpo_label_smoothing",),
    "margin": ("simpo_gamma",),
    "sft_weight": ("pref_ftx",),
    "ld_alpha": ("ld_alpha",),
    "desirable_weight": ("kto_chosen_weight",),
    "undesirable_weight": ("kto_rejected_weight",),
}


def llamafactory_objective(draft: Draft) -> str:
    """The objective of a stage."""
    return {"dpo": "preference", "kto": "kto"}.get(word(draft.get("stage") or "sft"), "sft")


def llamafactory(draft: Draft) -> None:
    """stage dpo and kto, with pref_*, kto_*, simpo_gamma and the reference's keys."""
    stage = word(draft.get("stage") or "sft")
    if stage not in ("dpo", "kto"):
        return
    kind = draft.read("pref_loss", word) if draft.on("pref_loss") else "sigmoid"
    loss = "kto" if stage == "kto" else kind
    if stage == "dpo" and loss not in _FACTORY_LOSSES:
        draft.refuse("pref_loss", _lacking(loss))
        return
    settle(draft, loss, _FACTORY, {"beta": 0.1, "margin": 0.5})
    draft.convert(
        "stage", Reason(f"objective: {LOSSES[loss].objective}", f"objective: {LOSSES[loss].objective}"), "objective"
    )
    if stage == "kto":
        draft.convert("stage", _KTO_DIFFERS, "objective", differs=True)
        draft.drop("pref_loss", Reason("stage: kto では使われません", "stage: kto does not read it"))
    else:
        draft.convert("pref_loss", Reason(f"loss: {loss}", f"loss: {loss}"), "preference.loss")
    _differs(
        draft,
        "ld_alpha",
        Reason("本ツールでは参照モデルの側にも掛けます", "here the reference's tokens are weighted as well"),
        "ld_alpha",
    )
    for key in ("ref_model", "ref_model_adapters"):
        if draft.on(key):
            draft.refuse(key, _REFERENCE)
    if draft.on("pref_bco_weight"):
        draft.refuse("pref_bco_weight", Reason("BCO の項はありません", "a term of BCO is not there"))
    if "lora.adapter" in draft.settings and LOSSES[loss].reference:
        draft.convert(
            "adapter_name_or_path",
            Reason(
                "参照モデルは、このアダプターの付いたモデルです（相手では外したベース）",
                "the reference is the model with this adapter (there the base without it)",
            ),
            "lora.adapter",
            differs=True,
        )


# Axolotl -----------------------------------------------------------------------------------------------------------
_AXOLOTL_LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "kto": "kto", "orpo": "orpo", "simpo": "simpo"}
_AXOLOTL: Keys = {
    "beta": ("rl_beta", "orpo_alpha"),
    "label_smoothing": ("dpo_label_smoothing",),
    "margin": ("simpo_gamma",),
    "sft_weight": ("rpo_alpha", "cpo_alpha"),
    "desirable_weight": ("kto_desirable_weight",),
    "undesirable_weight": ("kto_undesirable_weight",),
}


def axolotl_objective(draft: Draft) -> str:
    """The objective that `rl` names: sft where it names none, or none of ours."""
    loss = _AXOLOTL_LOSSES.get(word(draft.get("rl") or "")) if draft.on("rl") else None
    return "sft" if loss is None else LOSSES[loss].objective


def axolotl(draft: Draft) -> None:
    """rl and the numbers of its losses; they are TRL's trainers."""
    if not draft.on("rl"):
        return
    kind = draft.read("rl", word)
    loss = _AXOLOTL_LOSSES.get(kind)
    if loss is None:
        draft.refuse("rl", Reason(f"強化学習（{kind}）はありません", f"reinforcement learning ({kind}) is not there"))
        return
    nested = draft.get("trl")
    if isinstance(nested, Mapping) and nested.get("beta") is not None:
        draft.values["rl_beta"] = nested["beta"]
    keys = dict(_AXOLOTL)
    keys["sft_weight"] = ("cpo_alpha",) if loss == "simpo" else ("rpo_alpha",)
    settle(draft, loss, keys, {"beta": 0.1, "margin": 0.5, **({"sft_weight": 1.0} if loss == "simpo" else {})})
    if draft.on("dpo_norm_loss") and loss == "sigmoid":
        draft.take(
            "dpo_norm_loss", "preference.loss", "sigmoid_norm", Reason("loss: sigmoid_norm", "loss: sigmoid_norm")
        )
    draft.convert("rl", Reason(f"loss: {loss}", f"loss: {loss}"), "objective", "preference.loss")
    _notes_of_trl(draft, "rl", loss, "dpo_label_smoothing")
    if draft.on("dpo_use_weighting"):
        draft.refuse("dpo_use_weighting", Reason("WPO の重みはありません", "weights of WPO are not there"))


_CHATS = ("chat_template",)
# Their prompt strategies: the columns that they read, by our roles.
_PAIRS = {
    "argilla": {"instruction": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"},
    "argilla_chat": {"chosen": "chosen", "rejected": "rejected"},
    "icr": {"instruction": "input", "chosen": "chosen", "rejected": "rejected"},
    "intel": {"instruction": "question", "chosen": "chosen", "rejected": "rejected"},
    "prompt_pairs": {"instruction": "prompt", "chosen": "chosen", "rejected": "rejected"},
    "ultra": {"instruction": "prompt", "chosen": "chosen", "rejected": "rejected"},
}
_MARKED = {
    "argilla": {"instruction": "instruction", "output": "completion", "label": "label"},
    "argilla_chat": {"instruction": "prompt", "output": "completion", "label": "label"},
    "intel": {"instruction": "question", "output": "completion", "label": "label"},
    "prompt_pairs": {"instruction": "prompt", "output": "completion", "label": "label"},
    "ultra": {"instruction": "prompt", "output": "completion", "label": "label"},
}


def axolotl_rows(block: Mapping[str, Any], objective: str) -> tuple[str, dict[str, str]] | None:
    """(form of the prompt, columns by our roles) of an entry of `datasets` in a preference run; None where it is not read.

    Forms are `chat`, and names of prompts that Axolotl puts around the columns itself.
    """
    kind = block.get("type")
    if isinstance(kind, Mapping):
        return _of_fields(kind, objective)
    family, _, name = str(kind or "chat_template").strip().lower().partition(".")
    if family in _CHATS:
        if objective == "kto":
            return None
        columns = {role: str(block.get(f"field_{role}") or role) for role in ("chosen", "rejected")}
        if name != "argilla":  # whose two conversations hold the prompt
            columns["messages"] = str(block.get("field_messages") or "messages")
        return "chat", columns
    found = (_MARKED if objective == "kto" else _PAIRS).get(name)
    return (family, dict(found)) if found is not None and family in ("chatml", "llama3") else None


def _of_fields(kind: Mapping[str, Any], objective: str) -> tuple[str, dict[str, str]] | None:
    """Columns that the file names itself; prompts of its own are not read."""
    if any(key.endswith("_format") and value for key, value in kind.items()):
        return None
    roles = ("prompt", "completion", "label") if objective == "kto" else ("prompt", "chosen", "rejected")
    ours = {"prompt": "instruction", "completion": "output"}
    columns = {ours.get(role, role): str(kind.get(f"field_{role}") or role) for role in roles}
    if kind.get("field_system"):
        columns["system"] = str(kind["field_system"])
    return "chat", columns


# TRL ---------------------------------------------------------------------------------------------------------------
_TRL: Keys = {
    "beta": ("beta",),
    "label_smoothing": ("label_smoothing",),
    "margin": ("simpo_gamma",),
    "sft_weight": ("rpo_alpha",),
    "ld_alpha": ("ld_alpha",),
    "desirable_weight": ("desirable_weight",),
    "undesirable_weight": ("undesirable_weight",),
}
_OF_KTO = ("desirable_weight", "undesirable_weight")
_OF_DPO = ("loss_weights", "label_smoothing", "ld_alpha", "rpo_alpha", "f_divergence_type", "use_weighting")
TRL_RATE = 1e-6  # of DPOConfig, KTOConfig, CPOConfig and ORPOConfig
_CPO = Reason(
    "CPOConfig の設定です。参照モデルのない CPO はありません（参照モデルと比べる DPO ではありません）。loss_type: simpo は読めます。DPO にするなら、この行を消してください",
    "the file is a CPOConfig, and CPO, which has no reference, is not there (DPO compares with one); loss_type: simpo is. For "
    "DPO remove this line",
)
_WHICH = Reason(
    "どのトレーナーの設定か、このファイルからは分かりません。DPO なら loss_type: sigmoid、KTO なら loss_type: kto、ORPO なら loss_type: orpo、SimPO なら loss_type: simpo の行を足してください",
    "the file does not say whose it is; add a line: loss_type: sigmoid (DPO), kto (KTO), orpo (ORPO) or simpo (SimPO)",
)


def trl(draft: Draft) -> bool:
    """DPOConfig, KTOConfig, ORPOConfig and CPOConfig by their keys; whether the file is one of them.

    The command line says there which trainer reads the file (`trl dpo`), so that a file with `beta` alone may be any.
    """
    kinds = _kinds(draft)
    if any(kind in ("nll", "chunked_nll") for kind in kinds):
        return False
    if not kinds:
        if draft.on("beta"):
            draft.refuse("beta", _WHICH)
        return False
    loss = kinds[0]
    more = kinds[1:]
    if loss not in LOSSES or more not in ([], ["sft"]) or (more and "sft_weight" not in LOSSES[loss].settings):
        listed = ", ".join([*LOSSES, "[..., sft]"])
        draft.missing(
            "loss_type",
            Reason(f"{shown(kinds)} はありません（{listed}）", f"there is no {shown(kinds)} ({listed})"),
        )
        return True
    keys = dict(_TRL)
    if loss == "simpo":
        keys["sft_weight"] = ("cpo_alpha",)
    elif draft.get("cpo_alpha") is not None:
        draft.refuse("cpo_alpha", _CPO)
    settle(draft, loss, keys, {"beta": 0.1, "margin": 0.5, **({"sft_weight": 1.0} if loss == "simpo" else {})})
    draft.convert("loss_type", Reason(f"loss: {loss}", f"loss: {loss}"), "objective", "preference.loss")
    if more:
        _with_sft(draft)
    else:
        draft.drop("loss_weights", NOT_USED)
    draft.default("training.learning_rate", TRL_RATE, Reason("TRL の既定値", "default of TRL"))
    _notes_of_trl(draft, "loss_type", loss, "label_smoothing")
    _reference_of_trl(draft)
    return True


def _kinds(draft: Draft) -> list[str]:
    """The losses of a file, by name or by the keys of one trainer alone; empty where nothing says so."""
    if draft.on("loss_type"):
        return draft.read("loss_type", names)
    if draft.on("simpo_gamma"):
        return ["simpo"]
    if any(key in draft.values for key in _OF_KTO):
        return ["kto"]
    return ["sigmoid"] if any(key in draft.values for key in (*_OF_DPO, "cpo_alpha")) else []


def _with_sft(draft: Draft) -> None:
    """`loss_type: [LOSS, sft]` with `loss_weights`: RPO's term."""
    weights = draft.read("loss_weights", _numbers) if draft.on("loss_weights") else [1.0, 1.0]
    if len(weights) != 2 or weights[0] <= 0:
        draft.refuse("loss_weights", Reason("2 つの正の重みではありません", "they are not two positive weights"))
        return
    draft.set("preference.sft_weight", weights[1] / weights[0], _SFT_DIFFERS)
    draft.convert("loss_type", _SFT_DIFFERS, "preference.loss", "preference.sft_weight", differs=True)
    scaled = Reason(
        f"全体を {weights[0]:g} で割りました（勾配の大きさだけが変わります）",
        f"all divided by {weights[0]:g} (only the size of the gradients changes)",
    )
    if weights[0] == 1:
        draft.convert("loss_weights", Reason("sft の重み", "weight of sft"), "preference.sft_weight")
    else:
        draft.convert("loss_weights", scaled, "preference.sft_weight", differs=True)


def _numbers(value: object) -> list[float]:
    """A list of numbers.

    Raises:
        Unfit: it is none.
    """
    if not isinstance(value, list | tuple):
        raise Unfit(f"数値のリストではありません（{shown(value)}）", f"it is {shown(value)}, no list of numbers")
    return [number(item) for item in value]


def _notes_of_trl(draft: Draft, key: str, loss: str, smoothing: str) -> None:
    """Where TRL computes something else than its names, or than the papers, say."""
    if loss == "kto":
        draft.convert(key, _KTO_DIFFERS, "objective", "preference.loss", differs=True)
    if loss == "orpo":
        draft.convert(key, _ORPO_DIFFERS, "objective", "preference.loss", differs=True)
    if loss == "sigmoid":
        _differs(draft, smoothing, _SMOOTHING_DIFFERS, "label_smoothing")
    for sft in ("rpo_alpha", "cpo_alpha"):
        _differs(draft, sft, _SFT_DIFFERS, "sft_weight")


def _reference_of_trl(draft: Draft) -> None:
    """Options of the reference, of lengths and of divergences."""
    for key in ("sync_ref_model", "use_weighting", "reference_free", "force_use_ref_model"):
        if draft.on(key):
            draft.refuse(key, Reason("この方法はありません", "this variant is not there"))
        else:
            draft.drop(key, NOT_USED)
    key = "f_divergence_type"
    if draft.on(key) and draft.read(key, text) not in ("reverse_kl", "FDivergenceType.REVERSE_KL"):
        draft.refuse(key, Reason("reverse_kl だけです", "only reverse_kl is there"))
    else:
        draft.drop(key, Reason("reverse_kl で、本ツールと同じです", "reverse_kl, as here"))
    for key in ("max_prompt_length", "max_completion_length", "max_target_length"):
        one = Reason(
            "質問と回答を合わせた data.max_length だけで切ります",
            "one data.max_length holds for prompt and answer together",
        )
        draft.drop(key, one, differs=draft.on(key))
    if "disable_dropout" in draft.values:
        kept = not draft.read("disable_dropout", truth)
        draft.drop("disable_dropout", Reason("ドロップアウトは常に 0 です", "dropout is always 0 here"), differs=kept)
    for key in ("precompute_ref_log_probs", "precompute_ref_batch_size", "padding_free", "use_logits_to_keep"):
        draft.drop(key, SPEED)
    draft.drop("generate_during_eval", EVALUATION)
    for key in ("label_pad_token_id", "padding_value", "is_encoder_decoder", "tools"):
        draft.drop(key, CACHE)

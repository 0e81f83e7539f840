"""A run with an adapter on the embedded model, as the page's tests need it: made at once, not trained."""

from __future__ import annotations

import json
from pathlib import Path

BASE = "embedded:kotoha-tiny"
SYSTEM = "あなたは親切な案内係です。"


def make_run(folder: Path, *, system: str = SYSTEM, seed: int = 1, base: str = BASE) -> Path:
    """A finished run: an adapter that changes the model's answers, its tokenizer with a stored system prompt, run.json.

    Args:
        seed: of its weights.
        base: a model like the embedded one.
    """
    from ai_finetuning.inference.session import open_model
    from ai_finetuning.japanese.default_system import with_default_system
    from tests.support.adapters import with_changing_adapter

    opened = open_model(base)
    model = with_changing_adapter(opened.model, seed=seed)
    model.peft_config["default"].base_model_name_or_path = base
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    opened.tokenizer.chat_template = with_default_system(str(opened.tokenizer.chat_template), system)
    opened.tokenizer.save_pretrained(folder)
    run = {
        "status": "completed",
        "fingerprint": {"model": base, "method": "lora"},
        "started": "2026-11-01T09:00:00+09:00",
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return folder

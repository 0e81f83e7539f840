"""Which test files test a module: `python -m tests.support.tested_by engine.rng`.

A module's tests are found, in this order, by its name (tests/unit/ROOM/test_NAME.py, or tests/*/test_NAME.py), by who
imports it, and, for what is only reached through a command or another module, by the table below.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "src" / "ai_finetuning"
_CLI, _TRAINERS, _QUANTIZED = "integration/test_cli.py", "integration/test_trainers.py", "integration/test_qlora.py"
_RESUME, _SECTIONS, _FILES = "faults/test_resume.py", "unit/config/test_sections.py", "unit/data/test_files.py"
_TOKENS, _LAUNCH, _BENCH = "unit/data/test_tokens.py", "distributed/test_launch.py", "test_quantization_benchmark.py"
_CALLBACKS, _FIRST = "integration/test_callbacks.py", "integration/test_first_day_start.py"
_FIRST_DAY = "integration/test_first_day_continue.py"
_SELF_CHECK = "unit/execution/test_self_check.py"
_SAMPLING = "integration/test_sampling.py"
_SCREENS = (*("answers", "chat", "compare", "data", "export", "home", "models", "results", "runs", "settings"),)
_FORMATS, _TABLES = "unit/data/test_formats.py", "unit/data/test_tables.py"

# Modules that no test file is named after and none imports.
TESTED_BY = {
    "apps.cli.run_ids": "integration/test_run_results.py",
    "runs.held": "unit/runs/test_adopted.py",
    "convert._upstream": _QUANTIZED,
    "execution.launcher": _LAUNCH,
    **{f"apps.cli.{name}": _SAMPLING for name in ("file_work", "sample", "score")},
    **{name: _SAMPLING for name in ("evaluation.chosen", "evaluation.judging", "inference.sampled")},
    "inference.unfinished": "integration/test_first_day_answers.py",
    "execution.place": "integration/test_elsewhere.py",
    **dict.fromkeys(
        ("engine.references", "execution.objective", "execution.preference"), "integration/test_preference_runs.py"
    ),
    "config.streaming": "integration/test_streaming_runs.py",
    "data.cache": "unit/data/test_store.py",
    "execution.one_model": "unit/planner/test_fits.py",
    "execution.planned_model": "unit/execution/test_choosing.py",
    **{f"execution.self_check.{name}": _SELF_CHECK for name in ("everything", "four_bit", "several")},
    "apps.cli.gpu": _SELF_CHECK,
    "planner._upstream": "unit/planner/test_simulate.py",
    "data._upstream": "unit/data/test_tables.py",
    "planner.blank": "unit/planner/test_simulate.py",
    "planner.shallow": "unit/planner/test_simulated_devices.py",
    "system.start": "security/test_processes.py",
    "system.transfer": "unit/engine/test_prefetch.py",
    "apps.cli.data_prepare": "unit/data/test_store.py",
    **{f"data.store.{name}": "unit/data/test_store.py" for name in ("arrays", "mapped", "pool", "writer")},
    "data.columnar": _TABLES,
    **{f"data.{name}": "unit/data/test_preference_rows.py" for name in ("comparisons", "judgements", "row_format")},
    **{
        f"data.{name}": "unit/data/test_preference_tokens.py" for name in ("contradictions", "cutting", "encode_report")
    },
    "data.data_report": "unit/data/test_sources.py",
    "data.example": _TOKENS,
    "data.conversations": _FORMATS,
    "data.offset_tokenizer": "unit/models/test_sentencepiece_tokenizer.py",
    "data.texts": _TABLES,
    "export.checkpoint": "integration/test_first_day_names.py",
    "export._upstream": "integration/test_sentencepieces.py",
    "export.serve_process": "integration/test_sentencepieces.py",
    "models.tokenizers_json": "unit/models/test_sentencepiece_tokenizer.py",
    "engine.checkpoint.read": _RESUME,
    "engine.checkpoint.write": _RESUME,
    "engine.predictions": _CALLBACKS,
    "engine.train_state": _RESUME,
    "engine.state": _RESUME,
    "parallel.build": "distributed/test_seam.py",
    "execution.base_facts": _TRAINERS,
    "trainers.preference": "integration/test_preference_trainer.py",
    "execution.best": _FIRST_DAY,
    "execution.data_order": _FIRST_DAY,
    "execution.disk": _FIRST_DAY,
    "trainers.starting": _FIRST_DAY,
    "execution.execute": _TRAINERS,
    "execution.final_verdict": "integration/test_run_verdict.py",
    "execution.fixed_questions": "integration/test_run_verdict.py",
    "execution.predicting": _CALLBACKS,
    "execution.result": _TRAINERS,
    "execution.system_prompt": "integration/test_first_day_answers.py",
    "inference.answering": "integration/test_first_day_answers.py",
    "execution.reporting": "integration/test_report.py",
    "execution.score": _CALLBACKS,
    "parallel._upstream": "distributed/test_data_parallel.py",
    "parallel.batch": "unit/engine/test_step.py",
    "parallel.limits": "unit/execution/test_resolve.py",
    "planner.numbers": "unit/planner/test_plan.py",
    "runs.folder": _RESUME,
    "runs.rows": "unit/runs/test_watch.py",
    "apps.cli.runs": "integration/test_runs.py",
    **{f"apps.web.{name}": "browser/test_gate.py" for name in ("api", "gate", "main", "pages", "site", "tickets")},
    "apps.web.talker": "unit/apps/web/test_workers.py",
    "apps.web.talking": "unit/apps/web/test_beside.py",
    "apps.web.followed": "unit/apps/web/test_answers_screen.py",
    "apps.web.job_routes": "browser/test_answers.py",
    "apps.cli.web": "browser/test_gate.py",
    "apps.cli.json_out": "unit/apps/test_json_out.py",
    "apps.cli.data_table": "unit/data/test_paged.py",
    "apps.cli.data_glance": "unit/apps/test_limits.py",
    "apps.cli.data_questions": "unit/apps/test_limits.py",
    "apps.web.asked": "unit/apps/web/test_light.py",
    "apps.web.data_facts": "unit/apps/web/test_settings_screen.py",
    "data.doctor.table": "unit/data/test_paged.py",
    **{f"apps.web.screens.{name}": "browser/test_gate.py" for name in _SCREENS},
    **{f"apps.web.words.{name}": "browser/test_gate.py" for name in (*_SCREENS, "shell", "talking")},
    "runs.recorded": "integration/test_first_day_runs.py",
    "trainers.from_config": _CLI,
    "__main__": _CLI,
    "apps.cli.bench": _CLI,
    **{f"apps.cli.{name}": _FIRST for name in ("asking", "home", "init", "plan", "start", "version")},
    "config.commented": "integration/test_first_day_home.py",
    "execution.pilot": _FIRST,
    "system.machine": "integration/test_first_day_home.py",
    "apps.cli.japanese": "integration/test_japanese_messages.py",
    "apps.cli.answer": "integration/test_first_day_answers.py",
    "apps.cli.progress": "integration/test_first_day_answers.py",
    "apps.cli.answers": "integration/test_first_day_answers.py",
    "apps.cli.chat": _CLI,
    "apps.cli.data": _CLI,
    "apps.cli.data_loading": _CLI,
    **dict.fromkeys(
        ("apps.cli.data_doctor", "apps.cli.data_split", "data.doctor.examination", "data.doctor.report"),
        "integration/test_data_doctor.py",
    ),
    "apps.cli.demo": _CLI,
    "apps.cli.env": _CLI,
    "apps.cli.generate": _CLI,
    "apps.cli.main": _CLI,
    "apps.cli.merge": _CLI,
    "apps.cli.models": _CLI,
    "apps.cli.quantize": _CLI,
    "apps.cli.schema": _CLI,
    "apps.cli.tokenizer": "integration/test_pretrain.py",
    "apps.cli.train": _CLI,
    "apps.cli.import_": "integration/test_import.py",
    **dict.fromkeys(
        (
            f"config.foreign.{name}"
            for name in (
                "axolotl",
                "axolotl_data",
                "beside",
                "datasets",
                "hf",
                "llamafactory",
                "llamafactory_data",
                "lora_parts",
                "rows",
                "run_parts",
                "training_parts",
                "trl",
                "values",
            )
        ),
        "unit/config/test_foreign.py",
    ),
    "config.model": _SECTIONS,
    "config.run_folder": _RESUME,
    "config.hints": "unit/config/test_load.py",
    "config.synonyms": _SECTIONS,
    "data.encoding": _FILES,
    "data.formats": _FILES,
    "data.packing": _TOKENS,
    "data.stats": _CLI,
    "data.text_dataset": _TOKENS,
    "engine.checkpoint.background": _RESUME,
    "engine.hooks": _RESUME,
    "engine.rng": _RESUME,
    "evaluation.fidelity": f"integration/{_BENCH}",
    "evaluation.quantization_report": f"integration/{_BENCH}",
    "system.network": "unit/models/test_hub.py",
    "kernels.native": "unit/kernels/test_blocks.py",
    "models.base_model": "contract/test_documented_api.py",
    "models.japanese_model": "contract/test_documented_api.py",
    "japanese.jinja_parts": "unit/japanese/test_golden_prompts.py",
    "japanese.meter": "security/test_templates.py",
    "japanese.metered": "security/test_templates.py",
    "japanese.rewriting": "security/test_templates.py",
    "models.sizes": "security/test_sizes.py",
    "models.log_filters": _CLI,
    "models.random_init": "integration/test_pretrain.py",
    "models.tokenizer_training": "integration/test_pretrain.py",
    "messages": _CLI,
    "models.parts": "unit/parallel/test_stages.py",
    "parallel.collectives.tp_collectives": "distributed/test_tensor.py",
    "parallel.processes": _LAUNCH,
    "parallel.collectives.reducer": "distributed/test_data_parallel.py",
    "parallel.strategies.shard": "distributed/test_data_parallel.py",
    "parallel.strategy": "unit/engine/test_step.py",
    "convert.adapter_origin": _QUANTIZED,
    "execution.base_weights": _TRAINERS,
    "trainers.demo": "integration/test_embedded_data.py",
    "trainers.full": _TRAINERS,
    "trainers.lora": _TRAINERS,
    "trainers.trainer": _CALLBACKS,
    "execution.model_card": _TRAINERS,
    "trainers.multi_gpu": "contract/test_documented_api.py",
    "execution.output_folder": _RESUME,
    "execution.progress": _CLI,
    "execution.artifacts": _TRAINERS,
    "execution.sources": _TRAINERS,
    "execution.worker": _LAUNCH,
}


def modules() -> list[str]:
    """Every module of the package, without `ai_finetuning.`; packages count where they hold code."""
    obtained = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if path.name != "__init__.py":
            obtained.append(".".join(parts))
    return obtained


def files_of(module: str) -> list[str]:
    """The files below tests/ that test a module, by its name or by their imports."""
    room, name = module.split(".")[0], module.split(".")[-1]
    named = [path for path in _files() if path.name == f"test_{name}.py"]
    own = [path for path in named if "unit" not in path.parts or room in path.parts]
    importing = [path for path in _files() if f"ai_finetuning.{module}" in _imports(path)]
    return [str(path.relative_to(TESTS).as_posix()) for path in dict.fromkeys([*own, *importing])]


@cache
def _files() -> list[Path]:
    return sorted(TESTS.rglob("test_*.py"))


@cache
def _imports(path: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


if __name__ == "__main__":
    expected = sys.argv[1].removeprefix("ai_finetuning.")
    row = [TESTED_BY[expected]] if expected in TESTED_BY else []
    print("\n".join(f"tests/{name}" for name in dict.fromkeys([*row, *files_of(expected)])))

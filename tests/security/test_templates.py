"""Chat templates from somebody else: what they may take is counted, so each ends within seconds and in little memory."""

from __future__ import annotations

import concurrent.futures
import copy
import json
import sys
import time
from pathlib import Path

import pytest

from ai_finetuning.errors import DataError, ModelError
from ai_finetuning.japanese.prompts import render, validate_template
from ai_finetuning.japanese.templates import TEMPLATES
from tests.support.commands import call
from tests.support.hostile_templates import HARMLESS, HOSTILE, UNREADABLE
from tests.support.models import build_tokenizer

TALK = [{"role": "user", "content": "首都は？"}, {"role": "assistant", "content": "東京です。"}]
# CPU seconds; a rendering that uses up its units takes some two on a machine of 2024.
SECONDS = 10


def with_template(text: str):
    tokenizer = copy.copy(build_tokenizer())
    tokenizer.chat_template = text
    return tokenizer


def refused(text: str) -> ModelError | DataError:
    before = time.thread_time()
    with pytest.raises((ModelError, DataError)) as caught:
        render(with_template(text), TALK)
    assert time.thread_time() - before < SECONDS
    assert "MemoryError" not in caught.value.en, "refused by the machine, not by the meter"
    assert caught.value.ja
    assert len(caught.value.en) < 1500
    return caught.value


# Each takes a second or two of counting; the others of their kind are slow ones.
COSTLY = ("holds itself twice", "repeated in a list", "compared", "as a key", "a macro's arguments", "a block in")


def marked(name: str, text: str):
    costly = any(part in name for part in COSTLY) and name != "list that holds itself twice"
    return pytest.param(text, id=name, marks=[pytest.mark.slow] if costly else [])


@pytest.mark.parametrize("text", [marked(*item) for item in HOSTILE.items()])
def test_a_template_that_takes_too_much_is_refused(text: str):
    refused(text)


@pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)
def test_what_jinja_or_the_template_keeps_small_is_rendered(text: str):
    assert len(render(with_template(text), TALK)) < 1000


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_a_template_that_cannot_be_read_is_refused_when_the_tokenizer_is_loaded(text: str):
    with pytest.raises(ModelError, match="cannot be read"):
        validate_template(text)


def test_a_template_is_refused_in_threads_too():
    """No alarm and no clock: a thread that is not the main one, such as a server's, is kept as safe."""
    texts = [HOSTILE[name] for name in ("nested loops", "text that doubles", "center", "wordwrap")]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert {str(error) for error in pool.map(refused, texts)}


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no limit of a process's memory that it could set itself"
)
def test_refusals_take_little_memory():
    """All of them in one process that may use 1 GiB of address space."""
    import subprocess

    code = (
        "import resource\n"
        "from tests.support.hostile_templates import HOSTILE\n"
        "from ai_finetuning.errors import ToolkitError\n"
        "from ai_finetuning.japanese.prompts import render\n"
        "class Tokenizer:\n    special_tokens_map = {}\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "for name, text in HOSTILE.items():\n"
        "    if 'itself twice' in name or 'a block' in name: continue\n"  # of little memory, and the slowest
        "    Tokenizer.chat_template = text\n"
        "    try: render(Tokenizer, [{'role': 'user', 'content': 'a'}])\n"
        "    except ToolkitError as error: assert 'MemoryError' not in error.en, name\n"
        "    else: raise AssertionError(name)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_long_conversations_of_the_catalog_are_rendered():
    """The units grow with the conversation: thousands of turns, and a book in one message."""
    turns = [{"role": role, "content": "東京"} for _ in range(2500) for role in ("user", "assistant")]
    book = [{"role": "user", "content": "吾輩は猫である。\n" * 200_000}, TALK[1]]
    for key in ("qwen3_chatml", "llama3", "gpt_oss_harmony", "rinna_nl", "chatml"):
        tokenizer = with_template(TEMPLATES[key].jinja)
        assert render(tokenizer, turns).count("東京") == 5000
        assert len(render(tokenizer, book)) > 1_800_000


def test_the_text_is_that_of_transformers():
    """Its renderer and ours, without the date, for the catalog and for what templates of makers do."""
    import ai_finetuning.japanese.metered as metered

    def day(form: str) -> str:
        from datetime import datetime

        return datetime.now().strftime(form)

    constructs = (
        "{%- macro m(x, n=2) -%}[{{ x }}{{ n }}{{ varargs | length }}]{%- endmacro -%}"
        "{%- set ns = namespace(a=0, b='') -%}{% generation %}{% set q = 1 %}x{% endgeneration %}"
        "{%- for m1 in messages if m1['role'] != 'x' -%}{%- set ns.a = ns.a + loop.index0 * 2 % 7 - 1 -%}"
        "{%- if loop.index > 3 %}{% break %}{% endif %}"
        "{{- m(m1.content, 3, 4) ~ loop.length ~ loop.revindex ~ loop.last -}}{%- set ns.b = ns.b + m1.role + '|' -%}"
        "{%- endfor -%}{{ ns.a }}{{ ns.b }}{{ messages[1:] | length }}{{ messages | tojson }}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list }}"
        "{{ messages | tojson(indent=2) }}{{ (messages | first).content | upper | trim }}{{ 'a' in ['a', 'b'] }}"
        "{{ '%s-%02d' % ('a', 3) }}{{ '{:>5}|{}'.format('x', 2) }}{{ 'abc'[1:] }}{{ 'a,b'.split(',')[-1] }}"
        "{{ {'a': [1, none, true]} }}{{ missing }}{{ missing is defined }}{{ dict(a=1).items() | list }}{{ 7 // 2 }}"
        "{{ messages | groupby('role') | length }}{{ range(3) | sum }}{{ [3, 1] | sort }}{{ 'x' | indent(2, true) }}"
        "{% filter upper %}abc{% endfilter %}{% set t %}a{{ 1 }}{% endset %}{{ t }}{{ '<' | e ~ '>' }}"
        "{% for k, v in {'a': 1, 'b': 2}.items() recursive %}{{ k }}{{ v }}{% else %}none{% endfor %}"
        "{% call(z) m2() %}{{ z }}{% endcall %}"
    ).replace("{%- set ns", "{%- macro m2() -%}{{ caller('z') }}{%- endmacro -%}{%- set ns", 1)
    talk = [*TALK, {"role": "user", "content": " それから？"}]
    for text in [*(item.jinja for item in TEMPLATES.values()), constructs]:
        tokenizer = with_template(text)
        theirs = ours = None
        for prompt in (False, True):
            try:
                theirs = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=prompt)
            except Exception as error:
                theirs = type(error).__name__
            renderer = metered.compiled(text)
            renderer.environment.globals["strftime_now"] = day
            try:
                ours = render(tokenizer, talk, add_generation_prompt=prompt)
            except DataError:
                ours = "TemplateError"
            finally:
                renderer.environment.globals["strftime_now"] = metered._day
            assert ours == theirs


def test_a_template_for_each_purpose_is_the_default_one(tiny_model_dir: Path, tmp_path: Path):
    """transformers keeps several templates by name; without a name it takes `default`."""
    import shutil

    from ai_finetuning.models.tokenizers import load_tokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["chat_template"] = [
        {"name": "default", "template": "A{{ messages[0].content }}"},
        {"name": "tool_use", "template": "B"},
    ]
    file.write_text(json.dumps(values), encoding="utf-8")
    assert render(load_tokenizer(str(folder)), TALK) == "A首都は？"


@pytest.mark.parametrize("verb", ["data show", "generate", "train"])
def test_every_verb_that_renders_is_refused(tiny_model_dir: Path, tmp_path: Path, verb: str, logged):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "首都は？", "output": "東京です。"}\n', encoding="utf-8")
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% if messages[0].content != 'A' %}" + HOSTILE["printed in a loop"] + "{% endif %}", encoding="utf-8"
    )
    model, out = str(tiny_model_dir), f"training.output_dir={tmp_path / 'out'}"
    arguments = {
        "data show": ["data", "show", str(rows), "--model", model, "--chat-template", str(template)],
        "train": [
            "train",
            f"model={model}",
            f"data.train={rows}",
            f"model.chat_template={template}",
            out,
            "method=lora",
        ],
        "generate": ["generate", str(_with_file(tiny_model_dir, tmp_path, template)), "首都は？"],
    }[verb]
    assert call(*arguments) == 78
    assert "takes too much time or memory" in logged()


def _with_file(model: Path, parent: Path, template: Path) -> Path:
    import shutil

    folder = parent / "received"
    shutil.copytree(model, folder)
    shutil.copy(template, folder / "chat_template.jinja")
    return folder

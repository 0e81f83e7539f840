"""Ways in that were never open, held shut: templates, adapters, reports, names of folders."""

from __future__ import annotations

import contextlib
import html.parser
import json
import sys
from pathlib import Path

import pytest

from ai_finetuning.apps.cli.main import run
from ai_finetuning.errors import DataError, ModelError
from ai_finetuning.export.serve import serve_command
from ai_finetuning.japanese.prompts import render
from ai_finetuning.models.adapters import add_lora, load_adapter
from tests.support.commands import write_run
from tests.support.models import build_model, build_tokenizer

# Ways out of Jinja's sandbox that have been found over the years, and what reads or changes files.
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'].__base__ }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['os'].system('touch RAN') }}",
    "{{ strftime_now.__func__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch RAN').read() }}",
    "{{ lipsum.__globals__['os'].system('touch RAN') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ ''.format_map.__self__.__class__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ ('{0.__class__}'|attr('format'))(messages) }}",
    "{{ messages|attr('__class__')|attr('__mro__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'content': 'RAN'}) }}",
    "{% include '/etc/hostname' %}",
    "{% import '/etc/hostname' as x %}",
    "{% extends '/etc/hostname' %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_no_template_leaves_the_sandbox(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is refused, or what it asks for is not there."""
    monkeypatch.chdir(tmp_path)
    tokenizer = build_tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", template)
    messages = [{"role": "user", "content": "首都は？"}]
    try:
        text = render(tokenizer, messages)
    except (DataError, ModelError, TypeError):  # jinja's TypeError: there is no loader of files
        text = ""
    assert not [word for word in ("<class", "class 'object'", "subprocess", "RAN") if word in text], text
    host = Path("/etc/hostname")
    assert not host.is_file() or not text or host.read_text(encoding="utf-8").strip() not in text
    assert messages == [{"role": "user", "content": "首都は？"}]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "foreign",
    [
        {"auto_mapping": {"base_model_class": "Model", "parent_library": "evil_of_an_adapter"}},
        {"megatron_config": {}, "megatron_core": "evil_of_an_adapter"},
        {"peft_type": "evil_of_an_adapter"},
        {"task_type": "evil_of_an_adapter"},
        {"runtime_config": {"__class__": "evil_of_an_adapter"}},
    ],
    ids=lambda values: next(iter(values)),
)
def test_no_module_that_an_adapter_names_is_imported(
    foreign: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place, adapter = tmp_path / "path", tmp_path / "adapter"
    place.mkdir()
    (place / "evil_of_an_adapter.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(place))
    add_lora(build_model(), r=2, alpha=4).save_pretrained(adapter)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | foreign), encoding="utf-8")
    with contextlib.suppress(Exception):  # it may be refused in any way: what counts is that nothing of it runs
        load_adapter(build_model(), adapter)
    assert "evil_of_an_adapter" not in sys.modules
    assert not (tmp_path / "ran").exists()


class Tags(html.parser.HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.skipif(sys.platform == "win32", reason="such a name cannot be a folder's")
def test_names_in_a_report_are_text(tiny_model_dir: Path, tmp_path: Path):
    """The folder of a run and of its data, which the report names, are full of markup."""
    folder = tmp_path / "<img onerror>\"'<script>alert(1)<"
    config = write_run(folder, tiny_model_dir)
    assert run(["train", str(config), "training.schedule.max_steps=3"]) == 0
    text = (folder / "out" / "report.html").read_text(encoding="utf-8")
    found = Tags()
    found.feed(text)
    assert "alert(1)" in text
    assert "script" not in found.tags
    assert not [name for name in found.attributes if name.startswith("on")]


def test_a_folder_that_looks_like_an_option_is_served_as_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    command = serve_command(Path("--trust-remote-code"), port=8000)
    assert str(tmp_path / "--trust-remote-code") in command
    assert "--trust-remote-code" not in command

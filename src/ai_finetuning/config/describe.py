"""One text, three uses: the docstring under a configuration field is the CLI's help, the schema and the page."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from .load import fields_of, section_class, to_plain
from .run import RunConfig


def docstrings(cls: type) -> dict[str, str]:
    """The string below each field of a configuration class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    texts = {}
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return texts


def _classes(cls: type) -> dict[str, type]:
    found = {cls.__name__: cls}
    for hint in fields_of(cls).values():
        nested = section_class(hint)
        if nested is not None:
            found[nested.__name__] = nested
    return found


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a run's YAML, with descriptions, for editors."""
    from pydantic import TypeAdapter

    schema: dict[str, Any] = TypeAdapter(RunConfig).json_schema()
    for name, cls in _classes(RunConfig).items():
        place = schema if name == "RunConfig" else schema["$defs"][name]
        place["additionalProperties"] = False
        for field, text in docstrings(cls).items():
            if field in place["properties"]:
                place["properties"][field]["description"] = text
    model = schema["properties"]["model"]
    schema["properties"]["model"] = {
        "description": model.get("description", ""),
        "anyOf": [{"type": "string"}, {"$ref": "#/$defs/ModelConfig"}],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def table() -> list[tuple[str, str, str]]:
    """(dotted key, default, description) of every setting, for `aift train --help`."""
    classes = _classes(RunConfig)
    texts = {name: docstrings(cls) for name, cls in classes.items()}
    defaults = to_plain(RunConfig())
    lines = []
    for path, hint in fields_of(RunConfig).items():
        if section_class(hint) is not None:
            continue
        owner: type = RunConfig
        value: Any = defaults
        for part in path[:-1]:
            owner = section_class(fields_of(owner)[(part,)]) or owner
            value = value[part] if value[part] is not None else to_plain(owner())  # a section that is off by default
        lines.append((".".join(path), str(value[path[-1]]), texts[owner.__name__].get(path[-1], "")))
    return lines

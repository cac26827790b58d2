"""The fields of every configuration file as one page of Markdown, out of the models themselves."""

import json
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gwp.data.robot.embodiment import Embodiment
from pipelines.config.load import kinds, model_of

_COMMAND = "gwp config reference > docs/configuration.md"
_HEAD = f"""\
# Configuration reference

<!-- Written by `{_COMMAND}`; a test fails when it is out of step. Do not edit it by hand. -->

A configuration file is YAML with a `kind:` and `version: 1`. `extends: FILE` (relative to this
file; it may extend another) takes the values of that file where this one gives none: mappings are merged,
lists and everything else are replaced. `--set a.b=VALUE` comes last, and VALUE is YAML. Local paths
are seen from the folder in which the command runs.

Unknown keys, duplicate keys and wrong types are errors, all of them told at once, each with file
and line. `1e-4` is a number; `on`, `yes` and `12:30` are strings.

```sh
gwp config check pipelines/stages/*.yaml      # every mistake at once
gwp config show pipelines/stages/policy.yaml  # everything resolved: what it extends, defaults
gwp config schema TrainJob                    # JSON Schema, for completion in editors
{_COMMAND}
```

A field without a default must be given. Where a text says None, YAML says `null`.
"""
_NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Any: "anything",
}
_BOUNDS = (
    ("gt", "above"),
    ("ge", "at least"),
    ("lt", "below"),
    ("le", "at most"),
    ("min_length", "at least"),
)


def reference() -> str:
    """The page: a section for each kind of file and each mapping in it, in the order of fields."""
    parts = [_HEAD]
    for kind in kinds():
        parts += _sections(model_of(kind), f"`kind: {kind}`")
    parts += _sections(Embodiment, "the file that `--embodiment` takes; it has no `kind`")
    return "\n".join(parts)


def _sections(top: type[BaseModel], what: str) -> list[str]:
    """The section of a kind, and those of the models below it that it is the first to use."""
    page = top.__name__
    first = f"## {page}\n\n{what[0].upper()}{what[1:]}. {_described(top, page)}"
    parts = [first]
    parts += [f"### {page}: {m.__name__}\n\n{_described(m, page)}" for m in _below(top, [top])]
    return parts


def _described(model: type[BaseModel], page: str) -> str:
    """Its docstring and a table of its fields. `page`: the kind that models below stand under."""
    head = ["| field | value | default | what it is |", "|---|---|---|---|"]
    lines = [_text(model.__doc__), "", *head]
    for name, field in model.model_fields.items():
        value = _value(field.annotation, page) + _bounds(field)
        lines.append(f"| `{name}` | {value} | {_default(field)} | {_text(field.description)} |")
    return "\n".join(lines) + "\n"


def _below(model: type[BaseModel], known: list[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """Models in the fields of `model`, depth first, each once."""
    for field in model.model_fields.values():
        for inner in _models(field.annotation):
            if inner not in known:
                # The caller's list: a model that two others share has one section.
                known.append(inner)
                yield inner
                yield from _below(inner, known)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    # Its arguments are values, not types.
    if get_origin(annotation) is Literal:
        return []
    return [model for part in get_args(annotation) for model in _models(part)]


def _value(annotation: Any, page: str) -> str:
    """What may be written there."""
    origin = get_origin(annotation)
    inner = get_args(annotation)
    if origin is Annotated:
        return _value(inner[0], page)
    if origin in (Union, types.UnionType):
        return " or ".join(_value(part, page) for part in inner)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin is tuple:
        count = "" if Ellipsis in inner else f", {len(inner)} entries"
        return f"list of {_value(inner[0], page)}{count}"
    if origin is dict:
        return f"mapping from {_value(inner[0], page)} to {_value(inner[1], page)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        name = annotation.__name__
        return f"[{name}](#{page.lower()}-{name.lower()})"
    # KeyError: a type that this page has no words for yet.
    return _NAMES[annotation]


def _bounds(field: FieldInfo) -> str:
    # pydantic keeps bounds as marks in the metadata of a field.
    bounds = [
        f"{words} {getattr(mark, name):g}"
        for mark in field.metadata
        for name, words in _BOUNDS
        if getattr(mark, name, None) is not None
    ]
    return f", {', '.join(bounds)}" if bounds else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        # Only what this default sets; the rest stands in the section of that model.
        value = value.model_dump(mode="json", exclude_unset=True)
        if not value:
            return "its defaults"
    return f"`{json.dumps(value)}`"


def _text(text: str | None) -> str:
    """One line that a table can hold; what would be markup is not."""
    line = " ".join((text or "").split())
    # Code between backticks stays as it is.
    parts = re.split(r"(`[^`]*`)", line)
    quoted = [part if part.startswith("`") else _quoted(part) for part in parts]
    return "".join(quoted).replace("|", "\\|")


def _quoted(text: str) -> str:
    return re.sub(r"([*<\[\]])", r"\\\1", text)

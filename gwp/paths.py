"""Paths in configurations: which fields hold one, and how all of them become absolute.

A file is written for the folder in which the command runs; workers, decoding processes and later
runs stand in others. So every field that may hold a path is marked where it is declared.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel

from gwp import storage

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class PathField:
    """Marks a text field that holds a path or a URI."""

    names: str | None = None
    """Pattern of values that name something else (a run, a registered policy) and are no paths."""

    def local(self, value: str) -> bool:
        """Whether the value is a path of this machine."""
        named = self.names is not None and re.fullmatch(self.names, value)
        return not named and not storage.is_remote(value)


Location = Annotated[str, PathField()]
"""A path or a URI."""


def marker(annotation: Any) -> PathField | None:
    """The mark inside the annotation of a field, also of `Location | None` or `tuple[Location,
    ...]`.
    """
    if isinstance(annotation, PathField):
        return annotation
    inside = (marker(part) for part in get_args(annotation))
    return next((mark for mark in inside if mark is not None), None)


def absolute_paths(config: M) -> M:
    """The configuration with every local path from the root, seen from the current folder; `~`
    is the user's home.
    """
    return _changed(config, lambda _, path: storage.absolute(path))


def local_paths(config: BaseModel) -> dict[str, str]:
    """Dotted name -> value as written of every field that holds a path of this machine."""
    paths: dict[str, str] = {}
    # It walks over all fields; `setdefault` gives each path back as it is.
    _changed(config, lambda name, path: paths.setdefault(name, path))
    return paths


def relative_paths(config: BaseModel) -> dict[str, str]:
    """Those of `local_paths` that mean another file for another folder or user."""
    return {
        name: path
        for name, path in local_paths(config).items()
        if not path.removeprefix("file://").startswith("/")
    }


def _changed(config: M, change: Callable[[str, str], str], name: str = "") -> M:
    updates = {}
    for field, info in type(config).model_fields.items():
        before = getattr(config, field)
        # pydantic takes a mark on the field itself out of the annotation.
        marks = map(marker, (*info.metadata, info.annotation))
        mark = next((mark for mark in marks if mark), None)
        after = _value(before, mark, change, f"{name}.{field}".lstrip("."))
        if after != before:
            updates[field] = after
    return config.model_copy(update=updates) if updates else config


def _value(value: Any, mark: PathField | None, change: Callable[[str, str], str], name: str) -> Any:
    if isinstance(value, BaseModel):
        return _changed(value, change, name)
    if isinstance(value, str) and mark is not None and mark.local(value):
        return change(name, value)
    if isinstance(value, dict):
        return {k: _value(v, mark, change, f"{name}.{k}") for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_value(v, mark, change, f"{name}.{i}") for i, v in enumerate(value))
    return value

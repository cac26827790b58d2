"""What pydantic found wrong, in words a reader of the YAML file understands: file, line, key
path, fix.
"""

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Protocol, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_LONGEST_VALUE = 60
"""Characters of a wrong value that are shown: a line of an error stays a line."""
_PLAIN = {
    "int_parsing": "should be a whole number, without a unit",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number, without a unit",
    "float_type": "should be a number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "tuple_type": "should be a list, such as [a, b]",
    "list_type": "should be a list, such as [a, b]",
    "string_type": "should be text",
}
"""Kinds of errors whose own words say nothing of YAML."""
_Location = tuple[str | int, ...]
"""Where pydantic says an error is: keys, indices, and the names of union members entered."""


class Located(Protocol):
    """A value and where it was written, as `pipelines.config.load` reads them.

    value: a mapping or list of other located values, or a plain one
    where: `file:line`
    """

    @property
    def value(self) -> Any: ...
    @property
    def where(self) -> str: ...


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` for the closest known word, else nothing."""
    known = list(known)
    # Case, dashes and underscores do not make another word.
    folded = {name.lower().replace("_", "").replace("-", ""): name for name in known}
    close = difflib.get_close_matches(
        word.lower().replace("_", "").replace("-", ""), folded, n=1, cutoff=0.6
    )
    return f", did you mean {folded[close[0]]}?" if close else ""


def _members(annotation: Any) -> list[Any]:
    """An annotation without Annotated and Union around it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _names(model: type[BaseModel]) -> dict[str, Any]:
    """Key as written in YAML -> annotation."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _is_member(annotation: Any, name: str | int) -> bool:
    """Whether pydantic calls this member of a union by that name: its class, that with its
    validators around it, or the value of its discriminator.
    """
    if not _is_model(annotation):
        return False
    own = annotation.__name__
    return (
        name == own
        or str(name).endswith(f", {own}]")
        or any(name in get_args(field) for field in _names(annotation).values())
    )


def _below(annotations: list[Any], part: str | int) -> list[Any]:
    """The annotations one step down; where the step names a member of a union, that member."""
    # A step goes to a field of a model, an entry of a list or a value of a mapping.
    children: list[Any] = []
    for annotation in annotations:
        args = get_args(annotation)
        origin = get_origin(annotation)
        if _is_model(annotation) and part in _names(annotation):
            children += _members(_names(annotation)[str(part)])
        elif isinstance(part, int) and origin in (list, tuple, set, frozenset, Sequence):
            children += [member for arg in args if arg is not Ellipsis for member in _members(arg)]
        elif isinstance(part, str) and origin in (dict, Mapping):
            children += _members(args[1])
    if children:
        return children
    # Neither a key nor an index: the name of the member of a union that pydantic tried.
    members = [annotation for annotation in annotations if _is_member(annotation, part)]
    return members or annotations


def _keys(annotations: list[Any]) -> list[str]:
    return [
        name for annotation in annotations if _is_model(annotation) for name in _names(annotation)
    ]


def _walk(root: Located, loc: Sequence[str | int], missing: bool) -> tuple[str, str, list[int]]:
    """Key path as the user wrote it; the place of that value (or of the nearest above); which
    steps name a member of a union.
    """
    node = root
    path: list[str] = []
    members: list[int] = []
    for i, part in enumerate(loc):
        children = dict(enumerate(node.value)) if isinstance(node.value, list) else node.value
        if isinstance(children, dict) and part in children:
            node = children[part]
        elif not (missing and i == len(loc) - 1):
            # Pydantic's own step: nobody wrote it.
            members.append(i)
            continue
        path.append(str(part))
    return ".".join(path), node.where, members


def _closest(errors: list[tuple[_Location, list[int], str]]) -> list[int]:
    """Which errors to tell: of the members of a union that were entered, only the one with the
    fewest errors was meant.

    Each of `errors` is a pydantic location, the steps in it that name a member of a union, and a
    type of pydantic's.
    """
    unions: dict[_Location, dict[str | int, list[int]]] = {}
    for index, (loc, members, _) in enumerate(errors):
        for step in members:
            unions.setdefault(loc[:step], {}).setdefault(loc[step], []).append(index)
    dropped: set[int] = set()
    for prefix, by_member in unions.items():
        # An error at the member itself says only that the value has another form, but for what its
        # own validators say, which look at it when all fields are right.
        inside = {
            i
            for i, (loc, _, kind) in enumerate(errors)
            if len(loc) > len(prefix) + 1 or kind == "value_error"
        }
        entered = [indices for indices in by_member.values() if not inside.isdisjoint(indices)]
        if not entered:
            continue
        meant = min(entered, key=len)
        for indices in by_member.values():
            if indices is not meant:
                dropped.update(indices)
    return [i for i in range(len(errors)) if i not in dropped]


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _what(error: ErrorDetails, known: list[str]) -> str:
    kind = error["type"]
    context = error.get("ctx", {})
    given = error["input"]
    if kind == "missing":
        return "missing; it has no default"
    if kind == "extra_forbidden":
        key = str(error["loc"][-1])
        hint = did_you_mean(key, known) or f"; known here: {', '.join(known) or 'nothing'}"
        return f"unknown key{hint}"
    if kind == "union_tag_invalid":
        expected = context["expected_tags"]
        hint = did_you_mean(context["tag"], _quoted(expected))
        return f"is {context['tag']!r}, should be one of {expected}{hint}"
    if kind == "union_tag_not_found":
        return "missing; it says which of the variants this is"
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        # A whole mapping or list would not fit into a line.
        shown = "" if isinstance(given, (dict, list)) else f" (got {given!r})"
        return f"should be a mapping of `key: value` lines{shown}"
    if kind == "string_type" and isinstance(given, (bool, int, float)):
        return f"should be text; put it in quotes (got {given!r})"
    # Everything else in pydantic's own words, with the value that was given.
    text = _PLAIN.get(kind) or error["msg"].replace("Input should", "should", 1)
    if isinstance(given, (str, int, float, bool, type(None))):
        shown = repr(given)
        if len(shown) > _LONGEST_VALUE:
            shown = shown[:_LONGEST_VALUE] + "..."
        text += f" (got {shown})"
    if kind in ("literal_error", "enum") and isinstance(given, str):
        text += did_you_mean(given, _quoted(context["expected"]))
    return text


def explain(error: ValidationError, model: type[BaseModel], root: Located) -> list[str]:
    """One line for every problem: `file:line key.path: what is wrong, did you mean ...?`.

    `root` is the tree of located values that was validated; a missing key is reported at the
    mapping that should hold it.
    """
    locations: list[tuple[_Location, list[int], str]] = []
    texts: list[tuple[str, str, str]] = []
    # Each error by itself: the fields known there, where it was written, what is wrong.
    for details in error.errors(include_url=False):
        if details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]:
            # Only short because entries were refused, and those are told themselves.
            continue
        loc: _Location = details["loc"]
        if details["type"] in ("union_tag_invalid", "union_tag_not_found"):
            # Pydantic locates these at the mapping; the discriminator in it is what is wrong.
            loc = (*loc, *_quoted(str(details["ctx"]["discriminator"])))
        annotations: list[Any] = [model]
        for part in loc[:-1]:
            annotations = _below(annotations, part)
        path, where, members = _walk(
            root, loc, missing=details["type"] in ("missing", "union_tag_not_found")
        )
        locations.append((loc, members, details["type"]))
        texts.append((where, path, _what(details, _keys(annotations))))
    # Then a line per place, without the members of unions that were not meant.
    lines: dict[tuple[str, str], list[str]] = {}
    for index in _closest(locations):
        where, path, what = texts[index]
        lines.setdefault((where, path), []).append(what)
    explained = []
    for (where, path), whats in lines.items():
        subject = f"{where} {path}" if path else where
        # Members of a union often say the same.
        explained.append(f"{subject}: {'; or '.join(dict.fromkeys(whats))}")
    return explained

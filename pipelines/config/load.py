"""YAML into pydantic models: strict, with every problem at once and the line it stands on.

A document is `kind: TrainJob`, `version: 1` and the fields of that model. `extends: base.yaml`
(relative to the file; that one may extend another) merges mappings and replaces everything else;
`--set a.b=value` comes last. Scalars follow YAML 1.2: `1e-4` is a number, `on` and `12:30` are
strings. Paths are seen from the folder in which the command runs, and absolute in what is read.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gwp import storage
from gwp.errors import GwpError
from gwp.paths import absolute_paths
from pipelines.config.beside import beside, real
from pipelines.config.errors import did_you_mean, explain

M = TypeVar("M", bound=BaseModel)

# The core schema of YAML 1.2: pattern of a scalar, and characters that it may begin with.
_SCALARS = {
    "tag:yaml.org,2002:null": (re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "tag:yaml.org,2002:int": (
        re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
        list("-+0123456789"),
    ),
    "tag:yaml.org,2002:float": (
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    """Composes node trees with YAML 1.2 scalars. Nothing is constructed, so no tag can run
    code.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own class attribute


class _Dumper(yaml.SafeDumper):
    """Quotes every string that either version of YAML would read as something else."""


for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


class ConfigError(GwpError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # By default it is the joined text that a pickled exception is made from again.
        return type(self), (self.lines,)


@dataclass(frozen=True)
class Node:
    """A value and where it was written: dict of nodes, list of nodes, or scalar."""

    value: Any
    where: str
    """`file:line`, or the `--set` argument."""


def _scalar(node: yaml.ScalarNode, problems: list[str], where: str, path: str) -> Any:
    text = node.value
    kind = node.tag.rpartition(":")[2]
    if kind == "str":
        return text
    # A tag that is written out (`!!int x`) may promise what the text is not.
    if kind in ("null", "bool", "int", "float") and _SCALARS[node.tag][0].match(text):
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    problems.append(
        f"{where} {path}: the tag {node.tag} is not understood here; write a plain value"
    )
    return text


def _tree(
    node: yaml.Node,
    name: str,
    problems: list[str],
    path: str = "",
    above: tuple[yaml.Node, ...] = (),
    line: int = 0,
) -> Node:
    # A value is told at the line of its key, where a user looks for it.
    line = line or node.start_mark.line + 1
    where = name if name.startswith("--set") else f"{name}:{line}"
    # An anchor in its own value is legal YAML, and would be walked for ever.
    if any(node is other for other in above):
        problems.append(f"{where} {path}: an anchor that contains itself; write the value out")
        return Node(None, where)
    above = (*above, node)
    if isinstance(node, yaml.ScalarNode):
        return Node(_scalar(node, problems, where, path), where)
    if isinstance(node, yaml.SequenceNode):
        items = [
            _tree(item, name, problems, f"{path}.{i}".lstrip("."), above)
            for i, item in enumerate(node.value)
        ]
        return Node(items, where)
    assert isinstance(node, yaml.MappingNode)
    children: dict[str, Node] = {}
    for key_node, value_node in node.value:
        at = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(f"{name}:{at} {path}: a key must be a plain word")
            continue
        key = key_node.value
        below = f"{path}.{key}".lstrip(".")
        child = _tree(value_node, name, problems, below, above, at)
        if key in children:
            problems.append(
                f"{child.where} {below}: duplicate key, first given at {children[key].where}; keep one"
            )
        children[key] = child
    return Node(children, where)


def _parse(text: str, name: str, problems: list[str]) -> Node | None:
    """The node tree of one YAML document, or None after reporting a syntax error."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.append(f"{name}:{line} not valid YAML: {error.problem or error.context}")
        return None
    except yaml.YAMLError as error:
        problems.append(f"{name}:1 not valid YAML: {' '.join(str(error).split())}")
        return None
    return Node(None, name) if root is None else _tree(root, name, problems)


def _read(path: str, problems: list[str]) -> Node:
    try:
        text = storage.read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read as a YAML file ({error})"]) from error
    except GwpError as error:
        raise ConfigError([str(error)]) from error
    node = _parse(text, path, problems)
    if node is None:
        return Node({}, f"{path}:1")
    if not isinstance(node.value, dict):
        problems.append(f"{path}:1 the file must hold `key: value` lines")
        return Node({}, f"{path}:1")
    return node


def _merge(base: Node, over: Node) -> Node:
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = _merge(merged[key], child) if key in merged else child
    return Node(merged, over.where)


def _put(node: Node, keys: list[str], value: Node, done: str = "") -> Node:
    """`node` with `value` at the path `keys`; mappings on the way are made, list entries must
    exist. KeyError: why it cannot be.
    """
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    here = f"{done}.{key}".lstrip(".")
    if isinstance(node.value, list):
        if not (key.isdecimal() and int(key) < len(node.value)):
            raise KeyError(
                f"{done} is a list of {len(node.value)}; give an index from 0 to {len(node.value) - 1}"
            )
        items = list(node.value)
        items[int(key)] = _put(items[int(key)], rest, value, here)
        return replace(node, value=items)
    if node.value is not None and not isinstance(node.value, dict):
        raise KeyError(f"{done} is the value {node.value!r} and has no keys")
    children = dict(node.value or {})
    children[key] = _put(
        children.get(key, Node({} if rest else None, value.where)), rest, value, here
    )
    return replace(node, value=children)


def _apply(root: Node, sets: Iterable[str], problems: list[str]) -> Node:
    for text in sets:
        path, equals, raw = text.partition("=")
        keys = [key.strip() for key in path.split(".")]
        where = f"--set {text}"
        if not equals or not all(keys):
            problems.append(f"{where}: write it as --set some.key=value")
            continue
        value = _parse(raw, where, problems)
        if value is None:
            continue
        try:
            root = _put(root, keys, value)
        except KeyError as error:
            problems.append(f"{where}: {error.args[0]}")
    return root


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    return node.value


def base_of(path: str) -> str | None:
    """The file that `path` extends; None when it extends none, or cannot be read."""
    try:
        extends = _read(path, []).value.get("extends")
    except ConfigError:
        return None
    if extends is None or not isinstance(extends.value, str):
        return None
    return beside(path, extends.value)


def _extended(path: str, problems: list[str], above: tuple[str, ...] = ()) -> Node:
    """A file over those that it extends. above: files that extend it"""
    root = _read(path, problems)
    extends = root.value.pop("extends", None)
    if extends is None:
        return root
    if not isinstance(extends.value, str):
        problems.append(f"{extends.where} extends: should be the path of one YAML file")
        return root
    base = beside(path, extends.value)
    above = (*above, real(path))
    if real(base) in above:
        problems.append(f"{extends.where} extends: {base} extends this file; remove one of them")
        return root
    try:
        return _merge(_extended(base, problems, above), root)
    except ConfigError as error:
        problems += [f"{extends.where} extends: {line}" for line in error.lines]
        return root


def _validate(root: Node, model: type[M], problems: list[str]) -> M:
    """Check the envelope and the fields; ConfigError with all of `problems` when there are any."""
    for key, expected in (("kind", model.__name__), ("version", 1)):
        if key in model.model_fields or key not in root.value:
            continue
        # A model without this field would refuse it as unknown.
        node = root.value.pop(key)
        if node.value != expected:
            problems.append(f"{node.where} {key}: is {node.value!r}, should be {expected!r}")
    try:
        valid = model.model_validate(_plain(root))
    except ValidationError as error:
        problems += explain(error, model, root)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return valid


def load_config(
    path: str | os.PathLike[str],
    model: type[M],
    sets: Sequence[str] = (),
    *,
    as_written: bool = False,
) -> M:
    """Read `path` (local or `s3://`) as `model`, with `sets` (`a.b=value`, parsed as YAML) on
    top.

    Local paths inside become absolute, unless `as_written`. Raises ConfigError with every
    problem: `file:line key.path: what is wrong, did you mean ...?`.
    """
    problems: list[str] = []
    root = _apply(_extended(os.fspath(path), problems), sets, problems)
    valid = _validate(root, model, problems)
    return valid if as_written else absolute_paths(valid)


def kinds() -> dict[str, tuple[str, str]]:
    """What a document's `kind:` may be -> module and class that it configures."""
    return {
        "TrainJob": ("pipelines.jobs.train_job", "TrainJob"),
        "ServeApp": ("serve.config", "ServeApp"),
        "Cluster": ("clusters.document.cluster", "Cluster"),
        "Study": ("pipelines.studies.document.study", "Study"),
    }


def model_of(kind: str) -> type[BaseModel]:
    """The model class of a `kind:`; ConfigError for an unknown one."""
    if kind not in kinds():
        hint = did_you_mean(kind, kinds())
        known = ", ".join(kinds())
        raise ConfigError([f"{kind!r} is not a kind of configuration{hint}; known: {known}"])
    module, name = kinds()[kind]
    model: type[BaseModel] = getattr(import_module(module), name)
    return model


def load_any(path: str | os.PathLike[str], sets: Sequence[str] = ()) -> BaseModel:
    """Read a document as the model that its own `kind:` names. Raises ConfigError as
    `load_config` does.
    """
    problems: list[str] = []
    root = _apply(_extended(os.fspath(path), problems), sets, problems)
    kind = root.value.get("kind")
    known = ", ".join(kinds())
    if kind is None:
        raise ConfigError([*problems, f"{root.where} kind: missing; write one of {known}"])
    if not isinstance(kind.value, str) or kind.value not in kinds():
        hint = did_you_mean(str(_plain(kind)), kinds())
        unknown = f"{kind.where} kind: {_plain(kind)!r} is unknown{hint}; write one of {known}"
        raise ConfigError([*problems, unknown])
    return absolute_paths(_validate(root, model_of(kind.value), problems))


def resolved(config: BaseModel) -> dict[str, Any]:
    """The whole configuration as plain JSON values, defaults included, with `kind` and
    `version` so that it loads again.
    """
    return {"kind": type(config).__name__, "version": 1} | config.model_dump(mode="json")


def dump_resolved(config: BaseModel) -> str:
    """`resolved` as YAML text."""
    return yaml.dump(
        resolved(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
    )


def config_hash(config: BaseModel, exclude: Iterable[str] = ()) -> str:
    """sha256 (hex) of the canonical JSON of the configuration, without the run-only fields
    named in `exclude` (`a.b`: nested).

    KeyError when a name in `exclude` is no field, so that a renamed field cannot slip into the
    hash unseen. Of a section that is None there is nothing to leave out.
    """
    values = resolved(config)
    for name in exclude:
        *parents, last = name.split(".")
        parent: dict[str, Any] | None = values
        for key in parents:
            parent = parent[key] if parent is not None else None
        if parent is not None:
            del parent[last]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def schema(kind: str) -> dict[str, Any]:
    """JSON Schema of the documents of a `kind:`, with the keys that the loader itself reads."""
    document = model_of(kind).model_json_schema()
    envelope = {
        "kind": {"const": kind, "description": "What this file configures."},
        "version": {"const": 1, "description": "Version of the format."},
        "extends": {
            "type": "string",
            "description": "Another file (relative to this one) whose values stand where this "
            "one gives none.",
        },
    }
    required = [name for name in document.get("required", []) if name != "kind"]
    document["properties"] = envelope | document.get("properties", {})
    document["required"] = ["kind", *required]
    return document

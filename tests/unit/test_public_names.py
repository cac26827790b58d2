"""What users import and catch: the names are there, cheap to import, and written down."""

import ast
import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import gwp.errors
from gwp.client.connection.wire import ClientError
from pipelines.config.load import ConfigError
from serve.desk.dispatch import RefusedError
from tests.unit.test_layering import ROOT, imports, python_files, within

PUBLIC = {
    "gwp": {"ActionChunk", "Engine", "BatchingConfig", "GwpError", "Observation", "Policy"},
    "gwp.policy": {
        "ActionChunk",
        "Bundle",
        "Engine",
        "BatchingConfig",
        "Observation",
        "Observed",
        "Policy",
        "PolicyContract",
        "PolicyConfig",
        "read_bundle",
    },
    "gwp.client": {
        "ActionChunk",
        "AsyncClient",
        "ChunkBuffer",
        "Client",
        "ClientError",
        "Episode",
        "Executed",
        "Observation",
        "Profile",
    },
}
"""Taking one away breaks somebody's code."""


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there(name: str) -> None:
    module = importlib.import_module(name)
    assert set(module.__all__) == PUBLIC[name]
    assert PUBLIC[name] <= set(dir(module))
    for public in PUBLIC[name]:
        value = getattr(module, public)
        assert value.__name__ == public
        assert value.__doc__, f"{name}.{public} has no docstring"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        module.nothing_of_the_kind  # noqa: B018


def test_the_same_name_is_the_same_thing_wherever_it_is_imported_from() -> None:
    for name, publics in PUBLIC.items():
        for other, others in PUBLIC.items():
            for public in publics & others:
                assert getattr(importlib.import_module(name), public) is getattr(
                    importlib.import_module(other), public
                )


@pytest.mark.parametrize("name", PUBLIC)
def test_importing_a_package_loads_no_torch(name: str) -> None:
    program = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False
        ).returncode
        == 0
    )


def bases_of_classes() -> dict[str, list[str]]:
    """Class name -> names of its bases, of all classes of the tree."""
    classes = {}
    for path in python_files("gwp", "serve", "clusters", "pipelines"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
    return classes


def test_every_error_that_a_caller_may_catch_stands_in_the_tree_of_errors() -> None:
    classes, known = bases_of_classes(), {"GwpError"}
    while more := {name for name, bases in classes.items() if known & set(bases)} - known:
        known |= more
    tree = [
        line
        for line in (gwp.errors.__doc__ or "").splitlines()
        if line.lstrip().startswith(("GwpError", "├", "│", "└"))
    ]
    # Depth by where the name stands in its line.
    written: list[tuple[int, str]] = []
    for line in tree:
        name = line.strip(" ├└│─").split()[0]
        written.append((line.index(name), name))
    assert {name for _, name in written} == known
    for position, (depth, name) in enumerate(written[1:], 1):
        parent = next(above for at, above in reversed(written[:position]) if at < depth)
        assert parent in classes[name], f"{name} is no {parent}"


def test_both_ways_to_act_stand_on_one_solver_that_knows_neither() -> None:
    beneath = {"gwp.policy.policy", "gwp.policy.batching"}
    for name in ("solver", "graphs", "inputs", "contract", "bundle", "locate", "envelope/safety"):
        assert not [
            m
            for _, m in imports(ROOT / f"gwp/policy/{name}.py")
            if any(within(m, above) for above in beneath)
        ], name
    assert not [
        m for _, m in imports(ROOT / "gwp/policy/policy.py") if within(m, "gwp.policy.batching")
    ]


def test_the_tree_of_errors_can_be_read_from_any_folder(tmp_path: Path) -> None:
    """A robot has no torch, no Ray, no pydantic: what it may catch comes without them."""
    program = (
        "import sys, gwp.errors; sys.exit(any(m in sys.modules for m in ('torch', 'ray', "
        "'pydantic')))"
    )
    env = {"PYTHONPATH": str(ROOT)}
    assert (
        subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=env, timeout=60, check=False
        ).returncode
        == 0
    )


@pytest.mark.parametrize(
    "error",
    [
        ConfigError(["a.yaml:1 x: wrong", "a.yaml:2 y: wrong"]),
        RefusedError("busy", "try later"),
        ClientError("no answer", "unavailable"),
        gwp.errors.MissingError("s3://b/x: not found"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_says_the_same_in_another_process(error: gwp.errors.GwpError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))

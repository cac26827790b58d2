"""The house: imports point down only, also those inside functions, and files read in one
sitting.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LONGEST = 400

# Room -> packages that no file of it may import, directly and anywhere in the file.
FORBIDDEN = {
    "gwp": {"ray", "mlflow", "deepspeed", "serve", "clusters", "pipelines", "tests"},
    "gwp/data": {"torch", "gwp.model", "gwp.policy", "gwp.sim"},
    "gwp/model": {"gwp.policy", "gwp.sim"},
    "gwp/protocol": {
        "torch",
        "pydantic",
        "gwp.data",
        "gwp.model",
        "gwp.policy",
        "gwp.sim",
        "gwp.storage",
        "gwp.client",
    },
    "gwp/client": {
        "torch",
        "pydantic",
        "gwp.data",
        "gwp.model",
        "gwp.policy",
        "gwp.sim",
        "gwp.storage",
    },
    "serve": {"pipelines", "clusters", "tests"},
    "clusters": {"pipelines", "serve", "tests"},
    "pipelines": {"tests"},
}


def python_files(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full module name of every import; `from a import b` may name a module, so it
    counts as `a.b` too.
    """
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_down(room: str) -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in python_files(room)
        for line, module in imports(path)
        for package in FORBIDDEN[room]
        if within(module, package)
    ]
    assert not upward, "\n".join(upward)


def test_the_check_sees_imports_of_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "gwp" / "client").mkdir(parents=True)
    file = tmp_path / "gwp" / "client" / "x.py"
    file.write_text(
        "import ray.serve as s\ndef f():\n  from gwp import model\n  from ..model import "
        "flow\n  from . import y\n"
    )
    assert list(imports(file)) == [
        (1, "ray.serve"),
        (3, "gwp.model"),
        (4, "gwp.model.flow"),
        (5, "gwp.client.y"),
    ]


@pytest.mark.parametrize("top", ["gwp", "serve", "clusters", "pipelines", "tests"])
def test_files_read_in_one_sitting(top: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in python_files(top)
    }
    assert not {name: length for name, length in lengths.items() if length > LONGEST}

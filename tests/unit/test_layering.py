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


# Room of pipelines -> the other rooms that it may know. `verbs` and `demo` sit on top and know all.
MAY_KNOW: dict[str, set[str]] = {
    "compat": set(),
    "config": set(),
    "console": set(),
    "doctor": set(),
    "frames": set(),
    "jobs": {"compat", "config", "console"},
    "pages": set(),
    "plan": {"config", "jobs"},
    "tracking": {"config", "jobs"},
    "training": {"compat", "config", "console", "frames", "jobs", "tracking"},
    "datasets": {"config", "console", "jobs", "pages"},
    "evaluation": {"config", "console", "frames", "jobs", "pages"},
    "placement": {"config", "jobs", "plan"},
    "studies": {
        "config",
        "console",
        "datasets",
        "evaluation",
        "jobs",
        "pages",
        "tracking",
        "training",
    },
    "bench": {
        "compat",
        "config",
        "console",
        "datasets",
        "evaluation",
        "jobs",
        "pages",
        "tracking",
        "training",
    },
}
PACKAGES = ("gwp", "gwp/data", "gwp/model", "gwp/policy", "pipelines", "serve", "clusters")


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


def arrows(package: str) -> dict[str, set[str]]:
    """Room -> the other rooms of the same package that it imports; a room is a folder or a file."""
    base = ROOT / package
    rooms = {path.stem for path in base.iterdir() if path.suffix == ".py" or path.is_dir()}
    knows: dict[str, set[str]] = {}
    for path in python_files(package):
        room = path.relative_to(base).parts[0].removesuffix(".py")
        for _, module in imports(path):
            if within(module, package.replace("/", ".")):
                other = module.split(".")[package.count("/") + 1 :][:1]
                knows.setdefault(room, set()).update({*other} & rooms - {room, "__init__"})
    knows.pop("__init__", None)
    return knows


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_know_each_other_in_one_direction(package: str) -> None:
    left = arrows(package)
    while free := [room for room, known in left.items() if not known & left.keys()]:
        for room in free:
            del left[room]
    assert not left, f"circle among {left}"


def test_rooms_of_pipelines_know_what_they_may() -> None:
    beyond = {
        room: known - MAY_KNOW[room]
        for room, known in arrows("pipelines").items()
        if room in MAY_KNOW and known - MAY_KNOW[room]
    }
    assert not beyond


def test_every_room_of_pipelines_is_a_known_one() -> None:
    assert set(arrows("pipelines")) <= {*MAY_KNOW, "verbs", "demo", "cli"}


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


# Only these ask file systems themselves; everybody else's calls are patient because they go
# through gwp.storage.
STORAGE = {
    "gwp/storage/__init__.py",
    "gwp/storage/door.py",
    "gwp/storage/handles.py",
    "gwp/storage/multipart.py",
    "gwp/storage/native.py",
}
CLIENTS = {
    "fsspec",
    "s3fs",
    "boto3",
    "botocore",
    "aiobotocore",
    "aiohttp",
    "pyarrow.fs",
    "gwp.storage.door",
    "gwp.storage.handles",
    "gwp.storage.multipart",
    "gwp.storage.filesystem",
    "gwp.storage.arrow_filesystem",
    "gwp.storage.call",
}
DIRECT = {"filesystem", "arrow_filesystem", "call"}
# Ray takes a file system of Arrow's, which is patient by itself.
RAY_READS = {
    "pipelines/bench/ingest/stream.py": "arrow_filesystem",
}


def asks_storage_directly(path: Path) -> list[str]:
    """Imports of storage clients, and uses of `storage.filesystem` and the like, in one file."""
    name = path.relative_to(ROOT).as_posix()
    found = [
        f"{name}:{line} imports {module}"
        for line, module in imports(path)
        for client in CLIENTS
        if within(module, client)
    ]
    for node in ast.walk(ast.parse(path.read_text(), name)):
        if not isinstance(node, ast.Attribute) or ast.unparse(node.value) != "storage":
            continue
        if node.attr in DIRECT and RAY_READS.get(name) != node.attr:
            found.append(f"{name}:{node.lineno} uses storage.{node.attr}")
    return found


def test_there_is_one_door_to_storage() -> None:
    files = [
        path
        for path in python_files("gwp", "pipelines", "serve", "clusters")
        if path.relative_to(ROOT).as_posix() not in STORAGE
    ]
    direct = [line for path in files for line in asks_storage_directly(path)]
    assert not direct, "\n".join(direct)


def test_the_check_of_the_door_sees_every_way_past_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "module.py"
    for line in (
        "import s3fs",
        "from fsspec.core import url_to_fs",
        "from pyarrow import fs",
        "import pyarrow.fs as pafs",
        "from gwp.storage import filesystem",
        "fs, path = storage.filesystem(uri)",
        "storage.call(uri, work)",
    ):
        path.write_text(line)
        assert len(asks_storage_directly(path)) == 1, line
    path.write_text("from gwp import storage\nimport pyarrow\nstorage.read_bytes(uri)")
    assert asks_storage_directly(path) == []


def _private(tree: ast.Module) -> list[str]:
    """Imports of private modules and names, and private attributes of what is not one's own."""
    uses = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            if any(name.startswith("_") and not name.startswith("__") for name in names):
                uses.append(f"{node.lineno}: from {node.module}")
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if owner not in ("self", "cls", "other") and not node.attr.startswith("__"):
                uses.append(f"{node.lineno}: {owner}.{node.attr}")
    return uses


@pytest.mark.parametrize("top", ["gwp", "serve", "clusters", "pipelines"])
def test_private_parts_of_others_are_used_in_compat_only(top: str) -> None:
    # Each of the two is the one file that knows its benchmark, and its own compat.
    uses = {}
    for path in python_files(top):
        if path.name not in ("compat.py", "metaworld.py", "ogbench.py"):
            private = _private(ast.parse(path.read_text()))
            # A named tuple's `_replace` is public.
            private = [use for use in private if not use.endswith("._replace")]
            if private:
                uses[str(path.relative_to(ROOT))] = private
    assert not uses

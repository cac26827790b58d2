"""What all tests share: markers by folder, cheap tests first, and one mini-cluster per session
for those that ask for it.
"""

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters.mini import MiniCluster

# Before anything imports DeepSpeed, so that a machine with a GPU takes the same path.
os.environ.setdefault("DS_ACCELERATOR", "cpu")

HERE = Path(__file__).parent
ORDER = ("unit", "parity", "slurm", "cluster", "chaos")
MARKED = {"slurm", "cluster", "chaos"}
SLOW = {"slurm", "chaos"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pictures",
        default=None,
        help="folder for the dashboards of tests/cluster/test_observability.py",
    )
    parser.addoption(
        "--damage", type=int, default=24, help="damaged files that are tried of each format"
    )


def _room(item: pytest.Item) -> str:
    return item.path.relative_to(HERE).parts[0]


def pytest_itemcollected(item: pytest.Item) -> None:
    # Before `-m` chooses by markers.
    if _room(item) in MARKED:
        item.add_marker(_room(item))
    if _room(item) in SLOW:
        item.add_marker("slow")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def when(item: pytest.Item) -> tuple[int, bool]:
        # Tests that start clusters of their own come before the shared one exists: two at a
        # time are more than small machines hold.
        return ORDER.index(_room(item)), "mini" in getattr(item, "fixturenames", ())

    items.sort(key=when)


@pytest.fixture(scope="session", autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache or tracking store."""
    place = tmp_path_factory.mktemp("own")
    # Compiled code takes long to make and is that of this checkout: it stays in pytest's cache.
    native = HERE.parent / ".pytest_cache" / "native"
    native.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / "cache").mkdir()
    (place / "cache" / "native").symlink_to(native)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GWP_CACHE", str(place / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
        yield


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MiniCluster]:
    """The session's mini-cluster; this process is a Ray driver of it, and its environment
    points at its S3 and MLflow.
    """
    with MiniCluster(tmp_path_factory.mktemp("mini")) as cluster:
        cluster.connect()
        yield cluster


@pytest.fixture(autouse=True)
def _pools_are_free(request: pytest.FixtureRequest) -> None:
    """No test before left a process that holds a CPU of the pools that train and decode: this
    one would wait for it in vain.
    """
    if "mini" not in request.fixturenames:
        return
    from ray.util.state import list_actors

    mini: MiniCluster = request.getfixturevalue("mini")
    nodes = {*mini.node_ids("train"), *mini.node_ids("data")}
    until = time.monotonic() + 60
    while True:
        # When a stream fails, Ray Data leaves its processes to the garbage collector; and until
        # its test was over, pytest kept what was logged, with the frames that refer to them.
        gc.collect()
        left = [
            actor.class_name
            for actor in list_actors(filters=[("state", "!=", "DEAD")], detail=True, limit=1000)
            if actor.node_id in nodes and any((actor.required_resources or {}).values())
        ]
        if not left:
            return
        assert time.monotonic() < until, f"left behind by an earlier test: {left}"
        time.sleep(0.5)

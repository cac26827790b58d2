"""A cluster document on this machine."""

import subprocess
from pathlib import Path

import pytest

from clusters.local import RUN, START, cpus_of, render
from gwp.errors import GwpError
from tests.support.clusters import POOL, STAGE, cluster
from tests.unit.clusters.slurm.test_script import shellcheck


def test_each_pool_is_one_node() -> None:
    pools = {"head": POOL, "data": POOL | {"cpus": 3}, "serve": POOL | {"cpus": 5}}
    assert cpus_of(cluster(pools=pools)) == {"data": 3, "serve": 5}


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"gpus": 1}, "pools.train.gpus: the mini-cluster has CPUs only"),
        ({"min_nodes": 2, "max_nodes": 2}, "pools.train.min_nodes: 2, and here each pool is one"),
    ],
)
def test_what_this_machine_cannot_be_is_told(pool: dict[str, int], said: str) -> None:
    with pytest.raises(GwpError, match=said):
        render(cluster(pools={"head": POOL, "train": POOL | pool}), "", [])


def test_scripts_are_clean(tmp_path: Path) -> None:
    files = render(cluster(), "kind: Cluster\n", [STAGE])
    for name in (START, RUN):
        (tmp_path / name).write_text(files[name])
        command = [shellcheck(), "--severity=style", str(tmp_path / name)]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
    assert files["00-tiny-run_1.yaml"] == STAGE.document
    assert files[RUN].endswith("gwp train 00-tiny-run_1.yaml\n")
    # Without stages there is nothing to run.
    assert RUN not in render(cluster(), "", [])

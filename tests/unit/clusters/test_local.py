"""A cluster document on this machine."""

import os
import subprocess
from pathlib import Path

import pytest

from clusters.gpus import seeing
from clusters.local import RUN, START, cpus_of, gpus_of, render
from gwp.errors import GwpError
from tests.support.clusters import POOL, STAGE, cluster
from tests.unit.clusters.slurm.test_script import shellcheck


def test_each_pool_is_one_node() -> None:
    pools = {"head": POOL, "data": POOL | {"cpus": 3}, "serve": POOL | {"cpus": 5}}
    assert cpus_of(cluster(pools=pools)) == {"data": 3, "serve": 5}


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"gpus": 90}, "pools.train.gpus: 90, and this machine has"),
        ({"min_nodes": 2, "max_nodes": 2}, "pools.train.min_nodes: 2, and here each pool is one"),
    ],
)
def test_what_this_machine_cannot_be_is_told(pool: dict[str, int], said: str) -> None:
    with pytest.raises(GwpError, match=said):
        render(cluster(pools={"head": POOL, "train": POOL | pool}), "", [])


def test_each_gpu_of_the_machine_is_that_of_one_pool() -> None:
    pools = {"head": POOL, "data": POOL, "train": POOL | {"gpus": 2}, "serve": POOL | {"gpus": 1}}
    document = cluster(pools=pools)
    assert gpus_of(document, ["4", "5", "7"]) == {"train": ("4", "5"), "serve": ("7",)}
    said = r"pools\.train\.gpus: 2 and pools\.serve\.gpus: 1, and this machine has 2; lower them"
    with pytest.raises(GwpError, match=said):
        gpus_of(document, ["0", "1"])
    with pytest.raises(GwpError, match="has none that PyTorch sees"):
        gpus_of(document, [])
    # Nobody looks where none is asked for.
    assert gpus_of(cluster()) == {}


def test_a_node_sees_its_own_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with seeing(("5",)):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with seeing(()):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


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

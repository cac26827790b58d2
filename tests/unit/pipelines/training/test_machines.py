"""Workers are counted where they may run: in their pool, on machines that stay and that answer."""

import socket
from typing import Any

import pytest

from pipelines import compat
from pipelines.jobs.cluster import POOL, ClusterConfig
from pipelines.jobs.validation import ValidatorConfig
from pipelines.training.control import machines
from pipelines.training.control.machines import workers_on


def node(name: str, pool: str | None, cpus: float, gpus: float = 0, port: int = 0) -> Any:
    return {
        "NodeID": name,
        "Alive": True,
        "Labels": {POOL: pool} if pool else {},
        "Resources": {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus},
        "NodeManagerAddress": "127.0.0.1",
        "NodeManagerPort": port,
    }


NODES = [node("t", "train", 4), node("d", "data", 8), node("u", "train", 3)]
TRAIN = ClusterConfig(workers=(1, 8), train_pool="train", data_pool="data", cpus_per_worker=2)


def test_only_nodes_of_the_pool_count() -> None:
    assert workers_on(NODES, {}, 0, TRAIN) == 3
    assert workers_on(NODES[1:2], {}, 0, TRAIN) == 0
    anywhere = ClusterConfig(workers=(1, 8), data_pool="data", cpus_per_worker=2)
    assert workers_on(NODES, {}, 0, anywhere) == 7


def test_workers_that_run_keep_their_place_and_others_need_a_free_one() -> None:
    # Both CPUs of `u` are somebody else's.
    assert workers_on(NODES, {"t": {}, "u": {"CPU": 1}}, 2, TRAIN) == 2
    assert workers_on(NODES, {"t": {}, "u": {"CPU": 3}}, 2, TRAIN) == 3
    # What Ray tells may be older than what runs.
    assert workers_on(NODES[:1], {"t": {"CPU": 4}}, 2, TRAIN) == 2
    # A machine of the workers that run is about to leave: they end by themselves.
    assert workers_on(NODES[1:], {}, 3, TRAIN) == 3


def test_where_workers_decode_too_a_cpu_is_left_for_it() -> None:
    shared = ClusterConfig(workers=(1, 8))
    assert workers_on([node("a", None, 2), node("b", None, 2)], {}, 0, shared) == 3
    assert workers_on([node("a", None, 1)], {}, 0, shared) == 0


def test_who_judges_has_its_place_where_it_costs_the_fewest_workers() -> None:
    judge = ValidatorConfig(cpus=2)
    # Among the nodes that decode.
    assert workers_on(NODES, {}, 0, TRAIN, judge) == 3
    assert workers_on(NODES, {}, 0, TRAIN, ValidatorConfig(cpus=2, pool="train")) == 2
    # Three CPUs have room for one worker of two, with or without one more beside it.
    assert workers_on(NODES, {}, 0, TRAIN, ValidatorConfig(cpus=1, pool="train")) == 3
    # Nobody has a GPU: it finds no place, and takes none.
    assert workers_on(NODES, {}, 0, TRAIN, ValidatorConfig(gpus=1)) == 3
    shared = ClusterConfig(workers=(1, 8))
    assert workers_on([node("a", None, 4)], {}, 0, shared, judge) == 1


def test_a_worker_with_a_gpu_needs_one() -> None:
    gpus = TRAIN.model_copy(update={"gpu": True})
    assert workers_on([node("t", "train", 64, 8), *NODES], {}, 0, gpus) == 8


def test_a_machine_that_is_drained_or_does_not_answer_has_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as here, socket.socket() as gone:
        gone.bind(("127.0.0.1", 0))
        # Bound and not listening: as a machine that has died a moment ago.
        ports = {"a": here.getsockname()[1], "b": here.getsockname()[1], "c": gone.getsockname()[1]}
        nodes = [node(name, "train", 2, port=port) for name, port in ports.items()]
        monkeypatch.setattr(machines.ray, "nodes", lambda: nodes)
        monkeypatch.setattr(compat, "draining_nodes", lambda: {"b"})
        monkeypatch.setattr(compat, "free_of_nodes", lambda: {"a": {"CPU": 0.0}, "b": {"CPU": 2.0}})
        found = machines.room_for(TRAIN)
        assert found(0) == 1
        assert found(1) == 1

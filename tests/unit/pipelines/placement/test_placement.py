"""Whether stage and endpoint fit a cluster is known before anything starts."""

from typing import Any

import pytest

from clusters.document.cluster import Cluster
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.placement import endpoint, stage
from serve.config import ServeApp
from tests.support.clusters import SECRETS, cluster
from tests.unit.pipelines.jobs.test_stages import STAGES

FULL = STAGES / "full" / "policy.yaml"
PATHS = ["codec.path=s3://w/vae", "text.path=s3://w/text", "init=s3://w/init"]
NODE = {"cpus": 32, "memory_gb": 128}


def job(*sets: str) -> TrainJob:
    return load_config(FULL, TrainJob, [*PATHS, *sets])


def pools(**train: Any) -> Cluster:
    """A cluster that lacks nothing but what `train` says."""
    named = {"head": NODE, "data": NODE, "serve": NODE | {"gpus": 1}}
    return cluster(pools={**named, "train": {**NODE, **train}}, secrets=SECRETS)


def test_a_stage_that_fits_has_nothing_against_it() -> None:
    document = pools(gpus=8, max_nodes=1)
    assert not list(stage.misfits(job(), document, "kuberay"))
    assert stage.needs(job(), document) == stage.Needs(train=1, data=1)
    # A stage may want to decode where it trains all the same.
    assert stage.needs(job("cluster.data_pool=train"), document).data == 0


@pytest.mark.parametrize(
    ("sets", "train", "nodes"),
    [
        (["cluster.workers=8"], {"gpus": 8}, 1),
        (["cluster.workers=9"], {"gpus": 8, "max_nodes": 2}, 2),
        (["cluster.workers=[2, 16]"], {"gpus": 1, "max_nodes": 16}, 2),
        # Its CPUs are for two workers, whatever its GPUs.
        (["cluster.workers=8", "cluster.cpus_per_worker=16"], {"gpus": 8, "max_nodes": 4}, 4),
        (["cluster.workers=8", "cluster.gpu=false"], {}, 1),
    ],
)
def test_it_needs_as_many_nodes_as_hold_its_workers(
    sets: list[str], train: dict[str, Any], nodes: int
) -> None:
    document, placed = pools(**train), job(*sets)
    assert not list(stage.misfits(placed, document, "kuberay"))
    assert stage.needs(placed, document).train == nodes


@pytest.mark.parametrize(
    ("sets", "train", "said"),
    [
        ([], {"gpus": 3}, "8 workers need a GPU each, and pools.train has 3 (1 x 3 GPUs)"),
        ([], {}, "8 workers need a GPU each, and pools.train has 0"),
        (
            ["cluster.cpus_per_worker=40"],
            {"gpus": 8},
            "more than a node of pools.train has (32 CPUs)",
        ),
        (
            ["cluster.cpus_per_worker=16"],
            {"gpus": 8, "max_nodes": 3},
            "8 workers of 16 CPUs do not fit into pools.train (3 x 8 GPUs, 2 workers a node)",
        ),
        (["cluster.train_pool=gpu"], {"gpus": 8}, "'gpu' is no pool of a cluster document"),
        (["init=models:/gwp@champion"], {"gpus": 8}, "is known to an MLflow server alone"),
        (["run.storage=runs"], {"gpus": 8}, "is a path of this machine, which pods do not see"),
    ],
)
def test_a_stage_that_does_not_is_told_why(
    sets: list[str], train: dict[str, Any], said: str
) -> None:
    (line,) = stage.misfits(job(*sets), pools(**train), "kuberay")
    assert said in line


HELD_OUT = "[{uri: s3://w/held, embodiment: agilex}]"


def judging(worker: str, *sets: str) -> TrainJob:
    """With a process that judges, beside eight workers with a GPU each."""
    return job(f"validation={{sources: {HELD_OUT}, worker: {worker}}}", *sets)


@pytest.mark.parametrize(
    ("worker", "train", "nodes"),
    [
        # Where data are decoded.
        ("{cpus: 4}", {"gpus": 8}, 1),
        ("{cpus: 4, pool: train}", {"gpus": 8, "cpus": 36}, 1),
        ("{cpus: 4, pool: train}", {"gpus": 8, "max_nodes": 2}, 2),
        # All GPUs of the first node are taken.
        ("{gpus: 1, cpus: 4}", {"gpus": 8, "max_nodes": 2}, 2),
        ("{gpus: 1, cpus: 4}", {"gpus": 9, "cpus": 36}, 1),
        ("{gpus: 1, cpus: 4}", {"gpus": 4, "max_nodes": 3}, 3),
    ],
)
def test_who_judges_beside_the_steps_needs_room(
    worker: str, train: dict[str, Any], nodes: int
) -> None:
    document, placed = pools(**train), judging(worker)
    assert not list(stage.misfits(placed, document, "kuberay"))
    assert stage.needs(placed, document) == stage.Needs(train=nodes, data=1)


@pytest.mark.parametrize(
    ("sets", "train", "data", "needed"),
    [
        # Who judges takes all CPUs of a node of decoding, and a second one decodes.
        (["validation.worker.cpus=32"], {"max_nodes": 1}, {"max_nodes": 2}, (1, 2)),
        (["validation.worker.cpus=31"], {"max_nodes": 1}, {"max_nodes": 2}, (1, 1)),
        # Workers take all CPUs of two nodes, and decode there.
        (["validation.worker=null"], {"max_nodes": 3}, None, (2, 0)),
        (["validation.worker=null", "cluster.workers=7"], {"max_nodes": 3}, None, (1, 0)),
        (["cluster.workers=7", "validation.worker.cpus=4"], {"max_nodes": 3}, None, (2, 0)),
    ],
)
def test_on_the_nodes_that_it_needs_at_least_a_cpu_is_left_for_decoding(
    sets: list[str], train: dict[str, Any], data: dict[str, Any] | None, needed: tuple[int, int]
) -> None:
    """Slurm gives so many and no more."""
    named = {"head": NODE, "train": {**NODE, "gpus": 8, **train}}
    if data is not None:
        named["data"] = NODE | data
    document = cluster(pools=named, secrets=SECRETS)
    placed = judging("{cpus: 1}", *([] if data else ["cluster.data_pool=train"]), *sets)
    assert not list(stage.misfits(placed, document, "slurm"))
    assert stage.needs(placed, document) == stage.Needs(*needed)


@pytest.mark.parametrize(
    ("worker", "train", "said"),
    [
        (
            "{gpus: 1}",
            {"gpus": 8},
            "neither pools.train nor pools.data has room for it (1 CPU and a GPU)",
        ),
        ("{gpus: 1, pool: train}", {"gpus": 8}, "pools.train has no room for it"),
        ("{cpus: 32, pool: data}", {"gpus": 8}, "pools.data has no room for it (32 CPU)"),
        ("{pool: serve}", {"gpus": 8}, "'serve' is no pool that a stage uses"),
    ],
)
def test_a_cluster_without_room_for_it_is_told(
    worker: str, train: dict[str, Any], said: str
) -> None:
    (line,) = stage.misfits(judging(worker), pools(**train), "kuberay")
    assert said in line


def test_gpus_that_are_too_small_for_the_stage_are_told() -> None:
    """The released shape, on eight GPUs."""
    assert not list(stage.misfits(job(), pools(gpus=8, gpu_memory_gb=80), "kuberay"))
    (line,) = stage.misfits(job(), pools(gpus=8, gpu_memory_gb=24), "kuberay")
    assert line.startswith("pools.train.gpu_memory_gb: ")
    assert "24 GB" in line
    # Without its memory, nothing can be said.
    assert not list(stage.misfits(job(), pools(gpus=8), "kuberay"))


@pytest.mark.parametrize(
    ("named", "env", "target", "told"),
    [
        (None, {}, "kuberay", True),
        ({"name": "wb", "key": "k", "pools": ["serve"]}, {}, "kuberay", True),
        ({"name": "wb", "key": "k"}, {}, "kuberay", False),
        ({"name": "wb", "key": "k", "pools": ["head", "data", "train"]}, {}, "kuberay", False),
        (None, {"WB": "1"}, "kuberay", False),
        (None, {}, "slurm", False),
    ],
)
def test_a_variable_that_a_stage_needs_has_a_secret(
    named: dict[str, Any] | None, env: dict[str, str], target: Any, told: bool
) -> None:
    secrets = SECRETS | ({"WB": named} if named else {})
    document = cluster(pools=pools(gpus=8).pools.model_dump(), secrets=secrets, env=env)
    lines = list(
        stage.misfits(job("cluster.secrets=[WB]", "cluster.cpus_per_worker=3"), document, target)
    )
    assert len(lines) == told
    assert all("secrets.WB of the cluster document" in line for line in lines)


def test_decoding_needs_cpus_of_its_own() -> None:
    document = cluster(pools={"head": NODE, "train": NODE | {"gpus": 8}}, secrets=SECRETS)
    full = job("cluster.cpus_per_worker=4", "cluster.workers=8")
    (line,) = stage.misfits(full, document, "kuberay")
    assert "none is left for decoding; lower cluster.cpus_per_worker, or give pools.data" in line
    assert not list(stage.misfits(job("cluster.cpus_per_worker=3"), document, "kuberay"))
    # The same, where the pool is there and not used.
    there = pools(gpus=8)
    (line,) = stage.misfits(
        job("cluster.cpus_per_worker=4", "cluster.data_pool=train"), there, "slurm"
    )
    assert "none is left for decoding" in line


def test_a_bucket_needs_keys_or_somebody_who_may() -> None:
    nobody = cluster(pools=pools(gpus=8).pools.model_dump())
    (line,) = stage.misfits(job(), nobody, "kuberay")
    assert "secrets.AWS_ACCESS_KEY_ID" in line
    somebody = cluster(
        pools=pools(gpus=8).pools.model_dump(), kubernetes={"service_account": "trainer"}
    )
    assert not list(stage.misfits(job(), somebody, "kuberay"))
    # There it is the user's own environment, or `slurm.env_file`.
    assert not list(stage.misfits(job("cluster.cpus_per_worker=3"), nobody, "slurm"))


@pytest.mark.parametrize(
    ("given", "without"),
    [
        (["serve"], "the pods of head, train, data have none"),
        (["head", "train"], "the pods of data have none"),
        (["head", "train", "data"], None),
        ([], None),
    ],
)
def test_keys_that_its_pods_do_not_get_are_none(given: list[str], without: str | None) -> None:
    secrets = {**SECRETS, "AWS_SECRET_ACCESS_KEY": {"name": "s3", "key": "secret", "pools": given}}
    document = cluster(pools=pools(gpus=8).pools.model_dump(), secrets=secrets)
    lines = list(stage.misfits(job(), document, "kuberay"))
    assert [without in line for line in lines if without] == [True] * bool(without)
    assert len(lines) == bool(without)


def test_an_endpoint_needs_keys_where_it_resolves_and_where_it_loads() -> None:
    secrets = {name: {**key, "pools": ["serve"]} for name, key in SECRETS.items()}
    document = cluster(pools=pools(gpus=8).pools.model_dump(), secrets=secrets)
    (line,) = endpoint.misfits(app(policy="s3://gwp/bundle"), document, "kuberay")
    assert "the pods of head have none" in line


def test_a_run_is_not_written_to_a_disk_that_pods_may_only_read() -> None:
    disks = [
        {"claim": "weights", "path": "/weights"},
        {"claim": "runs", "path": "/weights/runs", "read_only": False},
    ]
    document = cluster(
        pools=pools(gpus=8).pools.model_dump(), secrets=SECRETS, kubernetes={"volumes": disks}
    )
    assert not list(stage.misfits(job("run.storage=/weights/runs/mine"), document, "kuberay"))
    (line,) = stage.misfits(job("run.storage=/weights/mine"), document, "kuberay")
    assert line.startswith(
        "run.storage: /weights/mine is on the disk /weights, which pods may only"
    )


def test_a_path_below_a_volume_is_seen_by_all_pods() -> None:
    document = cluster(
        pools=pools(gpus=8).pools.model_dump(),
        secrets=SECRETS,
        kubernetes={"volumes": [{"claim": "weights", "path": "/weights"}]},
    )
    inside = job("codec.path=/weights/vae", "text.path=/weights/text")
    assert not list(stage.misfits(inside, document, "kuberay"))
    (line,) = stage.misfits(job("codec.path=/weights-2/vae"), document, "kuberay")
    assert line.startswith("codec.path: /weights-2/vae is a path of this machine")


def app(**changes: Any) -> ServeApp:
    fields = {"policy": "s3://b/policy", "host": "0.0.0.0", "allow_anonymous": True}
    return ServeApp.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"host": "127.0.0.1"}, "is reached inside its pod alone; give host: 0.0.0.0"),
        ({"api_keys_env": "KEYS"}, "name its Secret under secrets.KEYS"),
        ({"policy": "models:/gwp@champion"}, "is known to an MLflow server alone"),
        ({"policy": "runs/policy"}, "is a path of this machine"),
        ({"replica": {"gpus": 2}}, "2 GPUs are more than a node of pools.serve has (32 and 1)"),
        ({"replica": {"pool": "train"}}, "'train' is not in the cluster of an endpoint"),
        (
            {"replica": {"gpus": 1}, "autoscaling": {"min_replicas": 2, "max_replicas": 2}},
            "2 replicas do not fit into pools.serve (1 nodes, 1 replicas each)",
        ),
    ],
)
def test_an_endpoint_is_held_against_its_pool(changes: dict[str, Any], said: str | None) -> None:
    lines = list(endpoint.misfits(app(**changes), pools(), "kuberay"))
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


@pytest.mark.parametrize(
    ("replicas", "gateways", "most", "expected"),
    [(1, 0, 4, (1, None)), (3, 2, 4, (3, 1)), (1, 3, 4, (3, 1)), (1, 5, 2, (2, 3))],
)
def test_each_node_that_can_has_a_gateway(
    replicas: int, gateways: int, most: int, expected: tuple[int, int | None]
) -> None:
    fields: dict[str, Any] = {"replica": {"gpus": 1}}
    fields["autoscaling"] = {"min_replicas": replicas, "max_replicas": 4}
    if gateways:
        fields["gateway"] = {"replicas": gateways}
    pool = cluster(pools={"head": NODE, "serve": NODE | {"gpus": 1, "max_nodes": most}}).pools.serve
    assert pool is not None
    each = endpoint.gateways_of_a_node(app(**fields), pool) if gateways else None
    assert (endpoint.nodes(app(**fields), pool), each) == expected

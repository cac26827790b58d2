"""Every mistake in a cluster document is one clear line, and no secret is in it."""

from pathlib import Path

import pytest

from clusters.document.cluster import Cluster
from pipelines.config.load import ConfigError, load_any, load_config
from tests.support.clusters import any_cluster
from tests.support.paths import ROOT

EXAMPLES = sorted((ROOT / "clusters" / "examples").glob("*.yaml"))
BASE = """\
kind: Cluster
version: 1
image: registry.example.com/gwp:1
pools:
  head: {cpus: 4, memory_gb: 16}
  train: {cpus: 8, memory_gb: 32}
  serve: {cpus: 8, memory_gb: 32}
"""


def wrong(tmp_path: Path, *sets: str) -> list[str]:
    file = tmp_path / "c.yaml"
    file.write_text(BASE)
    with pytest.raises(ConfigError) as raised:
        load_config(file, Cluster, sets)
    return raised.value.lines


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_examples_are_read(file: Path) -> None:
    load_any(file)


def test_there_is_an_example_of_each_target() -> None:
    assert {"laptop.yaml", "slurm.yaml", "kubernetes.yaml"} <= {file.name for file in EXAMPLES}


@pytest.mark.parametrize("seed", range(10))
def test_a_document_is_read_again_from_what_it_resolves_to(seed: int) -> None:
    document = any_cluster(seed)
    assert Cluster.model_validate(document.model_dump(mode="json")) == document


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("pools.serve.spot=true", "only the pools data and train may be spot"),
        ("pools.head.spot=true", "only the pools data and train may be spot"),
        ("pools.train.spot=true", "say under `spot` how such nodes are known"),
        ("pools.head.max_nodes=2", "should be less than or equal to 1"),
        ("pools.train.min_nodes=3", "min_nodes 3 is above max_nodes 1"),
        ("pools.train.shared_memory_gb=30", "leaves too little of memory_gb 32"),
        ("pools.train.gpu_type=H100", "speak of GPUs"),
        ("pools.train.labels={gwp/pool: x}", "gwp/pool is the name of the pool already"),
        ("pools.train.labels={'a b': x}", "should be a key of Kubernetes"),
        ("pools.gpu={cpus: 1, memory_gb: 2}", "unknown key"),
        ("pools={head: {cpus: 4, memory_gb: 16}}", "a head alone does no work"),
        (
            "image=rayproject/ray:2.60.0-gpu",
            "holds no gwp; build one from clusters/image/Dockerfile",
        ),
        ("image=python:3.11", "holds no gwp"),
        ("image=registry.example.com:5000/gwp", "names no version"),
        ("image=registry.example.com/gwp:latest", "names no version"),
        ("storage.endpoint=http://127.0.0.1:9000", "is each pod itself"),
        ("storage.endpoint=http://[::1]:9000", "is each pod itself"),
        ("storage.endpoint=minio:9000", "is no address that other machines can ask"),
        ("mlflow=http://localhost:5000", "is each pod itself"),
        ("mlflow=sqlite:///runs/mlflow.db", "is no address that other machines can ask"),
        ("mlflow=https://me:word@mlflow", "would be logged"),
        ("secrets.AWS_ACCESS_KEY_ID={name: s3, key: id}", "AWS_SECRET_ACCESS_KEY is missing"),
        ("secrets.RAY_AUTH_TOKEN={name: r, key: t}", "follows from other fields"),
        ("env.FLEET_KEYS=abc", "looks like a secret"),
        ("env.1X=abc", "is no name of an environment variable"),
        ("name=My_Cluster", "is no name"),
        ("kubernetes.service={upgrade: incremental}", "give gateway_class"),
        ("kubernetes.service.step_percent=50", "a step needs its capacity first"),
        ("kubernetes.service.robots=[10.0.0.1/8]", "has host bits set"),
        ('slurm.partition="gpu\\n#SBATCH --uid=0"', "a name of Slurm"),
        ('slurm.account="a\\nrm -rf x"', "a name of Slurm"),
        ("slurm.save_s=60000", None),
        ("slurm={time_min: 2, save_s: 120}", "raise time_min"),
        ('image="gwp$(id):1"', "REGISTRY/NAME:TAG"),
        ('image="gwp:1\\nx"', "REGISTRY/NAME:TAG"),
        ("image=gwp@sha256:zz", "REGISTRY/NAME:TAG"),
        ("token_secret=a b", "a name of Kubernetes"),
        ("pools.train.priority=a b", "a name of Kubernetes"),
        ("pools.train.tolerations=[{key: a b}]", "a key of Kubernetes"),
        ("pools.train.spill_gb=.inf", "less than or equal to"),
        ("pools.train.memory_gb=1e-9", "greater than or equal to 0.5"),
        ("pools.train.labels={ray.io/node-id: x}", "Ray's own to set"),
        ("kubernetes.jobs.deadline_h=.inf", "less than or equal to"),
        ("kubernetes.service.redis={address: redis}", "HOST:PORT"),
        ("mlflow=http://h/?token=word", "without spaces and query"),
        ("storage.endpoint=http://localhost.", "is each pod itself"),
        ("storage.endpoint=http://ip6-localhost:9000", "is each pod itself"),
        ("storage.endpoint=http://127.1:9000", "is each pod itself"),
        ("storage.endpoint=http://0:9000", "is each pod itself"),
        ("storage.endpoint=http://2130706433", "is each pod itself"),
        ("storage.endpoint=http://[::ffff:127.0.0.1]:9000", "is each pod itself"),
        ("storage.endpoint=http://minio:99999", "is no address"),
        ("storage.endpoint=http://minio:port", "is no address"),
        ("env.DB_PASS=abc", "looks like a secret"),
        ("token_auth=false", None),
        ("kubernetes.volumes=[{claim: c, path: /dev/shm}]", "would lie over /dev/shm"),
        ("kubernetes.volumes=[{claim: c, path: /dev/shm/x}]", "would lie over /dev/shm"),
        ("kubernetes.volumes=[{claim: c, path: /tmp/ray/}]", "would lie over /tmp/ray"),
        ("kubernetes.volumes=[{claim: c, path: /tmp}]", "would lie over /tmp/ray"),
        ("kubernetes.volumes=[{claim: c, path: //var//cache}]", "would lie over /var/cache/gwp"),
        ("kubernetes.volumes=[{claim: c, path: /usr/local}]", "would lie over /usr"),
        ("kubernetes.volumes=[{claim: c, path: /a/../b}]", "leads elsewhere than it says"),
        ("kubernetes.volumes=[{claim: c, path: /}]", "give one such as /weights"),
        ("kubernetes.volumes=[{claim: c, path: a}]", "is no place for a disk"),
        ("kubernetes.volumes=[{claim: c, path: /a}, {claim: d, path: /a/}]", "two disks at /a"),
        ("kubernetes.volumes=[{claim: c, path: /a}, {claim: d, path: /a/b}]", None),
        ("kubernetes.namespace=kube-system", "a namespace of Kubernetes itself"),
        ("pools.data={cpus: 1, memory_gb: 2, max_nodes: 0}", "remove the pool"),
        ("slurm.venv=s3://b/venv", "is no path of a disk"),
        ("slurm.env_file=s3://b/env", "is no path of a disk"),
        ("slurm.venv=''", "is no path of a disk"),
        ('slurm.venv="/a\\nb"', "a path on one line"),
        ("secrets.GWP_CACHE={name: a, key: b}", "give its value under `env`"),
        ("secrets.RAY_SERVE_ENABLE_HA_PROXY={name: a, key: b}", "give its value under `env`"),
        ("env.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S='1'", "follows from other fields"),
        ("env.GWP_CACHE=/fast", None),
        ('env.A="x\\0y"', "holds a zero byte"),
        ("env.A=1", "should be text; put it in quotes"),
        ("kubernetes.service.redis={address: 'localhost:6379'}", "is each pod itself"),
        ("kubernetes.service.redis={address: '127.1:6379'}", "is each pod itself"),
        ("kubernetes.service.redis={address: 'redis:0'}", "give one from 1 to 65535"),
        ("kubernetes.service.redis={address: 'redis:65536'}", "give one from 1 to 65535"),
        ("image=nvcr.io/nvidia/pytorch:24.01-py3", "holds no gwp"),
        ("image=index.docker.io/library/python:3.11", "holds no gwp"),
        ("image=public.ecr.aws/docker/library/python:3.11", "holds no gwp"),
        ("image=quay.io/rayproject/ray:2.60.0", "holds no gwp"),
        ("image=nvcr.io/our-team/gwp:1", None),
        ("image=registry.example.com/python:3.11", None),
        ("kubernetes.service.robots=[lab]", "give one such as 10.20.0.0/16"),
        ("kubernetes.service.robots=10.0.0.0/8", "should be a list, such as [a, b]"),
        ("mlflow='http://[::1'", "is no address that other machines can ask"),
        ("secrets.A={name: x, key: a/b}", "a key of a Secret"),
        ('machines=[{name: "x\\ny", cpus: 1, memory_gb: 1}]', "a name on one line"),
        ("pools.train.memory_gb=1.5Gi", "should be a number, without a unit (got '1.5Gi')"),
        ("pools.train.memory_gb=1 G", "should be a number, without a unit"),
        ("pools.train.cpus=500m", "should be a whole number, without a unit"),
        ("pools.train.cpus=1.5", "should be a whole number"),
        ("token_auth=maybe", "should be true or false"),
    ],
)
def test_a_mistake_is_one_line(given: str, said: str | None, tmp_path: Path) -> None:
    if said is None:
        (tmp_path / "c.yaml").write_text(BASE)
        load_config(tmp_path / "c.yaml", Cluster, [given])
        return
    (line,) = wrong(tmp_path, given)
    assert said in line
    assert len(line) < 400


@pytest.mark.parametrize(
    "value", ["AKIA1234", "[AKIA1234]", "{AKIA1234: x, name: y, key: z}", "7777"]
)
def test_a_secret_that_was_written_out_is_not_shown(value: str, tmp_path: Path) -> None:
    lines = wrong(tmp_path, f"secrets.OTHER={value}")
    file = tmp_path / "c.yaml"
    file.write_text(f"{BASE}secrets:\n  OTHER: {value}\n")
    with pytest.raises(ConfigError) as raised:
        load_config(file, Cluster)
    if "{" not in value:
        assert "a secret is named, never written" in lines[0]
        assert "c.yaml:9 secrets.OTHER" in raised.value.lines[0]
        assert value.strip("[]") not in str(raised.value)


def test_a_pool_that_fits_on_no_machine_is_told_with_all_of_them(tmp_path: Path) -> None:
    machines = "[{name: small, cpus: 4, memory_gb: 64}, {name: big, cpus: 64, memory_gb: 512}]"
    (line,) = wrong(tmp_path, f"machines={machines}", "pools.train.gpus=2")
    assert line.endswith(
        "pools.train fits on no machine: small has 4 CPUs, a node needs 8; big has 0 GPUs, a node "
        "needs 2"
    )


def test_paths_of_nodes_are_whole_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    (tmp_path / "c.yaml").write_text(BASE)
    sets = ["slurm.venv=venv", "slurm.env_file=~/keys.sh"]
    slurm = load_config(tmp_path / "c.yaml", Cluster, sets).slurm
    assert (slurm.venv, slurm.env_file) == (str(tmp_path / "venv"), "/home/me/keys.sh")


def test_token_authentication_is_on_unless_it_is_switched_off() -> None:
    assert Cluster.model_fields["token_auth"].default is True

"""Paths in configurations mean the same file wherever they are used."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from clusters.jobs.requirements import require_reachable
from gwp import storage
from gwp.errors import GwpError
from gwp.paths import absolute_paths, local_paths, marker, relative_paths
from pipelines.config.load import config_hash, load_any, load_config, model_of
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking import runs as tracking
from pipelines.training.prepare import RUN_ONLY
from serve.config import ServeApp
from tests.unit.pipelines.jobs.test_stages import STAGES

# Text that names something else than a file.
WORDS = {
    "RunConfig.name",
    "RunConfig.experiment",
    "Source.embodiment",
    "Source.episodes",
    "Source.state",
    "Source.action",
    "Source.split",
    "Source.instruction",
    "Source.only",
    "Source.task",
    "Source.cameras",
    "Source.colours",
    "EmbodimentConfig.cameras",
    "EmbodimentConfig.action_units",
    "EmbodimentConfig.kinds",
    "EmbodimentConfig.state_units",
    "DataConfig.embodiments",
    "LoraConfig.on",
    "LoraConfig.whole",
    "OptimizerConfig.freeze",
    "OptimizerConfig.only",
    "ClusterConfig.train_pool",
    "ClusterConfig.data_pool",
    "ClusterConfig.secrets",
    "ValidatorConfig.pool",
    "ServeApp.name",
    "ServeApp.host",
    "ServeApp.api_keys_env",
    "GatewayConfig.pool",
    "LimitsConfig.max_ages_s",
    "ReplicaConfig.pool",
    "Cluster.env",
    "Cluster.image",
    "Cluster.mlflow",
    "Cluster.name",
    "Cluster.secrets",
    "Cluster.token_secret",
    "HeadPool.gpu_type",
    "HeadPool.labels",
    "HeadPool.node_selector",
    "HeadPool.priority",
    "JobRules.queue",
    "KubernetesConfig.gpu_label",
    "KubernetesConfig.gpu_resource",
    "KubernetesConfig.monitoring_namespace",
    "KubernetesConfig.namespace",
    "KubernetesConfig.operator_namespace",
    "KubernetesConfig.pull_secret",
    "KubernetesConfig.service_account",
    "Machine.gpu_type",
    "Machine.name",
    "Pool.gpu_type",
    "Pool.labels",
    "Pool.node_selector",
    "Pool.priority",
    "Redis.address",
    "SecretKey.key",
    "SecretKey.name",
    "ServiceRules.gateway_class",
    "ServiceRules.robots",
    "SlurmConfig.account",
    "SlurmConfig.data_partition",
    "SlurmConfig.partition",
    "SlurmConfig.qos",
    "SpotConfig.node_selector",
    "StandingPool.gpu_type",
    "StandingPool.labels",
    "StandingPool.node_selector",
    "StandingPool.priority",
    "StorageConfig.endpoint",
    "StorageConfig.region",
    "Toleration.key",
    "Toleration.value",
    "Volume.claim",
    "ArmConfig.note",
    "Comparison.against",
    "ArmConfig.set",
    "ArmConfig.start",
    "ClosedLoopJudgement.arms",
    "ClosedLoopJudgement.benchmark",
    "ClosedLoopJudgement.charge",
    "ClosedLoopJudgement.name",
    "ClosedLoopJudgement.shift",
    "ClosedLoopJudgement.tasks",
    "Comparison.arms",
    "Comparison.measure",
    "Comparison.unequal",
    "LatencyJudgement.arms",
    "LatencyJudgement.benchmark",
    "LatencyJudgement.name",
    "OpenLoopJudgement.arms",
    "OpenLoopJudgement.data",
    "OpenLoopJudgement.name",
    "SetConfig.benchmark",
    "SetConfig.tasks",
    "StageStep.set",
    "Study.arms",
    "Study.claim",
    "Study.codec_data",
    "Study.data",
    "Study.labelled",
    "Study.name",
    "Study.set",
    "Study.stages",
    "VideoJudgement.arms",
    "VideoJudgement.data",
    "VideoJudgement.name",
    # A path in pods, not on this machine.
    "Volume.path",
    # Handed to DeepSpeed as it is.
    "DeepSpeedConfig.overrides",
}


def inside(annotation: Any) -> set[Any]:
    """Every type that an annotation mentions."""
    parts = get_args(annotation)
    return (
        {annotation} | {found for part in parts for found in inside(part)}
        if parts
        else {annotation}
    )


def models(top: type[BaseModel]) -> set[type[BaseModel]]:
    found, left = set(), [top]
    while left:
        model = left.pop()
        found.add(model)
        for info in model.model_fields.values():
            types = inside(info.annotation)
            left += [
                t
                for t in types
                if isinstance(t, type) and issubclass(t, BaseModel) and t not in found
            ]
    return found


@pytest.mark.parametrize("kind", ["TrainJob", "ServeApp", "Cluster", "Study"])
def test_every_text_of_a_configuration_is_marked_as_a_path_or_known_as_a_word(kind: str) -> None:
    every = models(model_of(kind))
    assert len(every) >= 5
    texts, paths = set(), set()
    for model in every:
        for name, info in model.model_fields.items():
            if any(marker(part) for part in (*info.metadata, info.annotation)):
                paths.add(f"{model.__name__}.{name}")
            elif str in inside(info.annotation):
                texts.add(f"{model.__name__}.{name}")
    assert texts <= WORDS, f"mark with gwp.paths.Location, or add to WORDS: {texts - WORDS}"
    assert not paths & WORDS
    expected = {
        "TrainJob": {
            "RunConfig.storage",
            "TrainJob.init",
            "Source.uri",
            "DataConfig.cache",
            "EmbodimentConfig.stats",
            "PcaCodecConfig.saved",
            "WanCodecConfig.path",
            "UMT5Config.path",
        },
        "ServeApp": {"ServeApp.policy"},
        "Cluster": {"SlurmConfig.venv", "SlurmConfig.env_file"},
        "Study": {
            "Study.storage",
            "SetConfig.uri",
            "Source.uri",
            "StageStep.file",
            "PcaCodecConfig.saved",
            "WanCodecConfig.path",
            "UMT5Config.path",
        },
    }
    assert paths == expected[kind]


SETS = [
    "data.sources=[{uri: data/a, embodiment: arm}, {uri: s3://b/x, embodiment: arm}, {uri: '../c'}]",
    "data.cache=~/cache",
    "data.augment=false",
    "data.embodiments={arm: {stats: ./stats.json}}",
    "init=weights/wan",
    "codec={kind: wan, path: w/vae}",
    "text={kind: umt5, path: w}",
]


def test_what_is_read_stands_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    job = load_config(STAGES / "policy.yaml", TrainJob, SETS)
    assert local_paths(job) == {
        "run.storage": f"{here}/runs/train",
        "init": f"{here}/weights/wan",
        "codec.path": f"{here}/w/vae",
        "text.path": f"{here}/w",
        "data.sources.0.uri": f"{here}/data/a",
        "data.sources.2.uri": f"{tmp_path}/c",
        "data.cache": f"{home}/cache",
        "data.embodiments.arm.stats": f"{here}/stats.json",
    }
    assert job.data.sources[1].uri == "s3://b/x"
    assert storage.filesystem("~/x")[1] == f"{home}/x"
    # Wherever it is read again.
    monkeypatch.chdir("/")
    assert absolute_paths(job) == job
    written = load_config(STAGES / "policy.yaml", TrainJob, SETS, as_written=True)
    assert set(relative_paths(written)) == set(local_paths(job))


def test_names_of_runs_and_policies_are_no_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(STAGES / "policy.yaml", TrainJob).init == "embodied"
    policies = {
        "models:/gwp@champion": "models:/gwp@champion",
        "s3://b/p": "s3://b/p",
        "bundle": f"{tmp_path}/bundle",
    }
    for given, expected in policies.items():
        assert absolute_paths(ServeApp(policy=given)).policy == expected
    (tmp_path / "serve.yaml").write_text("kind: ServeApp\nversion: 1\npolicy: ./bundle\n")
    assert load_any("serve.yaml") == ServeApp(policy=f"{tmp_path}/bundle")


def test_one_file_has_one_hash_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(uri: str) -> str:
        sets = [f"data.sources=[{{uri: '{uri}', embodiment: metaworld-sawyer}}]"]
        return config_hash(load_config(STAGES / "policy.yaml", TrainJob, sets), exclude=RUN_ONLY)

    monkeypatch.chdir(tmp_path)
    same = {
        hashed(uri)
        for uri in ("data/a", "./data/../data/a", f"{tmp_path}/data/a", f"file://{tmp_path}/data/a")
    }
    assert len(same) == 1
    assert hashed("data/b") not in same
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert hashed("../data/a") in same
    assert hashed("data/a") not in same


def test_a_cluster_elsewhere_is_not_sent_what_it_cannot_find() -> None:
    job = load_config(STAGES / "policy.yaml", TrainJob, as_written=True)
    words = (
        r"http://head:8265 runs on other machines and cannot find "
        r"run.storage \(runs/train\), data.sources.0.uri \(data/policy\)"
    )
    with pytest.raises(GwpError, match=words):
        require_reachable(relative_paths(job), "http://head:8265", here=False)
    require_reachable(relative_paths(job), "http://head:8265", here=True)
    require_reachable(
        relative_paths(load_config(STAGES / "policy.yaml", TrainJob)),
        "http://head:8265",
        here=False,
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "sqlite:///{here}/runs/mlflow.db"),
        ("sqlite:///a/b.db", "sqlite:///{here}/a/b.db"),
        ("./mlruns", "{here}/mlruns"),
        ("sqlite:////a.db", "sqlite:////a.db"),
        ("http://host:5000", "http://host:5000"),
        ("databricks", "databricks"),
    ],
)
def test_workers_find_the_tracking_store(
    given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if given is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking.tracking_uri() == expected.format(here=re.sub("/$", "", str(tmp_path)))

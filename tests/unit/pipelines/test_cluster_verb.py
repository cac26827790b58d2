"""`gwp cluster render` as its user runs it."""

import stat
from pathlib import Path

import pytest
import yaml

from clusters.document.cluster import Cluster
from pipelines.cli import main
from pipelines.config.load import dump_resolved, load_any, load_config
from pipelines.jobs.train_job import TrainJob
from tests.support.paths import ROOT
from tests.unit.pipelines.jobs.test_stages import STAGES

EXAMPLES = ROOT / "clusters" / "examples"
KUBERNETES = str(EXAMPLES / "kubernetes.yaml")
WEIGHTS = [
    "--job-set",
    "codec.path=/weights/vae",
    "--job-set",
    "text.path=/weights/text",
]
LINE = [str(STAGES / "full" / f"{name}.yaml") for name in ("embodied", "policy")]


def render(out: Path, *words: str) -> dict[str, str]:
    assert main(["cluster", "render", *words, "--out", str(out)]) == 0
    return {path.name: path.read_text() for path in out.iterdir()}


def test_two_stages_for_kubernetes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = render(tmp_path / "out", KUBERNETES, "--target", "kuberay", "--job", *LINE, *WEIGHTS)
    printed = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert printed == sorted(files)
    jobs = {name: yaml.safe_load(text) for name, text in files.items() if "rayjob" in name}
    first, second = (jobs[name] for name in sorted(jobs))
    # The second begins with the weights of the first.
    assert (first["spec"]["suspend"], second["spec"]["suspend"]) == (False, True)
    assert (first["metadata"]["name"], second["metadata"]["name"]) == ("embodied", "policy")
    # What travels is what was checked: it loads again, by itself.
    for name in [name for name in files if "configmap" in name]:
        stage = tmp_path / "stage.yaml"
        stage.write_text(yaml.safe_load(files[name])["data"]["stage.yaml"])
        assert isinstance(load_any(stage), TrainJob)


@pytest.mark.parametrize("folder", ["", "/final"])
def test_a_parent_that_is_named_by_its_folder_is_waited_for_too(
    tmp_path: Path, folder: str
) -> None:
    place = f"s3://gwp/runs/embodied{folder}"
    policy = tmp_path / "policy.yaml"
    job = load_config(LINE[1], TrainJob).model_copy(update={"init": place})
    policy.write_text(dump_resolved(job))
    words = ["--job", LINE[0], str(policy), *WEIGHTS, "--job-set", "run.storage=s3://gwp/runs"]
    files = render(tmp_path / "out", KUBERNETES, "--target", "kuberay", *words)
    jobs = [yaml.safe_load(text) for name, text in sorted(files.items()) if "rayjob" in name]
    assert [job["spec"]["suspend"] for job in jobs] == [False, True]


def test_an_endpoint_for_kubernetes(tmp_path: Path) -> None:
    serve = str(EXAMPLES / "serve.yaml")
    files = render(tmp_path / "out", KUBERNETES, "--target", "kuberay", "--serve", serve)
    (body,) = [yaml.safe_load(text) for name, text in files.items() if "rayservice" in name]
    config = yaml.safe_load(body["spec"]["serveConfigV2"])
    assert config["proxy_location"] == "Disabled"
    assert config["applications"][0]["deployments"] == [
        {"name": "Gateway", "max_replicas_per_node": 1}
    ]
    assert body["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplicas"] == 2


def test_names_that_are_overridden_are_names_of_deployments() -> None:
    from serve.deployments.gateway import Gateway

    assert getattr(Gateway, "name") == "Gateway"  # noqa: B009  type checkers do not see it


def test_slurm_and_this_machine(tmp_path: Path) -> None:
    document = str(EXAMPLES / "slurm.yaml")
    files = render(tmp_path / "slurm", document, "--target", "slurm", "--job", *LINE, *WEIGHTS)
    assert set(files) == {
        *("00-embodied.sbatch", "00-embodied.yaml", "01-policy.sbatch", "01-policy.yaml"),
        "queue.sh",
    }
    assert (tmp_path / "slurm" / "queue.sh").stat().st_mode & stat.S_IXUSR
    # It decodes on the nodes that train, for there are no others.
    placed = load_any(tmp_path / "slurm" / "01-policy.yaml")
    assert isinstance(placed, TrainJob)
    assert (placed.cluster.train_pool, placed.cluster.data_pool) == ("train", "train")

    document = str(EXAMPLES / "laptop.yaml")
    stage = str(STAGES / "world.yaml")
    files = render(tmp_path / "here", document, "--target", "local", "--job", stage)
    assert set(files) == {"cluster.yaml", "start.sh", "run.sh", "00-world.yaml"}
    assert isinstance(load_any(tmp_path / "here" / "cluster.yaml"), Cluster)
    assert "gwp mini start --cluster cluster.yaml" in files["start.sh"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--target", "kuberay", "--job", *LINE], "codec.path: "),
        (["--target", "slurm", "--serve", str(EXAMPLES / "serve.yaml")], "runs no RayService"),
        (["--target", "slurm"], "Slurm runs stages; say which: --job"),
        (["--target", "local"], "pools.train.gpus: the mini-cluster has CPUs only"),
        (
            ["--target", "kuberay", "--set", "pools.train.gpus=3", "--job", *LINE, *WEIGHTS],
            "3 GPUs",
        ),
        (["--target", "kuberay", "--job", "gone.yaml"], "gone.yaml"),
        (
            ["--target", "kuberay", "--serve", str(EXAMPLES / "serve.yaml"), "--set", "secrets={}"],
            "name its Secret under secrets.FLEET_KEYS",
        ),
    ],
)
def test_what_cannot_run_is_told_and_nothing_is_written(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["cluster", "render", KUBERNETES, *words, "--out", str(out)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(said in line for line in lines)
    assert all(line.startswith("gwp: error: ") for line in lines if not line.startswith("{"))
    assert not out.exists()


def test_other_files_are_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cluster", "render", KUBERNETES, "--target", "kuberay", "--out", str(tmp_path)]
    (tmp_path / "mine").write_text("mine")
    assert main(words) == 2
    assert "is not empty; give another --out, or --force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    assert (tmp_path / "mine").read_text() == "mine"
    # With fewer objects, none of before is left for `kubectl apply -f .`.
    before = {path.name for path in tmp_path.iterdir()}
    fewer = ["--set", "kubernetes.monitoring_namespace=null", "--force"]
    assert main([*words, *fewer]) == 0
    after = {path.name for path in tmp_path.iterdir()}
    assert not [name for name in after if "monitor" in name]
    assert len(after) == len(before) - 3


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    words = ["cluster", "render", KUBERNETES, "--target", "kuberay", "--out"]
    assert main([*words, str(tmp_path / "file")]) == 2
    assert main([*words, str(tmp_path / "file" / "out")]) == 2
    assert "a file; give a folder" in capsys.readouterr().err

"""`gwp cluster render` as its user runs it."""

import json
import re
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from clusters.document.cluster import Cluster
from clusters.folder import LIST, write
from gwp.errors import GwpError
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
    return {path.name: path.read_text() for path in out.iterdir() if path.name != LIST}


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
    # It decodes on the nodes that train: that document has no others.
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
        (["--target", "local"], "pools.serve.min_nodes: 2, and here each pool is one node"),
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
    # Numbered as ours are, and not ours.
    (tmp_path / "20-ingress.yaml").write_text("mine")
    assert main(words) == 2
    assert (
        "is not empty (20-ingress.yaml); give another --out, or --force" in capsys.readouterr().err
    )
    assert main([*words, "--force"]) == 0
    assert main([*words, "--force"]) == 0
    assert (tmp_path / "20-ingress.yaml").read_text() == "mine"


def test_nothing_of_an_earlier_render_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def names() -> set[str]:
        return {path.name for path in tmp_path.iterdir()} - {LIST}

    words = ["--out", str(tmp_path)]
    laptop = ["cluster", "render", str(EXAMPLES / "laptop.yaml"), "--target", "local"]
    assert main([*laptop, *words]) == 0
    # Of another target, which `kubectl apply -f .` would take for an object.
    assert "cluster.yaml" in names()
    kubernetes = ["cluster", "render", KUBERNETES, "--target", "kuberay", *words]
    assert main(kubernetes) == 0
    before = names()
    assert not [name for name in before if not name.startswith(("0", "1", "README"))]
    capsys.readouterr()
    # With fewer objects, and told: what was applied stays.
    assert main([*kubernetes, "--set", "kubernetes.monitoring_namespace=null"]) == 0
    told = capsys.readouterr()
    assert not [name for name in names() if "monitor" in name]
    assert len(names()) == len(before) - 3
    assert "stay until deleted" in told.err
    assert set(told.out.split()) == {str(tmp_path / name) for name in names()}


def test_what_was_changed_by_hand_is_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cluster", "render", KUBERNETES, "--target", "kuberay", "--out", str(tmp_path)]
    assert main(words) == 0
    first = min(tmp_path.glob("00-*"))
    text = first.read_text()
    first.write_text(f"{text}# mine\n")
    assert main(words) == 2
    assert f"changed since they were rendered: {first.name};" in capsys.readouterr().err
    # A file that is gone is no change that could be lost.
    first.unlink()
    assert main(words) == 0
    assert first.read_text() == text


@pytest.mark.parametrize(
    "listed", ["nonsense", "[]", '{"../outside": "x", "..": "x", "/etc": "x"}']
)
def test_a_list_that_was_tampered_with_leads_nowhere(tmp_path: Path, listed: str) -> None:
    (tmp_path / "outside").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / LIST).write_text(listed)
    assert main(["cluster", "render", KUBERNETES, "--target", "kuberay", "--out", str(out)]) == 0
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_render_that_cannot_be_written_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["cluster", "render", KUBERNETES, "--target", "kuberay", "--out", str(out)]
    assert main(words) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    # Files whose names this file system does not take.
    with pytest.raises(GwpError, match="cannot be written"):
        write(out, {"00-a.yaml": "new", "x" * 300: "new"})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    assert main([*words[:-1], str(dangling)]) == 2
    assert "leads nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["a\u2028kind: Pod", "x" * 250, "日本" * 40, "-rf", "null", "1e3", "~"]
)
@pytest.mark.parametrize("target", ["kuberay", "slurm", "local"])
def test_hostile_names_of_runs(tmp_path: Path, name: str, target: str) -> None:
    document = {"kuberay": KUBERNETES, "slurm": str(EXAMPLES / "slurm.yaml")}
    words = ["--target", target, "--out", str(tmp_path / "out")]
    if target == "local":
        words += ["--job", str(STAGES / "world.yaml")]
    else:
        words += ["--job", LINE[0], *WEIGHTS, "--job-set", "run.storage=s3://gwp/runs"]
    file = document.get(target, str(EXAMPLES / "laptop.yaml"))
    code = main(["cluster", "render", file, *words, "--job-set", f"run.name={json.dumps(name)}"])
    if code:
        assert (code, target) == (2, "kuberay")
        assert not (tmp_path / "out").exists()
        return
    found = {}
    for path in (tmp_path / "out").glob("*.yaml"):
        body = yaml.safe_load(path.read_text())
        found[body["kind"]] = body
    if target == "kuberay":
        assert re.fullmatch("[a-z][-a-z0-9]*", found["RayJob"]["metadata"]["name"])
        assert "Pod" not in found
        found["TrainJob"] = yaml.safe_load(found["ConfigMap"]["data"]["stage.yaml"])
    assert found["TrainJob"]["run"]["name"] == name
    for path in (tmp_path / "out").glob("*.s*"):
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    words = ["cluster", "render", KUBERNETES, "--target", "kuberay", "--out"]
    assert main([*words, str(tmp_path / "file")]) == 2
    assert main([*words, str(tmp_path / "file" / "out")]) == 2
    assert "a file; give a folder" in capsys.readouterr().err

"""`gwp submit` and `gwp jobs` against a server that speaks as Ray's dashboard does."""

import json
from pathlib import Path

import pytest

from clusters.jobs import access
from pipelines.cli import main
from tests.support.dashboard import NODE, Cluster, serving
from tests.unit.pipelines.jobs.test_stages import STAGES

FILE = str(STAGES / "policy.yaml")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(access, "READY_S", 0.2)
    monkeypatch.setattr(access, "_POLL_S", 0.01)
    # Its paths are relative: the cluster is this machine.
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_a_finished_job_whose_log_is_gone_says_so_and_succeeds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving(Cluster()) as cluster:
        where = ["--address", cluster.url]
        assert main(["submit", FILE, "--detach", *where]) == 0
        job = capsys.readouterr().out.strip()
        assert cluster.started() == [job]
        cluster.jobs[job] |= {"status": "SUCCEEDED", "end_time": 2}
        cluster.without_log.add(job)
        assert main(["submit", FILE, *where]) == 0
        found = capsys.readouterr()
        assert "is finished already" in found.err
        assert f"has no log of {job} any more" in found.err
        assert found.out == ""
        assert main(["jobs", "status", "policy", "--json", *where]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["job"], told["status"], told["run"]) == (job, "SUCCEEDED", "policy")
        assert main(["jobs", "logs", "policy", *where]) == 2
        assert main(["jobs", "stop", "policy", *where]) == 0
        assert '"status": "SUCCEEDED"' in capsys.readouterr().err
        assert len(cluster.asked) == 1


def test_what_is_wrong_is_one_line_and_nothing_is_started(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def told(cluster: Cluster, *words: str) -> str:
        assert main(["submit", FILE, "--address", cluster.url, *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not cluster.asked
        return line

    with serving(Cluster(addresses=("192.0.2.7",))) as elsewhere:
        assert "runs on other machines and cannot find run.storage" in told(elsewhere)
    with serving(Cluster(nodes=[NODE | {"gwp": "", "lacks": ["torch"]}])) as bare:
        assert "there is no gwp on pool head" in told(bare)
        assert "pool head lacks torch" in told(bare, "--code", "project")
    with serving(Cluster(nodes=[NODE | {"python": "3.99"}])) as other:
        assert "Python is 3.99 on pool head" in told(other)
    with serving(Cluster(nodes=[NODE | {"unset": ["HF_TOKEN"]}])) as unset:
        assert "not set: HF_TOKEN on pool head" in told(unset, "--secret", "HF_TOKEN")
    with serving(Cluster(version="2.9.0")) as old:
        assert "runs Ray 2.9.0" in told(old)


def test_a_secret_is_given_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["submit", FILE, "--secret", "HF_TOKEN=abc123"])
    err = capsys.readouterr().err
    assert "give the name of a variable, never its value" in err
    assert "abc123" not in err

"""Submitting to a server that speaks as Ray's does: a job is started once, whoever asks, and not
given up because nobody could take it at the first try.
"""

import io
import tempfile
import zipfile
from dataclasses import replace
from typing import Any

import pytest
import yaml

from clusters.jobs import access, code
from clusters.jobs.access import connect
from clusters.jobs.jobs import Jobs
from clusters.jobs.probe import Found, probe
from clusters.jobs.requirements import require_no_values, require_nodes
from clusters.jobs.submit import Work, known, start
from gwp import __version__
from gwp.errors import GwpError
from tests.support.dashboard import Cluster, serving

WORK = Work(
    names=("world", "policy"),
    runs=("s3://b/world", "s3://b/policy"),
    stages=("world", "policy"),
    documents=("kind: TrainJob\nrun: world", "kind: TrainJob\nrun: policy"),
)
HERE = "3.11"


def jobs_of(cluster: Cluster) -> Jobs:
    return Jobs(connect(cluster.url))


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([(200, True)], id="at once"),
        pytest.param([(500, False), (500, False), (200, True)], id="later"),
        pytest.param([(500, True)], id="its acceptance got lost"),
    ],
)
def test_a_job_is_started_once(answers: list[tuple[int, bool]]) -> None:
    with serving(Cluster(answers)) as cluster:
        answer = start(jobs_of(cluster), WORK)
        assert cluster.started() == [answer.job.id] == [f"{WORK.key}-1"]
        assert {request["submission_id"] for request in cluster.asked} == {answer.job.id}
        assert len(cluster.asked) == len(answers)
        assert answer.came == "started"


def test_a_cluster_that_takes_no_job_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Cluster([(500, False)])) as cluster:
        jobs = jobs_of(cluster)
        monkeypatch.setattr(access, "READY_S", 0.05)
        with pytest.raises(GwpError, match=r"does not take the job .*No available agent"):
            start(jobs, WORK)
        assert not cluster.started()


def test_asking_again_finds_the_job_in_whatever_state_it_is() -> None:
    with serving(Cluster()) as cluster:
        jobs = jobs_of(cluster)
        assert known(jobs, WORK) is None
        first = start(jobs, WORK).job
        assert known(jobs, WORK) == replace(known(jobs, WORK), job=first, came="attached")
        cluster.jobs[first.id]["status"] = "SUCCEEDED"
        finished = known(jobs, WORK)
        assert finished is not None
        assert (finished.came, finished.job.id) == ("finished", first.id)
        assert known(jobs, WORK, again=True) is None
        # Another file asks for something else, such as more steps.
        assert known(jobs, replace(WORK, documents=("a", "b"))) is None
        for number, status in enumerate(("FAILED", "STOPPED"), 2):
            last = jobs.of_key(WORK.key)[0]
            cluster.jobs[last.id]["status"] = status
            assert known(jobs, WORK) is None
            answer = start(jobs, WORK)
            assert (answer.came, answer.job.id) == ("again", f"{WORK.key}-{number}")
            assert answer.before is not None
            assert answer.before.status == status
        assert [job.attempt for job in jobs.of_key(WORK.key)] == [3, 2, 1]


def test_two_terminals_that_ask_at_the_same_moment_have_one_job() -> None:
    """Ray takes an id once; the one that comes late finds the other's job."""
    with serving(Cluster([(200, True), (400, False)])) as cluster:
        jobs = jobs_of(cluster)
        start(jobs, WORK)
        taken = cluster.jobs.copy()
        late = jobs_of(cluster)
        # It looked before the other one had started its own.
        late.of_key = lambda _: []  # type: ignore[method-assign]
        assert start(late, WORK).job.id == f"{WORK.key}-1"
        with pytest.raises(GwpError, match="at the same moment, with another configuration"):
            start(late, replace(WORK, documents=("a", "b")))
        assert cluster.jobs == taken


@pytest.mark.parametrize("ours_is_first", [True, False])
def test_of_two_sequences_with_a_run_in_common_the_first_one_stays(ours_is_first: bool) -> None:
    """Each looked before the other was there."""
    documents = WORK.documents[1:]
    other = Work(("policy",), WORK.runs[1:], ("policy",), documents)
    with serving(Cluster()) as cluster:
        jobs = jobs_of(cluster)
        rival = start(jobs, other).job
        cluster.jobs[rival.id]["start_time"] = 2000 if ours_is_first else 0
        if ours_is_first:
            assert start(jobs, WORK).came == "started"
            assert not cluster.stopped
            return
        with pytest.raises(
            GwpError, match=rf"s3://b/policy was submitted .* {rival.id}, which goes on"
        ):
            start(jobs, WORK)
        assert cluster.stopped == [f"{WORK.key}-1"]
        # By its name, the run is that of the other one at once.
        assert jobs.find("policy").id == rival.id


def test_ctrl_c_once_it_may_be_accepted_says_how_to_come_back() -> None:
    with serving(Cluster()) as cluster:
        jobs = jobs_of(cluster)
        taken = jobs.client.submit_job

        def interrupted(**fields: Any) -> str:
            taken(**fields)
            raise KeyboardInterrupt

        jobs.client.submit_job = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt, match=f"{WORK.key}-1 may have been started: "):
            start(jobs, WORK)
        assert cluster.started() == [f"{WORK.key}-1"]


def test_no_place_for_what_travels_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Cluster()) as cluster:
        jobs = jobs_of(cluster)
        monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
        with pytest.raises(GwpError, match="set TMPDIR to a folder with room"):
            start(jobs, WORK)
        assert not cluster.asked


def test_a_job_that_runs_with_other_files_or_with_one_of_the_runs_is_in_the_way() -> None:
    with serving(Cluster()) as cluster:
        jobs = jobs_of(cluster)
        job = start(jobs, WORK).job
        with pytest.raises(GwpError, match=f"another configuration .*jobs stop {job.id}"):
            known(jobs, replace(WORK, options=("--allow-change", "optimizer.lr")))
        alone = replace(WORK, names=("policy",), runs=WORK.runs[1:], documents=WORK.documents[1:])
        assert alone.key != WORK.key
        with pytest.raises(GwpError, match=f"s3://b/policy is being trained by job {job.id}"):
            known(jobs, alone)
        cluster.jobs[job.id]["status"] = "FAILED"
        assert known(jobs, alone) is None


def test_jobs_are_found_by_id_by_key_and_by_run_and_those_of_others_are_not_ours() -> None:
    with serving(Cluster()) as cluster:
        jobs = jobs_of(cluster)
        first = start(jobs, WORK).job
        cluster.jobs["raysubmit_x"] = {
            "type": "SUBMISSION",
            "submission_id": "raysubmit_x",
            "status": "RUNNING",
            "entrypoint": "sleep 1",
            "metadata": None,
        }
        assert [job.id for job in jobs.all()] == [first.id]
        for word in (first.id, WORK.key, "world", "policy"):
            assert jobs.find(word).id == first.id
        elsewhere = replace(WORK, runs=("s3://c/world", "s3://c/policy"))
        second = start(jobs, elsewhere).job
        with pytest.raises(GwpError) as raised:
            jobs.find("policy")
        for job in (first, second):
            assert f"{job.id} (RUNNING, {', '.join(job.runs)})" in str(raised.value)
        # Of several, the one that is not over is meant.
        cluster.jobs[first.id]["status"] = "FAILED"
        assert jobs.find("policy").id == second.id
        cluster.jobs[second.id]["status"] = "SUCCEEDED"
        with pytest.raises(GwpError, match="several jobs"):
            jobs.find("policy")
        with pytest.raises(GwpError, match="knows no job or run nobody"):
            jobs.find("nobody")


def test_names_and_places_may_hold_commas() -> None:
    work = replace(WORK, names=("a, b", "c"), runs=("s3://b/a, b", "s3://b/c"))
    with serving(Cluster()) as cluster:
        jobs = jobs_of(cluster)
        job = start(jobs, work).job
        assert (job.names, job.runs) == (work.names, work.runs)
        assert jobs.find("a, b").id == job.id


@pytest.mark.parametrize("how", ["image", "project"])
def test_what_travels_is_the_documents_and_the_code_that_was_asked_for(how: code.Code) -> None:
    with serving(Cluster()) as cluster:
        start(jobs_of(cluster), replace(WORK, code=how))
        (package,) = cluster.packages
        names = set(zipfile.ZipFile(io.BytesIO(package)).namelist())
        command = cluster.asked[0]["entrypoint"]
    documents = {"1-world.yaml", "2-policy.yaml"}
    sent = {name for name in names if not name.endswith("/")}
    if how == "image":
        assert sent == documents
        assert command == "gwp train 1-world.yaml 2-policy.yaml > result.json"
    else:
        assert documents | {"gwp/__init__.py", "pipelines/cli.py", "gwp/py.typed"} <= sent
        assert {name.partition("/")[0] for name in sent} - documents == set(code.PACKAGES)
        assert not [name for name in sent if "__pycache__" in name]
        assert command.startswith("python -m pipelines.cli train 1-world.yaml 2-policy.yaml")


def test_what_is_no_code_is_not_sent(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "root" / "gwp"
    (package / "__pycache__").mkdir(parents=True)
    for name in ("__init__.py", "__pycache__/x.pyc", ".env", "model.py"):
        (package / name).write_text("x")
    (package / "link").symlink_to("/etc/hostname")
    (tmp_path / "root" / "data.bin").write_text("x")
    monkeypatch.setattr(code.gwp, "__file__", str(package / "__init__.py"))
    code.fill(tmp_path, {}, "project")
    assert {p.name for p in (tmp_path / "gwp").rglob("*")} == {"__init__.py", "model.py"}
    assert not (tmp_path / "data.bin").exists()
    (package / "weights.bin").write_bytes(bytes(code.MOST_BYTES))
    with pytest.raises(GwpError, match=r"32 MiB, more than 32; the largest file is .*weights.bin"):
        code.fill(tmp_path, {}, "project")


NODE = Found("train", HERE, __version__, (), ())


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (replace(NODE, gwp=""), r"there is no gwp on pool train; .* --code project"),
        (replace(NODE, gwp="0.0.9"), "gwp is 0.0.9 on pool train and 0.1.0 here"),
        (replace(NODE, python="3.12"), "Python is 3.12 on pool train and 3.11 here"),
        (replace(NODE, lacks=("deepspeed",)), "pool train lacks deepspeed; .* `cluster` extra"),
        (replace(NODE, unset=("HF_TOKEN",)), "not set: HF_TOKEN on pool train. Set them"),
    ],
)
def test_nodes_that_cannot_do_the_work_are_told_before_anything_starts(
    found: Found, words: str
) -> None:
    work = replace(WORK, secrets=("HF_TOKEN", "OTHER"))
    with pytest.raises(GwpError, match=words) as refused:
        require_nodes([NODE, found], work, "http://head:8265", HERE)
    assert "\n" not in str(refused.value)
    require_nodes([NODE], work, "http://head:8265", HERE)


def test_other_versions_are_taken_when_it_is_said_and_other_code_goes_along() -> None:
    other = replace(NODE, gwp="0.0.9", python="3.12")
    require_nodes([other], WORK, "http://head:8265", HERE, any_version=True)
    # With ours it does not matter which one the image has, or whether it has one.
    for version in ("0.0.9", ""):
        work = replace(WORK, code="project")
        require_nodes([replace(NODE, gwp=version)], work, "http://head:8265", HERE)


def test_the_look_at_the_nodes_leaves_no_more_than_one_job_and_sends_names_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_value_of_mine")
    unset = {"pool": "data", "python": "3.11", "gwp": "0.1.0", "lacks": [], "unset": ["HF_TOKEN"]}
    with serving(Cluster(nodes=[unset])) as cluster:
        work = replace(WORK, secrets=("HF_TOKEN",))
        jobs = jobs_of(cluster)
        cluster.jobs["gwp-probe-old"] = {
            "type": "SUBMISSION",
            "submission_id": "gwp-probe-old",
            "status": "SUCCEEDED",
            "entrypoint": "",
            "end_time": 1000,
        }
        assert probe(jobs.client, work.secrets) == [
            Found("data", "3.11", "0.1.0", (), ("HF_TOKEN",))
        ]
        assert len(cluster.jobs) == 1
        assert "gwp-probe-old" not in cluster.jobs
        start(jobs, work)
        (request,) = cluster.asked
        assert request["metadata"]["gwp_secrets"] == "HF_TOKEN"
        assert "hf_value_of_mine" not in str(request)
        assert all(b"hf_value_of_mine" not in package for package in cluster.packages)


def test_a_file_that_holds_the_value_of_a_secret_does_not_travel() -> None:
    work = replace(WORK, documents=("key: abcdefgh1", "x"))
    with pytest.raises(GwpError, match="hold the value of KEY") as refused:
        require_no_values(work, {"KEY": "abcdefgh1"})
    assert "abcdefgh1" not in str(refused.value)
    require_no_values(work, {"KEY": "another-value", "SHORT": "x"})


@pytest.mark.parametrize(
    "value", ['it\'s "q" 1', "two\nlines of it", "schlüssel-ü", "w " * 80 + "w"]
)
def test_nor_does_one_that_writes_it_in_another_way(value: str) -> None:
    document = yaml.safe_dump({"sources": [{"uri": f"s3://b/{value}"}]})
    with pytest.raises(GwpError, match="hold the value of KEY"):
        require_no_values(replace(WORK, documents=(document,)), {"KEY": value})
    with pytest.raises(GwpError, match="hold the value of KEY"):
        require_no_values(replace(WORK, options=("--allow-change", value)), {"KEY": value})

"""How a run ends and goes on, as its user sees it: by signals, by a kill of its driver, by a rank
that stands still.
"""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from clusters.mini import MiniCluster
from gwp import storage
from pipelines.tracking.runs import STOPPED_TAG, client, metric_history
from pipelines.training.checkpoint.checkpoints import find_committed
from pipelines.training.control.watch import resumptions, worker_progress
from tests.cluster.test_newcomer import SETS
from tests.support.driver import driver, gone
from tests.support.sets import write_v30


@pytest.fixture(scope="module")
def sets(mini: MiniCluster, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    uri = f"{mini.bucket}/endings/set"
    storage.upload(write_v30(tmp_path_factory.mktemp("set") / "set"), uri)
    return [
        *SETS,
        f"data.sources=[{{uri: {uri}, embodiment: arm}}]",
        f"run.storage={mini.bucket}/endings",
        "cluster.train_pool=train",
        "cluster.data_pool=data",
    ]


def status(run: str) -> tuple[str, str]:
    """Of the MLflow run, with the reason why it ended."""
    known = client().get_run(storage.read_bytes(f"{run}/run_id").decode())
    return known.info.status, known.data.tags.get(STOPPED_TAG, "")


@pytest.mark.timeout(900)
def test_a_driver_may_be_ended_in_any_way_and_started_again(
    mini: MiniCluster, sets: list[str], tmp_path: Path
) -> None:
    """SIGKILL and SIGTERM; and a second one while it lives."""
    run = f"{mini.bucket}/endings/driver"
    # So many that it does not end before it is ended.
    steps, every = 9000, 10
    own = [*sets, "run.name=driver", f"run.steps={steps}", f"run.checkpoint_every={every}"]

    with driver(tmp_path, run, own) as first:
        reports = first.reports(3)
        with driver(tmp_path, run, own) as second:
            assert second.wait(240) == 2
            (told,) = [line for line in second.lines if line.startswith("gwp: error")]
            assert f"is being trained by process {first.process.pid} on" in told
            assert second.lines[-1] == told
        first.until(lambda: find_committed(run))
        first.process.kill()
        killed = time.monotonic()
        first.wait(10)
        print(f"workers of a killed driver were gone after {gone(reports, 60):.1f} s")
        # Nobody was there to tell MLflow.
        assert status(run)[0] == "RUNNING"
    run_id = storage.read_bytes(f"{run}/run_id")
    last = find_committed(run)[0][1].step

    with driver(tmp_path, run, own) as third:
        third.reports(last + 1)
        print(f"next step {time.monotonic() - killed:.1f} s after the kill of the driver")
        assert [event["step"] for event in resumptions(run)] == [last]
        third.process.send_signal(signal.SIGTERM)
        assert third.wait(90) == 130
        reached = find_committed(run)[0][1].step
        said = f"stopped at step {reached} of {steps} with a checkpoint; the same command goes on"
        assert third.lines[-1] == f"gwp: interrupted: {said} from there"
        assert status(run) == ("KILLED", f"{said} from there")
    assert storage.read_bytes(f"{run}/run_id") == run_id
    assert not storage.list_files(f"{run}/lease")
    # No hole; the killed one was further than its last checkpoint.
    measured = [step for step, _ in metric_history(run_id.decode(), "loss")]
    assert measured == list(range(1, len(measured) + 1))
    assert len(measured) >= reached


@pytest.mark.timeout(600)
def test_a_second_interrupt_ends_at_once_and_leaves_no_process(
    mini: MiniCluster, sets: list[str], tmp_path: Path
) -> None:
    run = f"{mini.bucket}/endings/twice"
    own = [*sets, "run.name=twice", "run.steps=9000", "run.checkpoint_every=9000"]
    with driver(tmp_path, run, own) as found:
        reports = found.reports(3)
        found.process.send_signal(signal.SIGINT)
        # It says so at once; whether the checkpoint was taken before the second is all the same.
        found.until(lambda: any('"stopping"' in line for line in found.lines), 20)
        found.process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        assert found.wait(90) == 130
        ended = time.monotonic() - begin
        print(f"the second Ctrl-C took {ended:.1f} s, the workers {gone(reports, 60):.1f} s more")
        assert found.lines[-1].startswith("gwp: interrupted: ")
        assert "the same command goes on from" in found.lines[-1]
        assert status(run)[0] == "KILLED"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("still", [(1,), (0, 1)], ids=["one", "all"])
def test_ranks_that_stand_still_are_named_and_the_run_goes_on(
    mini: MiniCluster, sets: list[str], tmp_path: Path, still: tuple[int, ...]
) -> None:
    name = f"hang-{len(still)}"
    run = f"{mini.bucket}/endings/{name}"
    hang_s = 50
    own = [*sets, f"run.name={name}", "run.steps=3000", "run.checkpoint_every=20"]
    own += [f"cluster.hang_s={hang_s}"]
    with driver(tmp_path, run, own) as found:
        reports = found.reports(3)
        found.until(lambda: find_committed(run))
        for rank in still:
            os.kill(reports[rank]["pid"], signal.SIGSTOP)
        stopped = time.monotonic()
        each = [reports[rank] for rank in still]
        who = [f"rank {r['rank']} ({r['host']}, pid {r['pid']}) has been in '" for r in each]
        before = len(found.lines)

        def told(words: str, names: list[str]) -> list[str]:
            said = [line for line in found.lines[before:] if words in line]
            return [line for line in said if all(name in line for name in names)]

        # The first that is silent for long enough; the other one a moment later.
        warning = "(cluster.hang_s) the workers start again"
        found.until(lambda: any(told(warning, [name]) for name in who), hang_s)
        warned = time.monotonic() - stopped
        found.until(lambda: told(": ended; ", who), hang_s + 30)
        ended = time.monotonic() - stopped
        gone(reports, 30)

        def goes_on() -> bool:
            steps = [event["step"] for event in resumptions(run)]
            again = [r for r in worker_progress(run) if r["start"] != reports[0]["start"]]
            return bool(steps and again) and again[0]["step"] > steps[-1]

        found.until(goes_on, 240)
        back = time.monotonic() - stopped
        print(f"warned after {warned:.1f} s, ended after {ended:.1f}, next step {back:.1f}")
        # Whoever waited for another is not blamed.
        blamed = [line for line in found.lines if "rank 0 (" in line and ": ended" in line]
        assert bool(blamed) == (0 in still)
        found.process.send_signal(signal.SIGINT)
        assert found.wait(90) == 130
    assert len(told(": ended; ", who)) == 1


@pytest.mark.timeout(400)
def test_a_loss_that_is_no_number_ends_the_command_with_the_samples_and_no_restart(
    mini: MiniCluster, sets: list[str], tmp_path: Path
) -> None:
    """A rate of 1e30 leaves finite weights, with which no loss is finite."""
    run = f"{mini.bucket}/endings/diverged"
    own = [*sets, "run.name=diverged", "run.checkpoint_every=1", "optimizer.lr=1e30"]
    begin = time.monotonic()
    with driver(tmp_path, run, [*own, "optimizer.warmup_steps=0"]) as found:
        first = found.reports(1)
        stepped = time.monotonic()
        assert found.wait(200) == 2, found.lines[-20:]
        ended = time.monotonic()
    print(
        f"ended {ended - stepped:.1f} s after the first step, {ended - begin:.1f} s after its start"
    )
    (told,) = [line for line in found.lines if line.startswith("gwp: error")]
    assert found.lines[-1] == told
    # Three steps in a row may be left out.
    assert "steps 2 to 5: the loss is nan" in told
    assert re.search(r"samples of the last step: [0-9a-f]+/\S+, ", told)
    assert not [line for line in found.lines if "Traceback" in line or '"warning"' in line]
    assert {report["start"] for report in worker_progress(run)} == {first[0]["start"]}
    assert not resumptions(run)
    assert status(run) == ("FAILED", told.removeprefix("gwp: error: ")[:500])

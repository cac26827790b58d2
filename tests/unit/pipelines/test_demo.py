"""The demo's sizes on machines of every speed, what it says when something did not happen, and
when replicas came and went.
"""

import copy
import json
import logging
import signal
import subprocess
import threading
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.demo.killer import Killer
from pipelines.demo.size import (
    CUTS,
    FULL,
    PROMISED_S,
    QUICK,
    Machine,
    Plan,
    Size,
    expected_s,
    plan,
    replan,
    stage_s,
)
from pipelines.demo.summary import fleet_figures, shortfalls
from pipelines.evaluation.fleet import FleetResult
from pipelines.verbs.demo import SHORTFALL, exit_code

FAST = Machine(start_s=4.0, train_step_ms=250.0, sim_frame_ms=14.0)
FLOOR = {name: values[-1] for name, values in CUTS}


def slower(times: float) -> Machine:
    return Machine(*(times * value for value in asdict(FAST).values()))


def test_a_fast_machine_does_all_of_it() -> None:
    chosen = plan(FULL, FAST)
    assert chosen.size == FULL
    assert chosen.cuts == ()
    assert chosen.notes == []
    assert 0.3 * PROMISED_S < chosen.expected_s < PROMISED_S


def test_a_machine_half_as_fast_keeps_the_time() -> None:
    assert expected_s(FULL, slower(2)) > PROMISED_S
    chosen = plan(FULL, slower(2))
    assert chosen.expected_s == expected_s(chosen.size, slower(2)) <= PROMISED_S
    assert {cut.name: (cut.full, cut.cut) for cut in chosen.cuts} == {
        name: (getattr(FULL, name), getattr(chosen.size, name))
        for name, _ in CUTS
        if getattr(FULL, name) != getattr(chosen.size, name)
    }


def test_a_slower_machine_never_does_more_and_cuts_in_order() -> None:
    """What comes later in CUTS is touched only when all before it stands on its floor."""
    sizes = [plan(FULL, slower(1 + k / 20)).size for k in range(60)]
    names = [name for name, _ in CUTS]
    for size, next_size in pairwise(sizes):
        assert all(getattr(next_size, name) <= getattr(size, name) for name in names)
    for size in sizes:
        touched = [getattr(size, name) < getattr(FULL, name) for name in names]
        for i, name in enumerate(names):
            assert not any(touched[i + 1 :]) or getattr(size, name) == FLOOR[name]
        assert replace(size, **{name: getattr(FULL, name) for name in names}) == FULL


def test_below_the_floor_nothing_is_cut_and_the_time_is_said() -> None:
    chosen = plan(FULL, slower(6))
    assert {name: getattr(chosen.size, name) for name in FLOOR} == FLOOR
    assert chosen.expected_s > PROMISED_S
    assert chosen.summary()["expected_s"] == round(chosen.expected_s)
    assert f"takes some {chosen.expected_s / 60:.0f} minutes" in chosen.notes[-1]
    # Steps enough for a checkpoint, a kill and a resume.
    assert chosen.size.policy_steps > chosen.size.checkpoint_every * 1.25


def test_more_time_means_fewer_cuts_and_quick_is_never_cut() -> None:
    assert plan(FULL, slower(2), 2.5 * PROMISED_S).size == FULL
    assert plan(QUICK, slower(9), None).size == QUICK
    assert expected_s(QUICK, FAST) < 0.5 * expected_s(FULL, FAST)


def late(times: float, minutes: float = 4.0) -> Plan:
    """After a first stage that took so many times as long as expected."""
    took = {"world": times * stage_s(FULL, FAST, "world")}
    return replan(plan(FULL, FAST), FULL, took, minutes * 60)


def test_a_stage_that_took_as_long_as_expected_changes_nothing() -> None:
    for times in (0.5, 1.0):
        assert (late(times).size, late(times).slowness) == (FULL, 1.0)


def test_after_slow_stages_less_is_done_of_what_is_still_to_come() -> None:
    plans = [late(1 + k / 4) for k in range(20)]
    assert plans[0].size == FULL
    for before, after in pairwise(plans):
        assert after.slowness > before.slowness
        for name, _ in CUTS:
            assert getattr(after.size, name) <= getattr(before.size, name)
    # What is done stays as it was done.
    kept = {"world_steps", "world_episodes", "embodied_episodes"}
    for later in plans:
        assert all(getattr(later.size, name) == getattr(FULL, name) for name in kept)
        touched = later.size != FULL
        assert touched == bool(later.cuts)
        assert later.expected_s <= PROMISED_S or later.size.policy_steps == FLOOR["policy_steps"]
    assert "takes some" in plans[-1].notes[-1]
    # A second look takes back nothing, and knows the first cuts still.
    again = replan(plans[-1], FULL, {"world": 1.0, "embodied": 1.0}, 300.0)
    assert (again.size, again.cuts) == (plans[-1].size, plans[-1].cuts)


def test_a_quick_demo_is_not_cut_on_the_way() -> None:
    quick = plan(QUICK, FAST, None)
    assert replan(quick, QUICK, {"world": 9999.0}, 9999.0).size == QUICK


def requests(*t_ms: tuple[float, float]) -> list[dict[str, Any]]:
    return [{"robot": "r", "t": t, "ms": ms, "gathering": t < 2, "error": None} for t, ms in t_ms]


def fleet(*counts: tuple[int, int]) -> FleetResult:
    """Samples a second apart: replicas that run, and that load."""
    samples = [(float(t), running, starting) for t, (running, starting) in enumerate(counts)]
    return FleetResult(
        requests=requests((0.5, 1000), (1.4, 200), (2.5, 10), (3.5, 20), (3.9, 300)),
        samples=samples,
    )


def test_when_replicas_were_asked_for_came_and_went() -> None:
    assert fleet(
        (1, 0), (1, 1), (1, 2), (2, 1), (3, 0), (1, 0), (2, 0), (1, 0), (1, 0)
    ).scaling == {"asked_s": 1, "up_s": 3, "down_s": 7}
    assert fleet((1, 0), (1, 1), (1, 0)).scaling == {"asked_s": 1, "up_s": None, "down_s": None}
    assert fleet((1, 0), (2, 0)).scaling == {"asked_s": 1, "up_s": 1, "down_s": None}
    assert fleet((2, 0), (2, 0), (1, 0)).scaling == {"asked_s": None, "up_s": None, "down_s": None}
    assert FleetResult().scaling == {"asked_s": None, "up_s": None, "down_s": None}


def test_requests_under_way_and_percentiles_are_those_of_the_requests() -> None:
    result = fleet((1, 0), (1, 1), (1, 0), (2, 0), (2, 0))
    assert result.replicas == [(0.0, 1, 0), (1.0, 1, 1), (2.0, 1, 0), (3.0, 2, 0), (4.0, 2, 1)]
    assert (result.latency_ms(50), result.latency_ms(50, gathering=True)) == (20, 600)


def summary(size: Size = FULL) -> dict[str, Any]:
    names = ("world", "embodied", "policy")
    stages = {
        name: {"steps": getattr(size, f"{name}_steps"), "first_loss": 2.0, "last_loss": 0.5}
        for name in names
    }
    return {
        "stages": stages,
        "resume": {"killed_at_step": 190, "resumed_from_step": 150},
        "size": asdict(size),
        "fleet": fleet_figures(fleet((1, 0), (1, 1), (2, 0), (1, 0)), 9),
    }


def test_a_demo_that_showed_everything_says_nothing_and_succeeds() -> None:
    good = summary()
    assert shortfalls(good) == []
    assert exit_code({"shortfalls": []}) == 0


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("stages", "world", "last_loss"), 2.0, "loss of stage world did not fall: 2 to 2"),
        (("stages", "policy", "last_loss"), float("nan"), "loss of stage policy did not fall"),
        (("stages", "embodied", "steps"), 12, "stage embodied ended at step 12 of 300"),
        (("resume",), {}, "no worker was killed: the policy stage"),
        (("resume",), {"killed_at_step": 190}, "a worker was killed, and nothing resumed"),
        (
            ("fleet", "scaling"),
            {"asked_s": None, "up_s": None, "down_s": None},
            "none was asked for",
        ),
        (
            ("fleet", "scaling"),
            {"asked_s": 7.5, "up_s": None, "down_s": None},
            "asked for after 7.5 s and did not load in time",
        ),
        (("fleet", "scaling"), {"asked_s": 7.5, "up_s": 9.0, "down_s": None}, "did not go"),
        (("fleet", "failed"), 2, "2 of 5 requests or robots of the fleet failed"),
    ],
)
def test_each_thing_that_did_not_happen_has_its_line(
    path: tuple[str, ...], value: Any, words: str
) -> None:
    told = copy.deepcopy(summary())
    place = told
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (line,) = shortfalls(told)
    assert words in line
    assert exit_code({"shortfalls": [line]}) == SHORTFALL == 3


def test_the_help_tells_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "exit code: 0 everything that the demo shows happened" in told
    assert "3 it ran to its end and something did not happen" in told


class Heard(logging.Handler):
    """Sets its event at the first record."""

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.event.set()


def test_a_worker_that_is_killed_and_does_not_resume_is_told(tmp_path: Path) -> None:
    """The first report names a process that is gone: the killer goes on looking."""
    logger = logging.getLogger("pipelines.demo.killer")
    heard = Heard()
    with subprocess.Popen(["sleep", "60"]) as gone, subprocess.Popen(["sleep", "60"]) as worker:
        gone.kill()
        gone.wait()
        progress = tmp_path / "progress"
        progress.mkdir()
        for rank in range(2):
            report = {"step": 99, "pid": gone.pid}
            (progress / f"rank-{rank}.json").write_text(json.dumps(report))
        killer = Killer(str(tmp_path), 10)
        logger.addHandler(heard)
        try:
            killer.start()
            assert heard.event.wait(30)
        finally:
            logger.removeHandler(heard)
        whole = tmp_path / "next"
        whole.write_text(json.dumps({"step": 99, "pid": worker.pid}))
        whole.replace(progress / "rank-1.json")
        assert worker.wait(30) == -signal.SIGKILL
        assert killer.result(str(tmp_path)) == {"killed_at_step": 99}

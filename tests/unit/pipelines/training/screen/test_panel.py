"""The picture of a run on a terminal has what is known, in any width, and nothing that a name or a
warning could break.
"""

import io
import math
from typing import Any

import pytest
from rich.console import Console

from pipelines.training.measure.clock import PHASES
from pipelines.training.screen.panel import curve, panel
from pipelines.training.screen.seen import Seen, span

FIGURES = {
    "data_wait_share": 0.25,
    "speed/samples_per_s": 74.12,
    "speed/tokens_per_s": 2950.1,
    "speed/tflop_per_s": 312.5,
    "speed/mfu": 0.431,
    "memory/process_gib": 0.9,
    "memory/device_gib": 71.25,
    "time/step": 0.5,
    **{f"time/{name}": 0.5 / len(PHASES) for name in PHASES},
}


def drawn(seen: Seen, now: float, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as found:
        console.print(panel(seen, now))
    return found.get()


def known() -> Seen:
    seen = Seen("policy", "arm", total=100, every=20, now=0.0)
    for step in (10, 20, 30):
        report: dict[str, Any] = {
            "step": step,
            "logged": step,
            "start": "a",
            "loss": 1 / step,
            "loss_action": 0.02,
            "figures": FIGURES,
            "skipped": 3,
            "started": {"start/list": 2.0, "start/total": 75.0},
            "checkpoint": {"step": 20, "time": 0.0},
            "validation": {"step": step, "loss": 0.9 if step == 20 else 1.0},
        }
        seen.look([report, report], step, "", float(step))
    return seen


def test_it_has_all_that_is_known() -> None:
    text = drawn(known(), 40.0)
    for part in (
        "policy: arm",
        "step 30 of 100",
        "30%",
        "40 s so far",
        "1 min 10 s left",
        "0.03333",
        "actions 0.02",
        "best 0.9 at step 20",
        "74.1 samples/s",
        "2,950 tokens/s",
        "MFU 43.1%",
        "312 TFLOP/s",
        "71.2 GiB of the GPU",
        "25.0% data-bound",
        "3 samples could not be decoded",
        "step 20, 30 s ago, every 20 steps",
        "first step after 1 min 15 s",
    ):
        assert part in text, part


@pytest.mark.parametrize("width", [20, 60, 80, 300])
def test_it_fits_into_any_width(width: int) -> None:
    seen = known()
    seen.warn("a worker was lost " * 20, 1.0)
    assert max(map(len, drawn(seen, 40.0, width).splitlines())) <= width


def test_it_says_that_nothing_is_known_yet() -> None:
    text = drawn(Seen("world", "new", total=10, every=5, now=0.0), 3.0)
    assert "step 0 of 10" in text
    assert "none yet, every 5 steps" in text
    assert "starting" in text
    assert "nan" not in text


def test_names_and_warnings_are_text() -> None:
    seen = Seen("[red]policy", "[/bold]arm[link=x]", total=10, every=5, now=0.0)
    seen.warn("[bold]x[/nothing] in s3://b/[1]", 0.0)
    text = drawn(seen, 1.0)
    for part in ("[red]policy", "[/bold]arm[link=x]", "[bold]x[/nothing] in s3://b/[1]"):
        assert part in text


def test_curves_are_means_between_their_ends() -> None:
    assert curve([1.0, 2.0, 3.0], 10) == "▁▅█"
    assert curve([5.0] * 4, 10) == "▁▁▁▁"
    assert curve([], 10) == curve([math.nan], 10) == ""
    long = curve([float(i) for i in range(1000)], 8)
    assert long == "▁▂▃▄▅▆▇█"


def test_spans_have_two_units_at_most() -> None:
    told = [span(s) for s in (-1, 0.4, 45, 60, 200, 3600, 18720, 183600)]
    assert told == ["0 s", "0 s", "45 s", "1 min", "3 min 20 s", "1 h", "5 h 12 min", "2 d 3 h"]


def test_verdicts_that_come_later_have_their_place_in_the_curve() -> None:
    """One of an earlier command, and one that is said again."""
    seen = Seen("policy", "arm", total=100, every=20, now=0.0)
    for step, loss in ((40, 0.8), (20, 0.7), (60, 0.9), (40, 0.75)):
        seen.judged(step, loss)
    assert list(seen.validation) == [(20, 0.7), (40, 0.75), (60, 0.9)]

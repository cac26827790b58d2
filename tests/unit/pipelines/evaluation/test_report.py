"""The report: one file that stands alone, shows what was measured, and says what was not."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.imagined import Clip
from pipelines.evaluation.report import ReportData, psnr, write_report
from pipelines.pages.charts import strip
from pipelines.pages.intervals import wilson

SECTIONS = (
    "The line",
    "Losses of the stages",
    "Imagined and real futures",
    "Predicted and recorded actions",
    "Closed loop",
    "Latency of a chunk",
    "What speed costs",
    "The fleet",
    "Environment",
    "Caveats",
)
SUMMARY = {
    "stages": {"world": {"steps": 80, "seconds": 30.0}, "policy": {"steps": 120, "seconds": 40.0}},
    "resume": {"killed_at_step": 52, "resumed_from_step": 40},
    "policy": {"id": "0123456789abcdef", "version": "2", "alias": "champion", "family": "gwp05"},
    "open_loop": {"mse": 0.0123, "mse_hold": 0.2, "mse_mean": 0.1, "windows": 9},
    "closed_loop": {
        "reach": {"success": 0.9, "episodes": 10, "success_random": 0.5, "episodes_random": 2},
        "push": {"success": 0.3, "episodes": 10, "success_random": 0.0, "episodes_random": 2},
    },
    "latency": {"act_ms_p50": 22.0, "joint_ms_p50": 88.0, "ratio": 4.0},
    "fleet": {
        "robots": 8,
        "requests": 240,
        "failed": 0,
        "p50_ms": 50.0,
        "p99_ms": 90.0,
        "replicas_min": 1,
        "replicas_max": 3,
    },
    "seconds": 252.0,
}
rng = np.random.default_rng(0)


def full() -> ReportData:
    frames = rng.integers(0, 256, (5, 24, 32, 3), dtype=np.uint8)
    return ReportData(
        losses={"world": [(0, 2.0), (1, 1.5), (2, 1.2)], "policy": [(0, 1.0)]},
        resumed={"world": [1]},
        imagined=[Clip("reach <1>", "reach", 0, 0, frames, frames[::-1])],
        actions=(("x", "y"), rng.normal(size=(20, 2)), rng.normal(size=(20, 2))),
        closed_loop={"reach": {"policy": (9, 10), "random": (0, 10)}, "push": {"policy": (3, 10)}},
        steps=[
            {"steps": 10, "ms": 20.0, "mse": 0.031, "rms": 0.0},
            {"steps": 1, "ms": 6.0, "mse": 0.027, "rms": 0.162},
        ],
        seams={"delay": 4, "seams": 104}
        | {
            name: {
                "position": jump,
                "position_p95": 3 * jump,
                "velocity": 2 * jump,
                "velocity_p95": 4 * jump,
            }
            for name, jump in (("inside", 0.061), ("chunked", 0.092), ("naive", 0.129))
        },
        latency={"act_ms": [10.0, 11.0, 12.0], "joint_ms": [40.0, 44.0, 48.0]},
        replicas=[(0.0, 1, 0), (1.0, 3, 7), (2.0, 1, 0)],
        fleet=[(0.1, 20.0), (1.4, 60.0), (1.9, 30.0)],
        environment={"hardware": "2 cores"},
        caveats=["Tiny model."],
    )


@pytest.fixture
def page(tmp_path: Path) -> str:
    return write_report(tmp_path / "new", SUMMARY, full()).read_text()


def test_the_file_needs_nothing_beside_it(page: str) -> None:
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_every_picture_is_a_picture(page: str) -> None:
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r"base64,([^\"]*)", page)
    ]
    assert len(pictures) == 7
    for picture in pictures:
        assert np.asarray(picture.convert("L")).std() > 0


def test_every_section_is_there_and_none_is_empty(page: str) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", page) == list(SECTIONS)
    assert 'class="empty"' not in page


def test_numbers_appear_as_measured(page: str) -> None:
    for text in (
        "12 of 20",
        "acting at random: 1 of 4",
        "0.0123",
        "22.0 ms",
        "4.00 times as long",
        "0 of 240",
        "1 to 3 replicas",
        "resumed from step 40",
        "200",
        "version 2",
        "id 0123456789ab<",
        "4.2 min",
        "9 of 10 (60 to 98 %)",
        "0 of 10 (0 to 28 %)",
        "not run",
        "takes 4.00 times as long",
        "at most 3",
        "3 answered",
        "Tiny model.",
    ):
        assert text in page, text
    assert page.count('class="trained"') == 2


def test_text_is_escaped(page: str) -> None:
    assert "reach &lt;1&gt;" in page
    assert "reach <1>" not in page


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    page = write_report(tmp_path, {}, ReportData()).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == list(SECTIONS)
    # Every section but the diagram, and the headline.
    assert page.count('class="empty"') == len(SECTIONS)
    assert "<img" not in page


def test_partial_data_still_makes_a_page(tmp_path: Path) -> None:
    page = write_report(
        tmp_path, {}, ReportData(latency={"act_ms": [1.0], "joint_ms": []}, fleet=[(0.0, 5.0)])
    ).read_text()
    assert "times as long" not in page
    assert page.count("<img") == 2


@pytest.mark.parametrize(
    ("successes", "low", "high"), [(0, 0.0, 0.2775), (5, 0.2366, 0.7634), (10, 0.7225, 1.0)]
)
def test_wilson_interval(successes: int, low: float, high: float) -> None:
    """Reference values of the published formula without continuity correction."""
    assert wilson(successes, 10) == pytest.approx((low, high), abs=1e-4)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_psnr() -> None:
    black, white = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 255, np.uint8)
    assert psnr(black, white) == pytest.approx(0.0)
    assert psnr(black, black) > 90
    assert psnr(black, black + 1) == pytest.approx(48.13, abs=0.01)


def test_strip_keeps_the_frames() -> None:
    frames = rng.integers(0, 256, (3, 8, 64, 3), dtype=np.uint8)
    picture = np.asarray(Image.open(io.BytesIO(strip(frames))))
    scale = picture.shape[0] // 8
    np.testing.assert_array_equal(picture[::scale, : 64 * scale : scale], frames[0])
    np.testing.assert_array_equal(picture[::scale, -64 * scale :: scale], frames[2])


@pytest.mark.parametrize("source", ["summary", "media"])
def test_what_fell_short_and_what_was_cut_stand_above_everything(
    tmp_path: Path, source: str
) -> None:
    cut = [{"name": "policy_steps", "full": 700, "cut": 420}]
    summary = SUMMARY | {"shortfalls": ["No second replica came.", "Nothing resumed."], "cut": cut}
    media = full()
    if source == "media":
        media.shortfalls = ["No second replica came.", "Nothing resumed."]
        media.cut = ["policy steps 420 instead of 700"]
    page = write_report(tmp_path, summary, media).read_text()
    body = page.split("<main>")[1]
    wanted = [
        "set out to show and did not",
        "No second replica came.",
        "Nothing resumed.",
        "Cut, to keep",
        "policy steps 420 instead of 700",
        'class="tiles"',
        "The line",
    ]
    positions = [body.index(text) for text in wanted]
    assert positions == sorted(positions)
    assert all(body.count(text) == 1 for text in wanted)


@pytest.mark.parametrize("nothing", [{}, {"shortfalls": [], "cut": {}}])
def test_a_run_that_showed_everything_says_nothing_of_shortfalls(
    tmp_path: Path, nothing: dict[str, Any]
) -> None:
    page = write_report(tmp_path, SUMMARY | nothing, full()).read_text()
    assert "and did not" not in page
    assert "Cut, to" not in page


def test_a_run_that_fell_short_still_has_its_report(tmp_path: Path) -> None:
    """No request answered, one replica, a kill without a resumption, no chance level."""
    summary = SUMMARY | {
        "resume": {"killed_at_step": 52, "resumed_from_step": None},
        "closed_loop": {"reach": {"success": 0.9, "episodes": 10}},
        "fleet": {
            "robots": 8,
            "requests": 3,
            "failed": 3,
            "p50_ms": float("nan"),
            "p99_ms": None,
            "replicas_min": 1,
            "replicas_max": 1,
            "errors": ["robot-1: no answer"],
        },
    }
    page = write_report(tmp_path, summary, ReportData()).read_text()
    for text in (
        "nothing resumed",
        "9 of 10",
        "p50 not measured, p99 not measured; replicas: 1",
        "robot-1: no answer",
    ):
        assert text in page, text


def test_what_speed_costs_is_shown(page: str) -> None:
    for text in (
        "0.162",
        "104 seams, 4 steps late",
        "real-time chunking",
        "0.092",
        "naive switching",
        "0.129",
    ):
        assert text in page

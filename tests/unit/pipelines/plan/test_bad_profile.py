"""A profile or a fleet that cannot be is one line, and never a plan."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.plan.endpoint import plan_endpoint
from serve.config import ServeApp
from tests.support.paths import ROOT

ROWS = [{"robots": 1, "p99": 10.0}]
APP = load_config(ROOT / "clusters" / "examples" / "serve.yaml", ServeApp)


def profile(folder: Path, crowds: Any) -> Path:
    file = folder / "act.json"
    file.write_text(json.dumps({"gwp05": {"crowds": crowds}}))
    return file


@pytest.mark.parametrize(
    "crowds",
    [
        {"period_s": 1.0},
        {"rows": ROWS},
        {"rows": [], "period_s": 1.0},
        {"rows": ROWS, "period_s": 0},
        {"rows": ROWS, "period_s": math.nan},
        {"rows": [{"robots": 0, "p99": 1.0}], "period_s": 1.0},
        {"rows": [{"robots": 3, "p99": math.nan}], "period_s": 1.0},
        {"rows": [{"robots": 3, "p99": None}], "period_s": 1.0},
        {"rows": [{"robots": "3", "p99": "1"}], "period_s": 1.0},
        {"rows": [1], "period_s": 1.0},
        [1],
        "x",
    ],
)
def test_a_profile_without_sound_numbers(crowds: Any, tmp_path: Path) -> None:
    with pytest.raises(GwpError, match="--profile"):
        plan_endpoint(APP, profile(tmp_path, crowds), 10, 2.0, 100.0)


@pytest.mark.parametrize(
    "fleet", [(-1, 2.0, 100.0), (10, -1.0, 100.0), (10, math.nan, 100.0), (10, 2.0, math.inf)]
)
def test_a_fleet_that_cannot_be(fleet: tuple[int, float, float], tmp_path: Path) -> None:
    good = profile(tmp_path, {"rows": ROWS, "period_s": 1.0})
    assert plan_endpoint(APP, good, 10, 2.0, 100.0).replicas > 0
    with pytest.raises(GwpError, match="must be above 0"):
        plan_endpoint(APP, good, *fleet)

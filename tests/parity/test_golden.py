"""Reference tensors of the two families, loaded through the ordinary loader."""

import pytest

from gwp.model.parity import check_folder
from tests.support.paths import SHARED

GOLDEN = SHARED / "golden"
pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"reference tensors are not at {GOLDEN}"
)


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    return check_folder(GOLDEN)


@pytest.mark.parametrize("family", ["gwp0", "gwp05"])
def test_every_output_matches(errors: dict[str, dict[str, float]], family: str) -> None:
    worst = {name: error for name, error in errors[family].items() if not error <= 5e-6}
    assert not worst
    assert {
        "joint.video_pred",
        "joint.action_pred",
        "action_only.action_pred",
        "sample10.action",
    } <= set(errors[family])


def test_solver_levels_are_the_published_ones(errors: dict[str, dict[str, float]]) -> None:
    assert errors["gwp0"]["sched.sigmas"] < 1e-6

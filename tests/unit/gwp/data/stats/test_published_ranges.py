"""Statistics may ask for the rule of official checkpoints where a dimension hardly moves."""

import json
from pathlib import Path

import numpy as np
import pytest

from gwp.data.formats.files.reader import FileReader
from gwp.data.robot.embodiment import Embodiment
from gwp.data.robot.kinds import Gripper
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.files import import_stats
from gwp.data.stats.normalise import Normalizer, Stats
from pipelines.config.load import load_config
from pipelines.jobs.resolve import compute_all_stats
from pipelines.jobs.robots import resolve_embodiments
from pipelines.jobs.train_job import TrainJob
from tests.support.paths import ROOT
from tests.support.sets import write_v21

ARM = Embodiment(
    name="arm",
    fps=10,
    state_names=("still", "rare", "moves"),
    action_names=("still", "rare", "moves"),
    delta_mask=(False, False, False),
    cameras={"front": "c"},
    chunk=4,
    replan=2,
)
Q01, Q99 = np.array([0.3, 5.0, -1.0]), np.array([0.3, 5.0 + 1e-6, 1.0])
FEATURE = FeatureStats(
    mean=np.array([0.3, 5.0, 0.0]),
    std=np.ones(3),
    min=np.array([0.3, 4.0, -2.0]),
    max=np.array([0.3, 6.0, 2.0]),
    q01=Q01,
    q99=Q99,
)


@pytest.mark.parametrize("invert", [False, True])
def test_a_gripper_keeps_its_ends(invert: bool) -> None:
    kinds = {"moves": Gripper(range=(0.0, 1.0), invert=invert)}
    arm = ARM.model_copy(update={"kinds": kinds})
    ours = Normalizer(Stats(FEATURE, FEATURE), arm)
    theirs = Normalizer(Stats(FEATURE, FEATURE, {"ranges": "published"}), arm)
    x = np.array([[0.3, 5.0, 0.0], [0.3, 5.0, 0.1], [0.3, 5.0, 1.0]])
    np.testing.assert_allclose(theirs.state(x)[:, 2], ours.state(x)[:, 2])
    y = theirs.actions(x[None], x[:1])
    np.testing.assert_allclose(theirs.inverse_actions(y, x[:1])[0][:, 2], x[:, 2], atol=1e-6)


def test_it_is_the_published_map_in_every_dimension_and_back() -> None:
    ours = Normalizer(Stats(FEATURE, FEATURE), ARM)
    theirs = Normalizer(Stats(FEATURE, FEATURE, {"ranges": "published"}), ARM)
    x = np.array([[0.3, 5.0, 0.5], [0.3 + 2e-8, 5.0 + 3e-6, -3.0]])
    want = 2 * (x - Q01) / np.maximum(Q99 - Q01, 1e-8) - 1
    np.testing.assert_allclose(theirs.state(x), want, rtol=1e-6)
    chunk = theirs.actions(x[None], x[:1])
    np.testing.assert_allclose(chunk[0], want, rtol=1e-6)
    # What a model says of a dimension that never moved is taken as small as it is.
    y = np.array([[[0.7, -0.2, 0.1]]])
    back = (y + 1) / 2 * np.maximum(Q99 - Q01, 1e-8) + Q01
    np.testing.assert_allclose(theirs.inverse_actions(y, x[:1]), back, rtol=1e-6)
    # By default the first is 0 whatever is read, and the second has its extremes as ends.
    np.testing.assert_allclose(ours.state(x)[:, 0], 0.0)
    np.testing.assert_allclose(ours.state(x)[:, 1], [0.0, 3e-6], atol=1e-6)


def test_a_file_may_ask_for_it_and_keeps_it_when_it_is_imported(tmp_path: Path) -> None:
    raw = Stats(FEATURE, FEATURE, {"ranges": "published"}).to_json(width=16)
    file = tmp_path / "stats.json"
    file.write_text(json.dumps(raw))
    stats = import_stats(str(file), ARM)
    assert stats.metadata["ranges"] == "published"
    again = Stats.from_json(json.loads(json.dumps(stats.to_json())))
    assert Normalizer(again, ARM).state(np.array([[0.3 + 1e-8, 5.0, 0.0]]))[0, 0] == pytest.approx(
        1
    )


@pytest.mark.parametrize("asked", [False, True])
def test_a_job_may_ask_for_it(tmp_path: Path, asked: bool) -> None:
    root = write_v21(tmp_path / "set")
    ranges = "{ranges: published}" if asked else "{}"
    sets = [
        f"data.sources=[{{uri: {root}, embodiment: a}}]",
        f"data.embodiments={{a: {ranges}}}",
        "data.window={chunk: 4, stride: 1}",
    ]
    job = load_config(ROOT / "pipelines/stages/policy.yaml", TrainJob, sets)
    assert ("ranges" in job.data.embodiments["a"].model_dump()) == asked
    reader = FileReader()
    stats = compute_all_stats(job, resolve_embodiments(job, reader), reader)["a"]
    assert stats.metadata.get("ranges") == ("published" if asked else None)

"""Files of statistics: the forms that are read and written, and which may serve a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.data.stats.files import import_stats, read_stats_file, stats_for, to_openpi
from gwp.data.stats.normalise import Normalizer, Stats, compute_stats
from gwp.data.window import Window
from gwp.errors import DataError
from tests.support.sets import write_v21

WINDOW = Window(chunk=4, stride=1)
ARM = Embodiment(
    name="arm",
    fps=10,
    state_names=("x", "y", "grip"),
    action_names=("dx", "grip"),
    delta_mask=(True, False),
    cameras={"front": "c"},
    chunk=4,
    replan=2,
)
NAMES = ("mean", "std", "min", "max", "q01", "q99")


def written(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def sources(tmp_path: Path, *episodes: str | None) -> list[Source]:
    root = tmp_path / "set"
    if not root.exists():
        write_v21(root, lengths=(12, 9, 7), cameras=())
    return [Source(uri=str(root), embodiment="arm", episodes=e) for e in episodes or (None,)]


def same(a: Stats, b: Stats, names: tuple[str, ...] = NAMES) -> None:
    for x, y in ((a.state, b.state), (a.action, b.action)):
        for name in names:
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))


def test_the_published_form_is_padded_to_the_model_and_read_at_the_robots_width(
    tmp_path: Path,
) -> None:
    stats = compute_stats(sources(tmp_path), ARM, WINDOW)
    raw = stats.to_json(width=32)
    norm = raw["norm_stats"]
    assert {len(norm[key][name]) for key in norm for name in NAMES} == {32}
    assert raw["metadata"]["model_dim"] == 32
    # What is padding is no dimension that does not move.
    assert [norm[key]["constant"] for key in norm] == [[], []]
    file = written(tmp_path / "stats.json", raw)
    same(stats_for(file, ARM, WINDOW, sources(tmp_path)), stats)
    assert read_stats_file(file).metadata == raw["metadata"]
    with pytest.raises(DataError, match="of 3 dimensions do not fit a width of 2"):
        stats.to_json(width=2)


def published(tmp_path: Path, **metadata: Any) -> str:
    """As others write it: padded, with words of their own."""
    norm = compute_stats(sources(tmp_path), ARM, WINDOW).to_json(width=32)["norm_stats"]
    about = {
        "boundary": "clamp",
        "action_representation": "delta",
        "action_horizon": 4,
        "delta_mask": [True] + [False] * 31,
    }
    return written(
        tmp_path / "published.json",
        {"norm_stats": norm} | ({"metadata": about | metadata} if metadata else {}),
    )


def test_of_a_published_file_what_can_be_compared_is_compared(tmp_path: Path) -> None:
    stats = compute_stats(sources(tmp_path), ARM, WINDOW)
    for about in ({}, {"task_name": "fold"}):
        got = stats_for(published(tmp_path, **about), ARM, WINDOW, [], other_data=True)
        same(got, stats)
        assert got.metadata["imported"] | {"sha256": ""} == {
            "form": "published",
            "file": "published.json",
            "sha256": "",
            "min_max": "of the file",
            "rule": "not stated by the file",
        }
        assert len(got.metadata["imported"]["sha256"]) == 64
        assert got.metadata["of_other_data"] is True
    for about, message in (
        ({"action_horizon": 48}, "action_horizon 48, embodiment arm needs 4"),
        ({"delta_mask": [False] * 32}, "delta_mask"),
        ({"delta_mask": [True, False, True]}, "delta_mask"),
    ):
        with pytest.raises(DataError, match=rf"published\.json: .*{message}"):
            stats_for(published(tmp_path, **about), ARM, WINDOW, [], other_data=True)


def test_openpi_statistics_become_ours_and_say_so(tmp_path: Path) -> None:
    stats = compute_stats(sources(tmp_path), ARM, WINDOW)
    raw = to_openpi(stats)
    assert {key: sorted(values) for key, values in raw["norm_stats"].items()} == {
        key: ["mean", "q01", "q99", "std"] for key in ("state", "actions")
    }
    got = import_stats(written(tmp_path / "norm_stats.json", raw), ARM)
    same(got, stats, ("mean", "std", "q01", "q99"))
    about = got.metadata["imported"]
    assert (about["form"], about["file"], about["min_max"]) == (
        "openpi",
        "norm_stats.json",
        "absent; q01 and q99 stand in",
    )
    assert about["rule"] == "as its importer stated it"
    again = read_stats_file(written(tmp_path / "ours.json", got.to_json()))
    assert again.metadata == got.metadata
    same(again, got)
    wide = stats_for(
        written(tmp_path / "wide.json", got.to_json(width=32)), ARM, WINDOW, [], other_data=True
    )
    same(wide, got)
    assert wide.metadata == got.metadata | {"of_other_data": True}
    # Once imported, what was stated then binds.
    for changes in ({"chunk": 8}, {"delta_mask": ()}, {"action_names": ("dy", "grip")}):
        with pytest.raises(DataError, match=next(iter(changes)).replace("chunk", "action_horizon")):
            Normalizer(again, ARM.model_copy(update=changes))


def test_openpi_statistics_of_another_robot_are_refused(tmp_path: Path) -> None:
    raw = to_openpi(compute_stats(sources(tmp_path), ARM, WINDOW))
    file = written(tmp_path / "norm_stats.json", raw)
    with pytest.raises(
        DataError,
        match=r"norm_stats\.json: statistics have 3 state dimensions, embodiment arm has 4",
    ):
        import_stats(file, ARM.model_copy(update={"state_names": ("x", "y", "z", "grip")}))
    # These files are not padded.
    with pytest.raises(
        DataError,
        match=r"norm_stats\.json: 3 state dimensions, embodiment arm has 2; give the file of this robot",
    ):
        import_stats(file, ARM.model_copy(update={"state_names": ("x", "y")}))


GOOD = {"mean": [0.0], "std": [1.0], "q01": [-1.0], "q99": [1.0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not statistics: no JSON"),
        ([], "there is no norm_stats"),
        ({"a": 1}, "there is no norm_stats"),
        ("", "no JSON"),
        ({"norm_stats": {"state": GOOD}}, "is expected, there is state"),
        (
            {"norm_stats": {"observation.state": GOOD, "actions": GOOD}},
            "there is actions, observation.state",
        ),
        (
            {"norm_stats": {"state": GOOD, "actions": GOOD | {"q01": None, "q99": None}}},
            r"openpi statistics without quantiles",
        ),
        (
            {"norm_stats": {"state": {"mean": [0], "std": [1]}, "actions": GOOD}},
            "openpi statistics without quantiles",
        ),
        ({"norm_stats": {"state": 3, "actions": GOOD}}, "not statistics"),
        (
            {"norm_stats": {"state": GOOD | {"q99": [1.0, 2.0]}, "actions": GOOD}},
            "different lengths",
        ),
        (
            {"left": {"norm_stats": {"observation.state": GOOD, "action": GOOD}}},
            "holds statistics of left, none of arm",
        ),
    ],
)
def test_everything_else_is_refused_by_name(tmp_path: Path, content: Any, message: str) -> None:
    file = written(tmp_path / "file.json", content)
    with pytest.raises(DataError, match=rf"file\.json: .*{message}"):
        read_stats_file(file, "arm")


def test_the_statistics_of_an_earlier_run_are_found_by_robot(tmp_path: Path) -> None:
    stats = compute_stats(sources(tmp_path), ARM, WINDOW)
    file = written(tmp_path / "stats.json", {"arm": stats.to_json(), "other": {"norm_stats": {}}})
    same(stats_for(file, ARM, WINDOW, sources(tmp_path)), stats)


def test_statistics_serve_the_data_that_they_are_of(tmp_path: Path) -> None:
    def file(*episodes: str | None) -> str:
        return written(
            tmp_path / "stats.json",
            compute_stats(sources(tmp_path, *episodes), ARM, WINDOW).to_json(),
        )

    for computed, trained in (
        ((None,), (None,)),
        ((None,), ("0:2",)),
        (("0", "1:3"), (None,)),
        (("0:2",), ("1", "0")),
    ):
        stats_for(file(*computed), ARM, WINDOW, sources(tmp_path, *trained))
    with pytest.raises(
        DataError,
        match=r"stats\.json: computed without 2 episodes of .*set that are trained on, from 1; run",
    ):
        stats_for(file("0"), ARM, WINDOW, sources(tmp_path))
    whole = file(None)
    other = Source(
        uri=str(write_v21(tmp_path / "other", lengths=(12, 9, 8), cameras=())), embodiment="arm"
    )
    with pytest.raises(
        DataError,
        match=r"not computed on .*other \(\w{12}\), only on \w{12}; .*all sets .*`stats_of_other_data: true`",
    ):
        stats_for(whole, ARM, WINDOW, [*sources(tmp_path), other])
    assert stats_for(whole, ARM, WINDOW, [other], other_data=True).metadata["of_other_data"] is True
    # That is a word about data, not about the rule.
    with pytest.raises(DataError, match=r"stats\.json: .*action_horizon 4, embodiment arm needs 8"):
        stats_for(
            whole,
            ARM.model_copy(update={"chunk": 8}),
            Window(chunk=8, stride=2),
            [other],
            other_data=True,
        )


def test_statistics_that_do_not_say_what_they_are_of_need_the_users_word(tmp_path: Path) -> None:
    stats = compute_stats(sources(tmp_path), ARM, WINDOW)
    openpi = written(tmp_path / "norm_stats.json", to_openpi(stats))
    for file in (
        openpi,
        published(tmp_path),
        written(tmp_path / "ours.json", import_stats(openpi, ARM).to_json()),
    ):
        with pytest.raises(
            DataError,
            match=r"does not say which data it was computed on; .*`stats_of_other_data: true`",
        ):
            stats_for(file, ARM, WINDOW, sources(tmp_path))
        same(
            stats_for(file, ARM, WINDOW, sources(tmp_path), other_data=True),
            stats,
            ("mean", "std", "q01", "q99"),
        )
    for broken in ([{}], [{"fingerprint": "a", "episodes": "x"}], 3):
        raw = stats.to_json()
        file = written(
            tmp_path / "broken.json", raw | {"metadata": raw["metadata"] | {"datasets": broken}}
        )
        with pytest.raises(DataError, match=r"broken\.json: cannot read which data"):
            stats_for(file, ARM, WINDOW, sources(tmp_path))

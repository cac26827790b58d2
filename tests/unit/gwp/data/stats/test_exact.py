"""Statistics are those of the samples that training sees, to the last digit, whatever order and
pieces the rows come in.
"""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.plan.build import build_manifest
from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source, as_ranges, parse_ranges
from gwp.data.stats import windows as windows_module
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.moments import Moments
from gwp.data.stats.normalise import Stats, compute_stats
from gwp.data.window import ClipWindow, Window
from tests.support.other_sets import write_aloha, write_rlds
from tests.support.sets import FPS, TOP, WRIST, columns, write_v21, write_v30

CLIP = ClipWindow(frames=5, fps=5)
NAMES = ("mean", "std", "min", "max", "q01", "q99")


def arm(**changes: Any) -> Embodiment:
    fields: dict[str, Any] = {
        "name": "arm",
        "fps": 10,
        "state_names": ("x", "y", "grip"),
        "action_names": ("dx", "grip"),
        "delta_mask": (True, False),
        "cameras": {"front": TOP},
        "chunk": 4,
        "replan": 2,
    }
    return Embodiment(**(fields | changes))


def fill(root: Path, episode: int, state: np.ndarray, action: np.ndarray) -> None:
    """Other values into an episode of a v2.1 set."""
    table = columns(episode, len(state), wide=True)
    for name, values in (("observation.state", state), ("action", action)):
        table[name] = pa.array(list(values.astype(np.float64)), pa.list_(pa.float64()))
    pq.write_table(pa.table(table), root / f"data/chunk-000/episode_{episode:06d}.parquet")


def random_set(root: Path, seed: int, lengths: tuple[int, ...]) -> str:
    """Values that float32 holds exactly; a part that does not move; some rows with NaN."""
    rng = np.random.default_rng(seed)
    write_v21(root, lengths)
    for i, n in enumerate(lengths):
        state, action = (rng.integers(-999, 999, (n, d)) / 64 for d in (3, 2))
        state[:, 1] = 0.25
        if seed % 2:
            action[:, 1] = 1
        if n > 8:
            state[rng.integers(n), 0] = np.nan
            action[rng.integers(n // 2), 1] = np.inf
        fill(root, i, state, action)
    return str(root)


def seen(source: Source, robot: Embodiment, window: Window) -> tuple[np.ndarray, np.ndarray, int]:
    """States and delta actions of every sample of the loader, and how many samples it skips."""
    unit = [
        FeatureStats(*(np.full(d, v) for v in (0.0, 1.0, -1.0, 1.0, -1.0, 1.0))) for d in (3, 2)
    ]
    manifest = build_manifest([source], embodiments={robot.name: robot}, window=window, clip=CLIP)
    spec = SampleSpec(
        canvas=Canvas(layout="single", width=16, height=16),
        window=window,
        clip=CLIP,
        embodiments={robot.name: robot},
        stats={robot.name: Stats(*unit)},
        model_dim=3,
        augment=False,
        seed=0,
    )
    samples, skipped = decode_samples(manifest.table.to_pylist(), spec, FileReader())
    return (
        np.array([s["state"] for s in samples]),
        np.concatenate([s["actions"][:, :2] for s in samples]),
        len(skipped),
    )


CASES = [
    (0, 4, {}),
    (1, 8, {}),
    (2, 12, {"delta_mask": ()}),
    (3, 4, {"delta_mask": (True, True)}),
    (4, 4, {"fps": 5}),
    (5, 8, {"fps": 20, "resample": ("linear", "hold")}),
    (6, 4, {"fps": 4, "resample": ("linear", "sum")}),
]


@pytest.mark.parametrize(("seed", "chunk", "changes"), CASES)
def test_statistics_are_those_of_every_sample_of_the_loader(
    tmp_path: Path, seed: int, chunk: int, changes: dict[str, Any]
) -> None:
    rng = np.random.default_rng(seed)
    uri = random_set(tmp_path / "set", seed, (*(int(n) for n in rng.integers(2, 16, 2)), 14))
    robot, window = arm(chunk=chunk, **changes), Window(chunk=chunk, stride=chunk // 4)
    source = Source(uri=uri, embodiment="arm", resample=True)
    states, actions, skipped = seen(source, robot, window)
    stats = compute_stats([source], robot, window)
    assert skipped > 0
    assert stats.metadata["num_windows_left_out"] == skipped
    assert (stats.metadata["num_state_samples"], stats.metadata["num_action_samples"]) == (
        len(states),
        len(actions),
    )
    for found, rows in ((stats.state, states), (stats.action, actions)):
        x = rows.astype(np.float64)
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.std, x.std(0), rtol=0, atol=1e-12)
        want = (x.min(0), x.max(0), *np.quantile(x, [0.01, 0.99], axis=0))
        np.testing.assert_array_equal((found.min, found.max, found.q01, found.q99), want)
    assert stats.metadata["constant_state"] == ["y"]
    # Relative to a state that does not move either, it is still constant.
    assert stats.metadata["constant_action"] == (["grip"] if seed % 2 else [])


def test_an_episode_whose_rows_the_loader_cannot_read_does_not_count(tmp_path: Path) -> None:
    root = write_v21(tmp_path / "set", lengths=(12, 9, 5))
    table = columns(1, 9)
    table["action"] = pa.array([[0.0] * (2 + k % 2) for k in range(9)], pa.list_(pa.float32()))
    pq.write_table(pa.table(table), root / "data/chunk-000/episode_000001.parquet")
    (root / "data/chunk-000/episode_000002.parquet").unlink()
    stats = compute_stats(
        [Source(uri=str(root), embodiment="arm")], arm(), Window(chunk=4, stride=1)
    )
    assert stats.metadata["num_state_samples"] == 12
    (of,) = stats.metadata["datasets"]
    assert (
        of["episodes"],
        of["unusable_episodes"],
        of["num_episodes"],
        stats.metadata["num_episodes"],
    ) == ("0:3", "1:3", 1, 1)


@pytest.mark.parametrize("sample", [500, 2_000_000])
def test_order_and_pieces_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    monkeypatch.setattr(Moments, "SAMPLE", sample)
    rng = np.random.default_rng(0)
    for name in "ab":
        root = write_v21(tmp_path / name, lengths=(200, 90), cameras=(), robot_type=name)
        for i, n in enumerate((200, 90)):
            fill(root, i, rng.normal(size=(n, 3)), rng.normal(size=(n, 2)))
    # One set twice, by halves: the same episodes in another order.
    parts = [
        Source(uri=str(tmp_path / n), embodiment="arm", episodes=e)
        for n, e in (("a", "0"), ("b", None), ("a", "1"))
    ]
    window = Window(chunk=4, stride=1)
    first = compute_stats(parts, arm(), window)
    monkeypatch.setattr(windows_module, "PIECE", 7 * 4 * 2)
    again = compute_stats(parts[::-1], arm(), window)
    assert first.metadata["num_action_samples"] == 2 * 290 * 4
    for a, b in ((first.state, again.state), (first.action, again.action)):
        np.testing.assert_array_equal(
            [getattr(a, n) for n in NAMES[2:]], [getattr(b, n) for n in NAMES[2:]]
        )
        np.testing.assert_allclose(
            [getattr(a, n) for n in NAMES[:2]],
            [getattr(b, n) for n in NAMES[:2]],
            rtol=0,
            atol=1e-12,
        )
    assert first.metadata["fingerprint"] == again.metadata["fingerprint"]
    others = (
        compute_stats(parts[:2], arm(), window),
        compute_stats(parts, arm(chunk=8), Window(chunk=8, stride=2)),
    )
    assert len({s.metadata["fingerprint"] for s in (first, *others)}) == 3


def test_rows_in_any_order_give_the_same_fair_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, keys = rng.normal(3, 2, (5000, 2)) + 1000, rng.random(5000)
    monkeypatch.setattr(Moments, "SAMPLE", 2000)
    found = []
    for order, cuts in (
        (np.arange(5000), [1, 10, 1500, 4900]),
        (rng.permutation(5000), [2400, 2400, 2600]),
        (np.argsort(-keys), [4000]),
    ):
        running = Moments(2)
        for rows, k in zip(np.split(x[order], cuts), np.split(keys[order], cuts), strict=True):
            running.add(rows, k)
        found.append(running.result())
    for got in found:
        np.testing.assert_allclose(got["std"], x.std(0), rtol=1e-12)
        np.testing.assert_allclose(got["mean"], x.mean(0), rtol=1e-12)
        np.testing.assert_array_equal((got["min"], got["max"]), (x.min(0), x.max(0)))
        np.testing.assert_array_equal((got["q01"], got["q99"]), (found[0]["q01"], found[0]["q99"]))
        np.testing.assert_allclose(
            (got["q01"], got["q99"]), np.quantile(x, [0.01, 0.99], axis=0), atol=0.5
        )
    lowest = x[np.argsort(keys)[:2000]].astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(found[0]["q99"], np.quantile(lowest, 0.99, axis=0))


def test_a_value_that_never_changes_has_no_width() -> None:
    # 0.1 is no float32, in which rows are kept.
    running = Moments(1)
    running.add(np.full((100, 1), 0.1), np.random.default_rng(0).random(100))
    found = running.result()
    assert found["q01"] == found["q99"] == found["min"] == found["max"] == 0.1


def test_the_windows_are_never_in_memory_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, chunk = 15_000, 96
    root = write_v21(tmp_path / "set", lengths=(rows,), cameras=())
    robot, window = arm(chunk=chunk), Window(chunk=chunk, stride=24)
    monkeypatch.setattr(Moments, "SAMPLE", 20_000)
    monkeypatch.setattr(windows_module, "PIECE", 1 << 16)
    tracemalloc.start()
    stats = compute_stats([Source(uri=str(root), embodiment="arm")], robot, window)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stats.metadata["num_action_samples"] == rows * chunk
    # Float64 windows are 23 MB.
    assert peak < rows * chunk * 2 * 8 / 3


def test_ranges_are_written_as_they_are_read() -> None:
    for numbers in ([], [3], [0, 1, 2], [0, 2, 3, 9], list(range(5)) + list(range(7, 20))):
        text = as_ranges(reversed(numbers))
        assert [i for part in (parse_ranges(text) if text else []) for i in part] == numbers
    assert as_ranges([7, 0, 1, 2, 2]) == "0:3,7"


LACKING: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "v2.1": (lambda root: write_v21(root, cameras=(TOP, WRIST)), {}),
    "v3.0": (lambda root: write_v30(root, cameras=(TOP, WRIST)), {}),
    "aloha": (lambda root: write_aloha(root, lost=2), {"fps": FPS}),
    "rlds": (lambda root: write_rlds(root, lost=2), {"fps": FPS}),
}


@pytest.mark.parametrize("name", LACKING)
@pytest.mark.parametrize("ratio", [1, 2])
def test_an_episode_that_lacks_pictures_trains_nothing_and_counts_for_nothing(
    tmp_path: Path, name: str, ratio: int
) -> None:
    write, fields = LACKING[name]
    root = write(tmp_path / "set")
    for video in (f"chunk-000/{WRIST}/episode_000001", f"{WRIST}/chunk-000/file-001"):
        (root / f"videos/{video}.mp4").unlink(missing_ok=True)
    source = Source(uri=str(root), embodiment="arm", resample=ratio != 1, **fields)
    data = robots_at(source)
    assert data is not None
    robot = embodiment_of(data, "arm", 4, 2, cameras={"front": TOP, "left": WRIST})
    robot = robot.model_copy(update={"fps": FPS / ratio})
    window = Window(chunk=4, stride=1)
    for cameras in (None, {"front": TOP}):
        chosen = source.model_copy(update={"cameras": cameras})
        manifest = build_manifest([chosen], embodiments={"arm": robot}, window=window, clip=CLIP)
        stats = compute_stats([chosen], robot, window)
        assert len(manifest) == stats.metadata["num_state_samples"]
        assert stats.metadata["num_episodes"] == (1 if cameras is None else 2)
        (of,) = stats.metadata["datasets"]
        assert of["episodes"] == "0:2"

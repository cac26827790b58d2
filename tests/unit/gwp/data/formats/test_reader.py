"""What a reader keeps: files are read once by their owner, and by nobody else."""

import ast
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gwp import storage
from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.formats.vectors import episode_vectors
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from tests.support.other_sets import write_aloha, write_rlds, write_stills
from tests.support.paths import ROOT
from tests.support.sets import FPS, TOP, WRIST, write_v30

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
FORMATS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "stills": (partial(write_stills, version="v2.1"), {}),
    "aloha": (write_aloha, {"fps": FPS}),
    "rlds": (partial(write_rlds, shards=(1, 1)), {"fps": FPS}),
}
DATA = {"stills": "data/*/*.parquet", "aloha": "*.hdf5", "rlds": "*.tfrecord*"}


def double(x: int) -> list[int]:
    return [2 * x]


def test_the_last_used_results_stay() -> None:
    reader = FileReader()
    first, second = reader.once(2, double, 1), reader.once(2, double, 2)
    assert reader.once(2, double, 1) is first
    reader.once(2, double, 3)
    # 2 was used longest ago.
    assert reader.once(2, double, 1) is first
    again = reader.once(2, double, 2)
    assert again == second
    assert again is not second


def test_two_readers_share_nothing() -> None:
    one, other = FileReader(), FileReader()
    assert one.once(9, double, 1) is one.once(9, double, 1)
    assert one.once(9, double, 1) is not other.once(9, double, 1)


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    reader, uri = FileReader(), str(tmp_path / "late")
    with pytest.raises(FileNotFoundError):
        reader.once(9, Path.read_bytes, Path(uri))
    (tmp_path / "late").write_bytes(b"here")
    assert reader.once(9, Path.read_bytes, Path(uri)) == b"here"


def prepared(uri: Path, fields: dict[str, Any], reader: FileReader) -> tuple[Any, SampleSpec]:
    source = Source(uri=str(uri), embodiment="arm", **fields)
    data = robots_at(source, reader)
    assert data is not None
    arm = embodiment_of(data, "arm", 4, 2)
    robots = {"arm": arm}
    manifest = build_manifest([source], embodiments=robots, window=WINDOW, clip=CLIP, reader=reader)
    stats = {"arm": compute_stats([source], arm, WINDOW, reader)}
    canvas = Canvas(layout="horizontal", width=64, height=32)
    return manifest, SampleSpec(canvas, WINDOW, CLIP, robots, stats, 6, False, 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is opened, by its name."""
    counts: Counter[str] = Counter()
    really = storage.open_read

    def counting(uri: str, *args: Any) -> Any:
        counts[Path(uri).name] += 1
        return really(uri, *args)

    monkeypatch.setattr(storage, "open_read", counting)
    return counts


@pytest.mark.parametrize("name", FORMATS)
def test_the_preparation_of_a_run_reads_data_files_once(
    tmp_path: Path, opened: Counter[str], name: str
) -> None:
    """Robots, manifest and statistics each look at the whole set."""
    write, fields = FORMATS[name]
    write(tmp_path / "set")
    reader = FileReader()
    prepared(tmp_path / "set", fields, reader)
    assert opened
    opened.clear()
    prepared(tmp_path / "set", fields, reader)
    assert not opened
    prepared(tmp_path / "set", fields, FileReader())
    assert opened


def test_a_decoding_process_reads_row_groups_once(tmp_path: Path, opened: Counter[str]) -> None:
    write_v30(tmp_path / "set", cameras=(TOP, WRIST))
    manifest, spec = prepared(tmp_path / "set", {}, FileReader())
    reader = FileReader()
    table = "file-000.parquet"
    opened.clear()
    for ids in ([0, 1], [2, 3], [15]):
        _, failed = decode_samples(manifest.rows(ids), spec, reader)
        assert not failed
    # The row groups of the file, and one of them for each of the two episodes.
    assert 2 <= opened[table] <= 3
    opened.clear()
    decode_samples(manifest.rows([1, 14]), spec, reader)
    assert not opened[table]


@pytest.mark.parametrize("name", FORMATS)
def test_files_written_again_are_seen_by_a_new_reader(tmp_path: Path, name: str) -> None:
    """Two episodes change places, as when a recording is corrected under its old name."""
    write, fields = FORMATS[name]
    write(tmp_path / "set", lengths=(9, 9))
    # Whose rows they are is said by the names of files alone.
    for file in (tmp_path / "set/data").rglob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["episode_index"]), file)
    before = actions(tmp_path / "set", fields)
    assert before[0] != before[1]
    files = sorted(file for file in (tmp_path / "set").rglob("*") if file.match(DATA[name]))
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)
    assert actions(tmp_path / "set", fields) == before[::-1]


def actions(uri: Path, fields: dict[str, Any]) -> list[list[list[float]]]:
    """Of every episode, as a new reader sees them."""
    reader, source = FileReader(), Source(uri=str(uri), embodiment="arm", **fields)
    data = robots_at(source, reader)
    assert data is not None
    good, _ = usable_episodes(data, source, [], reader)
    return [episode_vectors(data, e, first, reader)[1].tolist() for e, first in good]


def test_nothing_else_keeps_what_was_read() -> None:
    """A module that does would serve old files to whoever comes next in its process."""
    keeping = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "gwp/data").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(d).split("(")[0] in ("lru_cache", "cache") for d in node.decorator_list)
    ]
    assert not keeping

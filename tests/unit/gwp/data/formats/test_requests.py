"""What sets far away cost: each of their files is asked for once, and only the ends of a large
one.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp import storage
from gwp.data.formats.files.reader import FileReader, several
from gwp.data.formats.files.spool import Spool
from gwp.data.formats.find import robots_at
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.video.probe import open_to_probe, probe
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from pipelines.datasets.inspect import describe
from tests.support.faults import FaultyProxy, faulty_s3
from tests.support.other_sets import write_aloha, write_stills
from tests.support.sets import FPS, TOP, WRIST, write_pictures, write_v21, write_v30, write_video

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
LENGTHS = (5, 3)
FORMATS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "v21": (partial(write_v21, lengths=LENGTHS, cameras=(TOP, WRIST)), {}),
    "v30": (partial(write_v30, lengths=LENGTHS, cameras=(TOP, WRIST)), {}),
    "stills": (partial(write_stills, version="v2.1", lengths=LENGTHS), {}),
    "aloha": (partial(write_aloha, lengths=LENGTHS), {"fps": FPS}),
    "clips": (lambda root: write_clips(root), {}),
}


def write_clips(root: Path) -> None:
    """Three videos, two of them with a caption beside."""
    for name in ("a", "b", "c"):
        write_video(root / f"{name}.mp4", range(9))
    (root / "a.txt").write_text("a")
    (root / "b.json").write_text('{"caption": "b"}')


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    """S3 with a set of each format, behind a proxy that counts."""
    with faulty_s3("far-away") as found:
        for name, (write, _) in FORMATS.items():
            root = tmp_path_factory.mktemp(name) / "set"
            write(root)
            storage.upload(root, f"s3://far-away/{name}")
        yield found


def asked_for(proxy: FaultyProxy, folder: str) -> Counter[str]:
    """Requests for each file since the last time."""
    # A question for the size (HEAD) may come first.
    mine = Counter(
        r.partition("?")[0] for r in proxy.requests if f"/{folder}/" in r and r.startswith("GET")
    )
    proxy.requests.clear()
    return mine


@pytest.mark.parametrize("name", FORMATS)
def test_inspection_asks_for_each_file_once(proxy: FaultyProxy, tmp_path: Path, name: str) -> None:
    write, fields = FORMATS[name]
    write(tmp_path / "set")
    near = describe(Source(uri=str(tmp_path / "set"), **fields))
    proxy.requests.clear()
    far = describe(Source(uri=f"s3://far-away/{name}", **fields))
    counts = asked_for(proxy, name)
    files = {f"GET /far-away/{name}/{file}" for file in storage.list_files(str(tmp_path / "set"))}
    assert set(counts) <= files
    assert len(counts) >= len(files) - 2
    # Of videos also some pictures are looked at.
    videos = sum(".mp4" in request for request in files)
    assert counts.total() <= len(files) + 4 * videos
    assert max(n for request, n in counts.items() if ".mp4" not in request or name == "clips") == 1
    for facts in (near, far):
        facts.pop("uri")
    assert far == near


@pytest.mark.parametrize("name", FORMATS)
def test_the_preparation_of_a_run_asks_for_each_file_once(proxy: FaultyProxy, name: str) -> None:
    """Robots, manifest and statistics look at the same set."""
    source = Source(uri=f"s3://far-away/{name}", **FORMATS[name][1])
    reader, robots = FileReader(), {}
    data = robots_at(source, reader)
    if data is not None:
        robots = {"arm": embodiment_of(data, "arm", 4, 2)}
        source = source.model_copy(update={"embodiment": "arm"})
    proxy.requests.clear()
    reader = FileReader()
    build_manifest([source], embodiments=robots, window=WINDOW, clip=CLIP, reader=reader)
    for arm in robots.values():
        compute_stats([source], arm, WINDOW, reader)
    assert set(asked_for(proxy, name).values()) == {1}
    lists = [request for request in proxy.requests if "list-type" in request]
    assert len(lists) <= 1


def test_a_small_file_is_kept_and_a_large_one_is_not(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ENDS", 20)
    reader = FileReader()
    for size, again in ((100, 0), (101, 1)):
        uri, data = f"s3://far-away/kept/{size}", bytes(range(size))
        storage.write_bytes(uri, data)
        asked_for(proxy, "kept")
        reader.fetch(uri, size, 100)
        # Both ends of the larger one.
        assert asked_for(proxy, "kept").total() == 1 + again
        with reader.open(uri, size, 100) as handle:
            assert handle.read() == data
        asked_for(proxy, "kept")
        with reader.open(uri, size, 100) as handle:
            assert handle.read() == data
        assert bool(asked_for(proxy, "kept")) == bool(again)


def test_any_part_of_a_file_comes_from_its_ends_or_from_between(proxy: FaultyProxy) -> None:
    rng = np.random.default_rng(0)
    data = rng.bytes(5000)
    uri = "s3://far-away/ends/file"
    storage.write_bytes(uri, data)
    for ahead in (100, 2000, 2600, 9000):
        for native in (False, True):
            ends = storage.read_ends(uri, len(data), ahead)
            with storage.open_ends(uri, len(data), ends, ahead, native) as handle:
                for begin, size in rng.integers(0, 5200, (30, 2)).tolist():
                    handle.seek(begin)
                    assert handle.read(size) == data[begin : begin + size]
    asked_for(proxy, "ends")
    ends = storage.read_ends(uri, len(data), 1000)
    with storage.open_ends(uri, len(data), ends, 1000) as handle:
        handle.read(900)
        handle.seek(4100)
        handle.read()
    assert list(asked_for(proxy, "ends").values()) == [2]


def test_a_large_video_is_known_from_its_ends(proxy: FaultyProxy, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 144, 192, 3), np.uint8)
    video = write_pictures(tmp_path / "a.mp4", list(noise), gop=2)
    size = video.stat().st_size
    assert size > 1 << 20
    uri = "s3://far-away/video/a.mp4"
    storage.put_file(video, uri)
    proxy.requests.clear()
    before = proxy.bytes_out
    with open_to_probe(uri, size) as handle, video.open("rb") as near:
        assert probe(handle) == probe(near)
    assert list(asked_for(proxy, "video").values()) == [2]
    assert proxy.bytes_out - before < 0.6 * (1 << 20)


def test_a_file_of_another_size_is_told(proxy: FaultyProxy) -> None:
    uri = "s3://far-away/changed/file"
    storage.write_bytes(uri, b"12345")
    assert storage.read_bytes(uri, 5) == b"12345"
    for size in (4, 6):
        with pytest.raises(DataError, match="changed while it was read"):
            storage.read_bytes(uri, size)
    asked_for(proxy, "changed")


def test_several_keep_the_order_and_raise_what_one_raised() -> None:
    def work(n: int) -> int:
        if n == 150:
            raise ValueError("150")
        return n

    for uri in ("s3://far-away/x", "/near"):
        assert list(several(uri, work, range(140))) == list(range(140))
        got: list[int] = []
        with pytest.raises(ValueError, match="150"):
            got.extend(several(uri, work, range(1000)))
        # What came before the error.
        assert got == list(range(150))


def test_a_spool_holds_no_more_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gwp.data.formats.files.spool._LIMIT", 10)
    spool = Spool()
    assert spool.get("a") is None
    for name, data in (("a", b"123456"), ("b", b"12345"), ("c", b"1234"), ("a", b"no")):
        spool.put(name, data)
    assert [spool.get(name) for name in "abc"] == [b"123456", None, b"1234"]


def test_without_a_folder_for_temporary_files_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    spool = Spool()
    assert not spool.put("a", b"1")
    assert spool.get("a") is None

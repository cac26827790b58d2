"""Storage on a bad day: what passes is waited for, what does not is told at once, and no byte
is made up.
"""

import random
from collections.abc import Iterator

import pytest

from gwp import storage
from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.video.decode import decode_frames, open_video
from gwp.data.window import ClipWindow, Window
from gwp.errors import GwpError, MissingError
from gwp.storage.retry import PATIENCE
from tests.support.faults import FaultyProxy, faulty_s3
from tests.support.sets import frame_number, write_video

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
TRANSIENT = ("slow down", "error", "reset", "short", "slow")


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    with faulty_s3("bad-day") as found:
        yield found


@pytest.fixture(autouse=True)
def _calm(proxy: FaultyProxy) -> Iterator[None]:
    yield
    proxy.fault = lambda *_: None


def every_other(fault: str, method: str = "GET"):
    """Each second request of a method fails, from the first on."""
    turn = [0]

    def decide(got: str, *_: str) -> str | None:
        if got != method:
            return None
        turn[0] += 1
        return fault if turn[0] % 2 else None

    return decide


@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_passes_is_tried_again_and_the_bytes_are_right(proxy: FaultyProxy, fault: str) -> None:
    data = random.Random(0).randbytes(200_000)
    proxy.fault = every_other(fault, "PUT") if fault in ("slow down", "error") else lambda *_: None
    storage.write_bytes("s3://bad-day/x", data)
    before = proxy.faults
    proxy.fault = every_other(fault)
    assert storage.read_bytes("s3://bad-day/x") == data
    assert storage.list_files("s3://bad-day/")["x"] == len(data)
    assert proxy.faults > before


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_walk_through_a_video_survives_every_kind_of_fault(
    proxy: FaultyProxy, tmp_path, fault: str
) -> None:
    path = write_video(tmp_path / "a.mp4", range(60), gop=4)
    storage.write_bytes("s3://bad-day/v.mp4", path.read_bytes())
    proxy.fault = every_other(fault)
    # No size given: the handle reads ranges.
    with open_video("s3://bad-day/v.mp4") as handle:
        assert [frame_number(f) for f in decode_frames(handle, [0.0, 2.0, 5.9])] == [0, 20, 59]


def test_a_few_frames_of_a_large_file_are_a_few_ranges(proxy: FaultyProxy, tmp_path) -> None:
    path = write_video(tmp_path / "a.mp4", [k % 80 for k in range(400)], gop=10)
    data = path.read_bytes()
    # A free box of 40 MB between index and frames stands for the rest of a long recording.
    storage.write_bytes(
        "s3://bad-day/big.mp4",
        data + (40_000_000).to_bytes(4, "big") + b"free" + bytes(40_000_000 - 8),
    )
    before = proxy.bytes_out
    with open_video("s3://bad-day/big.mp4", len(data) + 40_000_000) as handle:
        decode_frames(handle, [0.0, 1.0])
    assert proxy.bytes_out - before < 14_000_000


def test_storage_that_keeps_failing_is_told_and_not_taken_for_bad_data(
    proxy: FaultyProxy, tmp_path, monkeypatch
) -> None:
    write_video(tmp_path / "set/a.mp4", range(30))
    storage.upload(tmp_path / "set", "s3://bad-day/set")
    found = build_manifest(
        [Source(uri="s3://bad-day/set")], embodiments={}, window=WINDOW, clip=CLIP
    )
    spec = SampleSpec(
        Canvas(layout="single", width=64, height=48), WINDOW, CLIP, {}, {}, 4, False, 0
    )
    monkeypatch.setenv(PATIENCE, "0.5")
    proxy.fault = lambda *_: "slow down"
    with pytest.raises(
        GwpError, match=r"storage keeps failing .*; try later, or raise GWP_STORAGE_PATIENCE_S"
    ):
        decode_samples(found.table.to_pylist(), spec, FileReader())
    proxy.fault = lambda _, path, __: "vanished" if "a.mp4" in path else None
    samples, failed = decode_samples(found.table.to_pylist(), spec, FileReader())
    assert not samples
    assert len(failed) == found.table.num_rows
    assert all("s3://bad-day/set/a.mp4: not found" in reason for _, reason in failed)


def test_what_is_not_there_is_told_at_once(proxy: FaultyProxy) -> None:
    count = len(proxy.requests)
    with pytest.raises(MissingError, match="not found; check the URI"):
        storage.read_bytes("s3://bad-day/never")
    assert len(proxy.requests) - count <= 2


def test_expired_credentials_are_taken_anew_once(proxy: FaultyProxy, monkeypatch) -> None:
    storage.write_bytes("s3://bad-day/secret", b"x")
    proxy.fault = lambda _, __, key: "expired" if key == "k" else None
    # What the environment says now holds, not what it said when the first file was read.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
    assert storage.read_bytes("s3://bad-day/secret") == b"x"
    proxy.fault = lambda *_: "expired"
    count = len(proxy.requests)
    with pytest.raises(GwpError, match="credentials have expired or are wrong; renew them"):
        storage.read_bytes("s3://bad-day/secret")
    # A look at the object, the client's at the bucket's region, and the question why; all once
    # more with credentials read anew.
    assert len(proxy.requests) - count <= 6


def test_a_lost_answer_to_a_write_is_not_taken_for_anothers_file(proxy: FaultyProxy) -> None:
    proxy.fault = every_other("reset", "PUT")
    storage.write_bytes("s3://bad-day/once", b"mine" * 1000, create_only=True)
    proxy.fault = lambda *_: None
    with pytest.raises(FileExistsError):
        storage.write_bytes("s3://bad-day/once", b"other", create_only=True)
    assert storage.read_bytes("s3://bad-day/once") == b"mine" * 1000

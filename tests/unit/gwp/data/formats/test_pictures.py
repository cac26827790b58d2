"""Pictures as they are declared, or one line that says why not."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, set_at, usable_episodes
from gwp.data.formats.pictures import as_rgb
from gwp.data.plan.build import build_manifest
from gwp.data.plan.manifest import Manifest
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from tests.support import other_sets
from tests.support.other_sets import write_aloha, write_rlds, write_stills
from tests.support.sets import FPS, TOP, WRIST, write_pictures, write_v30

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
CANVAS = Canvas(layout="single", width=64, height=48)
RED = (200, 90, 20)


def red(*_: Any) -> np.ndarray:
    return np.full((48, 64, 3), RED, np.uint8)


def frames_of(source: Source, canvas: Canvas = CANVAS) -> np.ndarray:
    manifest = build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)
    spec = SampleSpec(canvas, WINDOW, CLIP, {}, {}, 1, False, 0)
    samples, failed = decode_samples(manifest.rows([0]), spec, FileReader())
    assert not failed
    frames: np.ndarray = samples[0]["frames"]
    return frames


def red_video(root: Path) -> Path:
    write_v30(root)
    write_pictures(root / f"videos/{TOP}/chunk-000/file-000.mp4", [red()] * 21)
    return root


def red_clips(root: Path) -> Path:
    write_pictures(root / "a.mp4", [red()] * 21)
    return root


SETS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "LeRobot video": (red_video, {}),
    "pictures in LeRobot": (lambda root: write_stills(root, "v3.0"), {}),
    "pictures in LeRobot v2": (lambda root: write_stills(root, "v2.1"), {}),
    "raw hdf5": (write_aloha, {"fps": FPS}),
    "jpeg hdf5": (lambda root: write_aloha(root, compress=True), {"fps": FPS}),
    "rlds": (write_rlds, {"fps": FPS}),
    "clips": (red_clips, {}),
}


@pytest.mark.parametrize("name", SETS)
def test_bgr_exchanges_red_and_blue_whatever_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(other_sets, "picture", red)
    write, fields = SETS[name]
    source = Source(uri=str(write(tmp_path / "set")), **fields)
    plain = frames_of(source)
    assert np.abs(plain.astype(int) - RED).max() < 12
    exchanged = frames_of(source.model_copy(update={"colours": "bgr"}))
    np.testing.assert_array_equal(exchanged, plain[..., ::-1])


def test_colours_are_part_of_what_the_fingerprint_covers(tmp_path: Path) -> None:
    source = Source(uri=str(write_stills(tmp_path / "set", "v3.0")))
    plain, other = (
        build_manifest(
            [source.model_copy(update={"colours": c})], embodiments={}, window=WINDOW, clip=CLIP
        )
        for c in ("rgb", "bgr")
    )
    assert plain.fingerprint != other.fingerprint
    other.save(str(tmp_path / "manifest.parquet"))
    assert Manifest.load(str(tmp_path / "manifest.parquet")).rows([0])[0]["bgr"] is True


def test_a_manifest_of_before_is_of_rgb(tmp_path: Path) -> None:
    source = Source(uri=str(write_stills(tmp_path / "set", "v3.0")))
    manifest = build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)
    place = str(tmp_path / "manifest.parquet")
    manifest.save(place)
    table = pq.read_table(place)
    pq.write_table(table.drop_columns(["bgr"]), place)
    old = Manifest.load(place)
    assert old.rows(range(len(old))) == manifest.rows(range(len(manifest)))
    assert old.fingerprint == manifest.fingerprint


def encoded(picture: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind)
    return out.getvalue()


GREY = np.arange(30, dtype=np.uint8).reshape(5, 6) * 8
COLOUR = np.arange(90, dtype=np.uint8).reshape(5, 6, 3) * 2
ALPHA = np.concatenate([COLOUR, GREY[..., None]], -1)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (COLOUR, COLOUR),
        (COLOUR.transpose(2, 0, 1), COLOUR),
        (GREY, np.repeat(GREY[..., None], 3, -1)),
        (GREY[..., None], np.repeat(GREY[..., None], 3, -1)),
        (GREY[None], np.repeat(GREY[..., None], 3, -1)),
        (ALPHA, COLOUR),
        (ALPHA.transpose(2, 0, 1)[:, :, :2], COLOUR[:, :2]),
        (encoded(COLOUR), COLOUR),
        (encoded(GREY), np.repeat(GREY[..., None], 3, -1)),
        (encoded(ALPHA), COLOUR),
    ],
)
def test_pictures_become_rgb_by_what_they_declare(given: Any, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(as_rgb(given, "a picture"), wanted)


@pytest.mark.parametrize(
    "given",
    [
        GREY.astype(np.uint16) * 300,
        COLOUR.astype(np.float32) / 255,
        encoded(GREY.astype(np.uint16) * 300),
        encoded(GREY.astype(np.float32), "TIFF"),
        np.zeros((5, 6, 2), np.uint8),
        np.zeros((2, 5, 6, 3), np.uint8),
        b"",
        None,
        b"no picture",
    ],
)
def test_what_is_no_colour_picture_is_one_line(given: Any) -> None:
    with pytest.raises(DataError, match=r"^a picture ") as caught:
        as_rgb(given, "a picture")
    assert str(caught.value).isprintable()
    assert "0x" not in str(caught.value)


def deep_png(channels: int) -> bytes:
    """Of 16 bits a channel, as Pillow does not write them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", 6, 5, 16, colour, 0, 0, 0)
    rows = (b"\0" + np.full(6 * channels, 1500, ">u2").tobytes()) * 5
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pictures_of_16_bits_are_refused(channels: int) -> None:
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        as_rgb(deep_png(channels), "a picture")


def tiff(channels: int, kind: str) -> bytes:
    """Numbers of a type, 2 x 2 pixels; Pillow writes none of 16 bits and several channels."""
    data = np.arange(4 * channels).astype(kind).tobytes()
    bits = struct.pack("<H", 8 * np.dtype(kind).itemsize) * channels
    place = 10 + 12 * 9 + 4
    about = [(256, 2), (257, 2), (258, place), (259, 1), (262, 2), (273, place + len(bits))]
    about += [(277, channels), (278, 2), (279, len(data))]
    counts = {258: channels}
    entries = [struct.pack("<HHII", tag, 3, counts.get(tag, 1), value) for tag, value in about]
    return b"".join([b"II*\0", struct.pack("<IH", 8, 9), *entries, b"\0\0\0\0", bits, data])


@pytest.mark.parametrize(
    ("deep", "plain"),
    [
        (tiff(3, "<u2"), tiff(3, "<u1")),
        (tiff(4, "<u2"), tiff(4, "<u1")),
        (b"P6\n2 2\n65535\n" + bytes(24), b"P6\n2 2\n255\n" + bytes(12)),
    ],
)
def test_other_forms_of_16_bits_are_refused(deep: bytes, plain: bytes) -> None:
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        as_rgb(deep, "a picture")
    assert as_rgb(plain, "a picture").shape == (2, 2, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("way", range(1, 9))
def test_pictures_are_as_their_exif_says(kind: str, way: int) -> None:
    picture = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))
    stored, about, file = Image.fromarray(picture).convert("RGB"), Image.Exif(), io.BytesIO()
    about[0x0112] = way
    stored.save(file, kind, exif=about.tobytes(), lossless=True, quality=100)
    found = as_rgb(file.getvalue(), "a picture")
    # The eight ways of TIFF: where the first row and the first column are.
    ways = {1: "", 2: "x", 3: "xy", 4: "y", 5: "t", 6: "tx", 7: "txy", 8: "ty"}
    wanted = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    for step in ways[way]:
        wanted = {
            "x": wanted[:, ::-1],
            "y": wanted[::-1],
            "t": wanted.transpose(1, 0, 2),
        }[step]
    np.testing.assert_array_equal(found, wanted)


def by_path(root: Path, name: str, version: str = "v3.0") -> str:
    """A set whose rows name the pictures of one camera and do not hold them."""
    write_stills(root, version)
    for file in root.glob("data/**/*.parquet"):
        table = pq.read_table(file)
        struct = [{"bytes": None, "path": name.format(k)} for k in range(len(table))]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = table.column_names.index(TOP)
        pq.write_table(table.set_column(column, TOP, pa.array(struct, kind)), file)
    return str(root)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_pictures_that_are_named_are_read_from_the_set(tmp_path: Path, version: str) -> None:
    uri = by_path(tmp_path / "set", "images/frame_{:03d}.png", version)
    for k in range(21):
        place = tmp_path / f"set/images/frame_{k:03d}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(encoded(np.full((48, 64, 3), 10 * k, np.uint8)))
    found = frames_of(Source(uri=uri, cameras={"front": TOP}))
    assert found[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("images/{}.png", ".png is not there"),
        ("/home/me/{}.png", "/home/me/"),
        ("../{}.png", "leads out of its folder"),
        ("C:{}.png", "by path only"),
    ],
)
def test_a_camera_without_any_picture_is_not_usable(tmp_path: Path, name: str, reason: str) -> None:
    data = robots_at(Source(uri=by_path(tmp_path / "set", name)))
    assert data is not None
    source = Source(uri=data.uri)
    good, bad = usable_episodes(data, source, [WRIST, TOP])
    assert not good
    assert [episode.index for episode, _ in bad] == [0, 1]
    assert all(reason in why for _, why in bad)
    good, bad = usable_episodes(data, source, [WRIST])
    assert (len(good), bad) == (2, [])


def test_one_damaged_picture_costs_no_episode(tmp_path: Path) -> None:
    root = write_stills(tmp_path / "set", "v2.1")
    file = root / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(file)
    rows = table[TOP].to_pylist()
    rows[0]["bytes"] = b"no picture"
    column = table.column_names.index(TOP)
    pq.write_table(table.set_column(column, TOP, pa.array(rows, table[TOP].type)), file)
    data = robots_at(Source(uri=str(root)))
    assert data is not None
    good, bad = usable_episodes(data, Source(uri=str(root)), [TOP])
    assert (len(good), bad) == (2, [])


def test_depth_is_never_the_view_of_a_source_that_names_none(tmp_path: Path) -> None:
    root = write_aloha(tmp_path / "set", cameras=("cam_depth", "cam_high"))
    data = robots_at(Source(uri=str(root), fps=FPS))
    assert data is not None
    assert data.slots(None) == {"front": "cam_high"}
    manifest = build_manifest(
        [Source(uri=str(root), fps=FPS)], embodiments={}, window=WINDOW, clip=CLIP
    )
    assert {view["key"] for view in manifest.rows([0])[0]["views"]} == {
        "observations/images/cam_high"
    }


def test_colours_may_differ_from_camera_to_camera(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_sets, "picture", red)
    cameras = {"front": TOP, "left": WRIST}
    source = Source(uri=str(write_aloha(tmp_path / "set")), fps=FPS, cameras=cameras)
    some, every, none = (
        source.model_copy(update={"colours": colours})
        for colours in ({WRIST: "bgr", TOP: "rgb"}, {TOP: "bgr", WRIST: "bgr"}, {TOP: "rgb"})
    )
    wide = Canvas(layout="horizontal", width=128, height=48)
    plain, mixed = frames_of(source, wide), frames_of(some, wide)
    exchanged = (mixed != plain).any(-1)
    # Only the part of the canvas that the wrist has.
    assert 0 < exchanged.mean() < 1
    np.testing.assert_array_equal(mixed[exchanged], plain[exchanged][..., ::-1])
    bgr = source.model_copy(update={"colours": "bgr"})
    np.testing.assert_array_equal(frames_of(every, wide), frames_of(bgr, wide))
    made = {
        name: build_manifest([s], embodiments={}, window=WINDOW, clip=CLIP)
        for name, s in (("plain", source), ("none", none), ("some", some))
    }
    # What changes nothing is no part of what names a manifest.
    assert made["none"].fingerprint == made["plain"].fingerprint != made["some"].fingerprint
    made["some"].save(str(tmp_path / "manifest.parquet"))
    (row,) = Manifest.load(str(tmp_path / "manifest.parquet")).rows([0])
    assert (row["bgr"], row["bgr_slots"]) == (False, ["left"])


def test_colours_of_no_camera_are_refused(tmp_path: Path) -> None:
    root = write_aloha(tmp_path / "set")
    with pytest.raises(DataError, match="`colours` names wrist; the cameras of the set are obs"):
        set_at(Source(uri=str(root), fps=FPS, colours={"wrist": "bgr"}))
    clips = red_clips(tmp_path / "clips")
    with pytest.raises(DataError, match="plain videos have no cameras"):
        set_at(Source(uri=str(clips), colours={"a": "bgr"}))

"""Pictures are scaled to the same numbers from planes and from RGB, by compiled code and by
torch, and nothing else is read or written.
"""

import ctypes
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from gwp import scale
from gwp.data.video.decode import frames_at
from gwp.native import build
from gwp.scale import scale_part
from gwp.yuv import YuvFrame, picture_of, rgb

EXACT = 0 if "avx2" in build._processor().split() else 2
"""Grey levels that the libraries may differ by: on other processors they round in another way."""
PARTS = [
    ((640, 480), (512, 384), (96, 0, 320, 384)),
    ((64, 48), (32, 24), (0, 3, 32, 19)),
    ((62, 46), (130, 97), (7, 11, 100, 70)),
    ((16, 2), (9, 2), (1, 0, 7, 2)),
    ((400, 300), (21, 16), (3, 2, 17, 14)),
    ((30, 20), (30, 31), (0, 0, 30, 31)),
]
"""Size, size when scaled, part of that."""


def scaled_part(picture, size, part):
    out = np.empty((part[3], part[2], 3), np.uint8)
    scale_part(picture, size, part, out)
    return out


def by_torch(picture, size, part):
    out = np.empty((part[3], part[2], 3), np.uint8)
    scale._by_torch(np.asarray(picture), size, part, out)
    return out


def difference(a, b):
    return int(abs(a.astype(int) - b).max())


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def frame_of(width, height, kind="yuv420p", space=2, range_=1):
    """A frame of noise, with every colour there is and many that there are not."""
    frame = av.VideoFrame(width, height, kind)
    for plane in frame.planes:
        plane.update(noise(plane.height, plane.line_size).tobytes())
    frame.colorspace, frame.color_range = space, range_
    return frame


@pytest.mark.parametrize(
    ("size", "box"),
    itertools.product([(640, 480), (180, 320), (101, 67)], [(64, 64), (320, 192), (33, 120)]),
)
def test_pictures_are_scaled_as_pillow_does_it(size, box):
    (w, h), (width, height) = size, box
    picture = np.kron(noise(h // 4 + 1, w // 4 + 1, 3), np.ones((4, 4, 1), np.uint8))[:h, :w]
    whole = np.asarray(
        Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    ).astype(int)
    assert difference(scaled_part(picture, box, (0, 0, width, height)), whole) <= 2
    # A part is what the whole has there, however little of the picture was looked at.
    x, y = width // 3, height // 2
    part = scaled_part(picture, box, (x, y, width - x, height - y))
    assert np.array_equal(part, scaled_part(picture, box, (0, 0, width, height))[y:, x:])


@pytest.mark.parametrize(
    ("size", "scaled", "part"),
    [*PARTS, ((101, 67), (64, 43), (5, 6, 50, 30)), ((7, 5), (20, 9), (0, 0, 20, 9))],
)
def test_compiled_scaling_gives_the_numbers_of_torch(size, scaled, part):
    picture = noise(size[1], size[0], 3)
    assert build.library("pictures") is not None
    assert difference(scaled_part(picture, scaled, part), by_torch(picture, scaled, part)) <= EXACT
    # Mirrored, cut out of a larger one, and into a part of a canvas.
    assert np.array_equal(
        scaled_part(picture[:, ::-1], scaled, part),
        scaled_part(picture[:, ::-1].copy(), scaled, part),
    )
    larger = np.pad(picture, ((1, 2), (3, 1), (0, 0)), constant_values=7)
    canvas = np.full((part[3] + 2, part[2] + 5, 3), 9, np.uint8)
    scale_part(larger[1:-2, 3:-1], scaled, part, canvas[1:-1, 2:-3])
    assert np.array_equal(canvas[1:-1, 2:-3], scaled_part(picture, scaled, part))
    canvas[1:-1, 2:-3] = 9
    assert (canvas == 9).all()


@pytest.mark.parametrize(("size", "scaled", "part"), PARTS)
def test_planes_give_the_numbers_of_their_rgb(size, scaled, part):
    convert = VideoReformatter()
    picture = picture_of(frame_of(*size), convert)
    assert isinstance(picture, YuvFrame)
    assert picture.shape == (size[1], size[0], 3)
    assert (
        difference(
            scaled_part(picture, scaled, part), by_torch(rgb(picture.frame, convert), scaled, part)
        )
        <= EXACT
    )


@pytest.mark.parametrize(
    ("kind", "space", "range_"),
    itertools.product(["yuv420p", "yuvj420p"], [0, 1, 2, 4, 5, 6, 7, 9], [0, 1, 2]),
)
def test_every_colour_space_is_converted_as_swscale_does_it(kind, space, range_):
    convert = VideoReformatter()
    picture = picture_of(frame_of(64, 48, kind, space, range_), convert)
    assert isinstance(picture, YuvFrame)
    assert (
        difference(
            scaled_part(picture, (48, 36), (0, 0, 48, 36)),
            by_torch(picture, (48, 36), (0, 0, 48, 36)),
        )
        <= EXACT
    )


@pytest.mark.parametrize(
    ("width", "height", "kind"),
    [
        (33, 20, "yuv420p"),
        (32, 21, "yuv420p"),
        *((32, 20, kind) for kind in ("yuv444p", "yuv420p10le", "gray", "rgb24")),
    ],
)
def test_other_frames_come_as_rgb(width, height, kind):
    frame = av.VideoFrame(width, height, kind)
    for plane in frame.planes:
        plane.update(
            noise(plane.buffer_size).tobytes()
            if kind != "yuv420p10le"
            else bytes(plane.buffer_size)
        )
    picture = picture_of(frame, VideoReformatter())
    assert isinstance(picture, np.ndarray)
    assert np.array_equal(picture, frame.to_ndarray(format="rgb24"))


def test_frames_of_a_video_are_scaled_as_their_rgb(tmp_path):
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10), options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(6):
            small = np.roll(noise(8, 12, 3), i, 1)
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(np.kron(small, np.ones((8, 8, 1), np.uint8)))
                )
            )
        container.mux(stream.encode())
    with (tmp_path / "v.mp4").open("rb") as handle:
        pictures = [p for _, p in frames_at(handle, [0.0, 0.3, 0.5], None)]
        shown = [np.asarray(p) for p in pictures]
        assert all(isinstance(p, YuvFrame) for p in pictures)
        assert difference(shown[0], shown[1]) > 50
        for picture, found in zip(pictures, shown, strict=True):
            assert (
                difference(
                    scaled_part(picture, (60, 40), (2, 0, 50, 40)),
                    by_torch(found, (60, 40), (2, 0, 50, 40)),
                )
                <= EXACT
            )


@pytest.mark.parametrize("instructions", ["haswell", "x86-64"])
def test_narrower_vectors_give_the_same(monkeypatch, tmp_path, instructions):
    if EXACT:
        pytest.skip("the narrower instructions of this test are those of x86 with AVX2")
    monkeypatch.setenv("GWP_CACHE", str(tmp_path))
    flags = tuple({"-march=native": f"-march={instructions}"}.get(f, f) for f in build._FLAGS)
    other = ctypes.CDLL(str(build.compiled("pictures", flags)))
    for size, scaled, part in PARTS:
        picture = picture_of(frame_of(*size), VideoReformatter())
        for given in (picture, np.asarray(picture)):
            wide = scaled_part(given, scaled, part)
            with monkeypatch.context() as patch:
                patch.setattr(scale, "library", lambda name: other)
                assert np.array_equal(scaled_part(given, scaled, part), wide)


def test_without_compiled_code_torch_scales(monkeypatch):
    picture = picture_of(frame_of(64, 48), VideoReformatter())
    compiled = scaled_part(picture, (32, 24), (0, 0, 32, 24))
    monkeypatch.setattr(scale, "library", lambda name: None)
    assert difference(scaled_part(picture, (32, 24), (0, 0, 32, 24)), compiled) <= EXACT


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from av.video.reformatter import VideoReformatter
from gwp.scale import scale_part
from gwp.yuv import YuvFrame, colours_of

PAGE = mmap.PAGESIZE
held = []

def guarded(size, first):
    # Memory whose first or last byte touches a page that must not be touched.
    pages = -(-size // PAGE) + 2
    room = mmap.mmap(-1, pages * PAGE)
    held.append(room)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for page in (0, pages - 1):
        assert protect(ctypes.c_void_p(begin + page * PAGE), ctypes.c_size_t(PAGE), 0) == 0
    return begin + PAGE if first else begin + (pages - 1) * PAGE - size

def array(shape, first):
    size = int(np.prod(shape))
    address = guarded(size, first)
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8).reshape(shape)

class Frame:
    def __init__(self, width, height):
        self.width, self.height = width, height

for first in (True, False):
    for w, h in ((2, 2), (6, 10), (30, 16), (32, 18), (46, 34), (64, 48)):
        for size in ((w // 2, h // 2), (w * 2, h * 3), (w - 1, h)):
            out = array((size[1], size[0], 3), first)
            y, u, v = (guarded(n, first) for n in (w * h, w * h // 4, w * h // 4))
            colours = colours_of(1, False)
            frame = YuvFrame(Frame(w, h), VideoReformatter(), colours, (y, u, v), (w, w // 2))
            scale_part(frame, size, (0, 0, *size), out)
            scale_part(array((h, w, 3), first), size, (0, 0, *size), out)
if sys.argv[1:]:
    # What would be seen if it read one byte too much.
    ctypes.c_uint8.from_address(guarded(4, False) + 4).value
print("whole")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="pages are protected by mprotect")
def test_nothing_outside_a_picture_is_touched():
    sound, faulty = (
        subprocess.run(
            [sys.executable, "-c", GUARDED, *more],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        for more in ([], ["fault"])
    )
    assert sound.stdout == "whole\n", sound.stderr
    assert faulty.returncode < 0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
@pytest.mark.parametrize("size", [(480, 640), (1080, 1920)])
def test_a_thread_that_scales_starts_no_workers(size):
    picture, before = np.zeros((*size, 3), np.uint8), torch.get_num_threads()
    torch.set_num_threads(4)
    try:

        def threads():
            return {task.name for task in Path("/proc/self/task").iterdir()}

        def scale():
            # New ones by their number: those of other tests may end meanwhile.
            known = threads()
            scaled_part(picture, (320, 192), (10, 0, 300, 192))
            alone = threads()
            # What would be seen if it did.
            _ = torch.zeros(1 << 22) + 1
            return len(alone - known), len(threads() - alone)

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(scale).result() == (0, 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_even_pictures_stay_even(level):
    assert (
        scaled_part(np.full((48, 62, 3), level, np.uint8), (33, 25), (3, 2, 20, 21)) == level
    ).all()

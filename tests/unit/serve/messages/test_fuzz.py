"""A hundred thousand messages of everything that a socket may bring: an observation, or one line.

Nothing hangs: lines of Python are counted, not seconds. Nothing is executed: the interpreter's own
audit says so. Memory does not grow.
"""

import io
import pickle
import resource
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import msgpack
import numpy as np
import pytest
from PIL import Image

from gwp.errors import ObservationError, ProtocolError
from gwp.policy.admission.derived import Seen
from gwp.policy.admission.guard import Guard
from gwp.protocol.fields import FIELDS
from gwp.protocol.msgpack_numpy import packb, unpackb
from serve.messages.pictures import Pixels
from serve.messages.requests import to_observation
from serve.messages.together import split
from tests.unit.gwp.policy.test_contract import IMAGE, ONE

MOST_BYTES = 1 << 20
LINES = 400_000
"""Lines of Python that one message may cost: some tens of milliseconds."""
GROWTH_MB = 150
SEEN = Seen(lower=(-1.0,) * 3, upper=(1.0,) * 3, moves=(True,) * 3)
CONTRACT = ONE.model_copy(update={"seen": {"arm": SEEN}, "trained_delay": 4}).guarded(Guard())
FORBIDDEN = ("pickle.find_class", "os.system", "subprocess.Popen", "exec", "os.exec", "open")

Rng = np.random.Generator


class Payload:
    """What would be noticed if anybody unpickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('executed')",)


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of few bytes and many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * min(side, 4096)), 9)
    parts = (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"".join(parts)


JPEG, PNG, GREY = picture("JPEG"), picture("PNG"), picture("JPEG", "L", progressive=True)
BOMBS = [bomb(side) for side in (1024, 4096, 16384, 65535)]
PICKLES = [pickle.dumps(Payload(), protocol) for protocol in range(6)]


def good(rng: Rng) -> dict[str, Any]:
    pictures = [IMAGE, JPEG, PNG, GREY, IMAGE[None], IMAGE.transpose(2, 0, 1)]
    message: dict[str, Any] = {
        "top": pictures[rng.integers(len(pictures))],
        "observation/wrist": pictures[rng.integers(len(pictures))],
        "state": rng.uniform(-1, 1, 3).astype(np.float32),
        "prompt": "go",
    }
    more = {
        "prefix_actions": np.zeros((8, 2), np.float32),
        "executed_action": np.zeros(2, np.float32),
        "delay": int(rng.integers(4)),
        "seed": int(rng.integers(2**32)),
        "request_id": int(rng.integers(2**32)),
        "observed_at": 1e9,
        "observation": {"reward": 1.0, "images": {"spare": IMAGE}},
    }
    message["prefix_actions"] = more.pop("prefix_actions")
    return message | {name: value for name, value in more.items() if rng.random() < 0.5}


def odd(rng: Rng, depth: int = 2) -> Any:
    """A value of any type and size."""
    choices: list[Callable[[], Any]] = [
        lambda: None,
        lambda: bool(rng.integers(2)),
        lambda: int(rng.integers(-(2**63), 2**63 - 1)),
        lambda: float(rng.choice([np.nan, np.inf, -1, 0, 1e300, 1e-300])),
        lambda: "x" * int(rng.choice([0, 1, 65, 300, 5000, 20000])),
        lambda: bytes(rng.integers(0, 256, rng.integers(0, 60), dtype=np.uint8)),
        lambda: BOMBS[rng.integers(len(BOMBS))],
        lambda: PICKLES[rng.integers(len(PICKLES))],
        lambda: rng.normal(size=rng.integers(0, 4, rng.integers(0, 5))),
        lambda: rng.integers(0, 255, rng.integers(0, 12, rng.integers(0, 5)), dtype=np.uint8),
        lambda: array(rng),
        lambda: damaged(rng, [JPEG, PNG, GREY][rng.integers(3)]),
    ]
    if depth:
        choices += [
            lambda: [odd(rng, depth - 1) for _ in range(rng.integers(5))],
            lambda: {key(rng): odd(rng, depth - 1) for _ in range(rng.integers(5))},
        ]
    return choices[rng.integers(len(choices))]()


def key(rng: Rng) -> str:
    names = [*FIELDS, "top", "images", "observation", "observation.state", "state.x", "x", "video"]
    name = names[rng.integers(len(names))]
    at = int(rng.integers(len(name)))
    return name if rng.random() < 0.7 else name[:at] + "z" + name[at + 1 :]


def array(rng: Rng) -> dict[Any, Any]:
    """A map that claims to be an array, in some dialect."""
    dtypes = ["<f4", "|O", "|V8", "<c8", "f4,f4", "<U9", "M8[s]", "x" * 5000, 7, b"<f4", ">f8", "?"]
    shapes: list[Any] = [[2], [], [-1], [2**62, 2**62, 0], [1.5], 3, [0] * 9, [True], [2**31]]
    data = [b"", b"12345678", "text", 5, PICKLES[4], bytes(1000)]
    fields = {
        "dtype": dtypes[rng.integers(len(dtypes))],
        "shape": shapes[rng.integers(len(shapes))],
        "data": data[rng.integers(len(data))],
    }
    marker = ["__ndarray__", "__npgeneric__", "nd", "__ndarray_class__"][rng.integers(4)]
    whole = {marker: True, "type": fields["dtype"], "kind": b"", "as_npy": fields["data"]} | fields
    kept = {name: value for name, value in whole.items() if rng.random() < 0.9}
    return {name.encode(): v for name, v in kept.items()} if rng.random() < 0.7 else kept


def damaged(rng: Rng, data: bytes) -> bytes:
    """Bytes changed, cut, or with some put in."""
    out = bytearray(data)
    for at in rng.integers(len(out), size=rng.integers(1, 8)):
        out[at] = rng.integers(256)
    if rng.random() < 0.3:
        del out[rng.integers(len(out)) :]
    if rng.random() < 0.2:
        at = int(rng.integers(len(out) + 1))
        out[at:at] = bytes(rng.integers(0, 256, 20, dtype=np.uint8))
    return bytes(out)


def tiny_items(rng: Rng) -> bytes:
    """Many small things, nested or side by side, announced truly or not."""
    unit = [b"\x90", b"\x80", b"\xc0", b"\xa0", b"\xc4\x00", b"\x91\x90", b"\xd9\x01a", b"\xcb"]
    count = int(rng.choice([10, 1000, 8000, 60000]))
    body = unit[rng.integers(len(unit))] * count
    head = [b"\xdd", b"\xdf"][rng.integers(2)] + struct.pack(">I", count + int(rng.integers(-1, 2)))
    return [head + body, b"\x91" * count, b"\x81\xa1a" * count][rng.integers(3)]


def several(rng: Rng) -> Any:
    batch: list[Any] = [good(rng) if rng.random() < 0.7 else odd(rng) for _ in range(3)]
    stacked = {
        "top": np.stack([IMAGE] * 3),
        "wrist": [JPEG] * int(rng.integers(1, 4)),
        "state": np.zeros((3, 3), np.float32),
        key(rng): odd(rng),
    }
    return [{"batch": batch}, {"batch": {"batch": batch}}, stacked][rng.integers(3)]


def packed(message: Any) -> bytes:
    """As bytes; of what our own codec does not send, what msgpack makes of it."""
    try:
        return packb(message)
    except ProtocolError:
        return bytes(msgpack.packb(message, default=str))


def message(rng: Rng) -> bytes:
    match rng.integers(8):
        case 0:
            return packed(good(rng))
        case 1 | 2:
            return damaged(rng, packed(good(rng)))
        case 3 | 4:
            return packed(good(rng) | {key(rng): odd(rng) for _ in range(rng.integers(1, 4))})
        case 5:
            return tiny_items(rng)
        case 6:
            return packed(several(rng))
        case _:
            raw = [bytes(rng.integers(0, 256, 200, dtype=np.uint8)), *PICKLES, packed(odd(rng))]
            return raw[rng.integers(len(raw))]


def receive(data: bytes) -> int:
    """What a door does with a message; observations that came of it."""
    admitted = 0
    pixels = Pixels()
    try:
        requests = split(unpackb(data, MOST_BYTES)).requests
    except (ObservationError, ProtocolError) as error:
        check_line(error)
        raise
    for request in requests:
        try:
            CONTRACT.admit(to_observation(request, CONTRACT, None, pixels))
            admitted += 1
        except (ObservationError, ProtocolError) as error:
            check_line(error)
    return admitted


def check_line(error: Exception) -> None:
    if "\n" in str(error) or len(str(error)) > 2000:
        raise AssertionError(f"no line for a robot: {str(error)[:300]!r}") from error


class Lines:
    """Counts lines of Python, and ends whoever takes too many."""

    def __init__(self) -> None:
        self.count = self.most = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> "Lines":
        self.count += 1
        if self.count > LINES:
            raise AssertionError(f"more than {LINES} lines for one message, now in {frame.f_code}")
        return self

    def of(self, work: Callable[[], int]) -> int:
        self.count = 0
        sys.settrace(self)
        try:
            return work()
        finally:
            sys.settrace(None)
            self.most = max(self.most, self.count)


class Audit:
    """Events of the interpreter that no message may cause, of this thread: others may do as they
    like. A hook stays for ever; it sleeps.
    """

    def __init__(self) -> None:
        self.awake = False
        self.seen: list[str] = []
        self._thread = threading.get_ident()
        sys.addaudithook(self)

    def __call__(self, event: str, what: tuple[Any, ...]) -> None:
        mine = self.awake and threading.get_ident() == self._thread
        if mine and event in FORBIDDEN:
            self.seen.append(f"{event} {what}")


def used_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize(
    ("count", "counted"), [(1_000, 1), pytest.param(100_000, 10, marks=pytest.mark.slow)]
)
def test_no_message_crashes_hangs_grows_or_runs(count: int, counted: int) -> None:
    """counted: of so many messages the lines of one are counted, which takes its time"""
    rng = np.random.default_rng(7)
    lines, audit = Lines(), Audit()
    admitted = refused = 0
    before = 0.0
    for i in range(count):
        # Libraries are loaded by the first of each kind.
        if i == 500:
            before, audit.awake = used_mb(), True
        data = message(rng)
        try:
            admitted += receive(data) if i % counted else lines.of(partial(receive, data))
        except (ObservationError, ProtocolError):
            refused += 1
    audit.awake = False
    assert audit.seen == []
    assert used_mb() - before < GROWTH_MB
    # It is no test of refusals alone.
    assert admitted > count / 10
    assert refused > count / 10
    print(
        f"{count} messages: {admitted} observations, {refused} refused, {lines.most} lines at most"
    )

"""Messages that nobody should send: a corpus without end, the same for each seed."""

import io
import pickle
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from gwp.protocol.msgpack_numpy import packb

_PICTURE = np.zeros((16, 16, 3), np.uint8)
FIELDS = (
    *("prompt", "embodiment", "robot", "session", "episode", "policy", "prefix_actions", "delay"),
    *("executed_action", "seed", "deadline_s", "observed_at", "max_age_s", "steps_left", "rate"),
    *("report", "request_id", "endpoint", "batch", "top", "wrist", "state"),
)


def good() -> dict[str, Any]:
    """What a robot would send."""
    return {"endpoint": "infer", "top": _PICTURE, "wrist": _PICTURE, "state": np.zeros(3, "<f4")}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def corpus(seed: int, executed: Path) -> Iterator[bytes]:
    """Bytes for a door. executed: a file that is there if anything was run"""
    rng = random.Random(seed)
    plain, bombs = packb(good()), _bombs()
    ready = [*bombs, *_nested(), pickle.dumps(Payload(executed)), b"", b"\xc1", b"{}"]
    # Each of the heavy ones now and then; most are small, as many as fit into a second.
    while True:
        kind = rng.random()
        if kind < 0.02:
            yield rng.choice(ready)
        elif kind < 0.25:
            yield plain[: rng.randrange(len(plain))]
        elif kind < 0.5:
            yield _flipped(plain, rng)
        elif kind < 0.6:
            yield rng.randbytes(rng.randrange(1, 400))
        else:
            yield _packed(_wrong(rng, executed))


def _flipped(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randrange(1, 9)):
        # Most of a message are pixels, which may be anything.
        at = rng.randrange(len(found)) if rng.random() < 0.3 else rng.randrange(80)
        found[at] = rng.randrange(256)
    return bytes(found)


def _wrong(rng: random.Random, executed: Path) -> dict[Any, Any]:
    message: dict[Any, Any] = good()
    for _ in range(rng.randrange(1, 4)):
        message[rng.choice(FIELDS)] = _value(rng, executed)
    if rng.random() < 0.2:
        message[rng.choice((f"x{rng.random()}", b"state", 7, None, "obs.x", ""))] = 1
    if rng.random() < 0.2:
        message.pop(rng.choice(("top", "wrist", "state")), None)
    return message


def _value(rng: random.Random, executed: Path) -> Any:
    choices = (
        lambda: None,
        lambda: rng.choice((True, -1, 2**63, 2**64 - 1, 1e308, float("nan"), float("inf"), -0.0)),
        lambda: "x" * rng.choice((0, 1, 300, 5000)),
        lambda: "\x00\ud7ff\u202e",
        lambda: rng.randbytes(rng.randrange(50)),
        lambda: [[]] * rng.randrange(40),
        lambda: {"a": {"b": {"c": {"d": rng.random()}}}},
        lambda: [good()] * rng.randrange(4),
        lambda: np.zeros(
            rng.choice(((0,), (3,), (3, 3), (1, 1, 1, 1), (0, 0, 3))), rng.choice("fdbiB")
        ),
        lambda: _array("O", b"x" * 8, [1]),
        lambda: _array(rng.choice(("<f4", "|V8", "<c16", "<M8", "f4,f4")), b"\0" * 16, [2, 2]),
        lambda: _array("<f4", b"\0" * 8, rng.choice(([2**62, 2**62], [-1], [2] * 40, "2", [2.0]))),
        lambda: {b"nd": True, b"type": b"O", b"kind": b"O", b"data": b"", b"shape": [1]},
        lambda: {"__ndarray_class__": True, "as_npy": pickle.dumps(Payload(executed))},
        lambda: msgpack.ExtType(rng.randrange(128), rng.randbytes(8)),
        lambda: np.full(rng.choice((3, 4)), rng.choice((np.nan, np.inf, 1e30)), "<f4"),
    )
    return rng.choice(choices)()


def _array(dtype: str, data: bytes, shape: Any) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def _packed(message: Any) -> bytes:
    def default(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return _array(value.dtype.str, value.tobytes(), list(value.shape))
        raise TypeError

    return bytes(msgpack.packb(message, default=default, use_bin_type=True))


@cache
def _bombs() -> list[bytes]:
    """Small files of many pixels, and files that are none."""
    found = []
    for size in ((9000, 9000), (4096, 4096), (8192, 1)):
        buffer = io.BytesIO()
        Image.new("1", size).save(buffer, "PNG")
        found.append(packb(good() | {"top": buffer.getvalue()}))
    found += [
        packb(good() | {"top": head + b"\xff" * 40}) for head in (b"\xff\xd8\xff", b"\x89PNG")
    ]
    return found


@cache
def _nested() -> list[bytes]:
    """Deep, wide, and larger than anybody needs."""
    return [
        b"\x81\xa1a" * 5000 + b"\xc0",
        b"\x91" * 20000 + b"\xc0",
        b"\xdd\x00\x10\x00\x00" + b"\x90" * (1 << 20),
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff" + b"\xc0" * 1000,
        b"\xc6\xff\xff\xff\xff" + b"x" * 100,
        packb({"batch": [good()] * 200}),
        bytes(3 << 20),
    ]

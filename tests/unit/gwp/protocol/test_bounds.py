"""A message is bounded before anything is made of it, and looking costs what its headers cost."""

import contextlib
import itertools
from typing import Any

import msgpack
import numpy as np
import pytest

from gwp.errors import ProtocolError
from gwp.protocol import bounds as module
from gwp.protocol.bounds import BOUNDS, FROM_ENDPOINT, Bounds, check_bounds, glance
from gwp.protocol.msgpack_numpy import packb, unpackb

MIB = 1 << 20


class Counted(bytes):
    """Bytes that count how often somebody looks at them."""

    looks = 0

    def __getitem__(self, at: Any) -> Any:
        type(self).looks += 1
        return super().__getitem__(at)


def looks(data: bytes) -> int:
    """Looks at single places until a message is accepted or refused; lengths behind a header are
    read by struct, once for each look.
    """
    Counted.looks = 0
    with contextlib.suppress(ProtocolError):
        check_bounds(Counted(data))
    return Counted.looks


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


HOSTILE = [
    pytest.param(b"\xdd" + (3 * MIB).to_bytes(4, "big") + b"\x90" * 3 * MIB, "items", id="lists"),
    pytest.param((b"\xdc\xff\xff" + b"\x80" * 65535) * 255, "items", id="maps"),
    pytest.param(b"\xdf\xff\xff\xff\xff", "8589934591 items", id="a map of four thousand million"),
    pytest.param(b"\x91" * 15 * MIB, "nested 11 deep", id="depth"),
    pytest.param(b"\xdc\x10\x00" + b"\x80" * 4096, "maps and lists", id="empty maps"),
    pytest.param(b"\x94" + b"\xdc\x08\x00" + b"\xc0" * 2048, "ends before", id="a list cut short"),
    pytest.param(msgpack.packb([[[[0] * 15] * 15] * 15] * 15), "items", id="lists in lists"),
    pytest.param(msgpack.packb({"a": "x" * 20_000}), "a text of 20000 bytes", id="a long text"),
    pytest.param(b"\xda\xff\xff" + b"x" * 65535, "a text of 65535", id="a text of 16 bits"),
    pytest.param(b"\x92\xc4", "ends before", id="bytes without a length"),
    pytest.param(b"\x92\xc6\x7f\xff\xff\xff", "ends before", id="two gigabytes announced"),
    pytest.param(b"\xdc\x1f\xf0" + b"\xd9\x01a" * 8175 + b"\xc1", "begins nothing", id="then bad"),
    pytest.param(b"\xdc\x00\x20" + b"\xcb" * 40, "ends before", id="floats cut short"),
    pytest.param(b"\xdc\x00\x20" + b"\x00" * 31, "ends before", id="small numbers cut short"),
    pytest.param(b"\xc0\xc0", "1 bytes follow", id="two items"),
    pytest.param(b"", "ends before", id="nothing"),
]


@pytest.mark.parametrize(("data", "words"), HOSTILE)
def test_what_is_too_much_is_refused_after_few_looks(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        unpackb(data)
    assert "\n" not in str(caught.value)
    # Each item once, whatever the size of the message.
    assert looks(data) <= 2 * BOUNDS.items


def observation(**more: Any) -> dict[str, Any]:
    pictures = {name: np.zeros((8, 8, 3), np.uint8) for name in ("top", "left", "right")}
    return {
        "images": pictures,
        "state": np.zeros(14, np.float32),
        "prefix_actions": np.zeros((8, 14), np.float32),
        "executed_action": np.zeros(14, np.float32),
        "prompt": "fold the shirt",
        "seed": 5,
        "delay": 4,
        "request_id": "a" * 64,
        "observed_at": 1e9,
    } | more


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(observation(), id="an observation"),
        pytest.param(observation(state=[0.5] * 4000), id="a state as a list"),
        pytest.param(observation(state=list(range(4000))), id="whole numbers"),
        pytest.param(observation(state=[-1, 0.5, 300, 2**40] * 1000), id="numbers of all kinds"),
        pytest.param({"batch": [observation()] * 64}, id="a batch of 64"),
        pytest.param({"video": {"top": np.zeros((1, 1, 8, 8, 3), np.uint8)}}, id="GR00T"),
        pytest.param(observation(prompt="x" * 4096), id="the longest prompt"),
        pytest.param(observation(prompt="ü" * 4096), id="the longest prompt, two bytes a letter"),
        pytest.param(b"x" * MIB, id="bytes alone"),
    ],
)
def test_what_robots_send_passes(message: Any) -> None:
    data = packb(message)
    assert looks(data) <= 10_000
    got = unpackb(data)
    assert type(got) is type(message)


def test_lists_of_like_numbers_are_looked_at_as_a_whole() -> None:
    for numbers in ([0.5] * 4000, [7] * 4000, [2**40] * 4000, [-(2**20)] * 4000):
        assert looks(packb(numbers)) < 10
        assert unpackb(packb(numbers)) == numbers
    # One of another kind among them, anywhere, and each is looked at.
    for at in (0, 1, 2000, 3999):
        numbers = [0.5] * 4000
        numbers[at] = 7
        assert unpackb(packb(numbers)) == numbers


def test_each_bound_holds_to_the_item() -> None:
    check_bounds(nested(BOUNDS.depth))
    with pytest.raises(ProtocolError, match="nested"):
        check_bounds(nested(BOUNDS.depth + 1))
    small = Bounds(items=10, containers=3, text=5)
    for fits, too_much in [
        ([0] * 9, [0] * 10),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}),
        ([[], []], [[], [], []]),
        ("x" * 5, "x" * 40),
    ]:
        check_bounds(msgpack.packb(fits), small)
        with pytest.raises(ProtocolError):
            check_bounds(msgpack.packb(too_much), small)


def value(rng: np.random.Generator, depth: int) -> Any:
    """Anything that a message may hold."""
    kinds = 9 if depth else 7
    match rng.integers(kinds):
        case 0:
            return int(rng.integers(-(2**63), 2**63 - 1))
        case 1:
            return int(rng.integers(-40, 300))
        case 2:
            return float(rng.normal())
        case 3:
            return [None, True, False][rng.integers(3)]
        case 4:
            return "ü" * int(rng.integers(0, 200))
        case 5:
            return b"\xff" * int(rng.integers(0, 70_000))
        case 6:
            return [float(x) for x in rng.normal(size=rng.integers(0, 100))]
        case 7:
            return [value(rng, depth - 1) for _ in range(rng.integers(0, 20))]
        case _:
            return {f"k{i}": value(rng, depth - 1) for i in range(rng.integers(0, 20))}


def size(item: Any) -> tuple[int, int]:
    """Items and containers, counted on what was unpacked."""
    if isinstance(item, dict):
        parts = [size(part) for part in itertools.chain(item, item.values())]
    elif isinstance(item, list):
        parts = [size(part) for part in item]
    else:
        return 1, 0
    return 1 + sum(p[0] for p in parts), 1 + sum(p[1] for p in parts)


def test_the_walk_counts_what_msgpack_makes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        item = value(rng, 3)
        data = msgpack.packb(item)
        items, containers = size(item)
        check_bounds(data, Bounds(items=items, containers=max(1, containers), text=1 << 20))
        if containers:
            for bounds in (
                Bounds(items=items - 1, text=1 << 20) if items > 1 else Bounds(containers=0),
                Bounds(items=1 << 30, containers=containers - 1, text=1 << 20),
            ):
                with pytest.raises(ProtocolError):
                    check_bounds(data, bounds)
        # Every cut is told, without a look behind the end.
        cut = int(rng.integers(len(data)))
        with pytest.raises(ProtocolError):
            check_bounds(data[:cut])


def test_every_first_byte_has_the_size_that_msgpack_gives_it() -> None:
    for first in range(256):
        data = bytes([first]) + b"\0" * 40
        unpacker = msgpack.Unpacker(strict_map_key=False)
        unpacker.feed(data)
        try:
            unpacker.unpack()
            end = unpacker.tell()
        except msgpack.exceptions.UnpackException:
            end = 0
        except ValueError:
            end = 0
        if (end and not 0x80 <= first < 0xA0 and first < 0xDC) or first >= 0xE0:
            assert module._walk(data, BOUNDS)[0] == end, hex(first)


def test_an_endpoint_may_say_more_than_a_robot_may() -> None:
    names = [f"joint_{i}" for i in range(40)]
    robots = {f"robot {i}": {"action_names": names, "state_names": names} for i in range(200)}
    with pytest.raises(ProtocolError):
        unpackb(packb(robots))
    assert unpackb(packb(robots), bounds=FROM_ENDPOINT) == robots
    # Between processes of our own nothing is looked through.
    deep: Any = 0
    for _ in range(20):
        deep = [deep]
    assert unpackb(packb(deep), bounds=None) == deep


NAMES = ("endpoint", "request_id", "deadline_s")
REQUEST = {
    "endpoint": "infer",
    "images": {"top": np.zeros((240, 320, 3), np.uint8)},
    "state": np.zeros(14, np.float32),
    "deadline_s": 0.25,
    "request_id": "robot-7",
}


def test_a_glance_sees_what_unpacking_finds() -> None:
    assert glance(packb(REQUEST), NAMES) == {n: REQUEST[n] for n in NAMES}
    for one in ({}, {"request_id": 2**63}, {"deadline_s": -1.5, "x": [1, {"request_id": 3}]}):
        assert glance(packb(one), NAMES) == {n: one[n] for n in NAMES if n in one}


@pytest.mark.parametrize("value", [None, b"x" * 9, [1], {"a": 1}, "x" * 300, np.float32(1)])
def test_a_glance_leaves_alone_what_is_no_short_text_or_number(value: Any) -> None:
    message = packb({"request_id": value, "deadline_s": 2.0})
    assert glance(message, NAMES) == {"deadline_s": 2.0}


def test_a_glance_is_bounded_and_breaks_on_nothing() -> None:
    rng = np.random.default_rng(0)
    good = packb(REQUEST)
    for _ in range(300):
        cut = good[: rng.integers(len(good))]
        assert all(value == REQUEST[name] for name, value in glance(cut, NAMES).items())
        broken = bytearray(good)
        broken[rng.integers(200)] = rng.integers(256)
        glance(bytes(broken), NAMES)
        glance(rng.bytes(60), NAMES)


@pytest.mark.parametrize(("data", "_why"), HOSTILE)
def test_a_glance_at_what_is_hostile_costs_no_more_than_its_bound(data: bytes, _why: str) -> None:
    for message in (data, b"\x82\xa1x" + data + b"\xa8endpoint\xa5infer"):
        Counted.looks = 0
        glance(Counted(message), NAMES)
        assert Counted.looks < 5 * 512


def test_a_glance_tells_what_came_before_too_much() -> None:
    many = packb({"endpoint": "infer", "batch": [{"state": [1.0, None] * 400}] * 2})
    assert glance(many, NAMES) == {"endpoint": "infer"}

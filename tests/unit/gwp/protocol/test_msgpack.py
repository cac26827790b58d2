"""The wire codec: what goes in comes out, and nothing but plain numbers gets in."""

import subprocess
import sys

import msgpack
import numpy as np
import pytest

from gwp.protocol.msgpack_numpy import ProtocolError, packb, unpackb


def array(
    data: bytes = b"\0" * 8, dtype: object = "<f4", shape: object = (2,), **more: object
) -> bytes:
    return msgpack.packb(
        {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape, **more}
    )


@pytest.mark.parametrize("dtype", ["bool", "u1", "i2", "i8", "u8", "f2", "<f4", ">f4", "f8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4), (0, 5)])
def test_arrays_come_back_as_they_were(dtype: str, shape: tuple[int, ...]) -> None:
    sent = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
    got = unpackb(packb({"a": [sent]}))["a"][0]
    assert got.dtype == sent.dtype
    assert got.shape == sent.shape
    assert np.array_equal(got, sent)


def test_scalars_text_and_nesting_come_back() -> None:
    sent = {
        "f": np.float32(0.1),
        "i": np.int64(-3),
        "b": np.bool_(True),
        "t": "ü",
        "n": None,
        "raw": b"\xff",
        "m": {"l": [1, 2.5]},
    }
    got = unpackb(packb(sent))
    assert got == sent
    assert got["f"].dtype == np.float32


def test_non_contiguous_arrays_keep_their_values() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(2, 0, 1)[:, ::-1]
    assert np.array_equal(unpackb(packb(image)), image)


def test_the_stock_openpi_codec_reads_and_writes_the_same_bytes() -> None:
    stock = pytest.importorskip(
        "openpi_client.msgpack_numpy", reason="openpi-client is not installed"
    )
    message = {
        "observation/image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
        "x": np.float32(1.5),
        "prompt": "go",
    }
    for got in (unpackb(stock.packb(message)), stock.unpackb(packb(message))):
        assert got.keys() == message.keys()
        assert np.array_equal(got["observation/image"], message["observation/image"])
        assert got["x"] == np.float32(1.5)
    assert packb(message) == stock.packb(message)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(array(dtype="|O"), id="object dtype"),
        pytest.param(array(dtype="<c8", shape=(1,)), id="complex"),
        pytest.param(array(dtype="|V8", shape=(1,)), id="void"),
        pytest.param(array(dtype="<f4,<i4", shape=(1,)), id="structured"),
        pytest.param(array(dtype="2<f4", shape=(1,)), id="subarray"),
        pytest.param(array(dtype="<U2", shape=(1,)), id="text array"),
        pytest.param(array(dtype="<M8[s]", shape=(1,)), id="dates"),
        pytest.param(array(dtype="nonsense"), id="unknown dtype"),
        pytest.param(array(dtype=7), id="dtype that is no text"),
        pytest.param(array(shape=(3,)), id="more shape than data"),
        pytest.param(array(shape=(1,)), id="less shape than data"),
        pytest.param(array(shape=(-2,)), id="negative size"),
        pytest.param(array(shape=(-1, -2)), id="two negative sizes"),
        pytest.param(array(shape=(2.0,)), id="fractional size"),
        pytest.param(array(shape=(True, 2)), id="bool size"),
        pytest.param(array(shape=2), id="shape that is no list"),
        pytest.param(array(b"\0" * 4, shape=(1,) * 9), id="too many dimensions"),
        pytest.param(array(b"", shape=(0, 1 << 62, 1 << 62)), id="sizes that overflow"),
        pytest.param(array(data="text"), id="data that is no bytes"),  # type: ignore[arg-type]
        pytest.param(msgpack.packb({b"__ndarray__": True}), id="half an array"),
        pytest.param(array(extra=1), id="an array with more"),
        pytest.param(
            msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}),
            id="scalar overflow",
        ),
        pytest.param(
            msgpack.packb({b"__npgeneric__": True, b"data": "1", b"dtype": "<f4"}), id="scalar text"
        ),
        pytest.param(
            msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}), id="scalar object"
        ),
        pytest.param(msgpack.packb(msgpack.ExtType(5, b"x")), id="extension"),
        pytest.param(msgpack.packb({1: 2}), id="number as key"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="reserved byte"),
        pytest.param(packb({"a": 1}) + b"\0", id="bytes after the end"),
        pytest.param(packb(np.zeros(100))[:-1], id="cut short"),
        pytest.param(b"\x91" * 5000, id="nested too deep"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="a list of four thousand million"),
        pytest.param(b"\xa1\xff", id="broken text"),
    ],
)
def test_what_is_no_plain_message_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        unpackb(data)
    assert "\n" not in str(caught.value)


def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(0)
    message = packb(
        {
            "images": {"top": np.zeros((4, 4, 3), np.uint8)},
            "state": np.zeros(3, np.float32),
            "prompt": "go",
        }
    )
    for _ in range(3000):
        damaged = bytearray(message)
        for at in rng.integers(len(damaged), size=rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        try:
            unpackb(bytes(damaged))
        except ProtocolError:
            continue


def test_a_message_over_the_limit_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ProtocolError, match="limit of 10"):
        unpackb(b"\xc1" * 11, max_bytes=10)
    assert unpackb(packb([1]), max_bytes=10) == [1]


@pytest.mark.parametrize(
    "value",
    [object(), np.array([object()]), np.zeros(2, np.complex64), {1, 2}, np.array(["a"]), 1 << 70],
)
def test_what_cannot_travel_is_refused_when_sending(value: object) -> None:
    with pytest.raises(ProtocolError):
        packb({"x": value})


def test_the_robot_side_imports_no_heavy_library() -> None:
    code = (
        "import sys; import numpy, asyncio; before = len(sys.modules);"
        "import gwp.client, gwp.protocol.msgpack_numpy;"
        "heavy = {'torch', 'pydantic', 'ray', 'fsspec', 'pyarrow', 'PIL', 'pandas'} & set(sys.modules);"
        "print(sorted(heavy), len(sys.modules) - before)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    heavy, _, modules = output.rpartition(" ")
    assert heavy == "[]"
    # A WebSocket library, its HTTP and TLS, and ours: a fifth of a second on a robot's computer.
    assert int(modules) < 160

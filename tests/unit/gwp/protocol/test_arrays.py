"""Arrays of other dialects: read where it is safe, else refused by their name."""

import io
import pickle
from typing import Any

import msgpack
import numpy as np
import pytest

from gwp.errors import ProtocolError
from gwp.protocol.msgpack_numpy import unpackb

ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(2, 2, 3),
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.float64([1.5, -2.5]),
    np.zeros((0, 5), np.int64),
    np.array([True, False]),
    np.array(1.5),
    np.arange(6, dtype=">f4").reshape(3, 2),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
]


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def openpi(a: np.ndarray) -> dict[Any, Any]:
    return {b"__ndarray__": True, b"data": a.tobytes(), b"dtype": a.dtype.str, b"shape": a.shape}


def vla_eval(a: np.ndarray) -> dict[Any, Any]:
    return {key.decode(): value for key, value in openpi(a).items()}


def lebedov(a: np.ndarray) -> dict[Any, Any]:
    """As msgpack-numpy 0.4.8 writes it."""
    return {
        b"nd": True,
        b"type": a.dtype.str,
        b"kind": b"",
        b"shape": a.shape,
        b"data": a.tobytes(),
    }


def groot(a: np.ndarray) -> dict[Any, Any]:
    return {"__ndarray_class__": True, "as_npy": npy(a, allow_pickle=False)}


@pytest.mark.parametrize("dialect", [openpi, vla_eval, lebedov, groot])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{list(a.shape)}")
def test_arrays_of_every_dialect_come_back(dialect: Any, array: np.ndarray) -> None:
    got = unpackb(msgpack.packb({"a": [dialect(array)]}))["a"][0]
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert np.array_equal(got, array)


def test_scalars_of_msgpack_numpy_come_back() -> None:
    number = np.float32(0.1)
    packed = {b"nd": False, b"type": number.dtype.str, b"data": number.tobytes()}
    assert unpackb(msgpack.packb(packed)) == number


class Payload:
    """What would be noticed if anybody unpickled it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('executed')",)


OBJECTS = np.empty(1, object)
OBJECTS[0] = Payload()


def head(text: bytes) -> bytes:
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"__ndarray_class__": True, "as_npy": npy(OBJECTS, allow_pickle=True)}, "refused"),
        ({"__ndarray_class__": True, "as_npy": pickle.dumps(Payload())}, "no file of np.save"),
        ({"__ndarray_class__": True, "as_npy": npy(np.zeros(3))[:-1]}, "23 came"),
        ({"__ndarray_class__": True, "as_npy": npy(np.zeros(3, "f4,f4"))}, "does not write for"),
        ({"__ndarray_class__": True, "as_npy": "text"}, "as_npy is str"),
        (
            {
                "__ndarray_class__": True,
                "as_npy": head(
                    b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }"
                ),
            },
            "0 came",
        ),
        ({"__ndarray_class__": True, "as_npy": head(b"(" * 900)}, "does not write for"),
        ({"__ndarray_class__": True, "as_npy": head(b"[].__class__")}, "does not write for"),
        ({"__ndarray_class__": True}, "needs exactly the keys"),
        ({"__ModalityConfig_class__": True, "as_json": "{}"}, "ModalityConfig is not read"),
        ({b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": b""}, "pickled"),
        ({b"nd": True, b"type": "|O", b"shape": [1], b"data": b"12345678"}, "refused"),
        ({b"nd": True, b"type": [["a", "<f4"]], b"kind": b"V", b"shape": [1], b"data": b""}, "rec"),
        ({b"nd": True, b"type": "<f4", b"data": b"1234", b"shape": [7]}, "needs 28 bytes"),
        ({b"nd": True, b"type": "<f4", b"data": b"1234", b"shape": [1], b"z": 1}, "has the keys"),
        ({b"complex": True, b"data": "1j"}, "complex numbers"),
        ({"__numpy__": "AAAA", "dtype": "<f4", "shape": [1]}, "json_numpy"),
        ({"__ndarray__": True, b"data": b"1234", "dtype": "<f4"}, "needs exactly the keys"),
        ({b"__ndarray__": 1, "__ndarray__": 2, "data": b"", "dtype": "<f4", "shape": [0]}, "keys"),
        ({b"__ndarray__": True, b"data": b"", b"dtype": "f4," * 5000, b"shape": [0]}, "refused"),
    ],
)
def test_what_is_not_safe_is_refused_by_its_name(item: dict[Any, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        unpackb(msgpack.packb({"a": item}))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pickle.dumps({"state": Payload()}), "a pickle, not msgpack"),
        (pickle.dumps({"state": 1}, protocol=2), "a pickle"),
        (b'{"state": [1, 2]}', "JSON, not msgpack"),
        (b"PK\x03\x04" + b"\0" * 30, "torch.save"),
        (npy(np.zeros(3)), "np.save"),
    ],
)
def test_what_is_no_msgpack_is_told_by_its_name(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        unpackb(data)


def test_a_key_that_comes_twice_is_refused() -> None:
    for key in (b"\xa5state", b"\xa6prompt"):
        with pytest.raises(ProtocolError, match="came twice in one map"):
            unpackb(b"\x82" + key + b"\x01" + key + b"\x02")
    assert unpackb(b"\x82\xa1a\x01\xa1b\x02") == {"a": 1, "b": 2}

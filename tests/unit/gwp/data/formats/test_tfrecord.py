"""TFRecord files and the messages in them, against other writers of the format."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp.data.formats.find import robots_at
from gwp.data.formats.rlds import tfrecord
from gwp.data.formats.rlds.tfrecord import count, features, masked_crc, numbers, records, values
from gwp.data.source import Source
from gwp.errors import DataError, GwpError
from tests.support.other_sets import record, write_rlds


def test_checksums_are_those_of_the_format() -> None:
    # The standard's check value of CRC-32C, masked as TensorFlow does.
    crc = 0xE3069283
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_messages_of_another_writer_are_read() -> None:
    """Against the protobuf library, whose maps come in any order and whose lists are packed."""
    pool = pytest.importorskip("google.protobuf.descriptor_pool").DescriptorPool()
    from google.protobuf import descriptor_pb2, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, bool, str]) -> Any:
        made = file.message_type.add(name=name)
        for field, at, kind, repeated, of in fields:
            made.field.add(
                name=field, number=at, type=kind, label=3 if repeated else 1, type_name=of or None
            )
        return made

    message("BytesList", ("value", 1, 12, True, ""))
    message("FloatList", ("value", 1, 2, True, ""))
    message("Int64List", ("value", 1, 3, True, ""))
    message(
        "Feature",
        *(
            (f"{k.lower()}_list", i, 11, False, f".t.{k}List")
            for i, k in ((1, "Bytes"), (2, "Float"), (3, "Int64"))
        ),
    )
    entry = message(
        "Features", ("feature", 1, 11, True, ".t.Features.FeatureEntry")
    ).nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".t.Feature")
    message("Example", ("features", 1, 11, False, ".t.Features"))
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))()
    floats, ints, texts = [0.5, -2.25, 1e30], [0, -1, 300, 2**40], [b"", b"x" * 300]
    made.features.feature["a/floats"].float_list.value.extend(floats)
    made.features.feature["b/ints"].int64_list.value.extend(ints)
    made.features.feature["c/bytes"].bytes_list.value.extend(texts)
    made.features.feature["d/none"].float_list.value.extend([])
    raw = made.SerializeToString()
    handle = io.BytesIO(b"before" + raw)
    there = features(handle, 6, len(raw))
    assert {n: count(handle, f) for n, f in there.items() if n != "d/none"} == {
        "a/floats": 3,
        "b/ints": 4,
        "c/bytes": 2,
    }
    np.testing.assert_array_equal(numbers(handle, there["a/floats"]), np.float32(floats))
    assert numbers(handle, there["b/ints"]).tolist() == ints
    assert [handle.getvalue()[a:b] for a, b in values(handle, there["c/bytes"])] == texts


@pytest.mark.parametrize("cut", [1, 2, 3])
@pytest.mark.parametrize("packed", [True, False])
def test_half_a_number_is_told(cut: int, packed: bool) -> None:
    # A list of floats: packed in one piece, or a tag before each.
    body = b"\0\0\x80\x3f" * 3
    whole = b"\x0a" + bytes([len(body)]) + body if packed else (b"\x0d" + body[:4]) * 3
    field = tfrecord.Field(tfrecord.FLOATS, 0, len(whole))
    assert numbers(io.BytesIO(whole), field).tolist() == [1.0] * 3
    half = b"\x0a" + bytes([len(body) - cut]) + body[:-cut] if packed else whole[:-cut]
    with pytest.raises(DataError):
        numbers(io.BytesIO(half), replace(field, end=len(half)))


def test_records_of_another_writer_are_read(tmp_path: Path) -> None:
    writer = pytest.importorskip("tensorboardX.record_writer").RecordWriter(str(tmp_path / "a"))
    for payload in (b"first", b"", b"third" * 100):
        writer.write(payload)
    writer.close()
    with (tmp_path / "a").open("rb") as handle:
        raw = handle.read()
        found = list(records(handle, len(raw)))
    assert [r.payload for r in found] == [b"first", b"", b"third" * 100]
    assert [raw[r.start : r.start + r.size] for r in found] == [r.payload for r in found]
    assert all(r.whole for r in found)


def test_a_payload_that_is_not_kept_is_checked_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = [b"", b"x", b"12345678", b"123456789", bytes(range(256)) * 3]
    raw = b"".join(map(record, payloads))
    before = list(records(io.BytesIO(raw), len(raw)))
    monkeypatch.setattr(tfrecord, "_KEPT", 8)
    after = list(records(io.BytesIO(raw), len(raw)))
    assert [replace(r, payload=None) for r in after] == [replace(r, payload=None) for r in before]
    assert [r.payload is None for r in after] == [False, False, False, True, True]
    damaged = raw[:-20] + b"?" + raw[-19:]
    assert [r.whole for r in records(io.BytesIO(damaged), len(raw))] == [True] * 4 + [False]


def test_every_changed_bit_of_a_payload_or_its_checksum_is_seen() -> None:
    raw = record(b"first") + record(b"second")
    begin, end = len(record(b"first")) + 12, len(raw)
    for at in range(begin, end):
        for bit in range(8):
            damaged = bytearray(raw)
            damaged[at] ^= 1 << bit
            assert [r.whole for r in records(io.BytesIO(bytes(damaged)), len(raw))] == [True, False]


def test_without_the_package_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_rlds(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(GwpError, match=r"pip install 'gwp\[model\]'"):
        robots_at(Source(uri=str(tmp_path / "set"), fps=10))

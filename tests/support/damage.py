"""Damage to files: to their bytes, and to what they say (`by_meaning`), which checksums and
parsers let pass.
"""

import csv
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gwp.data.formats.rlds.tfrecord import records
from tests.support.other_sets import record

VALUES: tuple[Any, ...] = (
    *(None, 0, -1, 1, 7, "x", "", "3", [], {}, 3.7, True, 1e300, 10**30, -(10**400)),
    *(float("nan"), float("inf"), "\u0000", "a\nb", "{x", [[]], {"a": 1}, ["a", None], [1, 2, 3]),
)
"""What may stand where something else belongs."""
Damage = Callable[[bytes, random.Random], bytes]


def flipped(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 4, 64)) if raw else 0):
        changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def written_over(raw: bytes, rng: random.Random) -> bytes:
    at, count = rng.randrange(len(raw)), rng.choice((4, 8, 200))
    return raw[:at] + rng.choice((b"\0", b"\xff", b"\x80")) * count + raw[at + count :]


def cut_off(raw: bytes, rng: random.Random) -> bytes:
    return raw[: rng.randrange(len(raw))]


def cut_out(raw: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + raw[at + rng.choice((1, 8, 100)) :]


OF_BYTES: tuple[Damage, ...] = (flipped, written_over, cut_off, cut_out)


def changed(about: Any, rng: random.Random) -> Any:
    """A JSON value of which some part, down to all of it, is another value or lacking."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    if isinstance(about, (dict, list)):
        walk(about)
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    node, key = rng.choice(places)
    if rng.random() < 0.25:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)
    return about


def of_json(raw: bytes, rng: random.Random) -> bytes:
    return json.dumps(changed(json.loads(raw), rng)).encode()


def of_json_lines(raw: bytes, rng: random.Random) -> bytes:
    lines = [json.loads(line) for line in raw.decode().splitlines()]
    i = rng.randrange(len(lines))
    lines[i] = changed(lines[i], rng)
    # A line twice, too.
    lines += [lines[i]] if rng.random() < 0.1 else []
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def of_csv(raw: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(raw.decode())))
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(("", '"', "x" * 200_000, "\u0000", "../a.mp4"))
    return "\n".join(",".join(row) for row in rows).encode()


def of_parquet(raw: bytes, rng: random.Random) -> bytes:
    """A column is lacking, of another type, or holds another value."""
    table = pq.read_table(io.BytesIO(raw))
    name = rng.choice(table.column_names)
    values = table[name].to_pylist()
    what = rng.randrange(6)
    if what == 0:
        table = table.drop_columns([name])
    elif what == 1 and values:
        table = _with(table, name, [rng.choice(VALUES)] * len(values))
    elif what == 2:
        table = _with(table, name, [str(value) for value in values])
    elif what == 3:
        table = _with(table, name, [[value] for value in values])
    elif what == 4:
        table = table.slice(rng.randrange(3), max(0, len(values) - rng.randrange(4)))
    elif values:
        values[rng.randrange(len(values))] = rng.choice((*VALUES, *values))
        table = _with(table, name, values)
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _with(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    try:
        column = pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        column = pa.array([str(value) for value in values])
    if column.type == pa.struct([]):
        column = pa.nulls(len(values))
    return table.set_column(table.column_names.index(name), name, column)


def of_hdf5(raw: bytes, rng: random.Random) -> bytes:
    """A group, its data or an attribute is lacking, or is another."""
    out = io.BytesIO(raw)
    with h5py.File(out, "r+") as file:
        paths: list[str] = []
        file.visit(paths.append)
        path = rng.choice(paths)
        attributes = [(p, key) for p in ["/", *paths] for key in file[p].attrs]
        if attributes and rng.random() < 0.3:
            place, key = rng.choice(attributes)
            _set(file[place].attrs, key, rng.choice(VALUES))
            return _closed(file, out)
        old = file[path][()] if isinstance(file[path], h5py.Dataset) else None
        del file[path]
        others: list[Any] = [None, h5py.SoftLink("/nowhere"), h5py.SoftLink("/"), "text", 3.7]
        others += [h5py.Empty("f"), np.zeros(0), np.zeros((3, 0)), np.array(b"x"), [b"a", b"b"]]
        others += [np.zeros(3, "i4,f8"), np.full((3, 2), np.nan), h5py.ExternalLink("x.h5", "/")]
        if old is not None:
            others += [old[:1], old[..., None], old[..., 0], np.asarray(old, "S8"), old.T]
        try:
            if (other := rng.choice(others)) is not None:
                file[path] = other
        except (TypeError, ValueError):
            file[path] = np.zeros((2, 2, 2))
        return _closed(file, out)


def _set(attributes: Any, key: str, value: Any) -> None:
    try:
        attributes[key] = value
    except (TypeError, ValueError, OSError, RuntimeError):
        attributes[key] = json.dumps(value)


def _closed(file: Any, out: io.BytesIO) -> bytes:
    file.close()
    return out.getvalue()


def of_records(raw: bytes, rng: random.Random) -> bytes:
    """Damage within a record whose checksum is that of what it holds then."""
    found = [raw[r.start : r.start + r.size] for r in records(io.BytesIO(raw), len(raw))]
    i = rng.randrange(len(found))
    if rng.random() < 0.3:
        # A feature of another name.
        names = [b"is_first", b"action", b"state", b"language_instruction", b"reward"]
        name = rng.choice(names)
        found[i] = found[i].replace(name, bytes(rng.sample(name, len(name))))
    else:
        # Where names, kinds and lengths are.
        at = rng.randrange(len(found[i]))
        at = max(0, found[i].rfind(b"steps/", 0, at)) + rng.randrange(40)
        part = struct.pack("B", rng.randrange(256))
        found[i] = found[i][:at] + part + found[i][at + 1 :]
    return b"".join(map(record, found))


_BY_ENDING: dict[str, Damage] = {
    ".json": of_json,
    ".jsonl": of_json_lines,
    ".csv": of_csv,
    ".parquet": of_parquet,
    ".hdf5": of_hdf5,
}


def by_meaning(file: Path) -> Damage | None:
    """Damage to what a file of that name says; None where it says nothing."""
    return of_records if ".tfrecord" in file.name else _BY_ENDING.get(file.suffix)

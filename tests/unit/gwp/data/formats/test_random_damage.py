"""Damaged files of every format: whatever is in them, the user has lines in plain words."""

import csv
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gwp.data.source import Source
from gwp.errors import GwpError
from pipelines.datasets.inspect import as_text, describe
from tests.support.other_sets import write_aloha, write_libero, write_rlds, write_tars
from tests.support.sets import FPS, TOP, write_video


def write_clips(root: Path) -> None:
    raw = write_video(root / "a.mp4", range(6)).read_bytes()
    for name in ("b.mp4", "c.mp4"):
        (root / name).write_bytes(raw)
    (root / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "first"}\n')
    (root / "metadata.csv").write_text("file_name,text\nb.mp4,second\n")
    (root / "c.json").write_text('{"caption": "third"}')


FORMATS: dict[str, tuple[Callable[[Path], Any], float | None]] = {
    "aloha": (lambda root: write_aloha(root, lengths=(3, 2), cameras=(TOP,)), FPS),
    "aloha as JPEG": (
        lambda root: write_aloha(root, lengths=(3, 2), cameras=(TOP,), compress=True),
        FPS,
    ),
    "libero": (lambda root: write_libero(root / "demo.hdf5", lengths=(3, 2)), None),
    "rlds": (lambda root: write_rlds(root, lengths=(3, 2)), FPS),
    "tars": (lambda root: write_tars(root, lengths=(3, 3, 3)), None),
    "clips": (write_clips, None),
}
_VALUES: tuple[Any, ...] = (None, 0, -1, "x", [], {}, 3.7, True, 1e300, "\u0000", [[]], {"a": 1})
_OF_PYTHON = re.compile(r"\b[A-Z]\w*(Error|Exception|Warning)\b|Traceback|<class|\bNoneType\b")


def flipped(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 4, 64))):
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


def of_other_types(raw: bytes, rng: random.Random) -> bytes:
    """A value in JSON is another one."""
    lines = raw.decode().splitlines() or [""]
    about = json.loads(lines[0] if len(lines) > 1 else raw)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(about)
    node, key = rng.choice(places)
    node[key] = rng.choice(_VALUES)
    return json.dumps(about).encode()


def of_other_cells(raw: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(raw.decode())))
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(("", '"', "x" * 200_000, "\u0000", "../a.mp4"))
    return "\n".join(",".join(row) for row in rows).encode()


_BY_ENDING = {".json": of_other_types, ".jsonl": of_other_types, ".csv": of_other_cells}


@pytest.mark.parametrize("name", FORMATS)
def test_no_words_of_python_reach_the_user(tmp_path: Path, name: str) -> None:
    rng, root = random.Random(name), tmp_path / "set"
    write, fps = FORMATS[name]
    write(root)
    source = Source(uri=str(root), fps=fps)
    whole = as_text(describe(source))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    told = set()
    for turn in range(100):
        file = files[turn % len(files)]
        raw = file.read_bytes()
        damage: Any = rng.choice((flipped, written_over, cut_off, cut_out))
        if file.suffix in _BY_ENDING and rng.random() < 0.7:
            damage = _BY_ENDING[file.suffix]
        file.write_bytes(damage(raw, rng))
        try:
            text = as_text(describe(source))
        except GwpError as error:
            text = str(error)
            assert len(text.splitlines()) == 1, text
        file.write_bytes(raw)
        assert not _OF_PYTHON.search(text), text
        told.add(text)
    # Most of it is seen, and nothing of it stays.
    assert len(told - {whole}) > 8
    assert as_text(describe(source)) == whole

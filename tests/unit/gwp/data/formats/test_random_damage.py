"""Damaged files of every format: whatever is in them, the user has lines in plain words."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import set_at
from gwp.data.formats.robot_set import RobotSet, embodiment_of
from gwp.data.plan.build import build_manifest
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import GwpError
from pipelines.datasets.inspect import as_text, describe
from tests.support.damage import OF_BYTES, by_meaning
from tests.support.other_sets import (
    write_aloha,
    write_libero,
    write_rlds,
    write_stills,
    write_tars,
)
from tests.support.sets import FPS, TOP, write_v21, write_v30, write_video

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)


def write_clips(root: Path) -> None:
    raw = write_video(root / "a.mp4", range(6)).read_bytes()
    for name in ("b.mp4", "c.mp4"):
        (root / name).write_bytes(raw)
    (root / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "first"}\n')
    (root / "metadata.csv").write_text("file_name,text\nb.mp4,second\n")
    (root / "c.json").write_text('{"caption": "third"}')


FORMATS: dict[str, tuple[Callable[[Path], Any], float | None]] = {
    "lerobot v2.1": (lambda root: write_v21(root, lengths=(3, 2), total_episodes=2), None),
    "lerobot v3.0": (lambda root: write_v30(root, lengths=(3, 2), total_episodes=2), None),
    "lerobot v2.1 with pictures": (lambda root: write_stills(root, "v2.1", (3, 2)), None),
    "lerobot v3.0 with pictures": (lambda root: write_stills(root, "v3.0", (3, 2)), None),
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
_OF_PYTHON = re.compile(
    r"\b[A-Z]\w*(Error|Exception|Warning)\b|Traceback|<class|<\w+ object|\bNoneType\b|out of range"
    r"|invalid literal|could not convert|object (is|has|of)|not (subscriptable|iterable|supported "
    r"between)|unhashable|unpack|division by|has no attribute|positional|codec can't|Expecting"
    r"|recursion|too large|setting an array|broadcast|\bnp\.|dtype\(|no '\w"
)
"""Words of errors that were raised and not written for anybody."""


def told_of(source: Source) -> str:
    """All that is said of a set where it is inspected, counted and listed for training."""
    return "\n".join(map(_said, (lambda: as_text(describe(source)), lambda: _listed(source))))


def _said(work: Callable[[], str]) -> str:
    try:
        return work()
    except GwpError as error:
        text = str(error)
        assert len(text.splitlines()) == 1, text
        return text


def _listed(source: Source) -> str:
    reader = FileReader()
    data = set_at(source, reader)
    robots = {}
    if isinstance(data, RobotSet) and data.state_names and data.action_names:
        robots = {"arm": embodiment_of(data, "arm", WINDOW.chunk, 2)}
        source = source.model_copy(update={"embodiment": "arm"})
    found = build_manifest([source], embodiments=robots, window=WINDOW, clip=CLIP, reader=reader)
    for robot in robots.values():
        compute_stats([source], robot, WINDOW, reader)
    return "\n".join(f"{s['item']}: {s['reason']}" for s in found.skipped)


def damaged(root: Path, rng: random.Random, count: int) -> Iterator[Path]:
    """The file that is damaged, as often as asked; it is whole again afterwards."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for turn in range(count):
        file = files[turn % len(files)]
        raw = file.read_bytes()
        damage = by_meaning(file) if rng.random() < 0.7 else None
        file.write_bytes((damage or rng.choice(OF_BYTES))(raw, rng))
        yield file
        file.write_bytes(raw)


@pytest.mark.parametrize("name", FORMATS)
def test_no_words_of_python_reach_the_user(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    """`pytest --damage 3000` tries so many files of each format."""
    rng, root = random.Random(name), tmp_path / "set"
    write, fps = FORMATS[name]
    write(root)
    source = Source(uri=str(root), fps=fps)
    whole = told_of(source)
    count = request.config.getoption("--damage")
    told = set()
    for file in damaged(root, rng, count):
        text = told_of(source)
        assert not _OF_PYTHON.search(text), f"{file}: {text}"
        told.add(text)
    # Most of it is seen, and nothing of it stays.
    assert len(told - {whole}) > count // 12
    assert told_of(source) == whole

"""Episodes of a LeRobot set, as its metadata list them."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gwp.data.formats.finding import Finding
from gwp.data.formats.lerobot.meta.indices import check_indices
from gwp.data.formats.lerobot.meta.info import broken
from gwp.data.formats.lerobot.meta.places import INFO, Places
from gwp.data.formats.lerobot.meta.tables import Entry, MetaFiles, Table, json_lines, parquet_rows
from gwp.data.formats.lerobot.meta.tasks import instruction, named_tasks
from gwp.data.formats.lerobot.numbers import (
    count_in,
    count_or_none,
    seconds_in,
    whole_or_none,
)
from gwp.data.formats.robot_set import Episode, VideoSpan
from gwp.errors import DataError
from gwp.storage.names import shown

OLD_LIST, _NEW_LIST = "meta/episodes.jsonl", "meta/episodes/"
_OTHERWISE = "again, and otherwise"
_MOST = 1_000_000
"""Episodes that info.json is believed to count."""


@dataclass
class Listing:
    """What the metadata say. episodes: those that cannot be read have a `problem`. tasks: text
    by number. named: instructions by episode. findings: what is wrong and costs no episode. lost:
    why files cannot be read.
    """

    tasks: dict[int, str] = field(default_factory=dict)
    episodes: list[Episode] = field(default_factory=list)
    named: dict[int, tuple[str, ...]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Broken:
    """A row that is no episode: its number, or None, and that of the row before; why."""

    number: int | None
    before: int
    reason: str


def listing(meta: MetaFiles, info: dict[str, Any], new: bool) -> Listing:
    """Episodes in the order of the metadata, then those that cannot be read.

    DataError for numbers that are none and names that lead elsewhere in info.json. new: v3
    """
    found = Listing()
    found.tasks = task_table(meta, "task", found.findings)
    place = meta.uri, info, meta.files
    reader = _NewRows(*place) if new else _OldRows(*place)
    table = _new_table(meta) if new else json_lines(meta, OLD_LIST)
    unread: list[_Broken] = []
    known: dict[int, Episode] = {}
    stated: dict[int, dict[str, Any]] = {}
    several: set[int] = set()
    before = -1
    for entry in table.entries:
        try:
            episode = _episode(entry, reader, found)
        except ValueError as error:
            unread.append(_Broken(_number(entry), before, f"{entry.where}: {error}"))
            continue
        before = episode.index
        # Recordings that were resumed list one again.
        if first := known.get(episode.index):
            if first != episode:
                several.add(episode.index)
            found.findings.append(_listed_again(entry, episode.index, first == episode))
            continue
        known[episode.index] = episode
        stated[episode.index] = entry.row or {}
        found.episodes.append(episode)
    found.episodes = [
        replace(e, problem=f"the metadata list it {_OTHERWISE}; remove the wrong ones")
        if e.index in several
        else e
        for e in found.episodes
    ]
    found.episodes += _unreadable(unread, table, info, {e.index for e in found.episodes})
    found.findings += check_indices(stated, found.episodes, _NEW_LIST)
    found.lost = table.lost
    found.findings += [Finding(_NEW_LIST, why, "left out", "write it again") for why in table.lost]
    found.findings += reader.places.findings.values()
    return found


def _listed_again(entry: Entry, index: int, same: bool) -> Finding:
    how = "once more" if same else _OTHERWISE
    return Finding(entry.where, f"lists episode {index} {how}", "ignored", "remove it")


def task_table(meta: MetaFiles, kind: str, findings: list[Finding]) -> dict[int, str]:
    """Text by number of `meta/tasks.*`, or of another kind of the same form (`subtask`). What
    cannot be read of it is told.
    """
    texts: dict[int, str] = {}
    several: set[int] = set()
    for name in (f"meta/{kind}s.jsonl", f"meta/{kind}s.parquet"):
        if name not in meta.files:
            continue
        table = json_lines(meta, name) if name.endswith(".jsonl") else parquet_rows(meta, name)
        reasons = list(table.lost)
        for entry in table.entries:
            row = entry.row or {}
            number = whole_or_none(row.get(f"{kind}_index"))
            if number is None:
                reasons.append(f"{entry.where} cannot be read")
                continue
            # Written through pandas the text is the index, whose column has no name of its own
            # in older files.
            given = (row.get(key) for key in (kind, "task", "__index_level_0__"))
            text = next((text for text in given if text is not None), "")
            if not isinstance(text, str):
                reasons.append(f"{entry.where} has no text")
                continue
            if texts.setdefault(number, text) != text:
                several.add(number)
        advice = "episodes may lack their instruction; write it again"
        findings += [Finding(name, reason, "ignored", advice) for reason in reasons]
    # Which of them was meant nobody knows.
    for number in sorted(several):
        texts[number] = ""
        what = f"{kind} {number} has several texts, of which none is taken"
        findings.append(Finding(f"meta/{kind}s", what, "ignored", "remove all but one of them"))
    return texts


def _new_table(meta: MetaFiles) -> Table:
    every = Table()
    parts = sorted(n for n in meta.files if n.startswith(_NEW_LIST) and n.endswith(".parquet"))
    if not parts:
        there = f", though {OLD_LIST} of v2 is there" if OLD_LIST in meta.files else ""
        raise DataError(
            f"{meta.uri}: no file in {_NEW_LIST}{there}; bring it, or correct the version in {INFO}"
        )
    meta.read_ahead(parts)
    for name in parts:
        part = parquet_rows(meta, name)
        every.entries += part.entries
        every.lost += part.lost
    return every


class _OldRows:
    """Where files of v2 lie: one of each kind per episode."""

    def __init__(self, uri: str, info: dict[str, Any], files: dict[str, int]) -> None:
        self.places = Places(uri, info, files, False)
        # Of declared videos only: `video_path` may be null in a set that has none.
        self.kinds = {key: f.get("dtype") for key, f in info["features"].items()}
        chunk = count_or_none(info.get("chunks_size") or 1000)
        if not chunk:
            stated = shown(repr(info["chunks_size"]))
            raise broken(uri, f"chunks_size is {stated}, no number of episodes")
        self._chunk = chunk

    def data(self, index: int, row: dict[str, Any]) -> str:  # noqa: ARG002
        return self.places.of("data_path", index // self._chunk, index, index)

    def span(self, key: str, index: int, row: dict[str, Any]) -> VideoSpan | None:  # noqa: ARG002
        place = index // self._chunk, index
        return VideoSpan(self.places.of("video_path", *place, index, video_key=key), 0.0, None)


class _NewRows:
    """Where files of v3 lie: of many episodes, as each row says."""

    def __init__(self, uri: str, info: dict[str, Any], files: dict[str, int]) -> None:
        self.places = Places(uri, info, files, True)
        self.kinds = {key: f.get("dtype") for key, f in info["features"].items()}

    def data(self, index: int, row: dict[str, Any]) -> str:
        place = count_in(row, "data/chunk_index"), count_in(row, "data/file_index")
        return self.places.of("data_path", *place, index)

    def span(self, key: str, index: int, row: dict[str, Any]) -> VideoSpan | None:
        # A camera may be off in some episodes; its columns are null there.
        if row.get(f"videos/{key}/file_index") is None:
            return None
        # Each camera starts new files at its own pace, so file and start are the camera's, not
        # the episode's.
        about = f"videos/{key}"
        place = count_in(row, f"{about}/chunk_index"), count_in(row, f"{about}/file_index")
        path = self.places.of("video_path", *place, index, video_key=key)
        start = seconds_in(row, f"{about}/from_timestamp")
        stated = row.get(f"{about}/to_timestamp") is not None
        return VideoSpan(path, start, seconds_in(row, f"{about}/to_timestamp") if stated else None)


def _episode(entry: Entry, reader: _OldRows | _NewRows, found: Listing) -> Episode:
    """ValueError with the reason when the entry is none."""
    row = entry.row
    if row is None:
        raise ValueError("cut off or damaged")
    index, length = count_in(row, "episode_index"), count_in(row, "length")
    data = reader.data(index, row)
    videos: dict[str, VideoSpan] = {}
    for key, dtype in reader.kinds.items():
        if dtype == "image":
            # A column of the data file; where in it they start is known when the file has been
            # looked at.
            videos[key] = VideoSpan(data, 0.0, None, key)
        elif dtype == "video" and (span := reader.span(key, index, row)):
            videos[key] = span
    found.named[index] = named_tasks(row.get("tasks"), found.tasks)
    text = instruction(row.get("tasks"), found.tasks)
    scalars = _scalars(row, reader.kinds)
    return Episode(index, length, data, videos, text, problem=_shared(videos), scalars=scalars)


def _shared(videos: Mapping[str, VideoSpan]) -> str:
    """What is wrong where two cameras have one place: nobody knows which of them it shows."""
    cameras: dict[tuple[str, float], str] = {}
    for camera, span in videos.items():
        # Of columns of pictures each camera has its own.
        other = camera if span.key else cameras.setdefault((span.file, span.start), camera)
        if other != camera:
            return (
                f"{other} and {camera} are said to lie at one place of {span.file}; write "
                f"video_path of {INFO} with {{video_key}}"
            )
    return ""


def _scalars(row: dict[str, Any], features: Collection[str]) -> dict[str, float]:
    """What else a row notes of its episode, such as `success`. features: columns of the rows"""
    known = {"episode_index", "length", "dataset_from_index", "dataset_to_index", *features}
    noted = {key: value for key, value in row.items() if key not in known and "/" not in key}
    return {
        key: float(value)
        for key, value in noted.items()
        if isinstance(value, (bool, float)) or count_or_none(value) is not None
    }


def _number(entry: Entry) -> int | None:
    return entry.episode if entry.row is None else count_or_none(entry.row.get("episode_index"))


def _unreadable(
    unread: list[_Broken], table: Table, info: dict[str, Any], known: set[int]
) -> Iterator[Episode]:
    """What cannot be read, as episodes of the numbers that are left for it."""
    taken = set(known)
    for entry in unread:
        index = entry.before + 1 if entry.number is None else entry.number
        while index in taken:
            index += 1
        taken.add(index)
        yield Episode(index, 0, "", {}, "", problem=f"{entry.reason}; write it again")
    if not table.lost:
        return
    # Which episodes a lost file held nobody knows; which ones are lacking, the count tells.
    total = whole_or_none(info.get("total_episodes")) or 0
    for index in sorted(set(range(min(total, _MOST))) - taken):
        yield Episode(index, 0, "", {}, "", problem=table.lost[0])

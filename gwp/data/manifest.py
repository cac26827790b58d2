"""The manifest: one row per sample that a stage may read. Made once per run; every file is looked at once."""

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.buckets import Bucket
from gwp.data.clips import Clip, ClipSet, read_clips
from gwp.data.curate import Curation, Curator
from gwp.data.embodiment import Embodiment, Slot
from gwp.data.rates import steps_of
from gwp.data.robot_set import RobotSet, check_embodiment, rows_per_step
from gwp.data.robots import robots_at, usable_episodes
from gwp.data.source import Source
from gwp.data.text import normalise, text_hash
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError

_VIEW = pa.struct([
    ("slot", pa.string()), ("uri", pa.string()), ("bytes", pa.int64()), ("start_s", pa.float64()),
    # Pictures that are no video file: which ones, and the part of the file of that many bytes that holds them.
    ("key", pa.string()), ("offset", pa.int64()),
])
SCHEMA = pa.schema([
    # data set fingerprint / episode / row, or / file / milliseconds
    ("sample_id", pa.string()), ("source", pa.int32()), ("kind", pa.string()), ("weight", pa.float64()), ("has_action", pa.bool_()),
    # Which of the run's shapes the sample has.
    ("bucket", pa.int64()), ("embodiment", pa.string()), ("embodiment_id", pa.int64()), ("text_key", pa.string()), ("fps", pa.float64()),
    # Control step that the sample starts at, control steps of the episode, their rate (`fps`) and the rows of each; where the rows are.
    ("start", pa.int64()), ("length", pa.int64()), ("rows_per_step", pa.float64()), ("format", pa.string()), ("data_file", pa.string()),
    ("first_row", pa.int64()), ("rows", pa.int64()), ("data_offset", pa.int64()), ("data_bytes", pa.int64()),
    ("state_keys", pa.list_(pa.string())), ("action_keys", pa.list_(pa.string())),
    # Start in seconds: of the episode in that file (kind robot), of the sample (kind clip).
    ("views", pa.list_(_VIEW)),
])


@dataclass(frozen=True)
class Manifest:
    """`table` as in SCHEMA; `skipped`: what is left out, each with `uri`, `item`, `reason` and whether it is `broken`; `rule`: what the
    rows depend on."""

    table: pa.Table
    skipped: tuple[dict[str, Any], ...]
    by_key: dict[str, str]
    rule: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the samples in order and how they are cut, whatever folder or bucket they lie in."""
        digest = hashlib.sha256(json.dumps(self.rule, sort_keys=True).encode())
        for name in ("sample_id", "text_key"):
            digest.update("\n".join(self.table[name].to_pylist()).encode())
        digest.update(self.table["source"].to_numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def files(self) -> np.ndarray:
        """int64 `[samples]`: number of the file that each sample's first view lies in."""
        views = self.table["views"].combine_chunks()
        first = pc.list_element(views, 0) if len(views) else pa.array([], _VIEW)
        uris = pc.fill_null(pc.struct_field(first, "uri"), "").dictionary_encode().indices.to_numpy(zero_copy_only=False)
        offsets = pc.fill_null(pc.struct_field(first, "offset"), 0).to_numpy(zero_copy_only=False)
        found: np.ndarray = np.unique(np.stack([uris.astype(np.int64), offsets.astype(np.int64)], 1), axis=0, return_inverse=True)[1]
        return found.reshape(-1)

    def rows(self, ids: Iterable[int]) -> list[dict[str, Any]]:
        """Rows by position, as `decode_samples` takes them."""
        rows: list[dict[str, Any]] = self.table.take(pa.array(np.fromiter(ids, np.int64))).to_pylist()
        return rows

    def texts(self) -> dict[str, str]:
        """text_key -> normalised text of every instruction and caption."""
        return dict(self.by_key)

    def save(self, uri: str) -> None:
        """Write one Parquet file."""
        about = {"skipped": self.skipped, "texts": self.by_key, "rule": self.rule}
        buffer = io.BytesIO()
        pq.write_table(self.table.replace_schema_metadata({"gwp": json.dumps(about)}), buffer, compression="zstd")
        storage.write_bytes(uri, buffer.getvalue())

    @classmethod
    def load(cls, uri: str) -> "Manifest":
        """Read what `save` wrote. DataError for anything else."""
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
            about = json.loads(table.schema.metadata[b"gwp"])
            return cls(table.cast(SCHEMA).replace_schema_metadata(None), tuple(about["skipped"]), about["texts"], about["rule"])
        except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{uri}: not a manifest of this version ({error}); build it again") from error


class _Builder:
    """Rows of one manifest while they are collected, column by column: there may be tens of millions."""

    def __init__(self) -> None:
        self.tables: list[pa.Table] = []
        self.skipped: list[dict[str, Any]] = []
        self.texts: dict[str, str] = {}
        self.looked = 0

    def skip(self, uri: str, item: str, reason: str, broken: bool = True) -> None:
        self.skipped.append({"uri": uri, "item": item, "reason": reason, "broken": broken})

    def add(
        self, ids: list[str], starts: np.ndarray, views: list[list[dict[str, Any]]], text: str, shared: dict[str, Any],
        buckets: list[int] | None = None,
    ) -> None:
        """Samples of one file or episode: what differs by sample, and what they share."""
        key = text_hash(text)
        self.texts[key] = normalise(text)
        n = len(ids)
        columns = {"sample_id": ids, "start": starts, "views": views, "bucket": buckets or [0] * n}
        same = shared | {"text_key": key}
        arrays = [
            pa.array(columns[f.name], f.type) if f.name in columns else pa.repeat(pa.scalar(same[f.name], f.type), n) for f in SCHEMA
        ]
        self.tables.append(pa.Table.from_arrays(arrays, schema=SCHEMA))


def build_manifest(
    sources: Sequence[Source], *, embodiments: dict[str, Embodiment], window: Window, clip: ClipWindow, buckets: Sequence[Bucket] = (),
    curate: Curation | None = None, max_broken: float = 1.0,
) -> Manifest:
    """Look at every source and list its samples.

    Of a labelled robot set every row starts a sample (the end of the episode is clamped and masked); of an unlabelled one every row
    whose frames lie inside the episode. A plain video gives clips one after another, without overlap; `curate` may drop some. Episodes
    and videos that cannot be used are left out and named in `skipped`, dropped clips by video and reason with their number. `buckets`:
    shapes of clips, numbered from 1; robot samples are of bucket 0, and clips too where there are none. DataError when a source has
    nothing usable, more than a share `max_broken` of it is broken, or it does not fit its embodiment.
    """
    build, kinds = _Builder(), set()
    curator = Curator(clip, buckets, curate)
    for number, source in enumerate(sources):
        known, broken = len(build.tables), len(build.skipped)
        robots = robots_at(source)
        kinds.add("clip" if robots is None else "robot")
        if robots is not None:
            _add_robot(build, number, source, robots, embodiments, window)
        else:
            _add_clips(build, number, source, curator)
        if len(build.tables) == known:
            first = "; ".join(f"{s['item']}: {s['reason']}" for s in build.skipped[broken : broken + 3])
            raise DataError(f"{source.uri}: nothing usable in {len(build.skipped) - broken} episodes or videos ({first})")
        bad, build.looked, looked = [s for s in build.skipped[broken:] if s["broken"]], 0, build.looked
        if len(bad) > max_broken * looked:
            first = "; ".join(f"{s['item']}: {s['reason']}" for s in bad[:3])
            raise DataError(f"{source.uri}: {len(bad)} of {looked} episodes or videos are broken, more than data.max_broken {max_broken:g} "
                            f"allows ({first}); mend them, choose others with `episodes`, or raise data.max_broken")
    if len(kinds) == 2 and not buckets and window.frames != clip.frames:
        raise DataError(
            f"robot samples have {window.frames} frames, clips {clip.frames}: one batch needs equally many; "
            f"set clip.frames to {window.frames}, or give `buckets`"
        )
    rule = {
        "window": window.model_dump(mode="json"), "clip": clip.model_dump(mode="json"),
        "sources": [s.model_dump(mode="json", exclude={"uri"}) for s in sources],
        "embodiments": {n: e.model_dump(mode="json") for n, e in sorted(embodiments.items())},
        "buckets": [b.model_dump(mode="json") for b in buckets],
    }
    if curate is not None:
        rule["curate"] = curate.model_dump(mode="json")
    table = pa.concat_tables(build.tables).combine_chunks() if build.tables else SCHEMA.empty_table()
    return Manifest(table, tuple(build.skipped), build.texts, rule)


def _add_robot(
    build: _Builder, number: int, source: Source, data: RobotSet, embodiments: dict[str, Embodiment], window: Window
) -> None:
    embodiment = None
    if source.embodiment is not None:
        if source.embodiment not in embodiments:
            raise DataError(f"{source.uri}: embodiment '{source.embodiment}' is not described; known: {', '.join(embodiments) or 'none'}")
        embodiment = embodiments[source.embodiment]
    if embodiment and source.labelled:
        check_embodiment(data, embodiment, source.resample)
    ratio = rows_per_step(data, embodiment) if source.resample else 1.0
    wanted = source.cameras or (embodiment.cameras if embodiment else None)
    cameras: dict[Slot, str] = data.slots(wanted) if wanted or not data.cameras else {"front": next(iter(data.cameras))}
    if not cameras:
        raise DataError(f"{source.uri}: the set has no video")
    good, bad = usable_episodes(data, source, list(cameras.values()))
    build.looked += len(good) + len(bad)
    for episode, reason in bad:
        build.skip(source.uri, f"episode {episode.index}", reason)
    shared = {
        "source": number, "kind": "robot", "weight": source.weight, "has_action": source.labelled, "fps": data.fps / ratio,
        "embodiment": embodiment.name if embodiment else None, "embodiment_id": embodiment.id if embodiment else 0,
        "rows_per_step": ratio, "format": data.format,
    }
    for episode, first_row in good:
        # Without labels there is no mask that would tell the still picture after the end from a robot that stands still.
        steps = steps_of(episode.length, ratio)
        starts = np.arange(steps if source.labelled else steps - window.chunk)
        if len(starts) == 0:
            build.skip(source.uri, f"episode {episode.index}", f"{steps} steps are shorter than a window of {window.chunk + 1}", False)
            continue
        spans = [(slot, episode.videos[camera]) for slot, camera in cameras.items()]
        views = [
            {"slot": slot, "uri": storage.join(data.uri, v.file), "bytes": data.files[v.file] if v.bytes is None else v.bytes,
             "start_s": v.start, "key": v.key, "offset": v.offset}
            for slot, v in spans
        ]
        ids = [f"{data.fingerprint}/{episode.index:06d}/{k:06d}" for k in starts]
        state_keys, action_keys = data.keys(episode)
        place = {
            "state_keys": state_keys, "action_keys": action_keys,
            "length": steps, "data_file": storage.join(data.uri, episode.data_file), "first_row": first_row, "rows": episode.length,
            "data_offset": episode.offset, "data_bytes": episode.bytes,
        }
        text = episode.text if source.task is None else source.task
        build.add(ids, starts, [views] * len(ids), text, shared | place)


def _add_clips(build: _Builder, number: int, source: Source, curator: Curator) -> None:
    found = read_clips(source.uri, source.format)
    for name in found.missing:
        build.skip(source.uri, name, "named in metadata.jsonl, but there is no such video", False)
    for name, reason in found.broken:
        build.looked += 1
        build.skip(source.uri, name, reason)
    chosen = source.select(list(range(len(found.clips))))
    build.looked += len(chosen)
    for video in (found.clips[i] for i in chosen):
        try:
            _add_clip(build, number, source, curator, found, video)
        except DataError as error:
            build.skip(source.uri, video.name, str(error))


def _add_clip(build: _Builder, number: int, source: Source, curator: Curator, found: ClipSet, video: Clip) -> None:
    cut = curator.cut(video.uri, video.size, video.offset)
    for reason in cut.left_out:
        build.skip(source.uri, video.name, reason, False)
    info, clips = cut.info, cut.clips
    if not clips:
        return
    ids = [f"{found.fingerprint}/{video.name}/{round(s * 1000):08d}" for s, _ in clips]
    place = {"slot": "front", "uri": video.uri, "bytes": video.size, "key": "", "offset": video.offset}
    views = [[place | {"start_s": float(s)}] for s, _ in clips]
    shared = {
        "source": number, "kind": "clip", "weight": source.weight, "has_action": False, "embodiment": None, "embodiment_id": 0,
        "fps": info.fps, "length": info.frames, "rows_per_step": 1.0, "format": "clips", "data_file": None, "first_row": 0, "rows": 0,
        "data_offset": 0, "data_bytes": None, "state_keys": (), "action_keys": (),
    }
    text = video.caption if source.task is None else source.task
    build.add(ids, np.zeros(len(ids), np.int64), views, text, shared, [b for _, b in clips])

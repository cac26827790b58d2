"""The manifest: one row per sample that a stage may read. Made once per run; every file is
looked at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from math import ceil

import numpy as np

from gwp import storage
from gwp.data.buckets import Bucket
from gwp.data.formats.cameras import default_slots
from gwp.data.formats.files.reader import FileReader, several
from gwp.data.formats.find import set_at, usable_episodes
from gwp.data.formats.plain.clip_set import Clip, ClipSet
from gwp.data.formats.robot_set import Episode, RobotSet, check_embodiment, rows_per_step
from gwp.data.plan.copies import Copies, Piece, clip_pieces, episode_pieces
from gwp.data.plan.curate import CurationConfig, Curator, Cut
from gwp.data.plan.doubts import angle_doubts
from gwp.data.plan.manifest import Manifest, Rows
from gwp.data.rates import steps_of
from gwp.data.records import Place, Skipped, View
from gwp.data.robot.embodiment import Embodiment, Slot
from gwp.data.source import Source
from gwp.data.sources import Once, check_once, episodes_read
from gwp.data.text import normalise, text_hash
from gwp.data.video.probe import VideoInfo
from gwp.data.video.shots import Look
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError


def unheard(text: str) -> None:
    """For who does not want to hear what looks wrong."""


class _Builder:
    """A manifest while it is built."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.rows = Rows()
        self.tell = tell
        self.skipped: list[Skipped] = []
        self.texts: dict[str, str] = {}
        # Episodes and videos of the source in work: `max_broken` is a share of them.
        self.looked = 0
        self.once = Once()
        self.copies = Copies()

    def skip(self, uri: str, item: str, reason: str, broken: bool = True) -> None:
        self.skipped.append({"uri": uri, "item": item, "reason": reason, "broken": broken})

    def compare(self, source: Source, pieces: Iterable[Piece]) -> None:
        """Tell of what earlier sources hold a copy of."""
        for text in self.copies.note(source, pieces):
            self.tell(text)

    def key_of(self, text: str) -> str:
        """Key of an instruction or caption, which is remembered."""
        key = text_hash(text)
        self.texts[key] = normalise(text)
        return key


def build_manifest(
    sources: Sequence[Source],
    *,
    embodiments: dict[str, Embodiment],
    window: Window,
    clip: ClipWindow,
    buckets: Sequence[Bucket] = (),
    curate: CurationConfig | None = None,
    max_broken: float = 1.0,
    reader: FileReader | None = None,
    tell: Callable[[str], None] = unheard,
) -> Manifest:
    """Look at every source and list its samples.

    Of a labelled robot set every row starts a sample (the end of the episode is clamped and
    masked); of an unlabelled one every row whose frames lie inside the episode. A plain video
    gives clips one after another, without overlap; `curate` may drop some. Episodes and videos
    that cannot be used are left out and named in `skipped`, dropped clips by video and reason
    with their number. `buckets`: shapes of clips, numbered from 1; robot samples are of bucket
    0, and clips too where there are none. `reader`: keeps what is read of files; None: one for
    this call. `tell`: is given what looks wrong and costs nothing. DataError when a source has
    nothing usable, more than a share `max_broken` of it is broken, or it does not fit its
    embodiment, and when two name the same episodes.
    """
    check_once(sources)
    build, kinds = _Builder(tell), set()
    reader = reader or FileReader()
    # One for all sources: a copy of a clip may lie in another of them.
    curator = Curator(clip, buckets, curate)
    for number, source in enumerate(sources):
        # Who decodes may stand in another folder.
        source = source.model_copy(update={"uri": storage.absolute(source.uri)})
        # Counts before and after tell what this source adds.
        known, broken = build.rows.count, len(build.skipped)
        data = set_at(source, reader)
        if isinstance(data, RobotSet):
            kinds.add("robot")
            _add_robot(build, number, source, data, embodiments, window, reader)
        else:
            kinds.add("clip")
            _add_clips(build, number, source, curator, data)
        if build.rows.count == known:
            first = "; ".join(
                f"{s['item']}: {s['reason']}" for s in build.skipped[broken : broken + 3]
            )
            raise DataError(
                f"{source.uri}: nothing usable in {len(build.skipped) - broken} episodes or "
                f"videos ({first})"
            )
        # Of this source alone: good ones must not hide a bad one.
        bad, build.looked, looked = (
            [s for s in build.skipped[broken:] if s["broken"]],
            0,
            build.looked,
        )
        if len(bad) > max_broken * looked:
            first = "; ".join(f"{s['item']}: {s['reason']}" for s in bad[:3])
            raise DataError(
                f"{source.uri}: {len(bad)} of {looked} episodes or videos are broken, more "
                f"than data.max_broken {max_broken:g} "
                f"allows ({first}); mend them, choose others with `episodes`, or raise data.max_broken"
            )
    # Without buckets all are of bucket 0, and clips share batches with unlabelled robots.
    if len(kinds) == 2 and not buckets and window.frames != clip.frames:
        raise DataError(
            f"robot samples have {window.frames} frames, clips {clip.frames}: one batch needs "
            "equally many; "
            f"set clip.frames to {window.frames}, or give `buckets`"
        )
    # What the fingerprint covers. Not where the sets lie: one that moved is the same set.
    rule = {
        "window": window.model_dump(mode="json"),
        "clip": clip.model_dump(mode="json"),
        "sources": [s.rule for s in sources],
        "embodiments": {n: e.model_dump(mode="json") for n, e in sorted(embodiments.items())},
        "buckets": [b.model_dump(mode="json") for b in buckets],
    }
    if curate is not None:
        rule["curate"] = curate.model_dump(mode="json")
    return Manifest(*build.rows.tables(), tuple(build.skipped), build.texts, rule)


def _add_robot(
    build: _Builder,
    number: int,
    source: Source,
    data: RobotSet,
    embodiments: dict[str, Embodiment],
    window: Window,
    reader: FileReader,
) -> None:
    for remark in data.remarks:
        # Without labels it is all one which columns they are.
        if source.labelled or remark.item not in ("state", "action"):
            build.tell(f"{source.uri}: {remark.item}: {remark.what}; {remark.advice}")
    embodiment = None
    if source.embodiment is not None:
        if source.embodiment not in embodiments:
            raise DataError(
                f"{source.uri}: embodiment '{source.embodiment}' is not described; known: "
                f"{', '.join(embodiments) or 'none'}"
            )
        embodiment = embodiments[source.embodiment]
    if embodiment and source.labelled:
        check_embodiment(data, embodiment, source.resample)
    ratio = rows_per_step(data, embodiment) if source.resample else 1.0
    # Without a choice the first camera is taken. `slots` tells why where a set has none.
    wanted = source.cameras or (embodiment.cameras if embodiment else None)
    cameras: dict[Slot, str]
    if wanted or not data.cameras:
        cameras = data.slots(wanted)
    else:
        # Any is better than none, but depth is no picture.
        found = list(default_slots(data.cameras).values())
        cameras = {"front": found[0]} if found else {}
    if not cameras:
        raise DataError(f"{source.uri}: the set has no video")
    bgr = tuple(slot for slot, camera in cameras.items() if source.is_bgr(camera))
    good, bad = usable_episodes(data, source, list(cameras.values()), reader)
    # What it comes to: a field may say what would be so without it.
    use = [source.labelled, ratio, data.state_keys, data.action_keys, sorted(cameras.items()), bgr]
    use += [source.embodiment, source.with_actions]
    texts = [(e.text, e.texts) if source.task is None else source.task for e, _ in good]
    reads = zip(episodes_read(data, good), texts, strict=True)
    read = ((file, byte, f"{path} {text}", row) for (file, byte, path, row), text in reads)
    build.once.note(source, read, repr(use))
    build.compare(source, episode_pieces(data, good, reader))
    if embodiment and source.labelled:
        for doubt in angle_doubts(data, good, embodiment, reader):
            build.tell(f"{source.uri}: {doubt}")
    build.looked += len(good) + len(bad)
    for episode, reason in bad:
        build.skip(source.uri, f"episode {episode.index}", reason)
    for episode, first_row in good:
        # Without labels there is no mask that would tell the still picture after the end from a
        # robot that stands still.
        steps = steps_of(episode.length, ratio)
        starts = np.arange(steps if source.labelled else steps - window.chunk)
        if len(starts) == 0:
            build.skip(
                source.uri,
                f"episode {episode.index}",
                f"{steps} steps are shorter than a window of {window.chunk + 1}",
                False,
            )
            continue
        spans = [(slot, episode.videos[camera]) for slot, camera in cameras.items()]
        views: list[View] = [
            {
                "slot": slot,
                "uri": storage.join(data.uri, v.file),
                # From the listing that found the set: no reader has to ask for it again.
                "bytes": data.files[v.file] if v.bytes is None else v.bytes,
                "start_s": v.start,
                "key": v.key,
                "offset": v.offset,
                "rate": v.rate,
            }
            for slot, v in spans
        ]
        ids = [f"{data.fingerprint}/{episode.index:06d}/{k:06d}" for k in range(len(starts))]
        state_keys, action_keys = data.keys(episode)
        place: Place = {
            "source": number,
            "kind": "robot",
            "weight": source.weight,
            "has_action": source.labelled,
            "embodiment": embodiment.name if embodiment else None,
            "embodiment_id": embodiment.id if embodiment else 0,
            "text_key": "",
            # Of control steps, not of rows.
            "fps": data.fps / ratio,
            "length": steps,
            "rows_per_step": ratio,
            "format": data.format,
            "data_file": storage.join(data.uri, episode.data_file),
            "first_row": first_row,
            "rows": episode.length,
            "data_offset": episode.offset,
            "data_bytes": episode.bytes,
            "state_keys": state_keys,
            "action_keys": action_keys,
            "bgr": len(bgr) == len(cameras),
            "bgr_slots": () if len(bgr) == len(cameras) else bgr,
            "views": views,
        }
        for begin, end, text in _told(episode, source, ratio, len(starts)):
            # Samples of one instruction share a place; mostly that is all of them.
            told: Place = {**place, "text_key": build.key_of(text)}
            # Of robots the control step says where a sample begins; they are of bucket 0.
            nothing = np.zeros(end - begin)
            build.rows.add(ids[begin:end], told, starts[begin:end], nothing, nothing)


def _told(
    episode: Episode, source: Source, ratio: float, count: int
) -> Iterator[tuple[int, int, str]]:
    """Begin, end and instruction of each stretch of the first `count` control steps that have
    one. ratio: rows per step
    """
    if source.task is not None:
        yield 0, count, source.task
        return
    # Of the row at which a step begins; 1e-6 as in `rates`.
    begins = [max(0, ceil(row / ratio - 1e-6)) for row, _ in episode.texts[1:]]
    edges = [0, *(min(count, begin) for begin in begins), count]
    texts = [text for _, text in episode.texts] or [episode.text]
    for (begin, end), text in zip(pairwise(edges), texts, strict=True):
        if begin < end:
            yield begin, end, text


def _add_clips(
    build: _Builder, number: int, source: Source, curator: Curator, found: ClipSet
) -> None:
    for name, what in found.remarks:
        build.skip(source.uri, name, what, False)
    for name, reason in found.broken:
        build.looked += 1
        build.skip(source.uri, name, reason)
    chosen = source.select(list(range(len(found.clips))))
    build.looked += len(chosen)

    def look(video: Clip) -> VideoInfo | Look | DataError:
        try:
            video.check()
            return curator.look(video.uri, video.size, video.offset)
        except DataError as error:
            return error

    videos = [found.clips[i] for i in chosen]
    build.once.note(source, ((v.uri, v.offset, "", 0) for v in videos))
    build.compare(source, clip_pieces([video for video in videos if video.is_there]))
    # Copies are told from earlier videos, so all are cut in their order.
    looks = several(found.uri, look, videos, curator.at_once)
    for video, seen in zip(videos, looks, strict=True):
        try:
            if isinstance(seen, DataError):
                raise seen
            _add_clip(build, number, source, curator.cut(seen), found, video)
        except DataError as error:
            build.skip(source.uri, video.name, str(error))


def _add_clip(
    build: _Builder, number: int, source: Source, cut: Cut, found: ClipSet, video: Clip
) -> None:
    for reason in cut.left_out:
        build.skip(source.uri, video.name, reason, False)
    info, clips = cut.info, cut.clips
    if not clips:
        return
    ids = [f"{found.fingerprint}/{video.name}/{round(s * 1000):08d}" for s, _ in clips]
    view: View = {
        "slot": "front",
        "uri": video.uri,
        "bytes": video.size,
        "key": "",
        "offset": video.offset,
        # Each sample adds a start of its own (`at_s`).
        "start_s": 0.0,
        "rate": None,
    }
    place: Place = {
        "source": number,
        "kind": "clip",
        "weight": source.weight,
        "has_action": False,
        "embodiment": None,
        "embodiment_id": 0,
        "fps": info.fps,
        "length": info.frames,
        "rows_per_step": 1.0,
        "format": "clips",
        "data_file": None,
        "first_row": 0,
        "rows": 0,
        "data_offset": 0,
        "data_bytes": None,
        "state_keys": (),
        "action_keys": (),
        "text_key": build.key_of(video.caption if source.task is None else source.task),
        "bgr": source.is_bgr(""),
        "bgr_slots": (),
        "views": [view],
    }
    # Pairs of seconds and bucket, as one array of each.
    at_s, buckets = np.array(clips, np.float64).T
    build.rows.add(ids, place, np.zeros(len(ids)), at_s, buckets)

"""What is wrong in many LeRobot sets and can be set right without a guess."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from gwp.data.formats.finding import Finding
from gwp.data.formats.lerobot.spans import frame_of
from gwp.data.formats.robot_set import Episode, VideoSpan
from gwp.data.video.probe import VideoInfo

_OFF = 0.25
"""Share of a frame by which a start may differ from a whole number of frames before it is taken
for wrong.
"""


_SHORT = 0.5
"""Frames by which the length of a span may differ from that of its episode before it is taken for
wrong.
"""


def mend_paths(
    episodes: Iterable[Episode], files: dict[str, int]
) -> tuple[list[Episode], list[Finding]]:
    """Videos in a folder of another name than info.json says (`video/` for `videos/`): what
    lies below it decides.

    Of whole cameras only. Where some videos lie in the folder, those in another one are masked,
    thrown away or older.
    """
    episodes = list(episodes)
    # Camera -> videos of it.
    wanted: dict[str, set[str]] = defaultdict(set)
    for episode in episodes:
        for camera, span in episode.videos.items():
            if not span.key:
                wanted[camera].add(span.file)
    below = defaultdict(list)
    for name in files:
        folder, _, rest = name.partition("/")
        # Name behind the first folder -> first folders that have it.
        below[rest].append(folder)
    moved: dict[str, tuple[str, str]] = {}
    for camera, names in wanted.items():
        folders = {name.partition("/")[0] for name in names}
        # A folder that is of the camera says which one a video shows.
        if len(folders) > 1 or any(n in files or camera in n.partition("/")[0] for n in names):
            continue
        others = {other for name in names for other in below[name.partition("/")[2]] if "/" in name}
        # One only: of two, either would be a guess.
        if len(others) == 1:
            moved[camera] = folders.pop(), others.pop()

    def found(camera: str, span: VideoSpan) -> VideoSpan:
        if camera not in moved or span.key:
            return span
        return replace(span, file=f"{moved[camera][1]}/{span.file.partition('/')[2]}")

    mended = [
        replace(e, videos={camera: found(camera, span) for camera, span in e.videos.items()})
        for e in episodes
    ]
    findings = [
        Finding(
            camera, f"videos do not lie in '{said}/', but in '{there}/'", "repaired", "correct it"
        )
        for camera, (said, there) in moved.items()
    ]
    return mended, findings


def absent_cameras(
    episodes: Sequence[Episode], cameras: Iterable[str], files: dict[str, int]
) -> tuple[str, ...]:
    """Cameras that are declared, but of which there is no file at all, where others have some."""
    # Where no camera has a file, the videos of the set are lost; then each episode says so.
    have = {c: any(e.videos[c].file in files for e in episodes if c in e.videos) for c in cameras}
    return tuple(c for c, there in have.items() if not there) if any(have.values()) else ()


@dataclass(frozen=True)
class Mended:
    """Episodes with the places of their frames. wrong: episode -> why its place is not known.
    counted: video files that have as many frames as their episodes have rows.
    """

    episodes: list[Episode]
    wrong: dict[int, str]
    counted: frozenset[str]


def mend_spans(
    every: Sequence[Episode],
    chosen: Sequence[Episode],
    cameras: Iterable[str],
    fps: float,
    video: Callable[[str], VideoInfo | str],
) -> Mended:
    """Every episode of v3 files. Those whose `from_timestamp` has drifted a little, or whose
    `to_timestamp` names another end, have the place that counting rows gives.

    Only in files that hold exactly as many frames as their episodes have rows, and that a chosen
    episode lies in. A start that counting puts far from where it is said to be is wrong: it costs
    its episode, and moves no other.
    """
    mended = {e.index: e for e in every}
    wrong: dict[int, str] = {}
    counted: set[str] = set()
    for camera in cameras:
        looked_at = {e.videos[camera].file for e in chosen if camera in e.videos}
        by_file: dict[str, list[Episode]] = defaultdict(list)
        for episode in every:
            span = episode.videos.get(camera)
            # Pictures in data files lie with their rows.
            if span is not None and not span.key and span.file in looked_at:
                by_file[span.file].append(episode)
        for file, held in by_file.items():
            info = video(file)
            if isinstance(info, str) or info.frames != sum(e.length for e in held):
                continue
            counted.add(file)
            places = _Places.of(held, camera, fps, info.fps)
            for episode, frame in zip(places.episodes, places.frames, strict=True):
                if reason := places.wrong.get(episode.index):
                    wrong.setdefault(
                        episode.index, f"{camera} {reason} of {file}; correct from_timestamp"
                    )
                    continue
                place = _counted(episode.videos[camera], frame, episode.length, fps)
                videos = mended[episode.index].videos | {camera: place}
                mended[episode.index] = replace(mended[episode.index], videos=videos)
    return Mended(list(mended.values()), wrong, frozenset(counted))


@dataclass(frozen=True)
class _Places:
    """Episodes of one file, one behind the other: the frame at which counting lets each begin.
    wrong: episode -> how its stated start disagrees.
    """

    episodes: list[Episode]
    frames: list[int]
    wrong: dict[int, str]

    @classmethod
    def of(cls, held: Sequence[Episode], camera: str, fps: float, own: float) -> "_Places":
        # By their numbers, as the format writes them. Where sets were put together they may lie
        # otherwise: then more of the stated starts agree with that order, and
        # none is far from it.
        orders = [
            sorted(held, key=lambda e: e.index),
            sorted(held, key=lambda e: (e.videos[camera].start, e.index)),
            sorted(held, key=lambda e: (e.videos[camera].start, -e.index)),
        ]
        counts = [_running(order) for order in orders]
        offs = [
            [
                _apart(e.videos[camera].start, frame, fps, own)
                for e, frame in zip(*pair, strict=True)
            ]
            for pair in zip(orders, counts, strict=True)
        ]
        agreeing = [sum(abs(off) <= _OFF for off in each) for each in offs]
        near = all(abs(off) <= _SHORT for off in offs[1])
        best = int(near and agreeing[1] > agreeing[0])
        episodes, frames, off = orders[best], counts[best], offs[best]
        # Where two are said to start at one place, and either fits.
        either = orders[2] != orders[1] and agreeing[2] >= agreeing[best]
        alike = Counter(e.videos[camera].start for e in held if either)
        # Spans that fill the file say of every frame whose it is: counting knows no better.
        if _fill(orders[1], camera, fps, own) and (
            wrong := _other_lengths(episodes, camera, fps, own)
        ):
            stated = [frame_of(e.videos[camera].start, fps, own) for e in episodes]
            return cls(episodes, stated, wrong)
        together = len(off) > 1 and max(off) - min(off) <= _OFF and abs(off[0]) > _SHORT
        wrong = {}
        for k, episode in enumerate(episodes):
            # Less than half of the shortest beside it: so no two can change places.
            shortest = min(e.length for e in episodes[max(k - 1, 0) : k + 2])
            said = f"is said to start at {episode.videos[camera].start:g} s"
            if alike[episode.videos[camera].start] > 1:
                wrong[episode.index] = (
                    f"{said}, and so is another: which of them does, is not known,"
                )
            elif together:
                # Frames may be too many in front and lacking behind.
                wrong[episode.index] = f"{said}, as far off as all others from counting the frames"
            elif episode.videos[camera].start * fps < -_SHORT:
                wrong[episode.index] = f"{said}, before the first frame"
            elif abs(off[k]) > _OFF and abs(off[k]) >= shortest / 2:
                wrong[episode.index] = f"{said}, where counting lets it start at frame {frames[k]}"
        return cls(episodes, frames, wrong)


def _fill(episodes: Sequence[Episode], camera: str, fps: float, own: float) -> bool:
    """Whether the stated spans, one behind the other, leave no frame of the file out and have none
    twice. episodes: of the file, by their starts
    """
    spans = [episode.videos[camera] for episode in episodes]
    if any(span.end is None for span in spans):
        return False
    ends = [0, *(frame_of(span.end or 0.0, fps, own) for span in spans)]
    starts = [frame_of(span.start, fps, own) for span in spans]
    return starts == ends[:-1] and ends[-1] == sum(episode.length for episode in episodes)


def _other_lengths(
    episodes: Sequence[Episode], camera: str, fps: float, own: float
) -> dict[int, str]:
    """Episode -> how many frames it is said to have, where it has other rows."""
    wrong: dict[int, str] = {}
    for episode in episodes:
        span = episode.videos[camera]
        frames = frame_of(span.end or 0.0, fps, own) - frame_of(span.start, fps, own)
        if frames != episode.length:
            wrong[episode.index] = (
                f"is said to have {frames} frames, and the episode has {episode.length} rows,"
            )
    return wrong


def _running(episodes: Sequence[Episode]) -> list[int]:
    """First frame of each of episodes that lie one behind the other."""
    return list(accumulate((e.length for e in episodes[:-1]), initial=0))


def _apart(start_s: float, frame: int, fps: float, own: float) -> float:
    """Frames from one to a start, which is in seconds of the rows or of the file."""
    return min((start_s * rate - frame for rate in (fps, own)), key=abs)


def _counted(span: VideoSpan, frame: int, length: int, fps: float) -> VideoSpan:
    """The span itself where it is where counting puts it, at `frame`; else that place."""
    off = abs(span.start * fps - frame) > _OFF
    # Some name the last frame of an episode instead of its end.
    short = span.end is not None and abs((span.end - span.start) * fps - length) > _SHORT
    if not off and not short:
        return span
    start = frame / fps if off else span.start
    return replace(span, start=start, end=None if span.end is None else start + length / fps)

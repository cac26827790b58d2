"""Whether the files of a LeRobot set hold what its metadata say.

Only what is wrong with a file is a reason to leave an episode out. Storage that does not answer
raises: the next try may find all of it.
"""

from collections.abc import Sequence
from dataclasses import replace

from gwp.data.formats.files.reader import FileReader, several
from gwp.data.formats.format import SetSource, Usable
from gwp.data.formats.lerobot.data_files import DataFiles
from gwp.data.formats.lerobot.meta.tasks import by_row, says_something, text_of
from gwp.data.formats.lerobot.repair import mend_spans
from gwp.data.formats.lerobot.rows import SORTED, Held
from gwp.data.formats.lerobot.spans import frame_of, shared_spans
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.formats.videos import fetch_video, video_facts
from gwp.data.video.probe import VideoInfo
from gwp.errors import DataError

_UNEVEN, _DRIFT = 0.45, 0.1
"""Frames by which one may lie beside an even clock, and the clock of a file beside that of the
set.
"""
_BETWEEN = 0.399
"""Frames beside the nearest one, from which on a start lies between two."""


class EpisodeCheck:
    """Looks once into every file that episodes need and says which episodes are usable."""

    def __init__(self, data: RobotSet, reader: FileReader) -> None:
        self.set, self.reader = data, reader
        self.files = DataFiles(data, reader)
        self.counted: frozenset[str] = frozenset()

    def look(self, episodes: Sequence[Episode], cameras: Sequence[str], vectors: bool) -> None:
        """Read what `check` will need, several files at a time where they are far away."""
        spans = [e.videos[c] for e in episodes for c in cameras if c in e.videos]
        # Data files for rows, for pictures that are a column (`key`), and for what is done;
        # videos for the others.
        wanted = [e for e in episodes if not e.problem and (vectors or self._tells(e))]
        data = sorted({e.data_file for e in wanted} | {s.file for s in spans if s.key})
        videos = sorted({s.file for s in spans if not s.key})
        # Requests in threads, parsing here: many that want Python's lock are slower than one.
        for file, _ in zip(data, several(self.set.uri, self.files.fetch, data), strict=True):
            self.files.table(file)
        for file, _ in zip(videos, several(self.set.uri, self._fetch_video, videos), strict=True):
            self.video(file)

    def _fetch_video(self, file: str) -> None:
        fetch_video(self.set, file, self.reader)

    def video(self, file: str) -> VideoInfo | str:
        """Facts of a video file, or why it cannot be read."""
        return video_facts(self.set, file, self.reader)

    def check(self, episode: Episode, cameras: Sequence[str], vectors: bool) -> tuple[Episode, int]:
        """The episode with the places of its rows and pictures and what is done in it, and its
        first row (0 where no row is needed). Raises DataError with the reason it cannot be
        used.
        """
        if episode.problem:
            raise DataError(episode.problem)
        if episode.length <= 0:
            raise DataError("has no rows")
        # Pictures in the data file are its columns.
        columns = {e.key for c in cameras if (e := episode.videos.get(c)) and e.key}
        if vectors:
            columns |= {*self.set.state_keys, *self.set.action_keys}
        if self.set.own.chosen:
            columns.add(self.set.own.told_by)
        first, every = 0, True
        if columns:
            file, held = self._rows(episode, columns)
            every = held.every
            first = held.first
            episode = self._told(_placed(episode, file, held, self.set.fps), held)
        elif self._tells(episode):
            episode = self._told(episode, self._known_rows(episode))
        for camera in cameras:
            self._check_video(episode, camera)
            if not every:
                self._check_frames(episode, camera)
        return self.timed(episode, cameras), first

    def _rows(self, episode: Episode, columns: set[str]) -> tuple[str, Held]:
        file, held = self.files.place(episode)
        if missing := columns - self.files.types(file).keys():
            raise DataError(f"{file} has no column {' and '.join(sorted(missing))}")
        if held.count != episode.length:
            raise DataError(self._other_count(episode, file, held))
        if held.problem:
            raise DataError(f"{file}: {held.problem}")
        return file, held

    def _other_count(self, episode: Episode, file: str, held: Held) -> str:
        told = f"metadata say {episode.length} rows, {file} has {held.count}"
        parts = self.files.parts(episode)
        # Some writers end a file inside an episode.
        apart = f" ({parts}); write the set again with each episode in one file"
        return told + (apart if " and " in parts else "")

    def _known_rows(self, episode: Episode) -> Held:
        """Its rows where they are whole, else none: videos are as good without."""
        try:
            return self._rows(episode, set())[1]
        except DataError:
            return Held(0, 0)

    def _tells(self, episode: Episode) -> bool:
        """Whether rows may say more than the metadata of what is done in an episode."""
        own = self.set.own
        return own.chosen or len(set(own.named.get(episode.index, ()))) != 1

    def _told(self, episode: Episode, held: Held) -> Episode:
        """`episode` with its instructions row by row."""
        own = self.set.own
        told = by_row(held.tasks, own.tasks, episode.text)
        # An episode names its tasks: other ones in its rows are no better known.
        if not told or (self.contradicted(episode, held) and not own.chosen):
            return episode
        return replace(episode, text=told[0][1], texts=told if len(told) > 1 else ())

    def contradicted(self, episode: Episode, held: Held) -> bool:
        """Whether its rows name a task that the metadata of the episode do not."""
        named = self.set.own.named.get(episode.index, ())
        told = by_row(held.tasks, self.set.own.tasks, episode.text)
        return bool(named) and not {text for _, text in told} <= {*named, episode.text}

    def is_silent(self, episode: Episode) -> bool:
        """Whether some of its rows say nothing of what is done."""
        tasks = self.files.place(episode)[1].tasks
        texts = [text_of(value, self.set.own.tasks) for _, value in tasks]
        return not all(map(says_something, texts)) or not texts

    def _check_video(self, episode: Episode, camera: str) -> None:
        span = episode.videos.get(camera)
        if span is None:
            raise DataError(f"has no video of {camera}")
        if span.key:
            return
        info, fps = self.video(span.file), self.set.fps
        # Rate and spacing first: only of an even video are frames known by counting.
        if isinstance(info, str):
            raise DataError(info)
        # 1 %: `timed` takes care of clocks that are a little off, more is another rate.
        if abs(info.fps - fps) > 0.01 * fps:
            raise DataError(f"{span.file} runs at {info.fps:g} Hz, the set at {fps:g} Hz")
        if info.uneven > _UNEVEN:
            raise DataError(
                f"{span.file}: frames lie up to {info.uneven:.1f} frames beside an even "
                f"{info.fps:g} Hz, so which of them is "
                "of which row cannot be told; write it at a constant rate"
            )
        if not self.set.version.startswith("v3."):
            # v2: a video per episode, all of it.
            frames = float(info.frames)
        elif span.end is not None:
            # Seconds of the rows, or of the file, whose clock may be a little off.
            frames = min(
                ((span.end - span.start) * rate for rate in (fps, info.fps)),
                key=lambda n: abs(n - episode.length),
            )
        else:
            # Where the end is not stated only the start can be checked, below.
            frames = episode.length
        if abs(frames - episode.length) > 0.5:
            raise DataError(
                f"{camera} has {frames:.0f} frames, the episode has {episode.length} rows"
            )
        beside = min(abs(span.start * rate - round(span.start * rate)) for rate in (fps, info.fps))
        if beside >= _BETWEEN:
            raise DataError(
                f"{camera} starts at {span.start:g} s of {span.file}, between two frames; which of "
                "them it is cannot be told"
            )
        first = frame_of(span.start, fps, info.fps)
        if first < 0:
            raise DataError(f"{camera} starts {-span.start:g} s before {span.file} does")
        if first + episode.length > info.frames:
            raise DataError(
                f"{camera} ends at frame {first + episode.length} of {span.file}, which has "
                f"{info.frames}"
            )

    def _check_frames(self, episode: Episode, camera: str) -> None:
        """DataError for rows that are not every frame from the first on, if the video may hold
        the frames of the others.
        """
        span = episode.videos[camera]
        # Whose frames are as many as the rows was cut or thinned out with them.
        if span.key or not self.set.version.startswith("v3.") or span.file in self.counted:
            return
        raise DataError(
            f"its rows begin late or leave frames out, as they are counted, and {span.file} has "
            f"other frames than its episodes have rows: which of them are of which row of {camera} "
            "cannot be told; "
            "write the video of the rows that are there"
        )

    def timed(self, episode: Episode, cameras: Sequence[str]) -> Episode:
        """`episode` with the places of its frames on the clocks of the files, where those run a
        little off the rate of the set, or frames lie beside their times.

        29.97 for 30 Hz is half a frame after 17 s, and from there on another frame.
        """
        videos = dict(episode.videos)
        for camera in cameras:
            span = videos[camera]
            info = self.video(span.file) if not span.key else ""
            if isinstance(info, VideoInfo) and self._is_off(span.start, info):
                end = None if span.end is None else span.end * self.set.fps / info.fps
                videos[camera] = replace(
                    span,
                    start=frame_of(span.start, self.set.fps, info.fps) / info.fps,
                    end=end,
                    rate=info.fps,
                )
        return replace(episode, videos=videos)

    def _is_off(self, start_s: float, info: VideoInfo) -> bool:
        """Whether times of the rows would not find each frame of a file: its clock, its start and
        its single frames may be off, and together by more than each.
        """
        fps = self.set.fps
        # Frames by which the two clocks are apart at the end of the file.
        drift = abs(info.fps - fps) * info.frames / fps
        beside = min(abs(start_s * rate - round(start_s * rate)) for rate in (fps, info.fps))
        return drift > _DRIFT or drift + beside + info.uneven > _UNEVEN


def usable_episodes(
    data: RobotSet, source: SetSource, cameras: Sequence[str], reader: FileReader
) -> Usable:
    """Chosen episodes with their first row in the data file, and those that cannot be used with
    the reason.
    """
    chosen = set(source.select([e.index for e in data.episodes]))
    episodes = [e for e in data.episodes if e.index in chosen]
    check = EpisodeCheck(data, reader)
    check.look(episodes, cameras, source.labelled)
    good, bad = [], []
    # Before the checks, which see the corrected places. All episodes of a file are counted,
    # chosen or not.
    every: Sequence[Episode] = (*data.episodes, *data.own.others)
    unknown: dict[int, str] = {}
    if data.version.startswith("v3."):
        mended = mend_spans(every, episodes, cameras, data.fps, check.video)
        every, unknown, check.counted = mended.episodes, mended.wrong, mended.counted
    # A start that is wrong says nothing of the others.
    placed = [e for e in every if e.index not in unknown]
    unknown = unknown | shared_spans(placed, episodes, cameras, data.fps, check.video)
    for episode in (e for e in every if e.index in chosen):
        try:
            if reason := unknown.get(episode.index):
                raise DataError(reason)
            good.append(check.check(episode, cameras, source.labelled))
        except DataError as error:
            bad.append((episode, str(error)))
    return good, bad


def _placed(episode: Episode, file: str, held: Held, fps: float) -> Episode:
    """`episode` with the place of its rows, and of the pictures that lie beside them: seconds of
    that file.
    """
    prefix = "" if held.in_order else SORTED
    videos = {
        camera: replace(span, file=file, start=held.first / fps, key=prefix + span.key)
        if span.key
        else span
        for camera, span in episode.videos.items()
    }
    return replace(episode, data_file=file, prefix=prefix, videos=videos)

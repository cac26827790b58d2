"""Whether the files of a LeRobot set hold what its metadata say.

Only what is wrong with a file is a reason to leave an episode out. Storage that does not answer
raises: the next try may find all of it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.formats.format import SetSource, Usable
from gwp.data.formats.lerobot.repair import mend_starts
from gwp.data.formats.parquet import parquet_errors
from gwp.data.formats.reader import FileReader
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.formats.videos import video_facts
from gwp.data.video.decode import VideoInfo
from gwp.errors import DataError

_UNEVEN, _DRIFT = 0.45, 0.1
"""Frames by which one may lie beside an even clock, and the clock of a file beside that of the
set.
"""


_FILES = 65536
"""Data files of which it stays where the rows of each episode are."""


@dataclass(frozen=True)
class _Table:
    """What a data file holds.

    types: column -> its type. count: rows. runs: episode and end of its rows for each run of
    equal `episode_index`; None where there is no such column, or it is not needed.
    """

    types: dict[str, pa.DataType]
    count: int
    runs: tuple[tuple[int, int], ...] | None


def _read_table(uri: str, runs: bool) -> _Table:
    with storage.open_read(uri) as handle:
        parquet = pq.ParquetFile(handle)
        schema = parquet.schema_arrow
        types = dict(zip(schema.names, schema.types, strict=True))
        count = parquet.metadata.num_rows
        # v2 has a file per episode, so nobody asks whose its rows are.
        if not runs or "episode_index" not in types:
            return _Table(types, count, None)
        indices = parquet.read(columns=["episode_index"])["episode_index"].combine_chunks()
    # A few runs in place of a number per row: this is kept for every file of a set.
    found = pc.run_end_encode(indices, run_end_type=pa.int64())
    pairs = zip(found.values.to_pylist(), found.run_ends.to_pylist(), strict=True)
    return _Table(types, count, tuple(pairs))


class EpisodeCheck:
    """Looks once into every file that episodes need and says which episodes are usable."""

    def __init__(self, data: RobotSet, reader: FileReader) -> None:
        self.set, self.reader = data, reader
        # By data file. A file of v2 holds one episode, whichever it is: -1 stands for it.
        self._rows: dict[str, dict[int, tuple[int, int]] | str] = {}

    def look(self, episodes: list[Episode], cameras: Sequence[str], vectors: bool) -> None:
        """Read what `check` will need, several files at a time where they are far away."""
        spans = [e.videos[c] for e in episodes for c in cameras if c in e.videos]
        # Data files for rows, and for pictures that are a column (`key`); videos for the
        # others.
        data = sorted({e.data_file for e in episodes if vectors} | {s.file for s in spans if s.key})
        videos = sorted({s.file for s in spans if not s.key})
        with ThreadPoolExecutor(8 if self.set.uri.startswith("s3://") else 1) as pool:
            list(pool.map(self.rows, data))
            list(pool.map(self.video, videos))

    def rows(self, file: str) -> dict[int, tuple[int, int]] | str:
        """Episode -> first row and number of rows in a data file, or why it cannot be read."""
        if file not in self._rows:
            try:
                with parquet_errors(file):
                    self._rows[file] = self._read_rows(file)
            except DataError as error:
                self._rows[file] = str(error)
        return self._rows[file]

    def columns(self, file: str) -> dict[str, pa.DataType]:
        """Columns of a data file and their types; none where it cannot be read."""
        return {} if isinstance(self.rows(file), str) else self._table(file).types

    def _table(self, file: str) -> _Table:
        uri = storage.join(self.set.uri, file)
        return self.reader.once(_FILES, _read_table, uri, self.set.version.startswith("v3."))

    def _read_rows(self, file: str) -> dict[int, tuple[int, int]]:
        if file not in self.set.files:
            raise DataError(f"{file} is missing")
        table = self._table(file)
        if not self.set.version.startswith("v3."):
            return {-1: (0, table.count)}
        if table.runs is None:
            return self._counted(file, table.count)
        result: dict[int, tuple[int, int]] = {}
        start = 0
        for episode, end in table.runs:
            # Rows are read from `first` on, as many as the episode has.
            if episode in result:
                raise DataError(f"{file}: the rows of episode {episode} do not lie together")
            result[episode] = (start, end - start)
            start = end
        return result

    def _counted(self, file: str, rows: int) -> dict[int, tuple[int, int]]:
        """First row and number of rows of each episode of a file that does not say whose its
        rows are, where the counts agree.
        """
        held = [e for e in self.set.episodes if e.data_file == file]
        if sum(e.length for e in held) != rows:
            raise DataError(
                f"{file} has no column episode_index, and {rows} rows where its episodes have "
                f"{sum(e.length for e in held)}"
            )
        # In the order of their numbers, as the format writes them.
        starts = np.cumsum([0, *(e.length for e in held)]).tolist()
        return {e.index: (start, e.length) for e, start in zip(held, starts, strict=False)}

    def video(self, file: str) -> VideoInfo | str:
        """Facts of a video file, or why it cannot be read."""
        return video_facts(self.set, file, self.reader)

    def check(self, episode: Episode, cameras: Sequence[str], vectors: bool) -> int:
        """First row of the episode in its data file (0 without `vectors`). Raises DataError
        with the reason it cannot be used.
        """
        if episode.length <= 0:
            raise DataError("has no rows")
        # Pictures in the data file are its columns.
        columns = {e.key for c in cameras if (e := episode.videos.get(c)) and e.key}
        if vectors:
            columns |= {*self.set.state_keys, *self.set.action_keys}
        first = self._check_rows(episode, columns) if columns else 0
        for camera in cameras:
            self._check_video(episode, camera)
        return first

    def _check_rows(self, episode: Episode, columns: set[str]) -> int:
        rows = self.rows(episode.data_file)
        if isinstance(rows, str):
            raise DataError(rows)
        if missing := columns - self.columns(episode.data_file).keys():
            raise DataError(f"{episode.data_file} has no column {' and '.join(sorted(missing))}")
        first, count = rows.get(episode.index if self.set.version.startswith("v3.") else -1, (0, 0))
        if count != episode.length:
            raise DataError(f"metadata say {episode.length} rows, {episode.data_file} has {count}")
        return first

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
        first = _frame(span.start, fps, info.fps)
        if first + episode.length > info.frames:
            raise DataError(
                f"{camera} ends at frame {first + episode.length} of {span.file}, which has "
                f"{info.frames}"
            )

    def timed(self, episode: Episode, cameras: Sequence[str]) -> Episode:
        """`episode` with the places of its frames on the clocks of the files, where those run a
        little off the rate of the set.

        29.97 for 30 Hz is half a frame after 17 s, and from there on another frame.
        """
        videos = dict(episode.videos)
        for camera in cameras:
            span = videos[camera]
            info = self.video(span.file) if not span.key else ""
            if (
                # Frames by which the two clocks are apart at the end of the file.
                isinstance(info, VideoInfo)
                and abs(info.fps - self.set.fps) * info.frames > _DRIFT * self.set.fps
            ):
                end = None if span.end is None else span.end * self.set.fps / info.fps
                videos[camera] = replace(
                    span,
                    start=_frame(span.start, self.set.fps, info.fps) / info.fps,
                    end=end,
                    rate=info.fps,
                )
        return replace(episode, videos=videos)


def _frame(start_s: float, fps: float, own: float) -> int:
    """Number of the frame at a start, which is in seconds of the rows or of the file: whichever
    gives a whole number more nearly.
    """
    return min(
        (round(start_s * rate) for rate in (fps, own)),
        key=lambda n: min(abs(start_s * rate - n) for rate in (fps, own)),
    )


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
    # Before the checks, which see the corrected starts. All episodes are counted, chosen or
    # not, since they lie in one file.
    if data.version.startswith("v3."):
        episodes = mend_starts(data.episodes, episodes, cameras, data.fps, check.video)
    for episode in episodes:
        try:
            first = check.check(episode, cameras, source.labelled)
            # Pictures beside the rows begin at the first row, which the check has found.
            good.append((check.timed(_placed(episode, first / data.fps), cameras), first))
        except DataError as error:
            bad.append((episode, str(error)))
    return good, bad


def _placed(episode: Episode, start: float) -> Episode:
    """`episode` with the start of the pictures that lie beside its rows, seconds of that file."""
    if not any(span.key for span in episode.videos.values()):
        return episode
    return replace(
        episode,
        videos={c: replace(s, start=start) if s.key else s for c, s in episode.videos.items()},
    )

"""Robot sets of every format: which one lies at a source, and which of its episodes can be
used.
"""

from collections.abc import Callable

from gwp import storage
from gwp.data.formats import clips, hdf5, rlds
from gwp.data.formats.lerobot.check import EpisodeCheck
from gwp.data.formats.lerobot.check import usable_episodes as usable_in_lerobot
from gwp.data.formats.lerobot.read import is_lerobot, read_set
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.source import Source
from gwp.errors import DataError


def robots_at(source: Source) -> RobotSet | None:
    """The robot set that `source` names; None when it holds plain videos, or nothing known.
    DataError when it cannot be read.
    """
    if source.format in ("clips", "tars"):
        return None
    if source.format == "lerobot" or (source.format == "auto" and is_lerobot(source.uri)):
        data = read_set(source.uri, source.state, source.action)
        source.rate(data.fps, "")
        return data
    read: dict[str, Callable[[Source, dict[str, int]], RobotSet]] = {
        "hdf5": hdf5.read_set,
        "rlds": rlds.read_set,
    }
    place, files = _listed(source)
    found = source.format if source.format != "auto" else _found(source.uri, files)
    return read[found](place, files) if found else None


def _listed(source: Source) -> tuple[Source, dict[str, int]]:
    """Files at the source. Of one file that it names, the source becomes the folder."""
    if (
        source.uri.lower().endswith(hdf5.EXTENSIONS)
        and (size := storage.size_of(source.uri)) is not None
    ):
        folder, _, name = source.uri.rpartition("/")
        return source.model_copy(update={"uri": folder or "."}), {name: size}
    return source, storage.list_files(source.uri)


def _found(uri: str, files: dict[str, int]) -> str | None:
    if rlds.folder_of(uri, files) is not None:
        return "rlds"
    if not hdf5.hdf5_files(files):
        return None
    if videos := [n for n in files if n.lower().endswith(clips.EXTENSIONS)]:
        raise DataError(
            f"{uri}: both HDF5 files and videos ({sorted(videos)[0]}) are there; set `format: "
            "hdf5` or `format: clips` on this source"
        )
    return "hdf5"


def usable_episodes(
    data: RobotSet, source: Source, cameras: list[str], check: EpisodeCheck | None = None
) -> tuple[list[tuple[Episode, int]], list[tuple[Episode, str]]]:
    """Chosen episodes with their first row in the data file, and those that cannot be used with
    the reason.

    `check`: of a LeRobot set, keeps what it sees of the files for the caller.
    """
    if data.format == "lerobot":
        return usable_in_lerobot(data, source, cameras, check)
    chosen = set(source.select([e.index for e in data.episodes]))
    reasons = [
        (e, _reason(e, cameras, source.labelled, data.fps))
        for e in data.episodes
        if e.index in chosen
    ]
    return [(e, 0) for e, reason in reasons if not reason], [
        (e, reason) for e, reason in reasons if reason
    ]


def _reason(episode: Episode, cameras: list[str], labelled: bool, fps: float) -> str:
    """Why an episode whose file has been looked at cannot be used."""
    if episode.problem or (labelled and episode.label_problem):
        return episode.problem or episode.label_problem
    if not episode.length:
        return "has no rows"
    for camera in cameras:
        span = episode.videos.get(camera)
        if span is None:
            return f"has no pictures of {camera}"
        count = round(((span.end or 0.0) - span.start) * fps)
        if count != episode.length:
            return f"{camera} has {count} pictures, the episode has {episode.length} rows"
    return ""

"""The page of `gwp data inspect --html`: what a set looks like, and what the model will see."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from gwp import storage
from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.cameras import colour_cameras, default_slots
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, usable_episodes
from gwp.data.formats.robot_set import Episode, RobotSet
from gwp.data.formats.vectors import episode_vectors
from gwp.data.plan.build import build_manifest
from gwp.data.robot.embodiment import Slot
from gwp.data.source import Source
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError
from pipelines.datasets.findings import of_cameras
from pipelines.datasets.shown import at_most, grouped
from pipelines.pages import charts
from pipelines.pages.render import Picture, Table, Tile, render

Layout = Literal["t", "horizontal", "single"]

# Of plain videos 5 frames are shown; there is no robot, so any valid chunk will do.
_CLIP = ClipWindow(frames=5, fps=5)
_CLIP_CHUNK = Window(chunk=4, stride=1)
_CLIP_CANVAS = Canvas(layout="single", width=208, height=160)
_CAMERA_CANVAS = Canvas(layout="single", width=320, height=240)
_CHUNKS = (16, 8, 4)
"""Lengths of the window that is shown; the longest that fits."""
_SIZES: dict[Layout, tuple[int, int]] = {
    "t": (320, 384),
    "horizontal": (480, 240),
    "single": (320, 240),
}
"""Width and height of the canvas that is shown, pixels."""
_LAYOUTS: dict[int, Layout] = {3: "t", 2: "horizontal"}
"""By the number of cameras; any other number: the first camera alone."""
# Shown at most; the text output with --json has all.
_MAX_CURVES = 24
_MAX_VIDEOS = 40
_MAX_TASKS = 20
_MAX_FINDINGS = 200
_COLOURS = (
    "Red and blue may be exchanged: of each camera in question, both ways beside each other. Where "
    "the second is the scene as it was, `colours` on the source sets it right."
)
_DIMENSIONS = (
    "off_state: mean distance of an action from the state of the same number, as a share of its "
    "range; small where the two are one quantity, as deltas need it. Other columns: robot units."
)


@dataclass(frozen=True)
class Part:
    """A section of the page: whatever it has of pictures, strips of frames, a chart and a table.
    Made here, drawn by the template `inspect.html.j2`.

    note:     a sentence under the title
    strips:   frames of one sample side by side
    problems: what could not be shown, with the reason
    """

    title: str
    note: str = ""
    pictures: Sequence[Picture] = ()
    strips: Sequence[Picture] = ()
    chart: Picture | None = None
    table: Table | None = None
    problems: Sequence[str] = ()


def write_page(
    uri: str,
    source: Source,
    facts: dict[str, Any],
    layout: Layout | None,
    reader: FileReader | None = None,
) -> None:
    """Write one HTML file that needs nothing beside it.

    facts:  what `pipelines.datasets.inspect.describe` says of the source
    layout: of the canvas that is shown; None: by the number of cameras
    reader: that `describe` had; None: one for this call
    """
    reader = reader or FileReader()
    data = robots_at(source, reader)
    # What `describe` found, as tables.
    parts = _video_facts(facts) if data is None else _robot_facts(facts)
    # Then pictures, which need something that can be decoded.
    if facts["usable"]:
        if data is None:
            parts.append(_clips(source, reader))
        else:
            parts += _robots(source, data, layout, facts["exchanged"], reader)
    if facts.get("dimensions"):
        columns = ("of", "name", "min", "max", "mean", "off_state", "note")
        table = _table(facts["dimensions"], dict(zip(columns, columns, strict=True)))
        parts.append(Part("Dimensions", _DIMENSIONS, table=table))
    # A page of many thousand findings would not open.
    groups = grouped(facts["findings"])
    findings = at_most(groups, _MAX_FINDINGS)
    page = render(
        "inspect.html.j2",
        title=source.uri,
        headline=_headline(facts),
        findings=findings,
        findings_left_out=len(groups) - len(findings),
        parts=parts,
    )
    storage.write_bytes(uri, page)


def _headline(facts: dict[str, Any]) -> list[Tile]:
    of_robots = "robot" in facts
    usable = f"{facts['usable']} of {facts['episodes']}"
    tiles = [
        Tile("format", facts["format"]),
        Tile("episodes usable" if of_robots else "videos usable", usable),
        Tile("long", _duration(facts["hours"]), f"{facts['frames']} frames"),
    ]
    if of_robots:
        state = len(facts["state"])
        action = len(facts["action"])
        tiles += [
            Tile("robot", facts["robot"] or "not named"),
            Tile("control rate", f"{facts['fps']:g} Hz"),
            Tile("state and action", f"{state} and {action}", "dimensions"),
        ]
    else:
        tiles.append(Tile("have a caption", f"{facts['captions']} of {facts['episodes']}"))
    return tiles


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.1f} min" if hours < 1 else f"{hours:.1f} h"


def _robot_facts(facts: dict[str, Any]) -> list[Part]:
    """Tables of the tasks and of the cameras' streams."""
    tasks = [[text or "(none)", str(count)] for text, count in facts["tasks"].items()]
    more = len(tasks) - _MAX_TASKS
    note = f"The {_MAX_TASKS} most frequent; {more} more are not shown." if more > 0 else ""
    columns = {
        "camera": "camera",
        "size": "size, pixels",
        "fps": "rate, Hz",
        "codec": "codec",
        "gop": "longest GOP, frames",
        "files": "files",
        "problem": "problem",
    }
    # Mostly all cameras can be read, and the column would be empty.
    if not any("problem" in camera for camera in facts["cameras"]):
        del columns["problem"]
    cameras = [_with_size(camera) for camera in facts["cameras"]]
    parts = [Part("Tasks", note, table=Table(["instruction", "episodes"], tasks[:_MAX_TASKS]))]
    if cameras:
        parts.append(Part("Streams", table=_table(cameras, columns)))
    return parts


def _video_facts(facts: dict[str, Any]) -> list[Part]:
    """A table of the videos."""
    videos = [_with_size(video) for video in facts["videos"]]
    more = len(videos) - _MAX_VIDEOS
    note = f"The first {_MAX_VIDEOS}; {more} more are not shown." if more > 0 else ""
    columns = {
        "video": "video",
        "size": "size, pixels",
        "fps": "rate, Hz",
        "codec": "codec",
        "gop": "longest GOP, frames",
        "seconds": "seconds",
        "caption": "caption",
    }
    return [Part("Videos", note, table=_table(videos[:_MAX_VIDEOS], columns))] if videos else []


def _with_size(stream: dict[str, Any]) -> dict[str, Any]:
    """The facts of a stream with its `size`; one that could not be read has none."""
    if "width" not in stream:
        return stream
    return stream | {"size": f"{stream['width']}x{stream['height']}"}


def _table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> Table:
    """columns: key of a row -> its header. A row may lack keys."""

    def cells(row: dict[str, Any]) -> list[str]:
        values = [row.get(key, "") for key in columns]
        return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]

    return Table(list(columns.values()), [cells(row) for row in rows])


def _robots(
    source: Source,
    data: RobotSet,
    layout: Layout | None,
    exchanged: Sequence[str],
    reader: FileReader,
) -> list[Part]:
    """The longest episode: its cameras, what the model sees of it, its numbers. exchanged: cameras
    of which red and blue may be.
    """
    data = of_cameras(data, source)
    labelled = bool(data.state_names and data.action_names)
    # Any name will do: it says only that episodes without numbers are not usable.
    as_video = source.model_copy(update={"embodiment": "any" if labelled else None})
    usable, _ = usable_episodes(data, as_video, colour_cameras(data.cameras), reader)
    # The longest, for it has room for the longest window.
    episode, first_row = max(usable, key=lambda entry: entry[0].length)
    parts = _pictures(source, data, episode, layout, exchanged, reader)
    if labelled:
        state, action = episode_vectors(data, episode, first_row, reader)
        parts.append(_curves(data, episode, state, action))
    return parts


def _pictures(
    source: Source,
    data: RobotSet,
    episode: Episode,
    layout: Layout | None,
    exchanged: Sequence[str],
    reader: FileReader,
) -> list[Part]:
    """The middle of an episode by camera, and as the model sees it. exchanged: as `_robots`."""
    chunk = next((length for length in _CHUNKS if length < episode.length), None)
    shown = colour_cameras(data.cameras)
    if chunk is None or not shown:
        too_short = f"the longest episode has {episode.length} rows, too few for 5 frames"
        return [Part("Cameras", f"Nothing to show: {'no camera' if chunk else too_short}.")]
    # A stride of a quarter: 5 frames, whatever the chunk.
    window = Window(chunk=chunk, stride=chunk // 4)
    pictures: list[Picture] = []
    beside: list[Picture] = []
    # Each alone on a canvas of its own, as if it were the front.
    for camera in shown:
        frames = _frames(source, episode, {"front": camera}, _CAMERA_CANVAS, window, reader)
        alt = f"camera {camera} in the middle of episode {episode.index}"
        pictures.append(Picture(_png(frames[0]), alt, camera))
        if camera in exchanged:
            beside.append(Picture(_png(frames[0]), alt, f"{camera}: as it is read"))
            other = f"{alt}, red and blue exchanged"
            beside.append(Picture(_png(frames[0][..., ::-1]), other, f"{camera}: exchanged"))
    parts = [Part("Cameras", f"The middle of episode {episode.index}.", pictures=pictures)]
    if beside:
        parts.append(Part("Colours", _COLOURS, pictures=beside))
    return [*parts, _model_view(source, data, episode, layout, window, reader)]


def _model_view(
    source: Source,
    data: RobotSet,
    episode: Episode,
    layout: Layout | None,
    window: Window,
    reader: FileReader,
) -> Part:
    # Cameras beyond the slots have no place on a canvas.
    cameras: dict[Slot, str] = source.cameras or default_slots(data.cameras)
    layout = layout or _LAYOUTS.get(len(cameras), "single")
    if layout == "single":
        cameras = {"front": next(iter(cameras.values()))}
    width, height = _SIZES[layout]
    # Grey, so that a `t` can be shown of two cameras.
    canvas = Canvas(layout=layout, width=width, height=height, missing="grey")
    frames = _frames(source, episode, cameras, canvas, window, reader)
    views = ", ".join(f"{slot} = {camera}" for slot, camera in cameras.items())
    every = "every step" if window.stride == 1 else f"every {window.stride}th step"
    note = f"Canvas '{layout}', {width}x{height} pixels: {views}; {every} of one window."
    alt = f"{len(frames)} frames of episode {episode.index} on canvas '{layout}'"
    return Part("What the model sees", note, strips=[Picture(charts.strip(frames), alt)])


def _frames(
    source: Source,
    episode: Episode,
    cameras: dict[Slot, str],
    canvas: Canvas,
    window: Window,
    reader: FileReader,
) -> np.ndarray:
    """uint8 `[T, H, W, 3]` of the window in the middle of an episode."""
    # Without a robot nothing but frames is decoded, so no statistics are needed.
    update = {"embodiment": None, "cameras": cameras, "episodes": str(episode.index)}
    video = source.model_copy(update=update)
    manifest = build_manifest([video], embodiments={}, window=window, clip=_CLIP, reader=reader)
    # The window in the middle, where mostly more happens than at the ends.
    rows = manifest.rows([len(manifest) // 2])
    samples, failures = decode_samples(rows, _spec(canvas, window), reader)
    if failures:
        raise DataError(failures[0][1])
    frames: np.ndarray = samples[0]["frames"]
    return frames


def _spec(canvas: Canvas, window: Window) -> SampleSpec:
    """Frames alone, as they are: no robot, no augmentation."""
    return SampleSpec(canvas, window, _CLIP, {}, {}, 1, False, 0)


def _clips(source: Source, reader: FileReader) -> Part:
    """The first clip of each video."""
    title = "Clips"
    note = "The first clip of each video as the model sees it, 5 frames at 5 Hz."
    try:
        manifest = build_manifest(
            [source], embodiments={}, window=_CLIP_CHUNK, clip=_CLIP, reader=reader
        )
    except DataError as error:
        return Part(title, note, problems=[str(error)])
    # A sample's name is that of its video and a number.
    first_of_video: dict[str, int] = {}
    for position, sample_id in enumerate(manifest.samples["sample_id"].to_pylist()):
        first_of_video.setdefault(sample_id.rsplit("/", 1)[0], position)
    texts = manifest.texts()
    strips = []
    problems = []
    # One by one, so that a broken video costs only its own strip.
    for row in manifest.rows(list(first_of_video.values())[:_MAX_VIDEOS]):
        samples, failures = decode_samples([row], _spec(_CLIP_CANVAS, _CLIP_CHUNK), reader)
        name = row["sample_id"].split("/", 1)[1].rsplit("/", 1)[0]
        if failures:
            problems.append(failures[0][1])
            continue
        frames: np.ndarray = samples[0]["frames"]
        caption = f"{name}: {texts[row['text_key']] or 'no caption'}"
        strips.append(Picture(charts.strip(frames), f"{len(frames)} frames of {name}", caption))
    return Part(title, note, strips=strips, problems=problems)


def _png(picture: np.ndarray) -> bytes:
    """picture: uint8 `[H, W, 3]`."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _curves(data: RobotSet, episode: Episode, state: np.ndarray, action: np.ndarray) -> Part:
    """Every action over time with the state of the same number. state: [n,s], action: [n,d]."""
    names = data.action_names[:_MAX_CURVES]
    # The recorded rate: these are rows of the set, not steps of a robot.
    seconds = np.arange(len(action)) / data.fps
    chart = charts.episode(names, seconds, state, action)
    alt = f"Actions and state over {seconds[-1]:.1f} s of episode {episode.index}, by dimension."
    more = f"The first {len(names)} of {action.shape[1]} actions."
    caption = more if len(names) < action.shape[1] else ""
    note = "Over seconds, in robot units."
    title = f"Actions and state of episode {episode.index}"
    return Part(title, note, chart=Picture(chart, alt, caption))

"""Manifest rows to samples: decode, compose, take differences, normalise, pad."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gwp.data.buckets import Bucket
from gwp.data.canvas import SLOTS, Box, Canvas, fit_into
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.format import FilePart
from gwp.data.formats.pictures import Frames, open_frames
from gwp.data.formats.vectors import read_vectors
from gwp.data.latent_cache import LatentCache
from gwp.data.look import Look, draw_looks
from gwp.data.rates import at_steps, row_span, step_times
from gwp.data.records import Pictured, Row, Sample, Shaped, Vectors, View
from gwp.data.robot.embodiment import Embodiment
from gwp.data.stats.normalise import Normalizer, Stats
from gwp.data.video.decode import explained
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError, MissingError


@dataclass(frozen=True)
class SampleSpec:
    """How samples look; it travels to the decoding tasks. `stats`: by embodiment name, for
    those with actions.

    `buckets`: shapes of clips, numbered from 1; 0 is the canvas with the frames of `window` or
    `clip`.
    `model_dim`: width of state and action vectors in the model. `augment`: random crops, else
    the centre; with `zoom` and `light` as `draw_looks` takes them. `seed`: of those. DataError when
    an embodiment does not fit the model, the canvas, the window or its statistics.
    """

    canvas: Canvas
    window: Window
    clip: ClipWindow
    embodiments: dict[str, Embodiment]
    stats: dict[str, Stats]
    model_dim: int
    augment: bool
    seed: int
    buckets: tuple[Bucket, ...] = ()
    zoom: float = 1.0
    light: float = 0.0

    def __post_init__(self) -> None:
        for name, e in self.embodiments.items():
            for what, names in (("state", e.state_names), ("action", e.action_names)):
                if len(names) > self.model_dim:
                    raise DataError(
                        f"embodiment {name} has {len(names)} {what} dimensions, the model "
                        f"takes {self.model_dim}; widen the model"
                    )
            if e.chunk != self.window.chunk:
                raise DataError(
                    f"embodiment {name} has chunks of {e.chunk} actions, the window "
                    f"{self.window.chunk}; make them equal"
                )
            # For its DataError alone: better here than at every sample.
            self.canvas.boxes(e.cameras)
            if name in self.stats:
                self.stats[name].check(e, self.window)

    def frames_of(self, row: Shaped) -> int:
        """Frames of a manifest row's sample."""
        if row["kind"] != "clip":
            return self.window.frames
        return self.buckets[row["bucket"] - 1].frames if row["bucket"] else self.clip.frames

    def canvas_of(self, row: Shaped) -> Canvas:
        """Picture of a manifest row's sample."""
        if not row["bucket"]:
            return self.canvas
        bucket = self.buckets[row["bucket"] - 1]
        return self.canvas.model_copy(update={"width": bucket.width, "height": bucket.height})

    @cached_property
    def normalizers(self) -> dict[str, Normalizer]:
        return {
            name: Normalizer(stats, self.embodiments[name]) for name, stats in self.stats.items()
        }


@dataclass(frozen=True)
class _Place:
    """A frame that a row wants from a file: number of the row, frame of the sample, box on the
    canvas, look of the view.
    """

    row: int
    frame: int
    box: Box
    look: Look


class _View(NamedTuple):
    """What frames come from, as `open_frames` takes it."""

    format: str
    part: FilePart
    key: str
    rate: float
    tolerance: float | None
    bgr: bool


def decode_frames(
    rows: Sequence[Row], spec: SampleSpec, reader: FileReader
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Frames uint8 `[T, H, W, 3]` by number of the row, and the reason by number of each row
    that cannot be decoded. `reader`: of the process that decodes.
    """
    reasons: dict[int, str] = {}
    # Canvases of rows that failed half-way are painted in part, so they are taken out.
    canvases = _canvases(rows, spec, reasons, reader)
    return {i: canvas for i, canvas in canvases.items() if i not in reasons}, reasons


def decode_samples(
    rows: Sequence[Row],
    spec: SampleSpec,
    reader: FileReader,
    cache: LatentCache | None = None,
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Samples of the rows that can be decoded, in row order, and (sample_id, reason) of those
    that cannot.

    Each file is opened and walked once, whatever the number of rows that want it, and what
    `reader`, which belongs to the process that decodes, has read of it is not read again; a
    sample does not depend on the rows beside it. Storage that does not answer raises: that is
    no property of a sample. With `cache`, latents from the place in the row's `cached` stand
    for frames, as `LatentCache.read` gives them, and no video is opened. Frames of equal shape
    lie behind each other in one array.
    """
    reasons: dict[int, str] = {}
    vectors: dict[int, Vectors] = {}
    # Vectors first: what fails here costs no decoding.
    for i, row in enumerate(rows):
        try:
            vectors[i] = _vectors(row, spec, reader)
        except DataError as error:
            reasons[i] = str(error)
    pictures = _latents(rows, cache, reasons) if cache else _canvases(rows, spec, reasons, reader)
    samples: list[Sample] = []
    for i, row in enumerate(rows):
        if i in reasons:
            continue
        pictured: Pictured = {"latents": pictures[i]} if cache else {"frames": pictures[i]}
        samples.append(
            {
                **pictured,
                "view_valid": _views(row),
                **vectors[i],
                "has_action": bool(row["has_action"]),
                "text_key": row["text_key"],
                "embodiment_id": int(row["embodiment_id"]),
                "sample_id": row["sample_id"],
            }
        )
    return samples, [(rows[i]["sample_id"], reason) for i, reason in sorted(reasons.items())]


def _latents(
    rows: Sequence[Row], cache: LatentCache, reasons: dict[int, str]
) -> dict[int, np.ndarray]:
    """Latents by row number; rows that could not be decoded when the cache was made are added
    to `reasons`.
    """
    for i, row in enumerate(rows):
        if row["cached"]["shard"] < 0:
            reasons.setdefault(i, row["cached"]["reason"] or "not in the cache")
    good = [i for i in range(len(rows)) if i not in reasons]
    return dict(zip(good, cache.read("latents", [rows[i]["cached"] for i in good]), strict=True))


def _views(row: Row) -> np.ndarray:
    """bool `[3]`: which cameras a row has, in the order of SLOTS."""
    have = {view["slot"] for view in row["views"]}
    return np.array([slot in have for slot in SLOTS])


def _look_rng(row: Row, spec: SampleSpec) -> np.random.Generator | None:
    """Seeded by sample and, where the row has one, its `position` in the plan: other looks each
    epoch, the same after a restart.
    """
    if not spec.augment:
        return None
    name = int.from_bytes(hashlib.sha256(row["sample_id"].encode()).digest()[:8], "big")
    return np.random.default_rng(
        np.random.SeedSequence((spec.seed, int(row.get("position") or 0), name))
    )


def frame_times(row: Row, view: View, spec: SampleSpec) -> list[float]:
    """Where the frames of a sample are in the file of one of its views, seconds."""
    if row["kind"] == "clip":
        return [view["start_s"] + t for t in spec.clip.offsets_s(spec.frames_of(row))]
    # Positions are those of the rows; the clock of the file may run a little off theirs.
    # Rate of the set over rate of the file.
    stretch = row["fps"] * row["rows_per_step"] / view["rate"] if view["rate"] else 1.0
    steps = [row["start"] + k for k in spec.window.offsets]
    return step_times(steps, row["length"], view["start_s"], row["fps"], stretch)


def _empty_canvases(
    rows: Sequence[Row], spec: SampleSpec, wanted: list[int]
) -> dict[int, np.ndarray]:
    """Canvases by number of the wanted rows, grey where no view will come."""
    # [T, H, W] -> rows. One array for each: the training stream makes a batch of canvases
    # that lie behind each other without a copy.
    shapes: dict[tuple[int, int, int], list[int]] = {}
    for i in wanted:
        canvas = spec.canvas_of(rows[i])
        shapes.setdefault((spec.frames_of(rows[i]), canvas.height, canvas.width), []).append(i)
    canvases: dict[int, np.ndarray] = {}
    for shape, some in shapes.items():
        memory = np.empty((len(some), *shape, 3), np.uint8)
        for i, place in zip(some, memory, strict=True):
            canvas = spec.canvas_of(rows[i])
            if not canvas.filled_by(v["slot"] for v in rows[i]["views"]):
                place[:] = canvas.grey
            canvases[i] = place
    return canvases


def _canvases(
    rows: Sequence[Row], spec: SampleSpec, reasons: dict[int, str], reader: FileReader
) -> dict[int, np.ndarray]:
    """Canvases by row number; rows that fail are added to `reasons`."""
    canvases = _empty_canvases(rows, spec, [i for i in range(len(rows)) if i not in reasons])
    # What each view of each file is asked for: time -> every place that shows the frame, so
    # that it is decoded once.
    files: dict[_View, dict[float, list[_Place]]] = {}
    for i, row in enumerate(rows):
        if i in reasons:
            continue
        looks = draw_looks(SLOTS, _look_rng(row, spec), spec.zoom, spec.light)
        boxes = spec.canvas_of(row).boxes(v["slot"] for v in row["views"])
        # Recorded rows per second.
        rate = row["fps"] * row["rows_per_step"]
        # Positions of robot rows are exact; a plain video is resampled and gives the nearest
        # frame it has. At another rate than the recorded one, steps fall between frames.
        tolerance = None if row["kind"] == "clip" else 0.5 / rate + 1e-6
        for view in row["views"]:
            part = FilePart(view["uri"], view["offset"], view["bytes"])
            bgr = bool(row["bgr"]) or view["slot"] in (row["bgr_slots"] or ())
            origin = _View(row["format"], part, view["key"], rate, tolerance, bgr)
            wanted = files.setdefault(origin, {})
            for k, t in enumerate(frame_times(row, view, spec)):
                # Microseconds: equal positions reached by different sums must be one request.
                wanted.setdefault(round(t, 6), []).append(
                    _Place(i, k, boxes[view["slot"]], looks[view["slot"]])
                )
    # Then file by file, each opened once for all rows that want something of it.
    for origin, wanted in files.items():
        try:
            about = origin.part, origin.key, origin.rate, reader, origin.tolerance, origin.bgr
            with open_frames(origin.format, *about) as frames:
                _fill(canvases, frames, origin.part.uri, wanted, reasons)
        except MissingError as error:
            # All that wanted something of it. Other errors of storage are raised: they say
            # nothing of the samples.
            for place in (p for places in wanted.values() for p in places):
                reasons.setdefault(place.row, str(error))
    return canvases


def _fill(
    canvases: dict[int, np.ndarray],
    frames: Frames,
    uri: str,
    wanted: dict[float, list[_Place]],
    reasons: dict[int, str],
) -> None:
    """Put the wanted frames of one file into their boxes. A bad place fails its rows only, so
    it goes on behind it.
    """
    # A stream is walked forward, so times are asked for in order.
    left: Sequence[float] = sorted(wanted)
    while left:
        done = 0
        try:
            # One by one, so that whatever came before a bad place has been painted.
            for t, frame in frames(left):
                for place in wanted[t]:
                    x, y, w, h = place.box
                    fit_into(
                        canvases[place.row][place.frame, y : y + h, x : x + w], frame, place.look
                    )
                done += 1
            return
        except DataError as error:
            for place in wanted[left[done]]:
                reasons.setdefault(place.row, str(explained(uri, error)))
            # The generator is over after an error; the next one starts behind the bad place.
            left = [t for t in left[done + 1 :] if any(p.row not in reasons for p in wanted[t])]


def _vectors(row: Row, spec: SampleSpec, reader: FileReader) -> Vectors:
    """State, actions and masks of a row, padded to the model; zeros and False without labels."""
    p, d = spec.window.chunk, spec.model_dim
    out: Vectors = {
        "state": np.zeros(d, np.float32),
        "actions": np.zeros((p, d), np.float32),
        "step_valid": np.zeros(p, bool),
        "dim_valid": np.zeros(d, bool),
    }
    if not row["has_action"]:
        return out
    name, data_file = row["embodiment"], row["data_file"]
    assert data_file is not None
    # A KeyError, because it is a fault of the caller: DataError would fail sample after
    # sample.
    if name not in spec.normalizers:
        raise KeyError(f"no statistics of embodiment {name}; give them in SampleSpec.stats")
    ds, da = len(spec.embodiments[name].state_names), len(spec.embodiments[name].action_names)
    # `real` of the p steps lie in the episode; the rows of those, counted in it, are `begin`
    # to `end`.
    k, real = row["start"], min(p, row["length"] - row["start"])
    ratio = row["rows_per_step"]
    begin, end = row_span(k, real, ratio, row["rows"])
    states, actions = read_vectors(
        row["format"],
        FilePart(data_file, row["data_offset"], row["data_bytes"]),
        row["first_row"] + begin,
        end - begin,
        reader,
        tuple(row["state_keys"]),
        tuple(row["action_keys"]),
    )
    if (states.shape[1], actions.shape[1]) != (ds, da):
        raise DataError(
            f"{data_file}: state and action are {states.shape[1]} and "
            f"{actions.shape[1]} wide, {name} has {ds} and {da}"
        )
    # Every row that is read counts, as in `rates.usable_starts`.
    bad = np.argwhere(~np.isfinite(actions))
    robot = spec.embodiments[name]
    # From here on rows are control steps, the first of which is `start`.
    states = at_steps(states, k, 1, ratio, meaning=robot.state_meaning, begin=begin)
    if not np.isfinite(states).all():
        raise DataError(f"{data_file}: NaN or Inf in the state of row {row['first_row'] + begin}")
    if len(bad):
        step, dim = (int(x) for x in bad[0])
        raise DataError(
            f"{data_file}: NaN or Inf in the action of row "
            f"{row['first_row'] + begin + step}, dimension {dim}"
        )
    if ratio != 1:
        actions = at_steps(
            actions, k, real, ratio, robot.resampling, robot.action_meaning, begin=begin
        )
    # [p, da]: past the end the last action stands in; `step_valid` tells.
    chunk = actions[np.minimum(np.arange(p), real - 1)]
    out["state"][:ds] = spec.normalizers[name].state(states[0])
    out["actions"][:, :da] = spec.normalizers[name].actions(chunk, states[0])
    out["step_valid"][:real] = True
    out["dim_valid"][:da] = True
    return out

"""The records that travel from the manifest to the training loop, field by field.

A `Row` says what to decode and where it lies; it goes to a decoding process. A `Sample` is what
comes out of it, and a `StreamBatch` the columns of many, which the loop of a worker gets.

Legend: n samples, T frames (4k+1, the first is the reference), H W pixels, C T_lat h w of
latents, p actions of a chunk, d width of state and action vectors in the model.
"""

from typing import Literal, NotRequired, TypedDict

import numpy as np

from gwp.data.robot.embodiment import Slot


# Manifests hold these as Arrow: `View`, `Place` and `Row` are VIEW, PLACE and SCHEMA of
# `gwp.data.plan.manifest`, `CachedPlace` is PLACE of `gwp.data.latent_cache`. A test compares
# their fields, so a new one goes into both.
class View(TypedDict):
    """Frames of one camera: what file they lie in, and from where on."""

    slot: Slot
    """Of the canvas."""
    uri: str
    bytes: int | None
    """Of the part of the file that holds them; None: all of it."""
    start_s: float
    """Seconds of that file at which the episode (robot) or the sample (clip) begins."""
    key: str
    """Which pictures of a data file, the k-th of row k; "": a video."""
    offset: int
    """Byte of the file at which the part begins."""
    rate: float | None
    """Hz of the file, where it runs a little off the rate of the set; None: it does not."""


class CachedPlace(TypedDict):
    """Where something lies in a cache."""

    shard: int
    """-1: nowhere, for `reason`."""
    offset: int
    """Byte in the shard."""
    bytes: int
    shape: list[int]
    """Of a sample, `[C, T_lat, h, w]`; of a text, `[rows, dim]`."""
    reason: str | None


# A shape all the same: a sample that fails keeps its place in a batch (`ok` False).
class Missing(TypedDict):
    """What a shard of a cache has no numbers of."""

    reason: str
    shape: list[int]
    """That they would have, as in `CachedPlace`."""


# Apart from `Row`, because shapes are asked for where there are no rows yet.
class Shaped(TypedDict):
    """What the shape of a sample follows from; every row has it."""

    kind: Literal["robot", "clip"]
    bucket: int
    """Number of the clip's bucket, from 1; 0: the canvas of the stage."""


class Place(TypedDict):
    """An episode or a video: what all samples of it share."""

    source: int
    """Number of the entry of the mixture."""
    kind: Literal["robot", "clip"]
    weight: float
    """How often an epoch shows each sample."""
    has_action: bool
    embodiment: str | None
    embodiment_id: int
    text_key: str
    """Hash of the instruction or caption."""
    fps: float
    """Hz: control steps of a robot, frames of a video."""
    length: int
    """Control steps of the episode; frames of the video."""
    rows_per_step: float
    """Recorded rows per control step; 1 where a set has the rate of its robot."""
    format: str
    """In the table of formats."""
    data_file: str | None
    """Where the rows are; None: there are none."""
    first_row: int
    """Of the episode in that file."""
    rows: int
    """Of the episode."""
    data_offset: int
    """Byte at which the part of the file with the rows begins."""
    data_bytes: int | None
    """Of that part; None: all of the file."""
    state_keys: tuple[str, ...]
    """Columns of the state, as the file calls them, joined in this order."""
    action_keys: tuple[str, ...]
    """Columns of the action, likewise."""
    bgr: bool
    """Whether its pictures were written with red and blue exchanged, all of them."""
    bgr_slots: tuple[Slot, ...]
    """Of the canvas, whose pictures were, where not all were."""
    views: list[View]
    """One per camera that is there."""


# `start_s` of its views is that of the sample here, for clips; `Place` has that of the video.
class Row(Place):
    """One sample of the manifest, whole. What is not required comes with a plan or a cache."""

    sample_id: str
    """Fingerprint of the set / episode / step, or / file / milliseconds."""
    bucket: int
    start: int
    """Control step that the sample begins at; 0 for clips."""
    position: NotRequired[int]
    """In the plan of the run: seeds the crop. -1: padding, which is not decoded."""
    batch: NotRequired[int]
    """Samples of the global batch that it is of."""
    cached: NotRequired[CachedPlace]
    """Where its latents are."""


class Skipped(TypedDict):
    """What a manifest leaves out."""

    uri: str
    """Of the source."""
    item: str
    """Episode or file."""
    reason: str
    broken: bool
    """Whether something is wrong with it; else it was not asked for, or is too short."""


# `pipelines.training.samples.stream` plans these two, and takes the rows of `ids` only where they are
# decoded.
class Share(TypedDict):
    """The share of one rank in a global batch, as it is planned."""

    first: int
    """Position of its first sample in the plan."""
    batch: int
    """Samples of the global batch."""
    rows: int
    """Of the share: more than it has samples where others have one more."""
    ids: list[int]
    """Positions of its samples in the manifest; one at least."""


class PackedBlock(TypedDict):
    """What a decoding process gets at a time: shares of one rank, of consecutive steps."""

    shares: list[Share]


# numpy has no bfloat16, so its bits travel as uint16.
class Pictured(TypedDict):
    """Pictures of a sample: one of the two."""

    frames: NotRequired[np.ndarray]
    """uint8 `[T, H, W, 3]`, RGB, on the canvas."""
    latents: NotRequired[np.ndarray]
    """`[C, T_lat, h, w]`, float16, or uint16 that holds the bits of bfloat16."""


class Vectors(TypedDict):
    """State and actions of a sample in model units, padded; zeros and False without labels."""

    state: np.ndarray
    """float32 `[d]`."""
    actions: np.ndarray
    """float32 `[p, d]`, relative to the state where the robot's mask says so."""
    step_valid: np.ndarray
    """bool `[p]`: False past the end of the episode."""
    dim_valid: np.ndarray
    """bool `[d]`: False on padding."""


class Sample(Pictured, Vectors):
    """A decoded sample."""

    view_valid: np.ndarray
    """bool `[3]`: which cameras it has, in the order of SLOTS."""
    has_action: bool
    text_key: str
    embodiment_id: int
    sample_id: str


# A column per field of `Sample`, and what is known of each row besides.
class StreamBatch(TypedDict):
    """Columns of decoded samples in the order of the plan.

    Those that could not be decoded keep their place, with `ok` False; what else they hold means
    nothing. Behind the samples of a share there may be padding, `ok` False too, at position -1.
    """

    frames: NotRequired[np.ndarray]
    """uint8 `[n, T, H, W, 3]`, or there are `latents`."""
    latents: NotRequired[np.ndarray]
    """`[n, C, T_lat, h, w]`, float16, or uint16 that holds the bits of bfloat16."""
    view_valid: np.ndarray
    """bool `[n, 3]`."""
    state: np.ndarray
    """float32 `[n, d]`, model units."""
    actions: np.ndarray
    """float32 `[n, p, d]`, model units."""
    step_valid: np.ndarray
    """bool `[n, p]`."""
    dim_valid: np.ndarray
    """bool `[n, d]`."""
    has_action: np.ndarray
    """bool `[n]`."""
    text_key: np.ndarray
    """str `[n]`."""
    embodiment_id: np.ndarray
    """int64 `[n]`."""
    sample_id: np.ndarray
    """str `[n]`."""
    position: np.ndarray
    """int64 `[n]`: in the plan of the run; -1: padding."""
    batch: np.ndarray
    """int64 `[n]`: samples of the global batch."""
    source: np.ndarray
    """int64 `[n]`: number of the entry of the mixture; -1: padding."""
    ok: np.ndarray
    """bool `[n]`: whether it could be decoded."""
    reason: np.ndarray
    """str `[n]`: why it could not."""

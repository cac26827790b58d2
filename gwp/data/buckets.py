"""Shapes that samples come in: a batch is of one shape, and as many tokens as any other batch."""

from collections.abc import Sequence
from math import log

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gwp.data.window import of_codec_length


class Bucket(BaseModel):
    """A shape that clips of plain videos are brought to."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    frames: int = Field(gt=0)
    """Frames of a clip, 4n+1."""
    height: int = Field(gt=0)
    """Height of the picture, pixels."""
    width: int = Field(gt=0)
    """Width of the picture, pixels."""

    @field_validator("frames")
    @classmethod
    def _fits_the_codec(cls, frames: int) -> int:
        if not of_codec_length(frames):
            raise ValueError(f"{frames} frames: a clip needs 4n+1 frames (5, 9, 13, ...)")
        return frames

    @property
    def cost(self) -> int:
        """Proportional to its visual tokens: latent frames times pixels."""
        # A latent frame for the first picture and one for each four more. Codec and patch are
        # the same for all buckets, so pixels stand for tokens.
        return ((self.frames - 1) // 4 + 1) * self.height * self.width

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def batch_sizes(buckets: Sequence[Bucket], global_batch: int, multiple: int) -> tuple[int, ...]:
    """Samples of a global batch of each bucket; the first one's is `global_batch`, no other
    costs more tokens.

    The others are multiples of `multiple`, so that they divide among workers. ValueError when a
    bucket is too large for that.
    """
    budget, sizes = buckets[0].cost * global_batch, [global_batch]
    for bucket in buckets[1:]:
        # Rounded down twice, so it never costs more than a batch of the first.
        size = budget // bucket.cost // multiple * multiple
        if not size:
            raise ValueError(
                f"bucket {bucket}: {budget // bucket.cost} samples fit into the tokens of a "
                f"batch ({global_batch} of {buckets[0]}), fewer "
                f"than batch_multiple {multiple}; raise engine.global_batch, lower "
                "data.batch_multiple, or make the bucket smaller"
            )
        sizes.append(size)
    return tuple(sizes)


def tile(
    buckets: Sequence[Bucket], width: int, height: int, seconds: float, fps: float
) -> list[tuple[float, int]]:
    """Clips one after another in `seconds` of a video of that many pixels: where each starts,
    seconds, and its bucket.

    The buckets nearest in aspect ratio; of those the largest picture that needs no enlargement,
    else the smallest; of those the longest that still fits, and shorter ones behind it.
    """
    # In logarithms 4:3 and 3:4 are equally far from a square.
    aspect = log(width / height)
    near = min(abs(log(b.width / b.height) - aspect) for b in buckets)
    fitting = [
        i for i, b in enumerate(buckets) if abs(log(b.width / b.height) - aspect) < near + 1e-6
    ]
    areas = {i: buckets[i].width * buckets[i].height for i in fitting}
    sharp = [a for a in areas.values() if a <= width * height]
    area = max(sharp) if sharp else min(areas.values())
    lengths = sorted(((buckets[i].frames, i) for i in fitting if areas[i] == area), reverse=True)
    clips: list[tuple[float, int]] = []
    at = 0.0
    while True:
        found = next(
            ((frames, i) for frames, i in lengths if at + (frames - 1) / fps <= seconds + 1e-9),
            None,
        )
        if found is None:
            return clips
        # Its last frame is at `at + (frames - 1) / fps`; the next clip begins one frame
        # behind.
        clips.append((at, found[1]))
        at += found[0] / fps

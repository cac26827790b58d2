"""Which moments of a recording make one sample."""

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


def of_codec_length(frames: int) -> bool:
    # A latent for the first frame and one for each four more; a single frame has no future.
    return frames >= 5 and (frames - 1) % 4 == 0


class Window(BaseModel):
    """A sample of a robot set: a chunk of actions and the frames that are seen meanwhile.

    From start k: actions k .. k+chunk-1 and frames k, k+stride, ..., k+chunk. Past the end of
    the episode the last row stands in (`step_valid` tells).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    chunk: int = Field(gt=0)
    """Actions per chunk, control steps."""
    stride: int = Field(gt=0)
    """Control steps between two frames."""

    @model_validator(mode="after")
    def _fits_the_codec(self) -> "Window":
        # Frames are a stride apart from 0 to `chunk`, so the last one shows what the chunk
        # led to.
        if self.chunk % self.stride or not of_codec_length(self.frames):
            fits = [
                s
                for s in range(1, self.chunk)
                # chunk / stride is one less than the number of frames: a multiple of 4.
                if self.chunk % s == 0 and (self.chunk // s) % 4 == 0
            ]
            hint = (
                f"strides that fit: {', '.join(map(str, fits))}"
                if fits
                else "make chunk a multiple of 4"
            )
            raise ValueError(
                f"chunk {self.chunk} with stride {self.stride} does not give 4n+1 frames (5, "
                f"9, ...); {hint}"
            )
        return self

    @property
    def frames(self) -> int:
        """Frames of a sample, 4n+1 as causal video codecs want."""
        return self.chunk // self.stride + 1

    @property
    def offsets(self) -> tuple[int, ...]:
        """Control steps from the start to each frame: 0, stride, ..., chunk."""
        return tuple(range(0, self.chunk + 1, self.stride))


class ClipWindow(BaseModel):
    """A sample of a plain video: equally spaced frames, resampled to a common rate (nearest
    frame).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    frames: int = Field(gt=0)
    """Frames of a sample, 4n+1."""
    fps: float = Field(gt=0)
    """Rate that frames are resampled to, Hz."""

    @field_validator("frames")
    @classmethod
    def _fits_the_codec(cls, frames: int) -> int:
        if not of_codec_length(frames):
            raise ValueError(f"{frames} frames: a clip needs 4n+1 frames (5, 9, 13, ...)")
        return frames

    def offsets_s(self, frames: int) -> tuple[float, ...]:
        """Seconds from the start to each of so many frames."""
        # `frames` is given and not read from here: those of a bucket are its own.
        return tuple(i / self.fps for i in range(frames))

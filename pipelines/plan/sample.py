"""What one sample of a stage is: pictures, latents, tokens."""

from dataclasses import dataclass

from gwp.data.canvas import Canvas
from gwp.errors import GwpError
from gwp.model.codecs.pca import TEMPORAL, PcaCodecConfig
from gwp.model.config import Group
from gwp.model.cost import tokens_of, training_flop
from pipelines.jobs.train_job import TrainJob

_WAN_SPATIAL = 16
"""Pixels of a side of a latent of Wan 2.2, whose latents have 48 channels; of Wan 2.1 it is 8."""
_TEXT_ROWS = 64
"""Where the text encoder comes with `init`."""


@dataclass(frozen=True)
class SampleShape:
    """A sample of the canvas's shape; batches of buckets have at most as many tokens.

    frames:    pictures that it shows; views: cameras of each, that have to be decoded
    picture:   bytes of its canvas, uint8
    latent:    latent frames (the reference first), rows and columns
    stored:    bytes of its latents in a cache, two a number
    acting:    tokens by group where actions are learnt; video: where only the future is
    text_rows: tokens of its instruction
    video_share: share of batches that are of video alone
    """

    frames: int
    views: int
    picture: int
    latent: tuple[int, int, int]
    stored: int
    acting: dict[Group, int]
    video: dict[Group, int]
    text_rows: int
    video_share: float

    @classmethod
    def of(cls, job: TrainJob) -> "SampleShape":
        """Of a job. GwpError when the canvas does not divide into latents and patches."""
        data, config = job.data, job.model_config_
        spatial = _spatial(job)
        _, ph, pw = config.patch_size
        canvas = data.canvas
        for name, side, patch in (("height", canvas.height, ph), ("width", canvas.width, pw)):
            if side % (spatial * patch):
                raise GwpError(
                    f"data.canvas: {name} {side} is no multiple of {spatial * patch} (codec "
                    f"{spatial}, patch {patch}); choose one"
                )
        frames = data.window.frames
        latent = ((frames - 1) // TEMPORAL + 1, canvas.height // spatial, canvas.width // spatial)
        objective = job.objective
        modes = objective.modes
        labelled = any(source.labelled for source in data.sources)
        share = modes.video / (modes.video + modes.ac_wm + modes.wam) if labelled else 1.0
        if data.batches == "mixed" and share < 1:
            # Samples of video alone stand in passes with actions, and cost the same.
            share = 0.0
        rows = job.text.rows if job.text is not None else _TEXT_ROWS
        return cls(
            frames=frames,
            views=_views(canvas, job) if labelled else 1,
            picture=frames * canvas.height * canvas.width * 3,
            latent=latent,
            stored=2 * config.in_channels * latent[0] * latent[1] * latent[2],
            acting=tokens_of(config, latent, data.window.chunk, objective.video_weight > 0),
            video=tokens_of(config, latent, None),
            text_rows=rows,
            video_share=share,
        )

    @property
    def largest(self) -> dict[Group, int]:
        """Tokens of the largest graph that is computed."""
        return self.video if self.video_share == 1 else self.acting

    @property
    def tokens(self) -> float:
        """On average over modes, without those of the text."""
        alone, with_actions = sum(self.video.values()), sum(self.acting.values())
        return self.video_share * alone + (1 - self.video_share) * with_actions

    def flop(self, job: TrainJob) -> float:
        """Of the model for one sample, forward and backward, on average over modes."""
        config = job.model_config_
        with_actions = training_flop(config, self.acting, self.text_rows)
        alone = training_flop(config, self.video, self.text_rows)
        return self.video_share * alone + (1 - self.video_share) * with_actions


def _spatial(job: TrainJob) -> int:
    codec = job.codec
    if isinstance(codec, PcaCodecConfig):
        return codec.spatial
    # Without a codec of its own the stage has that of `init`: with as many channels as Wan's,
    # Wan's, else a linear one, as this repository's own small stages have it.
    wan = codec is not None or job.model_config_.in_channels == 48
    return _WAN_SPATIAL if wan else PcaCodecConfig(kind="pca").spatial


def _views(canvas: Canvas, job: TrainJob) -> int:
    """Cameras of the robot that has most."""
    named = [len(e.cameras) for e in job.data.embodiments.values() if e.cameras]
    return max(named) if named else {"single": 1}.get(canvas.layout, 3)

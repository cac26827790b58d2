"""What a policy in training does and imagines, on some samples that do not train.

A loss says how well velocities are met at noise levels as they come. What a robot would do, and
what the model believes will be seen, is had by integrating them; that is done for a few samples
here, at each checkpoint, and held against guesses that need no model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gwp.data.decode import SampleSpec
from gwp.data.stats.normalise import Normalizer
from gwp.model.config import Group, Visibility
from gwp.model.flow import hold_padding, solver_sigmas
from gwp.model.objective import Batch, ObjectiveConfig
from gwp.model.transformer import Tokens, WorldActionTransformer
from pipelines.frames import error_sums, strip, told

STEPS, SHIFT = 10, 5.0
"""Of the solver, as an export has them."""
_SIGMA = 0.7
"""Noise of the future at which it is asked how much it heeds the actions."""
_SHOWN = 3
# Model units from the low to the high end of a dimension.
_RANGE = 2.0
_OF_ACTIONS, _OF_FRAMES, _OF_ASKED = 4, 6, 2
SUMS = _OF_ACTIONS + 2 * _OF_FRAMES + _OF_ASKED


@dataclass(frozen=True)
class _Samples:
    """Of this rank; all on the CPU.

    frames:     uint8 `[n, T, H, W, 3]`
    counts:     bool `[n]`, which of them count
    guesses:    `hold` and `mean`, fp32 `[n, p, d]`, model units
    noise:      of the future and of the actions, as `draw_noise` gives them
    video_only: whether the stage looks at no actions
    """

    batch: Batch
    frames: np.ndarray
    counts: np.ndarray
    guesses: Mapping[str, Tensor]
    noise: tuple[Tensor, Tensor]
    video_only: bool


class Judged:
    """The samples of one share that are acted on and imagined; validation makes it.

    picture: real frames above imagined ones, uint8 `[h, w, 3]`, of the newest `sums`
    """

    def __init__(
        self,
        objective: ObjectiveConfig,
        spec: SampleSpec,
        decode: Callable[[Tensor], Tensor],
        visibility: Visibility = "action-centred",
    ) -> None:
        """decode: latents on the device to frames uint8, of the codec; visibility: of the model"""
        self._objective, self._decode = objective, decode
        self._visibility = visibility
        self._robots = spec.embodiments
        self._normalizers = {
            name: Normalizer(spec.stats[name].cut(robot), robot)
            for name, robot in spec.embodiments.items()
            if name in spec.stats
        }
        self._samples: _Samples | None = None
        self.picture: np.ndarray | None = None

    @property
    def wanted(self) -> bool:
        """Whether there are none yet."""
        return self._samples is None

    def add(
        self,
        frames: np.ndarray,
        batch: Batch,
        robots: Sequence[str | None],
        counts: np.ndarray,
        noise: tuple[Tensor, Tensor],
        video_only: bool,
    ) -> None:
        """Take these n samples, of which each share has as many. frames: uint8 `[n, T, H, W, 3]`;
        batch: theirs, on the CPU; robots: of each; counts: bool `[n]`, which of them count; noise:
        of their futures and actions; video_only: whether the stage looks at no actions
        """
        guesses = self._guesses(batch, robots)
        self._samples = _Samples(batch, frames.copy(), counts, guesses, noise, video_only)

    def _guesses(self, batch: Batch, robots: Sequence[str | None]) -> dict[str, Tensor]:
        found = {name: np.zeros(batch.actions.shape, np.float32) for name in ("hold", "mean")}
        p = batch.actions.shape[1]
        for i, name in enumerate(robots):
            normalizer = self._normalizers.get(name or "")
            if name is None or normalizer is None:
                continue
            robot = self._robots[name]
            d = len(robot.action_names)
            given = batch.state[i, 0, : len(robot.state_names)].numpy()
            state = normalizer.inverse_state(given)
            names = zip(robot.action_names, robot.state_names, strict=False)
            same = np.array(robot.delta)
            for k, (action, of_state) in enumerate(names):
                same[k] |= action == of_state
            still = np.zeros(d)
            width = min(d, len(state))
            still[:width] = state[:width]
            mean = normalizer.mean_action(state)
            for kind, guess in (("hold", np.where(same, still, 0.0)), ("mean", mean)):
                chunk = np.tile(guess, (p, 1))
                found[kind][i, :, :d] = normalizer.actions(chunk[None], state[None])[0]
        return {name: torch.from_numpy(guess) for name, guess in found.items()}

    @torch.no_grad()
    def sums(self, model: WorldActionTransformer, device: torch.device) -> list[float]:
        """Sums of errors, of the weights as they are, for `named` to divide; zeros without
        samples. All ranks of an engine that shards weights call it together.
        """
        if self._samples is None:
            return [0.0] * SUMS
        samples, objective = self._samples, self._objective
        batch = moved(samples.batch, device)
        acts = objective.modes.wam > 0 and not samples.video_only
        sums = self._acted(model, batch, samples) if acts else [0.0] * _OF_ACTIONS
        if objective.video_weight > 0:
            seen = self._imagined(model, batch, samples)
            sums += seen + self._heeded(model, batch, samples)
        else:
            sums += [0.0] * (2 * _OF_FRAMES + _OF_ASKED)
        return sums

    def _acted(self, model: WorldActionTransformer, batch: Batch, samples: _Samples) -> list[float]:
        noise = samples.noise[1].to(batch.actions.device)
        padding = ~batch.dim_valid if self._objective.masking == "valid" else None
        together = self._visibility == "joint"
        heads: tuple[Group, ...] = ("A", "F") if together else ("A",)
        future: Tensor | None = None
        if together:
            future = samples.noise[0].to(noise.device)
        elif self._visibility == "video-first":
            future = self._denoised(model, batch, samples)
        x = noise
        # By whole passes, and not as `gwp.model.denoise` does with a context: an engine that shards
        # weights brings them where it is called itself.
        for now, after in pairwise(solver_sigmas(STEPS, SHIFT).tolist()):
            sigma = torch.full((len(x),), now, device=x.device)
            tokens = Tokens(batch.state, batch.latents[:, :, :1], x, future)
            level: dict[Group, Tensor] = dict.fromkeys(heads, sigma)
            out = model(tokens, level, batch.text, batch.embodiment, heads=heads)
            assert out.action is not None
            x = x + (after - now) * out.action.float()
            x = hold_padding(x, noise, padding, after)
            if together and future is not None:
                assert out.future is not None
                future = future + (after - now) * out.future.float()
        learnt = samples.batch.step_valid[:, :, None] & samples.batch.dim_valid[:, None]
        learnt &= torch.from_numpy(samples.counts)[:, None, None]
        true = samples.batch.actions
        guesses = (x.cpu(), samples.guesses["hold"], samples.guesses["mean"])
        errors = [float((guess - true).abs()[learnt].sum()) / _RANGE for guess in guesses]
        return [*errors, float(learnt.sum())]

    def _imagined(
        self, model: WorldActionTransformer, batch: Batch, samples: _Samples
    ) -> list[float]:
        reference = batch.latents[:, :, :1]
        x = self._denoised(model, batch, samples)
        guess = self._decode(torch.cat([reference, x], 2)).cpu().numpy()
        real, kept = samples.frames, samples.counts
        if kept.any():
            shown = np.flatnonzero(kept)[:_SHOWN]
            self.picture = strip(real[shown], guess[shown])
        copied = np.broadcast_to(real[:, :1], real.shape)
        return error_sums(real[kept], guess[kept]) + error_sums(real[kept], copied[kept])

    def _denoised(self, model: WorldActionTransformer, batch: Batch, samples: _Samples) -> Tensor:
        """The future `[n, C, T, h, w]`, with the true actions."""
        x = samples.noise[0].to(batch.latents.device)
        for now, after in pairwise(solver_sigmas(STEPS, SHIFT).tolist()):
            x = x + (after - now) * self._future(
                model, batch, samples.video_only, batch.actions, x, now
            )
        return x

    def _heeded(
        self, model: WorldActionTransformer, batch: Batch, samples: _Samples
    ) -> list[float]:
        """Errors of the future with the true actions, and with those of another sample."""
        clean, noise = batch.latents[:, :, 1:], samples.noise[0].to(batch.latents.device)
        x = _SIGMA * noise + (1 - _SIGMA) * clean
        kept = torch.from_numpy(samples.counts)
        errors = []
        # Places that hold nobody's sample stand behind those that do.
        number = int(kept.sum())
        another = torch.arange(len(kept)).roll(1)
        another[:number] = torch.arange(number).roll(1)
        for actions in (batch.actions, batch.actions[another.to(batch.actions.device)]):
            velocity = self._future(model, batch, samples.video_only, actions, x, _SIGMA)
            each = (velocity - (noise - clean)).square().flatten(1).mean(1)
            errors.append(float(each.cpu()[kept].sum()))
        # One alone has no other.
        return errors if number > 1 and not samples.video_only else [0.0, 0.0]

    @staticmethod
    def _future(
        model: WorldActionTransformer,
        batch: Batch,
        video_only: bool,
        actions: Tensor,
        x: Tensor,
        sigma: float,
    ) -> Tensor:
        tokens = Tokens(reference=batch.latents[:, :, :1], future=x)
        if not video_only:
            tokens = replace(tokens, state=batch.state, action=actions)
        level = torch.full((len(x),), sigma, device=x.device)
        out = model(tokens, {"F": level}, batch.text, batch.embodiment, heads=("F",))
        assert out.future is not None
        return out.future.float()


def moved(batch: Batch, device: torch.device, rows: slice = slice(None)) -> Batch:
    """Some samples of a batch on another device."""
    parts: dict[str, Tensor] = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return Batch(**{name: part[rows].to(device) for name, part in parts.items()})


def named(sums: Sequence[float]) -> dict[str, float]:
    """Errors by name, of what `Judged.sums` gave, added up over all shares."""
    found = {}
    *errors, count = sums[:_OF_ACTIONS]
    if count:
        names = ("action_error", "action_error_hold", "action_error_mean")
        found = {name: error / count for name, error in zip(names, errors, strict=True)}
    rest = sums[_OF_ACTIONS:]
    found |= told(rest[:_OF_FRAMES])
    copied = told(rest[_OF_FRAMES : 2 * _OF_FRAMES])
    found |= {f"{name}_copy": value for name, value in copied.items()}
    true, other = rest[2 * _OF_FRAMES :]
    if true > 0:
        found["action_sensitivity"] = other / true - 1
    return found

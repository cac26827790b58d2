"""From an admitted observation to numbers for the model, and from the model's numbers back to
robot units.

Shape legend: B observations, p actions, d model channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwp.data.canvas import compose
from gwp.data.embodiment import Embodiment
from gwp.data.stats.normalise import Normalizer, Stats
from gwp.policy.bundle import Bundle
from gwp.policy.contract import PolicyContract
from gwp.policy.safety import apply_limits
from gwp.protocol.messages import Observation


@dataclass(frozen=True)
class Prepared:
    """One observation that was checked: from here on nothing about it can be wrong.

    canvas uint8 `[1, H, W, 3]`; state fp32 `[1, d]` and given fp32 `[p, d]` normalised and
    padded; committed bool `[p]`
    """

    observation: Observation
    embodiment: Embodiment
    canvas: np.ndarray
    state: Tensor
    given: Tensor
    committed: Tensor


@dataclass(frozen=True)
class Batch:
    """Prepared observations on the device. given fp32 `[B, p, d]` and committed bool `[B, p]`
    are None when nothing is committed.
    """

    canvas: Tensor
    state: Tensor
    noise: Tensor
    embodiment: Tensor
    given: Tensor | None
    committed: Tensor | None


class Inputs:
    """Contract, canvas and normalisation of one policy. No model, no device work; safe for any
    number of threads.
    """

    def __init__(self, bundle: Bundle, contract: PolicyContract) -> None:
        self._contract, self._settings = contract, bundle.settings
        self._normalizers = {
            n: Normalizer(Stats.from_json(bundle.stats[n]), e)
            for n, e in bundle.embodiments.items()
        }

    def prepare(self, observation: Observation) -> Prepared:
        """ObservationError when the observation does not fit the policy."""
        observation, embodiment = self._contract.admit(observation)
        views = {
            slot: observation.images[camera][None] for slot, camera in embodiment.cameras.items()
        }
        p, d = self._settings.window.chunk, self._settings.model_dim
        given, committed = torch.zeros(p, d), torch.zeros(p, dtype=torch.bool)
        if observation.delay and observation.prefix_actions is not None:
            rows = self.normalized(
                embodiment, observation.prefix_actions[: observation.delay], observation
            )
            given[: observation.delay] = rows
            committed[: observation.delay] = True
        state = self._pad(self._normalizers[embodiment.name].state(observation.state)[None])
        return Prepared(
            observation,
            embodiment,
            compose(views, self._settings.canvas, None),
            state,
            given,
            committed,
        )

    def normalized(
        self, embodiment: Embodiment, actions_pd: np.ndarray, observation: Observation
    ) -> Tensor:
        """Actions in robot units to model actions fp32 `[p, d]`."""
        return self._pad(
            self._normalizers[embodiment.name].actions(actions_pd[None], observation.state[None])[0]
        )

    def batch(self, prepared: Sequence[Prepared], device: torch.device) -> Batch:
        """Stacked, with each observation's own noise."""
        p, d = self._settings.window.chunk, self._settings.model_dim
        some = any(x.observation.delay for x in prepared)
        return Batch(
            canvas=torch.from_numpy(np.stack([x.canvas for x in prepared])).to(device),
            state=torch.stack([x.state for x in prepared]).to(device),
            noise=torch.stack(
                [torch.randn(p, d, generator=_generator(x.observation)) for x in prepared]
            ).to(device),
            embodiment=torch.tensor([x.embodiment.id for x in prepared]).to(device),
            given=torch.stack([x.given for x in prepared]).to(device) if some else None,
            committed=torch.stack([x.committed for x in prepared]).to(device) if some else None,
        )

    def future_noise(
        self, prepared: Sequence[Prepared], shape: tuple[int, ...], device: torch.device
    ) -> Tensor:
        """`[B, *shape]`, from another stream than the action noise of the same seed."""
        return torch.stack(
            [torch.randn(shape, generator=_generator(x.observation, 1 << 32)) for x in prepared]
        ).to(device)

    def finish(self, prepared: Prepared, y_pd: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """Model actions to robot units, within the safety envelope; what the envelope changed."""
        observation, embodiment = prepared.observation, prepared.embodiment
        y = y_pd[None, :, : len(embodiment.action_names)]
        actions = self._normalizers[embodiment.name].inverse_actions(y, observation.state[None])[0]
        return apply_limits(actions, observation.state, embodiment, observation.delay)

    def _pad(self, rows: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(rows)).float()
        return torch.nn.functional.pad(x, (0, self._settings.model_dim - x.shape[-1]))


def _generator(observation: Observation, stream: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed((observation.seed or 0) + stream)

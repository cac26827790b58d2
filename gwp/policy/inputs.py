"""From an observation to numbers for the model, and from its numbers back to robot units.

Shape legend: B observations, p actions, d model channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gwp.data.robot.embodiment import Embodiment
from gwp.data.stats.normalise import Normalizer, Stats
from gwp.policy.admission.guard import Guard
from gwp.policy.bundle import Bundle
from gwp.policy.composed import ComposedObservation, compose_observation
from gwp.policy.contract import PolicyContract
from gwp.policy.envelope.safety import apply_limits, hold_from
from gwp.protocol.messages import Observation


@dataclass(frozen=True)
class AdmittedObservation:
    """One observation, checked and put into the model's numbers: nothing about it can be wrong
    now.

    `Inputs.admit` makes it in the caller's thread; `Inputs.batch` stacks several,
    `Inputs.finish` reads it for the answer.

    canvas     uint8 `[1, H, W, 3]`, camera views composed
    state      fp32 `[1, d]`, normalised and padded
    given      fp32 `[p, d]`, promised actions, normalised and padded; zeros elsewhere
    committed  bool `[p]`, which rows of `given` are promised
    flags      what is to be told of the observation with its answer
    """

    observation: Observation
    embodiment: Embodiment
    canvas: np.ndarray
    state: Tensor
    given: Tensor
    committed: Tensor
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Admitted observations, stacked on the device.

    `Inputs.batch` makes it; policy and engine encode it.

    canvas      uint8 `[B, 1, H, W, 3]`
    state       fp32 `[B, 1, d]`
    noise       fp32 `[B, p, d]`, each observation's own
    embodiment  int64 `[B]`
    given       fp32 `[B, p, d]` and committed bool `[B, p]`; both None when nothing is committed
    padding     bool `[B, d]`, channels that a robot does not have and that training did not
                supervise: held at their noise; None when all are integrated
    future      fp32 `[B, C, T, h, w]`, noise of each observation's future; None where acting
                denoises none
    """

    canvas: Tensor
    state: Tensor
    noise: Tensor
    embodiment: Tensor
    given: Tensor | None
    committed: Tensor | None
    padding: Tensor | None = None
    future: Tensor | None = None


class Inputs:
    """Contract, canvas and normalisation of one policy.

    No model, no device work; safe for any number of threads.

    The policy makes it; policy and engine use it before and after the model.
    """

    def __init__(
        self, bundle: Bundle, contract: PolicyContract, guard: Guard | None = None
    ) -> None:
        """guard: what an endpoint promises of answers; whom it refuses, its gateway does."""
        self._contract = contract
        self._guarded = contract.guarded(guard)
        self._settings = bundle.settings
        self._normalizers = {
            name: Normalizer(Stats.from_json(bundle.stats[name]), embodiment)
            for name, embodiment in bundle.embodiments.items()
        }

    def admit(self, given: Observation | ComposedObservation) -> AdmittedObservation:
        """ObservationError when the observation does not fit the policy.

        given: a composed one was checked by whoever composed it, against this contract
        """
        if isinstance(given, Observation):
            # Here, not in a batch: every caller's thread composes its own.
            given = compose_observation(given, self._contract)
        observation = given.observation
        embodiment = self._contract.embodiment(observation.embodiment)
        p, d = self._settings.window.chunk, self._settings.model_dim
        given_pd = torch.zeros(p, d)
        committed_p = torch.zeros(p, dtype=torch.bool)
        # Of the promised actions only those that are executed before the answer can come are
        # fixed; the rest may still change.
        delay = observation.delay
        if delay and observation.prefix_actions is not None:
            promised = observation.prefix_actions[:delay]
            given_pd[:delay] = self.normalized(embodiment, promised, observation)
            committed_p[:delay] = True
        state = self._pad(self._normalizers[embodiment.name].state(observation.state)[None])
        flags = self._guarded.remarks(observation)
        return AdmittedObservation(
            observation, embodiment, given.canvas, state, given_pd, committed_p, flags
        )

    def normalized(
        self, embodiment: Embodiment, actions_pd: np.ndarray, observation: Observation
    ) -> Tensor:
        """Actions in robot units to model actions fp32 `[p, d]`."""
        normalizer = self._normalizers[embodiment.name]
        return self._pad(normalizer.actions(actions_pd[None], observation.state[None])[0])

    def batch(
        self,
        admitted: Sequence[AdmittedObservation],
        device: torch.device,
        future: tuple[int, ...] | None = None,
    ) -> Batch:
        """Stacked, with each observation's own noise. future: (C, T, h, w) of a future that is
        denoised with the actions; None: none is
        """
        p, d = self._settings.window.chunk, self._settings.model_dim
        # With none promised, all actions of a step have one noise level, which is cheaper.
        some = any(x.observation.delay for x in admitted)
        # From the observation's own seed and on the CPU: an answer depends neither on who shares
        # the batch nor on the device.
        noise = [torch.randn(p, d, generator=_generator(x.observation)) for x in admitted]
        return Batch(
            canvas=torch.from_numpy(np.stack([x.canvas for x in admitted])).to(device),
            state=torch.stack([x.state for x in admitted]).to(device),
            noise=torch.stack(noise).to(device),
            embodiment=torch.tensor([x.embodiment.id for x in admitted]).to(device),
            given=torch.stack([x.given for x in admitted]).to(device) if some else None,
            committed=torch.stack([x.committed for x in admitted]).to(device) if some else None,
            padding=self._padding(admitted, device),
            future=None if future is None else self.future_noise(admitted, future, device),
        )

    def _padding(
        self, admitted: Sequence[AdmittedObservation], device: torch.device
    ) -> Tensor | None:
        if self._settings.masking == "published":
            # Padding was learnt there, to end at zero.
            return None
        widths = torch.tensor([len(x.embodiment.action_names) for x in admitted])
        return (torch.arange(self._settings.model_dim) >= widths[:, None]).to(device)

    def future_noise(
        self, admitted: Sequence[AdmittedObservation], shape: tuple[int, ...], device: torch.device
    ) -> Tensor:
        """`[B, *shape]`, from another stream than the action noise of the same seed."""
        # Seeds of observations end below 2^32.
        generators = [_generator(x.observation, stream=1 << 32) for x in admitted]
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)

    def finish(
        self, admitted: AdmittedObservation, y_pd: np.ndarray
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Model actions to robot units, within the safety envelope; what the envelope changed,
        and what is to be told of the observation.
        """
        observation, embodiment = admitted.observation, admitted.embodiment
        # The model's width is padded; the robot has the leading dimensions.
        y = y_pd[None, :, : len(embodiment.action_names)]
        actions = self._normalizers[embodiment.name].inverse_actions(y, observation.state[None])[0]
        if self._guarded.holds(observation):
            actions = hold_from(actions, embodiment, observation.delay)
        actions, flags = apply_limits(
            actions,
            observation.state,
            embodiment,
            observation.delay,
            observation.executed_action,
            self._guarded.envelope(embodiment),
        )
        return actions, admitted.flags + flags

    def _pad(self, rows: np.ndarray) -> Tensor:
        x = torch.from_numpy(np.ascontiguousarray(rows)).float()
        return torch.nn.functional.pad(x, (0, self._settings.model_dim - x.shape[-1]))


def _generator(observation: Observation, stream: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed((observation.seed or 0) + stream)

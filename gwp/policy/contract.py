"""What a policy asks of a robot, and the check of everything a robot sends. Without torch: a
gateway runs it.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gwp.data.canvas import Canvas
from gwp.data.robot.embodiment import Embodiment, Limits
from gwp.errors import DataError, GoneError, ObservationError
from gwp.model.config import ActionForm, Visibility
from gwp.policy.admission.checks import MAX_SIDE, MIN_SIDE, picture, vector
from gwp.policy.admission.derived import Seen, limits_from, run_of, seen_in
from gwp.policy.admission.guard import Guard
from gwp.policy.admission.offer import describe, offer
from gwp.policy.admission.plausible import strangers
from gwp.policy.admission.read_contract import read_parts
from gwp.policy.bundle import PolicyConfig
from gwp.policy.envelope.safety import Envelope
from gwp.protocol.handshake import mismatch, short_name
from gwp.protocol.messages import Observation

if TYPE_CHECKING:
    from gwp.policy.bundle import Bundle

__all__ = ["MAX_PROMPT", "MAX_SIDE", "MIN_SIDE", "PolicyContract"]

MAX_PROMPT = 4096
"""Longest instruction, characters."""
_PIN = 8
"""Digits of a policy id that name it."""


class PolicyContract(BaseModel):
    """What one policy takes and gives. Everything in it but `guard` is read from the bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy_id: str
    """sha256 of the bundle's manifest."""
    family: str
    """Model family, `gwp0` or `gwp05`."""
    model_dim: int = Field(gt=0)
    """Width of state and action vectors inside the model."""
    chunk: int = Field(gt=0)
    """Actions per reply, control steps."""
    canvas: Canvas
    """How camera views are composed."""
    embodiments: dict[str, Embodiment]
    """Robots that the policy was trained for, by name."""
    seen: dict[str, Seen] = {}
    """Where the state of each robot was in training."""
    derived: dict[str, Limits] = {}
    """Limits that the training data of each robot tell."""
    visibility: Visibility = "action-centred"
    """Which groups of tokens see which; where actions see the future, requests are batched whole."""
    actions: ActionForm = "tokens"
    """What states and actions are to the transformer."""
    trained_delay: int | None = None
    """Longest delay that the policy was trained for, control steps; None: not known."""
    run_id: str = ""
    """MLflow run that made the policy; empty: not known."""
    guard: Guard | None = None
    """What an endpoint asks beyond the bundle; None: nothing, as in one's own process."""

    @classmethod
    def from_bundle(cls, bundle: "Bundle") -> "PolicyContract":
        """The contract of a verified bundle."""
        return cls._of(
            bundle.id, bundle.settings, bundle.embodiments, bundle.stats, run_of(bundle.lineage)
        )

    @classmethod
    def read(cls, uri: str) -> "PolicyContract":
        """The contract of the bundle at `uri` (path or `s3://`), without fetching its weights.

        Raises BundleError when there is no bundle or the files read here differ from its
        manifest.
        """
        parts = read_parts(uri)
        return cls._of(
            parts.policy_id, parts.settings, parts.embodiments, parts.stats, run_of(parts.lineage)
        )

    @classmethod
    def _of(
        cls,
        policy_id: str,
        settings: PolicyConfig,
        embodiments: dict[str, Embodiment],
        stats: dict[str, Any],
        run_id: str,
    ) -> "PolicyContract":
        # It knows the formats of data sets too, which a gateway has no other use for.
        from gwp.data.stats.normalise import Stats

        seen: dict[str, Seen] = {}
        derived: dict[str, Limits] = {}
        for name, embodiment in embodiments.items():
            # What is wrong with statistics is said by the policy that needs them to compute.
            try:
                found = Stats.from_json(stats[name])
                seen[name] = seen_in(found, embodiment)
                derived[name] = limits_from(found, embodiment)
            except (DataError, KeyError):
                continue
        return cls(
            policy_id=policy_id,
            family=settings.family,
            model_dim=settings.model_dim,
            chunk=settings.window.chunk,
            canvas=settings.canvas,
            embodiments=embodiments,
            seen=seen,
            derived=derived,
            visibility=settings.visibility,
            actions=settings.actions,
            trained_delay=settings.trained_delay,
            run_id=run_id,
        )

    def guarded(self, guard: Guard | None) -> "PolicyContract":
        """The same contract with the checks of an endpoint."""
        return self.model_copy(update={"guard": guard})

    def envelope(self, embodiment: Embodiment) -> Envelope | None:
        """The limits that hold for a robot: its own, else under a guard those of its training
        data.
        """
        if embodiment.limits is not None:
            return Envelope(embodiment.limits)
        derived = self.derived.get(embodiment.name)
        if self.guard is None or self.guard.limits == "none" or derived is None:
            return None
        return Envelope(derived, derived=True)

    def embodiment(self, name: str | None) -> Embodiment:
        """The embodiment called `name`; None picks the only one. ObservationError when it is
        unknown or the choice is open.
        """
        known = ", ".join(sorted(self.embodiments))
        if name is None:
            if len(self.embodiments) == 1:
                return next(iter(self.embodiments.values()))
            raise ObservationError(
                f"embodiment: missing; this policy serves several, name one of: {known}"
            )
        if name not in self.embodiments:
            raise ObservationError(
                f"embodiment: '{name[:64]}' is not one this policy was trained for; use one of: {known}"
            )
        return self.embodiments[name]

    def check(self, observation: Observation) -> Embodiment:
        """The embodiment that `observation` belongs to; ObservationError naming the field and
        the fix when it does not fit.
        """
        return self.admit(observation)[1]

    def admit(self, observation: Observation) -> tuple[Observation, Embodiment]:
        """Check everything and give the observation in the one form that the model code reads.

        Given back: `images` only of the embodiment's cameras, under its camera keys, uint8 `[H,
        W, 3]` (CHW is transposed); `state` float32 `[d_state]`; `prefix_actions` float32 `[k,
        d_action]` or None; `executed_action` float32 `[d_action]` or None; `embodiment` and
        `seed` filled in. Cameras that the policy does not use are left out: robots publish what
        they have.

        Raises ObservationError: one line with the field, what came, what is expected. GoneError
        where the observation insists on another policy. Under a guard also for what it refuses.
        """
        # Which robot first: all else is checked against it.
        embodiment = self.embodiment(observation.embodiment)
        self._check_pin(observation.policy)
        # Doors have checked its type already; a caller of the library has not.
        if not isinstance(observation.prompt, str) or len(observation.prompt) > MAX_PROMPT:
            raise ObservationError(f"prompt: expected text of up to {MAX_PROMPT} characters")
        images = self._images(observation.images, embodiment)
        states, actions = embodiment.state_names, embodiment.action_names
        state = vector("state", observation.state, (len(states),), states)
        prefix = self._prefix(observation, embodiment)
        executed = observation.executed_action
        if executed is not None:
            executed = vector("executed_action", executed, (len(actions),), actions)
        seed = 0 if observation.seed is None else observation.seed
        # Seeds from 2^32 on are for other noise of an observation, in `gwp.policy.inputs`.
        if not 0 <= seed < 1 << 32:
            raise ObservationError(f"seed: {seed} is outside 0..2^32-1")
        admitted = replace(
            observation,
            images=images,
            state=state,
            prefix_actions=prefix,
            executed_action=executed,
            embodiment=embodiment.name,
            seed=seed,
        )
        self._refuse_strangers(admitted, embodiment)
        return admitted, embodiment

    def remarks(self, admitted: Observation) -> tuple[str, ...]:
        """Flags of an admitted observation: `out-of-range:NAME` for a state that its guard lets
        through, `untrained:delay` for a delay that training may not have shown.
        """
        if self.guard is None:
            return ()
        flags: list[str] = []
        if self.guard.on_state == "flag":
            embodiment = self.embodiment(admitted.embodiment)
            flags += [f"out-of-range:{name}" for name in self._strangers(admitted, embodiment)]
        if admitted.delay > (self.trained_delay or 0):
            flags.append("untrained:delay")
        return tuple(flags)

    def holds(self, admitted: Observation) -> bool:
        """Whether the answer stands still after the promised actions: their number is more than
        the policy was trained for.
        """
        return self.guard is not None and self.guard.on_delay == "hold" and self._too_late(admitted)

    def metadata(self, embodiment: str | None = None) -> dict[str, Any]:
        """What the endpoint says of itself when a robot connects: plain numbers, text, lists
        and maps.

        With one embodiment, or when `embodiment` names one, its fields also stand at the top,
        where stock clients look.
        """
        embodiments = {name: self._describe(e) for name, e in self.embodiments.items()}
        metadata = offer(
            self.policy_id,
            self.family,
            self.visibility,
            self.actions,
            self.canvas,
            self.run_id,
            self.trained_delay,
        )
        metadata["embodiments"] = embodiments
        # With several, nobody knows yet which of them connects.
        if embodiment is None and len(embodiments) > 1:
            return metadata
        chosen = self.embodiment(embodiment)
        return metadata | {"embodiment": chosen.name} | embodiments[chosen.name]

    def agree(self, robot: dict[str, Any]) -> Embodiment | None:
        """Check what a robot announces at the handshake: `embodiment`, `fps`, `action_names`,
        `state_names`, `action_units`, `state_units`, `cameras`.

        Returns its embodiment, None when it announced nothing and there are several.
        ObservationError when they do not match.
        """
        # Stock clients announce nothing; then each request has to name its robot.
        if not robot and len(self.embodiments) > 1:
            return None
        embodiment = self.embodiment(robot.get("embodiment"))
        wrong = mismatch(robot, self._describe(embodiment))
        if wrong:
            raise ObservationError(f"embodiment {embodiment.name} does not match: {wrong}")
        return embodiment

    def _describe(self, embodiment: Embodiment) -> dict[str, Any]:
        envelope = self.envelope(embodiment)
        limits = None if envelope is None else envelope.limits
        return describe(embodiment, limits, self.canvas, self.chunk, self.trained_delay)

    def _check_pin(self, pin: str | None) -> None:
        # A robot may insist on one policy, whatever is rolled out meanwhile.
        if pin is None or pin == self.policy_id:
            return
        if len(pin) < _PIN or not self.policy_id.startswith(pin):
            raise GoneError(
                f"policy: {pin[:64]} is asked for, this endpoint serves "
                f"{self.policy_id}; reconnect or drop the pin"
            )

    def _strangers(self, admitted: Observation, embodiment: Embodiment) -> dict[str, str]:
        seen = self.seen.get(embodiment.name)
        if seen is None or self.guard is None:
            return {}
        return strangers(admitted.state, embodiment, seen, self.guard.state_spans)

    def _refuse_strangers(self, admitted: Observation, embodiment: Embodiment) -> None:
        if self.guard is None or self.guard.on_state != "refuse":
            return
        found = self._strangers(admitted, embodiment)
        if found:
            told = [f"{name} {why}" for name, why in list(found.items())[:3]]
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise ObservationError(
                f"state: {'; '.join(told)}{more}; send it as it was recorded, or let the endpoint "
                "flag it (guard.on_state: flag)"
            )

    def _too_late(self, observation: Observation) -> bool:
        trained = self.trained_delay
        return trained is not None and observation.delay > trained

    def _images(
        self, images: dict[str, np.ndarray], embodiment: Embodiment
    ) -> dict[str, np.ndarray]:
        # Robots and data sets disagree on prefixes; the last part is what they share.
        given: dict[str, np.ndarray] = {}
        for name, image in images.items():
            if short_name(name) in given:
                raise ObservationError(
                    f"images: camera '{short_name(name)}' came twice; send each camera once"
                )
            given[short_name(name)] = image
        missing = [key for key in embodiment.cameras.values() if short_name(key) not in given]
        if missing:
            raise ObservationError(
                f"images: camera {', '.join(missing)} is missing (came: "
                f"{', '.join(sorted(given))[:200] or 'none'}); "
                f"{embodiment.name} needs {', '.join(embodiment.cameras.values())}"
            )
        return {key: picture(key, given[short_name(key)]) for key in embodiment.cameras.values()}

    def _prefix(self, observation: Observation, embodiment: Embodiment) -> np.ndarray | None:
        # The first `delay` rows are executed before the answer comes; only those are fixed.
        delay, prefix = observation.delay, observation.prefix_actions
        if delay < 0 or delay >= self.chunk:
            raise ObservationError(
                f"delay: {delay} control steps, expected 0..{self.chunk - 1}, less than a "
                "chunk of actions"
            )
        if (
            self.guard is not None
            and self.guard.on_delay == "refuse"
            and self._too_late(observation)
        ):
            raise ObservationError(
                f"delay: {delay} control steps, this policy was trained for {self.trained_delay} "
                "at most; ask earlier or send less, or let it stand still (guard.on_delay: hold)"
            )
        rows = 0
        if prefix is not None:
            names = embodiment.action_names
            prefix = vector("prefix_actions", prefix, (-1, len(names)), names)
            rows = len(prefix)
        # Row i of the prefix is row i of the new chunk.
        if rows > self.chunk:
            raise ObservationError(
                f"prefix_actions: {rows} rows, expected at most {self.chunk}; send what is not "
                "executed yet"
            )
        if delay > rows:
            raise ObservationError(
                f"delay: {delay} is more than the {rows} rows of prefix_actions; send the "
                "committed actions"
            )
        return prefix

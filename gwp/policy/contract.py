"""What a policy asks of a robot, and the check of everything a robot sends. Without torch: a
gateway runs it.
"""

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from gwp import storage
from gwp.data.canvas import Canvas
from gwp.data.robot.embodiment import Embodiment
from gwp.errors import BundleError, MissingError, ObservationError
from gwp.policy.bundle import MANIFEST, PolicyConfig
from gwp.protocol.handshake import mismatch, short_name
from gwp.protocol.messages import Observation
from gwp.storage.named_files import read_manifest

if TYPE_CHECKING:
    from gwp.policy.bundle import Bundle

DIALECTS = ("openpi", "vllm-omni")
"""Forms of request that the endpoint answers on its websocket."""
MIN_SIDE, MAX_SIDE = 8, 8192
"""Allowed height and width of a camera image, pixels."""
MAX_PROMPT = 4096
"""Longest instruction, characters."""


class PolicyContract(BaseModel):
    """What one policy takes and gives. Everything in it is read from the bundle."""

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

    @classmethod
    def from_bundle(cls, bundle: "Bundle") -> "PolicyContract":
        """The contract of a verified bundle."""
        return cls._of(bundle.id, bundle.settings, bundle.embodiments)

    @classmethod
    def read(cls, uri: str) -> "PolicyContract":
        """The contract of the bundle at `uri` (path or `s3://`), without fetching its weights.

        Raises BundleError when there is no bundle or the files read here differ from its
        manifest.
        """
        try:
            # The manifest and two small files: the weights stay where they are.
            raw = read_manifest(storage.join(uri, MANIFEST), BundleError)
            files = json.loads(raw)["files"]
            texts = {
                name: storage.read_bytes(storage.join(uri, name))
                for name in ("policy.json", "embodiments.json")
            }
            # The policy id is the manifest's hash: what it vouches for has to be what was read.
            for name, text in texts.items():
                if hashlib.sha256(text).hexdigest() != files[name]["sha256"]:
                    raise BundleError(
                        f"{uri}: {name} was altered (its sha256 differs from the manifest); "
                        "copy the bundle again"
                    )
            embodiments = {
                n: Embodiment.model_validate(e)
                for n, e in json.loads(texts["embodiments.json"]).items()
            }
            settings = PolicyConfig.model_validate_json(texts["policy.json"])
        except MissingError as error:
            raise BundleError(
                f"{uri}: {error}; this is not a whole policy bundle (make one with `gwp export`)"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = type(error).__name__
            raise BundleError(
                f"{uri}: not a policy bundle of this version ({why}); export the policy again"
            ) from error
        return cls._of(hashlib.sha256(raw).hexdigest(), settings, embodiments)

    @classmethod
    def _of(
        cls, policy_id: str, settings: PolicyConfig, embodiments: dict[str, Embodiment]
    ) -> "PolicyContract":
        return cls(
            policy_id=policy_id,
            family=settings.family,
            model_dim=settings.model_dim,
            chunk=settings.window.chunk,
            canvas=settings.canvas,
            embodiments=embodiments,
        )

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
        d_action]` or None; `embodiment` and `seed` filled in. Cameras that the policy does not
        use are left out: robots publish what they have.

        Raises ObservationError: one line with the field, what came, what is expected.
        """
        # Which robot first: all else is checked against it.
        embodiment = self.embodiment(observation.embodiment)
        # A robot may insist on one policy, whatever is rolled out meanwhile.
        if observation.policy is not None and observation.policy != self.policy_id:
            raise ObservationError(
                f"policy: {observation.policy[:64]} is asked for, this endpoint serves "
                f"{self.policy_id}; reconnect or drop the pin"
            )
        # Doors have checked its type already; a caller of the library has not.
        if not isinstance(observation.prompt, str) or len(observation.prompt) > MAX_PROMPT:
            raise ObservationError(f"prompt: expected text of up to {MAX_PROMPT} characters")
        images = self._images(observation.images, embodiment)
        state = _vector(
            "state", observation.state, (len(embodiment.state_names),), embodiment.state_names
        )
        prefix = self._prefix(observation, embodiment)
        seed = 0 if observation.seed is None else observation.seed
        # Seeds from 2^32 on are for other noise of an observation, in `gwp.policy.inputs`.
        if not 0 <= seed < 1 << 32:
            raise ObservationError(f"seed: {seed} is outside 0..2^32-1")
        admitted = replace(
            observation,
            images=images,
            state=state,
            prefix_actions=prefix,
            embodiment=embodiment.name,
            seed=seed,
        )
        return admitted, embodiment

    def metadata(self, embodiment: str | None = None) -> dict[str, Any]:
        """What the endpoint says of itself when a robot connects: plain numbers, text, lists
        and maps.

        With one embodiment, or when `embodiment` names one, its fields also stand at the top,
        where stock clients look.
        """
        embodiments = {name: self._describe(e) for name, e in self.embodiments.items()}
        metadata = {
            "policy_id": self.policy_id,
            "family": self.family,
            "dialects": list(DIALECTS),
            "canvas": self.canvas.model_dump(mode="json"),
            "embodiments": embodiments,
        }
        # With several, nobody knows yet which of them connects.
        if embodiment is None and len(embodiments) > 1:
            return metadata
        chosen = self.embodiment(embodiment)
        return metadata | {"embodiment": chosen.name} | embodiments[chosen.name]

    def agree(self, robot: dict[str, Any]) -> Embodiment | None:
        """Check what a robot announces at the handshake: `embodiment`, `fps`, `action_names`,
        `state_names`, `cameras`.

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
        return {
            "action_horizon": self.chunk,
            "action_dim": len(embodiment.action_names),
            "action_names": list(embodiment.action_names),
            "action_units": list(embodiment.action_units),
            "state_dim": len(embodiment.state_names),
            "state_names": list(embodiment.state_names),
            "fps": embodiment.fps,
            "replan": embodiment.replan,
            "cameras": list(embodiment.cameras.values()),
        }

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
                f"{', '.join(sorted(given)) or 'none'}); "
                f"{embodiment.name} needs {', '.join(embodiment.cameras.values())}"
            )
        return {key: _image(key, given[short_name(key)]) for key in embodiment.cameras.values()}

    def _prefix(self, observation: Observation, embodiment: Embodiment) -> np.ndarray | None:
        # The first `delay` rows are executed before the answer comes; only those are fixed.
        delay, prefix = observation.delay, observation.prefix_actions
        if delay < 0 or delay >= self.chunk:
            raise ObservationError(
                f"delay: {delay} control steps, expected 0..{self.chunk - 1}, less than a "
                "chunk of actions"
            )
        rows = 0
        if prefix is not None:
            prefix = _vector(
                "prefix_actions",
                prefix,
                (-1, len(embodiment.action_names)),
                embodiment.action_names,
            )
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


def _image(name: str, image: object) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        _fail(
            f"images.{name}", f"a {type(image).__name__}", "a uint8 array [height, width, 3], RGB"
        )
    # Not converted here: floats may mean 0..1 or 0..255, and nobody could tell.
    if image.dtype != np.uint8:
        fix = "; multiply by 255 and convert" if image.dtype.kind == "f" else ""
        _fail(f"images.{name}", f"dtype {image.dtype}", f"uint8 values 0..255, RGB{fix}")
    # Channels first, as torch has them; where both could be meant, they come last.
    if image.ndim == 3 and image.shape[2] != 3 and image.shape[0] == 3:
        image = image.transpose(1, 2, 0)
    # One picture per camera: no batch, no history, no alpha.
    if image.ndim != 3 or image.shape[2] != 3:
        _fail(
            f"images.{name}",
            f"shape {list(image.shape)}",
            "[height, width, 3] or [3, height, width], without a batch axis",
        )
    if not (MIN_SIDE <= image.shape[0] <= MAX_SIDE and MIN_SIDE <= image.shape[1] <= MAX_SIDE):
        _fail(
            f"images.{name}",
            f"{image.shape[1]}x{image.shape[0]} pixels",
            f"{MIN_SIDE} to {MAX_SIDE} on each side",
        )
    return np.ascontiguousarray(image)


def _vector(field: str, value: Any, shape: tuple[int, ...], names: tuple[str, ...]) -> np.ndarray:
    expected = f"{['k' if n < 0 else n for n in shape]}".replace("'", "") + f" ({', '.join(names)})"
    if not isinstance(value, np.ndarray):
        _fail(field, f"a {type(value).__name__}", f"an array {expected}")
    # Booleans and complex numbers are no values of a joint, nor is text.
    if value.dtype.kind not in "fiu":
        _fail(field, f"dtype {value.dtype}", "float32 in robot units")
    if value.ndim != len(shape) or value.shape[-1] != shape[-1]:
        _fail(field, f"shape {list(value.shape)}", expected)
    # A copy: the array may be a view of the message. float64 past the range of float32 becomes
    # infinite, and is then refused with the rest.
    with np.errstate(over="ignore"):
        value = np.array(value, np.float32)
    # By dimension, over all rows: the name says where to look.
    broken = (~np.isfinite(value)).reshape(-1, shape[-1]).any(axis=0)
    if broken.any():
        _fail(
            field,
            f"NaN or infinity in {', '.join(names[i] for i in np.flatnonzero(broken))}",
            "finite robot units",
        )
    return value


def _fail(field: str, got: str, expected: str) -> NoReturn:
    raise ObservationError(f"{field}: got {got}, expected {expected}")

"""Request maps: from what robots of different houses send to one observation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gwp.data.robot.embodiment import Embodiment
from gwp.errors import ObservationError, ProtocolError
from gwp.policy.contract import MAX_PROMPT, PolicyContract
from gwp.protocol.fields import FIELDS, unknown
from gwp.protocol.handshake import short_name
from gwp.protocol.messages import Observation
from serve.messages.picture_files import is_picture_file
from serve.messages.pictures import Pixels, decode_picture
from serve.messages.reports import report_of
from serve.messages.values import (
    MAX_NAME,
    as_text,
    integer,
    one_text,
    positive,
    request_id,
    squeezed,
    text,
)

_MAX_DEPTH = 3
_LEAST_SIDE = 8
"""Height and width from which on numbers with three axes are a picture."""
_PUBLISHED = ("observation.", "images.", "video.", "annotation.", "language.")
"""Beginnings of keys under which robots publish more than a policy looks at."""
PROMPTS = ("prompt", "task", "language.task", "annotation.human.action.task_description")
"""Keys of the instruction, also those of LeRobot and GR00T, without `observation.`."""
_BESIDE = frozenset(FIELDS) - {"state", "prompt", "task", "robot", "session", "episode", "rate"}
"""Fields that mean nothing inside of an observation."""


class Entry(NamedTuple):
    """One value of a request, whatever maps it lay in.

    key: all of its path, joined by dots. name: the key without `observation.`. top: the key of
    the request's own map that it lies under
    """

    key: str
    name: str
    top: str
    value: Any


def entries(message: Mapping[str, Any]) -> Iterator[Entry]:
    """Every value of a request map. ProtocolError where a key is no text."""
    for top, value in message.items():
        for key, inner in _flat(top, value, 0):
            plain = key.replace("/", ".")
            yield Entry(plain, plain.removeprefix("observation."), top, inner)


def _flat(key: object, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if not isinstance(key, str):
        raise ProtocolError("maps need text keys")
    # They are names of fields and cameras, which errors and logs repeat.
    if len(key) > MAX_NAME or not key.isprintable():
        raise ProtocolError(f"a key is longer than {MAX_NAME} or holds control characters")
    # A map nested without end would end Python's own stack.
    if not isinstance(value, dict) or depth >= _MAX_DEPTH:
        yield key, value
        return
    for inner, content in value.items():
        if not isinstance(inner, str):
            raise ProtocolError("maps need text keys")
        yield from _flat(f"{key}.{inner}", content, depth + 1)


def is_picture(value: object) -> bool:
    """Whether a value can be nothing but a picture, or several."""
    if isinstance(value, bytes):
        return is_picture_file(value)
    if not isinstance(value, np.ndarray):
        return False
    if value.dtype in (np.uint8, np.uint16):
        return value.ndim >= 2
    # Colours or depth as floats; promised actions have two axes, or a third of length 1.
    sides = value.shape[-3:-1] if value.shape[-1:] in ((1,), (3,), (4,)) else value.shape[-2:]
    return value.ndim >= 3 and min(sides) >= _LEAST_SIDE


def to_observation(
    message: object,
    contract: PolicyContract,
    embodiment: str | None = None,
    pixels: Pixels | None = None,
) -> Observation:
    """The observation in one request map, not yet checked against the contract.

    Cameras and state are read under their full key (`observation.images.top`), under
    `observation/top`, `images/top`, `video.top` or `top`, and in nested maps (`{"images": {"top":
    ...}}`); the state also as one number for each of its names. Images may be JPEG or PNG bytes.

    `embodiment` is used where the request names none; `pixels` counts the pictures of requests
    that came together. Raises ProtocolError or ObservationError naming the field.
    """
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ProtocolError("a request is one msgpack map with text keys")
    if "batch" in message:
        raise ProtocolError("batch: stands inside of another one; send one list of requests")
    name = text(message, "embodiment") or embodiment
    found = _Found(contract.embodiment(name), pixels or Pixels())
    for entry in entries(message):
        found.take(entry)
    return Observation(
        images=found.images,
        state=found.state(message),
        prompt=found.prompt(),
        embodiment=name,
        prefix_actions=squeezed(message.get("prefix_actions"), 2),
        delay=integer(message, "delay") or 0,
        seed=integer(message, "seed"),
        robot=text(message, "robot") or "",
        session=one_text(message, "session", "session_id"),
        episode=text(message, "episode") or "",
        policy=text(message, "policy"),
        deadline_s=positive(message, "deadline_s"),
        observed_at=positive(message, "observed_at"),
        max_age_s=positive(message, "max_age_s"),
        executed_action=squeezed(message.get("executed_action"), 1),
        steps_left=integer(message, "steps_left", least=0),
        rate=positive(message, "rate", "Hz"),
        report=report_of(message),
        request_id=request_id(message),
    )


@dataclass
class _Found:
    """What a request holds besides its single fields, gathered entry by entry."""

    robot: Embodiment
    pixels: Pixels
    images: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    published: bool = True

    def __post_init__(self) -> None:
        self.cameras = {short_name(key) for key in self.robot.cameras.values()}

    def take(self, entry: Entry) -> None:
        """Put an entry where it belongs. ObservationError for one that belongs nowhere."""
        key, name, value = entry.key, entry.name, entry.value
        short = short_name(key)
        if name == "state":
            self.states[key] = value
        elif name in PROMPTS:
            self._take_prompt(key, value)
        elif name.startswith("state."):
            self._take_part(name.removeprefix("state."), entry)
        elif short in self.cameras or (key not in FIELDS and is_picture(value)):
            self._take_image(short, value)
        elif name in self.robot.state_names and key not in FIELDS:
            self._take_part(name, entry)
        elif name != key and (name in _BESIDE or name.startswith("report.")):
            raise ObservationError(f"{key}: stands beside the observation; send it as `{name}`")
        elif entry.top == "report":
            # `report_of` reads it whole.
            return
        elif key not in FIELDS and not key.startswith(_PUBLISHED):
            raise ObservationError(unknown(entry.top))

    def state(self, message: Mapping[str, Any]) -> Any:
        """The state, whatever it is; of single numbers for each of its names a vector."""
        # Robots publish single numbers, too, beside the state; outside of an observation they
        # would be a second one.
        ways = [*self.states, *([] if self.states and self.published else list(self.parts)[:1])]
        if len(ways) > 1:
            raise ObservationError(f"state: came as {' and as '.join(ways)}; send it once")
        if self.parts and not self.states:
            return self._joined()
        if not self.states:
            keys = ", ".join(sorted(message))[:200]
            raise ObservationError(
                f"state: missing (came: {keys}); send it as `state` or `observation.state`"
            )
        (value,) = self.states.values()
        return squeezed(_numbers(value), 1)

    def prompt(self) -> str:
        """The instruction, "" where there is none."""
        if len(set(self.prompts.values())) > 1:
            raise ObservationError(
                f"prompt: {' and '.join(self.prompts)} say different things; send one of them"
            )
        return next(iter(self.prompts.values()), "")

    def _take_part(self, part: str, entry: Entry) -> None:
        if part in self.parts:
            raise ObservationError(f"state: {part} came twice; send it once")
        self.parts[part] = entry.value
        self.published &= entry.key.startswith("observation.")

    def _take_prompt(self, key: str, value: Any) -> None:
        # GR00T sends a text for each step of each robot, LeRobot one for each robot.
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is not None and (words := as_text(key, value, MAX_PROMPT)):
            self.prompts[key] = words

    def _take_image(self, short: str, value: Any) -> None:
        if short in self.images:
            raise ObservationError(f"images: camera '{short}' came twice; send each camera once")
        # Only cameras that the policy looks at are worth decoding.
        if isinstance(value, bytes) and short in self.cameras:
            value = decode_picture(short, value, self.pixels)
        self.images[short] = squeezed(value, 3)

    def _joined(self) -> np.ndarray:
        names = self.robot.state_names
        if strange := [part for part in self.parts if part not in names]:
            raise ObservationError(
                f"state.{strange[0]}: unknown; groups of the state are not read here, send one "
                f"`state` with {', '.join(names)}"
            )
        if missing := [name for name in names if name not in self.parts]:
            raise ObservationError(
                f"state: {', '.join(missing)} missing beside {', '.join(self.parts)}; send one "
                f"`state` with {', '.join(names)}"
            )
        row = [np.asarray(_numbers([self.parts[name]])).reshape(-1) for name in names]
        if wide := [name for name, part in zip(names, row, strict=True) if part.size != 1]:
            raise ObservationError(f"state.{wide[0]}: got several numbers, expected one")
        return np.concatenate(row)


def _numbers(value: Any) -> Any:
    """A list as an array; anything else as it is."""
    if not isinstance(value, list):
        return value
    try:
        return np.asarray(value, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise ObservationError(
            "state: got a list that is not all numbers; send float32 in robot units"
        ) from error

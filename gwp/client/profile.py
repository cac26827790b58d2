"""The robot's side of a policy, built from what the endpoint declares at the handshake."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gwp.client.buffering.buffer import ChunkBuffer
from gwp.client.buffering.fetch import Act
from gwp.client.connection.wire import ClientError

_NEEDED = ("fps", "action_names", "replan")
_PER_TIME = ("/s", "/step", "per step", "per second")


@dataclass(frozen=True)
class Profile:
    """What a policy asks of a robot.

    embodiment:       which robot; "" when the endpoint does not say
    fps:              control rate, Hz
    chunk, replan:    actions of a reply, and how many are executed before the next; control steps
    action_names, action_units, state_names, state_units: in the order of the vectors; units are
                      empty when not declared
    cameras:          whose pictures have to come
    sizes:            camera -> height and width that the policy looks at, pixels
    limits:           `lower`, `upper`, `velocity`, `acceleration`, `jump` -> robot units per
                      action; only those that there are
    delay, blend:     what `ChunkBuffer` is to use, control steps
    trained_delay:    largest delay that the policy was trained on; None: not declared
    jpeg_quality:     how well pictures are to be compressed, 1 to 100; None: not declared
    resize:           whether to send pictures in `sizes` instead of larger
    max_age_s, max_message_bytes: what the endpoint accepts; None: not declared
    noise:            of a request without a seed, `fixed` or `fresh`; "" when not declared
    summed:           `[d]`, true for displacements and velocities: zero when the robot holds
    mixed:            `[d]`, true where a value between two is a value: what may be blended
    """

    embodiment: str
    fps: float
    chunk: int
    replan: int
    action_names: tuple[str, ...]
    action_units: tuple[str, ...]
    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    cameras: tuple[str, ...]
    sizes: dict[str, tuple[int, int]]
    limits: dict[str, tuple[float, ...]]
    delay: int
    blend: int
    trained_delay: int | None
    jpeg_quality: int | None
    resize: bool
    max_age_s: float | None
    max_message_bytes: int | None
    noise: str
    summed: tuple[bool, ...]
    mixed: tuple[bool, ...]

    @classmethod
    def of(cls, metadata: Mapping[str, Any], embodiment: str | None = None) -> "Profile":
        """Of the metadata of a handshake. ClientError when it does not say enough, or when
        several robots are served and none is chosen.
        """
        robots = metadata.get("embodiments") or {}
        name = embodiment or metadata.get("embodiment")
        if name is None and len(robots) == 1:
            (name,) = robots
        if embodiment and robots and embodiment not in robots:
            raise ClientError(
                f"embodiment {embodiment}: the policy knows {', '.join(robots)}", "handshake"
            )
        said = {**metadata, **robots.get(name, {})}
        missing = [field for field in _NEEDED if not said.get(field)]
        if missing:
            fix = (
                f"name one of {', '.join(robots)}"
                if len(robots) > 1 and name is None
                else "give ChunkBuffer the numbers of your robot yourself"
            )
            raise ClientError(f"the endpoint declares no {', '.join(missing)}; {fix}", "handshake")
        names = tuple(map(str, said["action_names"]))
        advice = said.get("recommend") or {}
        trained = _number(said.get("trained_delay"))
        replan = int(said["replan"])
        chunk = int(said.get("chunk") or said.get("action_horizon") or replan)
        # Beyond what it was trained on, and without a row left to promise, it is refused.
        delay = min(int(advice.get("delay") or 0), chunk - 1)
        if trained is not None:
            delay = min(delay, int(trained))
        quality = _number(advice.get("jpeg_quality"))
        most = _number(said.get("max_message_bytes"))
        units = tuple(map(str, said.get("action_units") or ()))
        return cls(
            embodiment=str(name or ""),
            fps=float(said["fps"]),
            chunk=chunk,
            replan=replan,
            action_names=names,
            action_units=units,
            state_names=tuple(map(str, said.get("state_names") or ())),
            state_units=tuple(map(str, said.get("state_units") or ())),
            cameras=tuple(map(str, said.get("cameras") or ())),
            sizes={
                str(camera): (int(size["height"]), int(size["width"]))
                for camera, size in (said.get("images") or {}).items()
            },
            limits={
                str(kind): tuple(map(float, values))
                for kind, values in (said.get("limits") or {}).items()
                if isinstance(values, (list, tuple))
            },
            delay=delay,
            blend=int(advice.get("blend") or 0),
            trained_delay=None if trained is None else int(trained),
            jpeg_quality=None if quality is None else int(quality),
            resize=bool(advice.get("resize")),
            max_age_s=_number(said.get("max_age_s")),
            max_message_bytes=None if most is None else int(most),
            noise=str(said.get("noise") or ""),
            summed=_summed(said, units, len(names)),
            mixed=_mixed(said, names),
        )

    def buffer(self, act: Act, *, wait_s: float | None = 0.0, **options: Any) -> ChunkBuffer:
        """A buffer for this robot: fetches beside the control loop, keeps to the clock, joins chunks
        as recommended, and holds when it runs dry instead of blocking for more than `wait_s`.

        options: those of `ChunkBuffer`, which override what the endpoint recommends
        """
        chosen: dict[str, Any] = {
            "delay": self.delay,
            # Asked for when `replan` rows are executed, at the latest when the reply is needed.
            "refill": max(1, self.delay),
            "blend": self.blend,
            "rate": self.fps,
            "wait_s": wait_s,
            "zero": self.summed,
            "mixed": self.mixed,
        }
        return ChunkBuffer(act, self.replan, **(chosen | options))


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if good else None


def _summed(said: Mapping[str, Any], units: tuple[str, ...], width: int) -> tuple[bool, ...]:
    rules = said.get("resample") or ("",) * width
    rates = [unit.endswith(_PER_TIME) for unit in units] or [False] * width
    return tuple(rule == "sum" or rate for rule, rate in zip(rules, rates, strict=False))


def _mixed(said: Mapping[str, Any], names: tuple[str, ...]) -> tuple[bool, ...]:
    rules = said.get("resample") or ("",) * len(names)
    kinds = said.get("kinds") or {}
    return tuple(
        rule != "hold" and name not in kinds for rule, name in zip(rules, names, strict=False)
    )

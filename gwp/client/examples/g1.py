"""The arms of a Unitree G1 (29 degrees of freedom), while its own controller walks and balances.

python -m gwp.client.examples.g1 ws://policy-host:8000 --interface enp3s0 --prompt "wave"

Without `--interface` it runs on a small fake of `unitree_sdk2py`. Commands go to `rt/arm_sdk`, where
the number in place of motor 29 says how far they are followed. That weight is raised slowly in
the beginning and lowered in the end, so the robot's own controller lets go and takes over softly.

The policy says where the arms are to be 30 times a second; a thread tells the motors 100 times a
second, never faster than the joints may move, and goes on holding when nothing more comes.
"""

import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

import numpy as np

from gwp.client.examples.fake_unitree import FakeG1, FakeSdk
from gwp.client.examples.guard import Guard
from gwp.client.examples.loop import main, options
from gwp.protocol.messages import Observation

FPS = 30.0
_WRITE_HZ = 100.0
_JOINTS = (
    "shoulder_pitch",
    "shoulder_roll",
    "shoulder_yaw",
    "elbow",
    "wrist_roll",
    "wrist_pitch",
    "wrist_yaw",
)
NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _JOINTS)
MOTORS = tuple(range(15, 29))
"""Number of each joint's motor, in the order of `NAMES`."""
WEIGHT = 29
CAMERAS = ("head",)
_KP, _KD = 60.0, 1.5
_RAMP_S = 1.0
_RELEASE_S = 5.0
_STATE_S = 5.0
_SPEED = np.full(14, 2.0, np.float32)
"""rad/s"""
_LOWER = np.array([-3.0, -1.5, -2.6, -1.0, -1.9, -1.6, -1.6], np.float32)
_UPPER = np.array([2.6, 2.2, 2.6, 2.0, 1.9, 1.6, 1.6], np.float32)
# Rolls and yaws of the right arm are those of the left one in a mirror.
_MIRROR = np.array([False, True, True, False, True, False, True])


def real_sdk() -> Any:
    """The library of the maker, under one name."""
    from unitree_sdk2py.core import channel
    from unitree_sdk2py.idl import default
    from unitree_sdk2py.idl.unitree_hg.msg import dds_
    from unitree_sdk2py.utils import crc

    return SimpleNamespace(**{**vars(channel), **vars(default), **vars(dds_), "CRC": crc.CRC})


class G1:
    """Fourteen joints of both arms. Use it as a context: it takes the arms over and gives them back."""

    def __init__(
        self, sdk: Any, interface: str, camera: Callable[[], np.ndarray], ramp_s: float = _RAMP_S
    ) -> None:
        lower = np.concatenate([_LOWER, np.where(_MIRROR, -_UPPER, _LOWER)])
        upper = np.concatenate([_UPPER, np.where(_MIRROR, -_LOWER, _UPPER)])
        self.guard = Guard(lower, upper, _SPEED / FPS)
        self._camera = camera
        self._ramp_s = ramp_s
        self._state: Any = None
        self._told = threading.Event()
        sdk.ChannelFactoryInitialize(0, interface)
        self._commands = sdk.ChannelPublisher("rt/arm_sdk", sdk.LowCmd_)
        self._commands.Init()
        self._states = sdk.ChannelSubscriber("rt/lowstate", sdk.LowState_)
        self._states.Init(self._hear, 10)
        self._message = sdk.unitree_hg_msg_dds__LowCmd_()
        self._crc = sdk.CRC()
        # Where the arms are is where they stay until somebody says something else.
        self._target = self._at = self._positions()
        self._weight, self._wanted_weight = 0.0, 1.0
        self._released, self._ended = threading.Event(), threading.Event()
        self._writer = threading.Thread(target=self._write, name="g1-writer", daemon=True)

    @property
    def description(self) -> dict[str, Any]:
        """What the robot announces at the handshake."""
        return {
            "fps": FPS,
            "action_names": list(NAMES),
            "state_names": list(NAMES),
            "cameras": list(CAMERAS),
        }

    def observe(self, prompt: str) -> Observation:
        """The picture of the head and 14 joint positions, rad."""
        return Observation({"head": self._camera()}, self._positions(), prompt)

    def send(self, action: np.ndarray) -> None:
        """Move towards 14 joint positions, float32, rad."""
        self._target = self.guard(action, self._target)

    def hold(self) -> None:
        """Keep the last target."""

    def __enter__(self) -> Self:
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Not before the robot's own controller has its arms again.
        self._wanted_weight = 0.0
        self._released.wait(self._ramp_s + _RELEASE_S)
        self._ended.set()
        self._writer.join(timeout=2)

    def _hear(self, state: Any) -> None:
        self._state = state
        self._told.set()

    def _positions(self) -> np.ndarray:
        if not self._told.wait(_STATE_S):
            raise RuntimeError(f"the robot told no state within {_STATE_S:g} s; is it switched on?")
        return np.array([self._state.motor_state[i].q for i in MOTORS], np.float32)

    def _write(self) -> None:
        begin, written = time.monotonic(), 0
        step = _SPEED / _WRITE_HZ
        while not self._ended.is_set():
            self._at = np.clip(self._target, self._at - step, self._at + step)
            change = 1 / (_WRITE_HZ * self._ramp_s)
            self._weight += float(np.clip(self._wanted_weight - self._weight, -change, change))
            self._tell()
            if self._wanted_weight == self._weight == 0:
                self._released.set()
            written += 1
            self._ended.wait(max(0.0, begin + written / _WRITE_HZ - time.monotonic()))

    def _tell(self) -> None:
        message = self._message
        message.mode_machine = self._state.mode_machine
        for motor, q in zip(MOTORS, self._at, strict=True):
            command = message.motor_cmd[motor]
            command.mode, command.q, command.dq, command.tau = 1, float(q), 0.0, 0.0
            command.kp, command.kd = _KP, _KD
        message.motor_cmd[WEIGHT].q = self._weight
        message.crc = self._crc.Crc(message)
        self._commands.Write(message)


def grey() -> np.ndarray:
    """In place of a camera's picture, uint8 `[120, 160, 3]`."""
    return np.full((120, 160, 3), 127, np.uint8)


def _main() -> int:
    parser = options()
    parser.add_argument("--interface", help="network interface of the robot; without: the fake")
    args = parser.parse_args()
    sdk = FakeSdk(FakeG1()) if args.interface is None else real_sdk()
    # Your camera in place of `grey`.
    with G1(sdk, args.interface or "lo", grey) as robot:
        return main(robot, args)


if __name__ == "__main__":
    sys.exit(_main())

"""A small fake of `unitree_sdk2py` for the G1: the names that the example uses, and motors that
follow. Messages carry the fields of `unitree_hg`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOTORS = 35
_STIFF = 60.0
_WEIGHT = 29


@dataclass
class MotorCommand:
    """One motor of a command."""

    mode: int = 0
    q: float = 0.0
    dq: float = 0.0
    tau: float = 0.0
    kp: float = 0.0
    kd: float = 0.0


@dataclass
class MotorState:
    """One motor of a state."""

    q: float = 0.0
    dq: float = 0.0


@dataclass
class LowCmd_:  # noqa: N801 - the library's name
    """`unitree_hg` `LowCmd_`."""

    mode_pr: int = 0
    mode_machine: int = 0
    motor_cmd: list[MotorCommand] = field(
        default_factory=lambda: [MotorCommand() for _ in range(MOTORS)]
    )
    crc: int = 0


@dataclass
class LowState_:  # noqa: N801 - the library's name
    """`unitree_hg` `LowState_`."""

    mode_machine: int = 5
    motor_state: list[MotorState] = field(
        default_factory=lambda: [MotorState() for _ in range(MOTORS)]
    )


class CRC:
    """The check sum of a message; here of its positions."""

    def Crc(self, message: LowCmd_) -> int:  # noqa: N802 - the library's name
        """A number that changes with the message."""
        return hash(tuple(motor.q for motor in message.motor_cmd)) & 0xFFFFFFFF


class FakeG1:
    """The robot behind the channels. `weights` and `positions` are what it was commanded."""

    def __init__(self) -> None:
        self.state = LowState_()
        self.listeners: list[Callable[[LowState_], None]] = []
        self.weights: list[float] = []
        self.positions: list[list[float]] = []

    def command(self, message: LowCmd_) -> None:
        """As the motors do: towards the target, by the weight of the arm commands."""
        if message.crc != CRC().Crc(message):
            # A damaged command is no command.
            return
        weight = message.motor_cmd[_WEIGHT].q
        self.weights.append(weight)
        self.positions.append([motor.q for motor in message.motor_cmd])
        for motor, now in zip(message.motor_cmd, self.state.motor_state, strict=True):
            if motor.kp > 0:
                step = weight * min(1.0, motor.kp / _STIFF) * 0.3 * (motor.q - now.q)
                now.q, now.dq = now.q + step, step
        self.publish()

    def publish(self) -> None:
        """Tell the state to all who listen."""
        for listener in self.listeners:
            listener(self.state)


class FakeSdk:
    """In place of the modules of `unitree_sdk2py`, connected to one robot."""

    def __init__(self, robot: FakeG1) -> None:
        self._robot = robot
        self.LowCmd_ = LowCmd_
        self.LowState_ = LowState_
        self.CRC = CRC
        self.unitree_hg_msg_dds__LowCmd_ = LowCmd_

    def ChannelFactoryInitialize(self, domain: int, interface: str) -> None:  # noqa: N802
        """Nothing to set up."""

    def ChannelPublisher(self, topic: str, kind: Any) -> "Channel":  # noqa: N802
        """A channel for commands; `kind` is the type of its messages."""
        return Channel(self._robot, topic, kind)

    def ChannelSubscriber(self, topic: str, kind: Any) -> "Channel":  # noqa: N802
        """A channel of states."""
        return Channel(self._robot, topic, kind)


class Channel:
    """One topic."""

    def __init__(self, robot: FakeG1, topic: str, kind: Any) -> None:
        self._robot = robot
        self._topic = topic
        self._kind = kind

    def Init(  # noqa: N802 - the library's name
        self, handler: Callable[[LowState_], None] | None = None, _queue: int = 0
    ) -> None:
        """Begin; a subscriber is told the state at once."""
        if handler is not None and self._topic == "rt/lowstate":
            self._robot.listeners.append(handler)
            self._robot.publish()

    def Write(self, message: LowCmd_) -> None:  # noqa: N802 - the library's name
        """Send a command."""
        if self._topic == "rt/arm_sdk" and isinstance(message, self._kind):
            self._robot.command(message)

"""The control loop of a robot: one action per step, whatever becomes of the network."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gwp.client.client import Client
from gwp.client.connection.wire import ClientError
from gwp.protocol.messages import Observation


class Robot(Protocol):
    """What the loop needs of a robot. Its own limits are its own business: it keeps them whatever
    it is sent.
    """

    @property
    def description(self) -> dict[str, Any]:
        """What it announces: `fps` (Hz), `action_names`, `state_names`, `cameras`."""

    def observe(self, prompt: str) -> Observation:
        """What it sees and feels now."""

    def send(self, action: np.ndarray) -> None:
        """Take a target, float32 `[d]`, in its units."""

    def hold(self) -> None:
        """Stay where it is."""


@dataclass(frozen=True)
class Report:
    """How a run went.

    steps:    control steps
    waited:   of them before the first chunk
    held:     of them without a row
    late, failed, seams: as of `ChunkBuffer`
    oldest_s: age of the oldest observation that an action came from, seconds
    overrun:  steps that took longer than one period
    policies: who answered
    """

    steps: int
    waited: int
    held: int
    late: int
    failed: int
    seams: int
    oldest_s: float
    overrun: int
    policies: tuple[str, ...]


def run(
    robot: Robot,
    client: Client,
    prompt: str,
    seconds: float,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Report:
    """Run one episode of `seconds`. Raises ClientError when robot and policy do not fit; the robot
    holds then, as it does in the end.

    options: those of `ChunkBuffer` that are to differ from what the endpoint recommends
    """
    profile = client.describe()
    period = 1 / profile.fps
    waited = overrun = 0
    oldest, policies = 0.0, []
    client.episode()
    buffer = profile.buffer(client.act, **options)
    begin = time.monotonic()
    step = 0
    try:
        while step * period < seconds and not stop():
            try:
                robot.send(buffer.next_action(lambda: robot.observe(prompt)))
            except ClientError as error:
                if not error.passing:
                    raise
                robot.hold()
                waited += 1
            done = buffer.executed
            if done is not None and not done.held:
                oldest = max(oldest, done.age_s)
                policies += [done.chunk.policy_id][: done.chunk.policy_id not in policies]
            step += 1
            # From the start, not from the step before: periods do not add up their errors.
            rest = begin + step * period - time.monotonic()
            overrun += rest < 0
            time.sleep(max(0.0, rest))
    finally:
        robot.hold()
        buffer.close()
    counts = buffer.late, buffer.failed, buffer.seams
    return Report(step, waited, buffer.dry, *counts, oldest, overrun, tuple(policies))


def options() -> argparse.ArgumentParser:
    """The command line that the examples share."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="the endpoint, ws://host:port")
    parser.add_argument("--prompt", default="", help="the instruction")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the episode")
    parser.add_argument("--api-key", help="key of the endpoint")
    return parser


def main(robot: Robot, args: argparse.Namespace) -> int:
    """Connect, run, and tell how it went."""
    try:
        with Client(
            args.url,
            api_key=args.api_key,
            expect=robot.description,
            timeout_s=3.0,
            reply_timeout_s=1.0,
            max_age_s=1.0,
        ) as client:
            print(run(robot, client, args.prompt, args.seconds))
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

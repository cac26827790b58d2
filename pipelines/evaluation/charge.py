"""What a chunk costs in simulated time: read from the command line, measured, or looked up."""

import re
from typing import Literal

import numpy as np

from gwp.client.profile import Profile
from gwp.data.robot.embodiment import Embodiment
from gwp.errors import GwpError
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from gwp.sim.charged import Charge, check_fits
from gwp.sim.interface import SIZE, Benchmark

Chunking = Literal["recommended", "realtime", "naive", "stop"]

_AMOUNT = re.compile(r"(\d+\.?\d*|\.\d+)(ms|x)")
_TABLES = (".yaml", ".yml", ".json")
_REPEATS = 15
_WARM = 3


def check_charge(text: str) -> None:
    """GwpError when `--charge-latency` is none of what it can be."""
    if text != "0" and not _AMOUNT.fullmatch(text) and not text.lower().endswith(_TABLES):
        raise GwpError(
            f"--charge-latency {text}: give milliseconds (40ms), a factor of this machine's own "
            "time (1.5x), a table of milliseconds per model (latency.yaml), or 0"
        )


def latency_ms(text: str, policy: Policy, uri: str, benchmark: Benchmark) -> float:
    """Milliseconds that `--charge-latency` stands for with this policy, which was loaded from
    `uri`. GwpError as `check_charge`, and for a table that does not know the policy.
    """
    check_charge(text)
    amount = _AMOUNT.fullmatch(text)
    if text == "0":
        return 0.0
    if amount is None:
        return _looked_up(text, policy, uri)
    value = float(amount[1])
    return value if amount[2] == "ms" or not value else value * measured_ms(policy, benchmark)


def measured_ms(policy: Policy, benchmark: Benchmark) -> float:
    """Median time of one chunk for one robot on this machine, milliseconds."""
    return float(np.median(chunk_times(policy, benchmark, _REPEATS)))


def chunk_times(policy: Policy, benchmark: Benchmark, repeats: int) -> list[float]:
    """Time of so many chunks for one robot on this machine, milliseconds, after some untimed."""
    robot = benchmark.embodiment
    # Contents do not matter for the time; size and instruction are those of the simulator.
    observation = Observation(
        {camera: np.zeros((SIZE, SIZE, 3), np.uint8) for camera in benchmark.cameras},
        np.zeros(len(robot.state_names), np.float32),
        next(iter(benchmark.tasks.values())),
        robot.name,
    )
    times = [policy.act(observation).timings["total"] for _ in range(_WARM + repeats)]
    return times[_WARM:]


def _looked_up(file: str, policy: Policy, uri: str) -> float:
    import yaml

    from gwp import storage

    try:
        table = yaml.safe_load(storage.read_bytes(file))
    except yaml.YAMLError as error:
        raise GwpError(f"{file}: not YAML or JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(table, dict) or not table:
        raise GwpError(f"{file}: write one line per model, such as `gwp05: 40` (milliseconds)")
    for model, ms in table.items():
        number = isinstance(ms, (int, float)) and not isinstance(ms, bool)
        if not number or not 0 <= ms < np.inf:
            raise GwpError(f"{file}: {model} is {ms!r}; give milliseconds, 0 or more")
    # From the most exact name on. A prefix of the id names it, as in a pin of the client.
    names = [uri, policy.id, policy.id[:12], policy.id[:8], policy.settings.family, "default"]
    found = next((name for name in names if name in table), None)
    if found is None:
        raise GwpError(
            f"{file}: no entry for this policy; add `{policy.id[:12]}` (its id), "
            f"`{policy.settings.family}` (its family) or `default`"
        )
    return float(table[found])


def charge_of(
    policy: Policy, ms: float, robot: Embodiment, chunking: Chunking = "recommended"
) -> Charge | None:
    """How the simulated robot bridges `ms` milliseconds; None: nothing is charged.

    chunking: `recommended`, what the endpoint recommends to a robot: real-time chunking where the
    policy was trained for it, else blending; `realtime` insists on it; `naive` has neither;
    `stop`: it stands still until its chunk has come, however late
    GwpError where chunks are too short for it, or the policy was not trained for what is asked.
    """
    if not ms:
        return None
    # What a robot reads at the handshake.
    profile = Profile.of(policy.contract.metadata(robot.name), robot.name)
    if chunking == "stop":
        return Charge(ms, stops=True)
    check_fits(Charge(ms), robot.fps, profile.chunk)
    if chunking == "naive":
        return Charge(ms, mixed=profile.mixed)
    if chunking == "recommended" and not profile.delay:
        return Charge(ms, blend=profile.blend, mixed=profile.mixed)
    # Rows behind the last one that is executed before the next request cannot be promised twice.
    most = profile.chunk - profile.replan
    if profile.trained_delay is not None:
        most = min(most, profile.trained_delay)
    if most < 1:
        raise GwpError(
            "--chunking realtime: this policy was trained without delays, or its chunks end where "
            "the next one is asked for; use recommended or naive"
        )
    return Charge(ms, delay=min(Charge(ms).steps(robot.fps), most), mixed=profile.mixed)

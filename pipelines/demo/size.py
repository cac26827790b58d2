"""How much of everything the demo does: its sizes, how long they take on a machine, and what is
cut when that is too long.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

PROMISED_S = 15 * 60.0
BENCHMARK = "metaworld"
"""Whose tasks these are."""


@dataclass(frozen=True)
class Size:
    """How much of everything. Other tasks teach stage 1, other seeds of the same tasks stage 2."""

    tasks: tuple[str, ...] = ("button-press-topdown-v3", "window-open-v3", "handle-press-v3")
    world_tasks: tuple[str, ...] = (
        "drawer-open-v3",
        "door-open-v3",
        "button-press-v3",
        "window-close-v3",
    )
    # Episodes of each task.
    world_episodes: int = 10
    embodied_episodes: int = 24
    policy_episodes: int = 20
    held_out: int = 3
    # Optimiser steps of each stage, and between its checkpoints.
    world_steps: int = 200
    embodied_steps: int = 300
    policy_steps: int = 700
    checkpoint_every: int = 150
    robots: int = 9
    episodes_per_robot: int = 4
    # Of each task, for each of the two baselines.
    baseline_episodes: int = 12
    # Control steps of an episode, at most.
    max_steps: int = 150
    latency_repeats: int = 30

    @property
    def recorded(self) -> int:
        """Demonstrations of all sets."""
        labelled = self.embodied_episodes + self.policy_episodes + self.held_out
        return self.world_episodes * len(self.world_tasks) + labelled * len(self.tasks)

    @property
    def trained(self) -> int:
        """Optimiser steps of all stages."""
        return self.world_steps + self.embodied_steps + self.policy_steps

    @property
    def simulated(self) -> int:
        """Episodes of the fleet and of both baselines."""
        return self.robots * self.episodes_per_robot + 2 * self.baseline_episodes * len(self.tasks)


FULL = Size()
# Enough of everything for a checkpoint, a kill behind it and replicas that come.
QUICK = Size(
    tasks=("button-press-topdown-v3", "window-open-v3"),
    world_tasks=("drawer-open-v3", "door-open-v3"),
    world_episodes=6,
    embodied_episodes=8,
    policy_episodes=8,
    held_out=1,
    world_steps=40,
    embodied_steps=40,
    policy_steps=120,
    checkpoint_every=40,
    robots=8,
    episodes_per_robot=1,
    baseline_episodes=4,
    latency_repeats=10,
)

CUTS: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("baseline_episodes", (8, 4)),
    ("world_steps", (150, 100)),
    ("embodied_steps", (225, 150)),
    ("embodied_episodes", (18, 12)),
    ("world_episodes", (8, 6)),
    ("policy_steps", (600, 500, 350)),
)
"""What is cut on a slow machine, in this order, each down to its last value, which is the
floor. First the width of the intervals beside the baselines, then what prepares the policy,
last the policy itself. What the fleet and the kill show is never cut.
"""


@dataclass(frozen=True)
class Machine:
    """How fast a machine is, as `pipelines.demo.probe.measure` found it, two processes at a
    time.
    """

    start_s: float
    """A new process until torch and the model are imported, seconds."""
    train_step_ms: float
    """One training step of the demo's model on a worker's share of the batch, milliseconds."""
    sim_frame_ms: float
    """One control step of the simulator and a frame of it, milliseconds."""


# What a demo waits for, in units of what the probe measures; from demos on two cores of an AMD
# EPYC.
_STARTS = 30.0
"""Starts one after another: cluster, three stages and a restart, replicas, simulators,
evaluation.
"""
_STAGE_STARTS = _STARTS / 8
"""One stage's, or the restart's: an even share of the eight above, not measured apart."""
_STEP = 1.0
"""A step of training while the data are decoded on the same cores."""
_RECORDED_FRAMES = 50.0
"""A demonstration: some 95 frames, two at a time, and their encoding."""
_SIMULATED_FRAMES = 45.0
"""An episode in closed loop or of a baseline."""


def expected_s(size: Size, machine: Machine) -> float:
    """How long a demo of this size takes on this machine, seconds."""
    training = size.trained * _STEP * machine.train_step_ms / 1e3
    # Recording and driving are both the simulator's time.
    frames = size.recorded * _RECORDED_FRAMES + size.simulated * _SIMULATED_FRAMES
    return _STARTS * machine.start_s + training + frames * machine.sim_frame_ms / 1e3


def stage_s(size: Size, machine: Machine, stage: str) -> float:
    """How long one stage takes on this machine, its start included, seconds."""
    steps = getattr(size, f"{stage}_steps")
    # In the last one a worker is killed, and all start again.
    starts = _STAGE_STARTS * (2 if stage == "policy" else 1)
    return starts * machine.start_s + steps * _STEP * machine.train_step_ms / 1e3


def _recording_s(size: Size, machine: Machine) -> float:
    return size.recorded * _RECORDED_FRAMES * machine.sim_frame_ms / 1e3


@dataclass(frozen=True)
class Cut:
    """One value of `Size` that was lowered so that the demo keeps its time."""

    name: str
    full: int
    cut: int

    def __str__(self) -> str:
        return f"{self.name.replace('_', ' ')} {self.cut} instead of {self.full}"


@dataclass(frozen=True)
class Plan:
    """What this machine will do, and how long that should take."""

    size: Size
    machine: Machine
    expected_s: float
    promised_s: float | None
    cuts: tuple[Cut, ...] = ()
    slowness: float = 1.0
    """So many times as long as expected the stages took that are done."""

    @property
    def notes(self) -> list[str]:
        """What was cut, and that it takes longer all the same."""
        lines = [str(cut) for cut in self.cuts]
        if self.promised_s is not None and self.expected_s > self.promised_s:
            lines.append(
                f"all the same it takes some {self.expected_s / 60:.0f} minutes on this machine, "
                f"slow or busy as it is, not {self.promised_s / 60:g}"
            )
        return lines

    def summary(self) -> dict[str, Any]:
        """As `summary.json` has it."""
        return {
            "machine": asdict(self.machine),
            "promised_s": self.promised_s,
            "expected_s": round(self.expected_s),
            "cut": [asdict(cut) for cut in self.cuts],
            "slowness": round(self.slowness, 2),
        }


def plan(size: Size, machine: Machine, promised_s: float | None = PROMISED_S) -> Plan:
    """`size` where it fits into `promised_s`, else with as few cuts as fit, or all of them;
    None: as it is.
    """
    chosen = _fitted(
        size,
        [name for name, _ in CUTS],
        lambda size: promised_s is None or expected_s(size, machine) <= promised_s,
    )
    return Plan(
        chosen, machine, expected_s(chosen, machine), promised_s, _cuts_between(size, chosen)
    )


def replan(plan: Plan, full: Size, stages_s: Mapping[str, float], elapsed_s: float) -> Plan:
    """`plan` after the stages of `stages_s` (name -> seconds it took), `elapsed_s` after the
    demo's begin: what is still to come is cut where it would not fit. `full`: the size before
    any cut.

    A probe of seconds knows little of twenty processes that share the cores, the caches and the
    disk; what has run tells more. A machine that turns out faster gets nothing back.
    """
    took = sum(stages_s.values())
    expected = sum(stage_s(plan.size, plan.machine, stage) for stage in stages_s)
    slowness = max(1.0, took / expected)

    def whole_s(size: Size) -> float:
        done = expected + _recording_s(size, plan.machine)
        return elapsed_s + slowness * (expected_s(size, plan.machine) - done)

    # Demonstrations lie there already, and so do the stages that are done.
    ahead = {"baseline_episodes", "embodied_steps", "policy_steps"}
    ahead -= {f"{stage}_steps" for stage in stages_s}
    chosen = _fitted(
        plan.size,
        ahead,
        lambda size: plan.promised_s is None or whole_s(size) <= plan.promised_s,
    )
    cuts = _cuts_between(full, chosen)
    return Plan(chosen, plan.machine, whole_s(chosen), plan.promised_s, cuts, slowness)


def _fitted(size: Size, names: Collection[str], fits: Callable[[Size], bool]) -> Size:
    """`size` where it fits, else with as few cuts of `names` as fit, or all of them."""
    chosen = size
    for name, values in CUTS:
        if name not in names:
            continue
        # One value down at a time. Where it fits, the later kinds are passed without a cut.
        for value in values:
            if fits(chosen):
                break
            # Never up: a size may lie below a value of the cuts.
            chosen = replace(chosen, **{name: min(value, getattr(chosen, name))})
    return chosen


def _cuts_between(full: Size, chosen: Size) -> tuple[Cut, ...]:
    names = [name for name, _ in CUTS if getattr(chosen, name) != getattr(full, name)]
    return tuple(Cut(name, getattr(full, name), getattr(chosen, name)) for name in names)

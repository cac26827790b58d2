"""`gwp eval`: judge a policy."""

import argparse
from typing import Any

from pipelines.config.source import add_source_options, source_of
from pipelines.verbs.arguments import add_benchmark, numbers


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "eval", help="judge a policy on recorded episodes or in simulation"
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    open_loop = verbs.add_parser(
        "open-loop", help="predicted against recorded actions, beside the hold and mean baselines"
    )
    open_loop.set_defaults(run=run_open_loop)
    video = verbs.add_parser(
        "video",
        help="imagined against recorded frames, beside copying the first frame, and whether "
        "imagination heeds the actions",
    )
    video.add_argument(
        "--clips",
        type=int,
        default=32,
        help="windows compared, spread over the episodes (default: 32)",
    )
    video.set_defaults(run=run_video)
    steps = verbs.add_parser("steps", help="action error and time against the solver's steps")
    steps.add_argument(
        "--steps",
        type=numbers,
        default=[10, 4, 2, 1],
        metavar="N,N",
        help="Euler steps to compare (default: 10,4,2,1)",
    )
    steps.set_defaults(run=run_steps)
    seams = verbs.add_parser(
        "seams", help="jumps between chunks: real-time chunking beside naive switching"
    )
    seams.add_argument(
        "--delay",
        type=int,
        help="control steps from observation to chunk (default: as many as fit, at most 4)",
    )
    seams.set_defaults(run=run_seams)
    # All but the closed loop are judged on recordings.
    for verb in (open_loop, video, steps, seams):
        _add_recordings(verb)

    closed = verbs.add_parser("closed-loop", help="success in simulation, beside random actions")
    add_benchmark(closed)
    closed.add_argument(
        "--tasks", required=True, help="comma-separated, e.g. reach-v3,door-open-v3"
    )
    closed.add_argument(
        "--episodes", type=int, default=20, help="fresh seeds per task (default: 20)"
    )
    closed.add_argument(
        "--max-steps",
        type=int,
        help="control steps per episode (default: as the benchmark has them; 150 in Meta-World)",
    )
    closed.add_argument(
        "--size", type=int, default=64, help="side of the pictures, pixels (default: 64)"
    )
    closed.add_argument(
        "--shift",
        default="none",
        metavar="NAME",
        help="how the simulation differs from what was recorded; docs/evaluation.md has the names "
        "(default: none)",
    )
    closed.add_argument(
        "--simulators",
        type=int,
        metavar="N",
        help="simulators at once, a process each (default: one per core)",
    )
    closed.add_argument(
        "--charge-latency",
        default="0",
        metavar="COST",
        help="simulated time that passes while a chunk is computed: 40ms, 1.5x (of this machine's "
        "own time), or a YAML or JSON table of milliseconds per model (default: 0, the world waits)",
    )
    closed.add_argument(
        "--chunking",
        choices=("recommended", "realtime", "naive", "stop"),
        default="recommended",
        help="how a late chunk takes over (default: as the endpoint recommends it to a robot)",
    )
    closed.add_argument("--page", metavar="FILE", help="write a page with the figures, too")
    closed.set_defaults(run=run_closed_loop)
    for verb in (open_loop, video, steps, seams, closed):
        verb.add_argument(
            "--policy", required=True, metavar="URI", help="bundle, or models:/name@alias"
        )


def _add_recordings(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("data", metavar="URI", help="robot set, in any format that training reads")
    verb.add_argument("--episodes", help="which episodes: 0:5 or 0,3 (default: all)")
    verb.add_argument(
        "--embodiment",
        metavar="NAME",
        help="which robot of the policy recorded it (default: the one with the same actions)",
    )
    verb.add_argument(
        "--resample",
        action="store_true",
        help="bring a set of another rate to the rate of the robot",
    )
    add_source_options(verb)


def _recordings(args: argparse.Namespace) -> Any:
    return source_of(
        args,
        args.data,
        episodes=args.episodes,
        embodiment=args.embodiment,
        resample=args.resample,
    )


def _load(uri: str) -> Any:
    from gwp.policy.policy import Policy

    return Policy.load(uri)


def run_open_loop(args: argparse.Namespace) -> None:
    import json

    from pipelines.evaluation.open_loop import open_loop

    result = open_loop(_load(args.policy), _recordings(args))
    print(json.dumps(result.figures(), indent=1))


def run_video(args: argparse.Namespace) -> None:
    import json

    from gwp.errors import GwpError
    from pipelines.evaluation.imagined import imagined, video_figures

    if args.clips < 1:
        raise GwpError(f"--clips {args.clips}: give at least 1")
    clips = imagined(_load(args.policy), _recordings(args), args.clips, shuffled=True)
    print(json.dumps(video_figures(clips), indent=1))


def run_steps(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from pipelines.evaluation.studies import steps_study

    rows = steps_study(_load(args.policy), _recordings(args), args.steps)
    print(json.dumps([asdict(row) for row in rows], indent=1))


def run_seams(args: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from pipelines.evaluation.studies import seams_study

    seams = seams_study(_load(args.policy), _recordings(args), args.delay)
    print(json.dumps(asdict(seams), indent=1))


def run_closed_loop(args: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from gwp.errors import GwpError
    from gwp.sim.benchmarks import find
    from gwp.sim.interface import UNSHIFTED
    from pipelines.evaluation.charge import charge_of, check_charge, latency_ms
    from pipelines.evaluation.simulation import check_run, closed_loop, figures, successes

    benchmark = find(args.benchmark)
    robot = benchmark.embodiment
    tasks = [t.strip() for t in args.tasks.split(",")]
    max_steps = benchmark.steps if args.max_steps is None else args.max_steps
    look = {"size": args.size, "shift": args.shift}
    # All that can be wrong in the words is told before a policy is fetched.
    check_charge(args.charge_latency)
    check_run(benchmark, tasks, args.episodes, max_steps, args.simulators, **look)
    if args.chunking != "recommended" and args.charge_latency == "0":
        raise GwpError("--chunking says how late chunks take over; add --charge-latency, too")
    if args.page:
        # What it needs is to be missed now, not after all episodes.
        from pipelines.evaluation.closed_loop_page import write_closed_loop
    policy = _load(args.policy)
    # Before simulators take the cores.
    cost_ms = latency_ms(args.charge_latency, policy, args.policy, benchmark)
    charge = charge_of(policy, cost_ms, robot, args.chunking)
    outcomes = closed_loop(
        policy,
        benchmark,
        tasks,
        args.episodes,
        max_steps,
        simulators=args.simulators,
        charge=charge,
        **look,
    )
    rates = figures(outcomes, charge, robot.fps)
    print(json.dumps(rates, indent=1))
    if args.page:
        where = (
            benchmark.name if args.shift == UNSHIFTED else f"{benchmark.name}, shift {args.shift}"
        )
        write_closed_loop(Path(args.page), policy.id, where, successes(outcomes), rates)
    return int(any(outcome.episode is None for outcome in outcomes))

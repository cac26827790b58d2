"""`gwp bench fleet`: the endpoint under many robots."""

import argparse
from typing import Any

from pipelines.verbs.arguments import add_visibility, numbers


def add(verbs: Any) -> None:
    fleet = verbs.add_parser(
        "fleet",
        help="the endpoint under 1 to 256 robots, against one that computes one at a time",
        description=(
            "Serves a policy with random weights on a Ray of its own, and drives robots that send "
            "200 kB each. Beside it: the engine alone, and the usual one-at-a-time server."
        ),
    )
    fleet.add_argument(
        "--size",
        choices=("tiny", "small", "mid"),
        default="tiny",
        help="of the policy, as of bench act (default: tiny, the demo's)",
    )
    add_visibility(fleet, "all but action-centred answer whole requests, one batch after another")
    fleet.add_argument(
        "--robots", type=numbers, default=[1, 4, 16, 32], metavar="N,N", help="crowds of so many"
    )
    fleet.add_argument(
        "--gateway",
        choices=("inline", "separate", "both"),
        default="both",
        help="robots talk to the process of the model, or to processes before it (default: both)",
    )
    fleet.add_argument(
        "--rate",
        type=float,
        default=0.0,
        metavar="HZ",
        help="how often each robot asks (default: as soon as it was answered)",
    )
    fleet.add_argument(
        "--latency-net",
        type=float,
        default=0.0,
        metavar="MS",
        help="of the network, there and back (default: 0)",
    )
    fleet.add_argument(
        "--deadline",
        type=float,
        metavar="MS",
        help="after which a robot has no use for an answer; what is not answered by then failed",
    )
    fleet.add_argument("--seconds", type=float, default=5.0, help="of each crowd (default: 5)")
    fleet.add_argument("--replicas", type=int, default=1, help="of the policy (default: 1)")
    fleet.add_argument(
        "--most-replicas",
        type=int,
        metavar="N",
        help="replicas follow the load up to so many (default: as many as --replicas)",
    )
    fleet.add_argument("--slots", type=int, default=16, help="engine.slots (default: 16)")
    fleet.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    fleet.add_argument(
        "--faults",
        action="store_true",
        help=(
            "instead: kill, replace and scale what answers, under the first crowd, and print the "
            "longest silence of any robot"
        ),
    )
    fleet.add_argument("--json", metavar="FILE", help="write the figures there too")
    fleet.set_defaults(run=run_fleet)


def run_fleet(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from pipelines.bench.fleet import faults
    from pipelines.bench.fleet.bench import Plan, bench_fleet
    from pipelines.bench.fleet.show import table

    plan = Plan(
        size=args.size,
        visibility=args.visibility,
        robots=tuple(args.robots),
        gateways=("inline", "separate") if args.gateway == "both" else (args.gateway,),
        rate_hz=args.rate,
        latency_s=args.latency_net / 1e3,
        seconds=args.seconds,
        deadline_s=args.deadline / 1e3 if args.deadline else None,
        replicas=args.replicas,
        most_replicas=args.most_replicas or args.replicas,
        slots=args.slots,
        threads=args.threads,
    )
    if args.faults:
        found = faults.bench_faults(plan)
        print(faults.table(found))
    else:
        found = bench_fleet(plan)
        print(table(found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")

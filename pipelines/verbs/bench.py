"""`gwp bench`: measurements that print what they were made with."""

import argparse
from typing import Any


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("bench", help="measure, side by side in one run")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    act = verbs.add_parser("act", help="acting against joint decoding of actions and video")
    act.add_argument("--size", choices=("tiny", "mid"), default="tiny", help="tiny: the demo's model; mid: released token counts")
    act.add_argument("--family", choices=("gwp0", "gwp05", "both"), default="both")
    act.add_argument("--batch", type=int, default=1, help="robots in one pass (default: 1)")
    act.add_argument("--steps", type=int, default=10, help="Euler steps (default: 10)")
    act.add_argument("--repeats", type=int, default=20, help="timed calls per case (default: 20)")
    act.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    act.add_argument("--json", metavar="FILE", help="write the figures there too")
    act.set_defaults(run=run_act)


def run_act(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from pipelines.bench import bench_act

    families = ("gwp0", "gwp05") if args.family == "both" else (args.family,)
    results = [bench_act(args.size, f, args.batch, args.steps, args.repeats, args.threads) for f in families]
    for r in results:
        print(f"{r['family']} {r['size']}: {r['parameters'] / 1e6:.1f} M parameters, tokens {r['tokens']}, batch {r['batch']}, "
              f"{r['steps']} steps, {r['dtype']}, {r['threads']} threads, {r['hardware']}, warm-up {r['warm_up']}")
        for name, ms in r["ms"].items():
            print(f"  {name:14} p50 {ms['p50']:9.2f}  p95 {ms['p95']:9.2f}  p99 {ms['p99']:9.2f} ms")
        print(f"  ratios: {', '.join(f'{k} {v:.2f}' for k, v in r['ratios'].items())}")
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))

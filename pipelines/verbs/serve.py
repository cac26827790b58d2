"""`gwp serve`: one policy for a fleet, on Ray Serve."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.config import ServeApp


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve a policy to robots until interrupted",
        description=(
            "Deploys on the Ray cluster of RAY_ADDRESS, or on a local one that it starts and stops."
        ),
    )
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="a ServeApp file; without one, the defaults with --policy",
    )
    parser.add_argument(
        "--policy", metavar="URI", help="bundle to serve: path, s3://..., models:/name@alias"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="A.B=VALUE",
        help="override a value",
    )
    parser.add_argument(
        "--render",
        action="store_true",
        help="print the file for `serve deploy` or a RayService, and stop",
    )
    _add_dry(parser)
    parser.set_defaults(run=run_serve)


def _add_dry(parser: argparse.ArgumentParser) -> None:
    from pipelines.config.source import add_source_options

    dry = parser.add_argument_group(
        "without robots and without Ray",
        "What one robot would receive for one recorded observation, in units, against its limits.",
    )
    dry.add_argument("--dry", action="store_true", help="print that, and stop")
    dry.add_argument("--data", metavar="URI", help="robot set with the recording")
    dry.add_argument("--episode", type=int, metavar="N", help="which episode (default: the first)")
    dry.add_argument(
        "--step", type=int, metavar="N", help="control step in it (default: the first usable)"
    )
    dry.add_argument("--embodiment", metavar="NAME", help="which robot of the policy recorded it")
    dry.add_argument(
        "--resample", action="store_true", help="bring a set of another rate to that of the robot"
    )
    dry.add_argument("--json", action="store_true", help="all of it as JSON")
    add_source_options(dry)


def run_serve(args: argparse.Namespace) -> None:
    import logging
    import os
    import signal
    import threading
    from contextlib import suppress

    config = _config(args)
    if args.dry:
        _run_dry(args, config)
        return
    if args.render:
        import yaml

        from serve.app import render

        print(yaml.safe_dump(render(config), sort_keys=False), end="")
        return

    from pipelines.console import event
    from serve.app import build_app, deploy

    # Everything that is wrong with the policy's name or files is told before a cluster starts.
    build_app(config)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    address = os.environ.get("RAY_ADDRESS")
    _start_ray(config, address)
    # After ray.init, which puts its own there.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    event("deploying", policy=config.policy, cluster=address or "local")
    try:
        url = deploy(config, lambda text: event("waiting", text=text))
        scale = config.autoscaling
        event(
            "serving",
            url=url,
            policy=config.policy,
            replicas=f"{scale.min_replicas}-{scale.max_replicas}",
        )
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        _stop(config.name, local=not address)
    event("stopped", app=config.name)


def _run_dry(args: argparse.Namespace, config: "ServeApp") -> None:
    import json

    from gwp.errors import GwpError
    from gwp.policy.policy import Policy
    from pipelines.config.source import source_of
    from pipelines.console import table
    from pipelines.evaluation.dry import dry_run

    if args.data is None:
        raise GwpError("--dry: which recording? give a robot set with --data URI")
    episodes = None if args.episode is None else str(args.episode)
    options = {"embodiment": args.embodiment, "resample": args.resample}
    source = source_of(args, args.data, episodes=episodes, **options)
    policy = Policy.load(config.policy, steps=config.replica.steps, guard=config.guard)
    dry = dry_run(policy, source, args.step)
    rows = dry.rows()
    if args.json:
        answer = {
            "policy_id": dry.chunk.policy_id,
            "embodiment": dry.embodiment.name,
            "episode": dry.episode,
            "step": dry.step,
            "prompt": dry.observation.prompt,
            "fps": dry.embodiment.fps,
            "replan": dry.embodiment.replan,
            "flags": dry.chunk.flags,
            "rows": rows,
            "state": dry.observation.state.tolist(),
            "actions": dry.chunk.actions.tolist(),
        }
        print(json.dumps(answer))
        return
    print(table([{k: "" if v is None else v for k, v in row.items()} for row in rows]))
    print(
        f"policy {dry.chunk.policy_id[:12]}  {dry.embodiment.name} at {dry.embodiment.fps:g} Hz  "
        f"episode {dry.episode}, step {dry.step}  {dry.observation.prompt!r}"
    )
    if not dry.limits:
        print("this robot has no limits: only values that are not finite would be held back")


def _config(args: argparse.Namespace) -> "ServeApp":
    """The file, or the defaults beside the package, with what the options override."""
    from pathlib import Path

    import serve as package
    from gwp.errors import GwpError
    from pipelines.config.load import load_config
    from serve.config import ServeApp

    if args.file is None and args.policy is None:
        raise GwpError(
            "what to serve? give a file (`gwp serve serve.yaml`) or a policy (`gwp serve --policy URI`)"
        )
    file = args.file or Path(package.__file__).with_name("serve.yaml")
    sets = list(args.sets)
    if args.policy:
        sets.append(f"policy={args.policy}")
    return load_config(file, ServeApp, sets)


def _start_ray(config: "ServeApp", address: str | None) -> None:
    """Join the cluster at `address`, or start a local one that has room for the application."""
    import math
    import os

    import ray

    # Ray's own log lines stay in its session folder; what a user has to know is said here.
    if address:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
        return
    # A machine with one core must have room for a gateway beside the replicas; CPUs are a count
    # here, not a limit.
    replicas = config.autoscaling.max_replicas * config.replica.cpus
    separate = config.separate
    gateways = separate.replicas * separate.cpus if separate else 0
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(replicas + gateways)),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )


def _stop(name: str, local: bool) -> None:
    import ray
    from ray import serve

    if local:
        serve.shutdown()
    else:
        serve.delete(name)
    ray.shutdown()

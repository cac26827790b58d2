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
    parser.set_defaults(run=run_serve)


def run_serve(args: argparse.Namespace) -> None:
    import logging
    import os
    import signal
    import threading
    from contextlib import suppress

    config = _config(args)
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
        url = deploy(config)
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

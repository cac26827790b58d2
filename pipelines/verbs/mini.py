"""`gwp mini`: a whole cluster on this machine, and a way to put files into its S3."""

import argparse
from pathlib import Path
from typing import Any

_FOLDER = "runs/mini"


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "mini", help="a whole cluster on this machine: Ray, S3 and MLflow"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    start = actions.add_parser(
        "start",
        help="run it until Ctrl-C; S3 objects are in memory and go with it, MLflow runs stay",
    )
    start.add_argument(
        "--folder",
        default=_FOLDER,
        help="for the MLflow store, logs and env.sh (default: %(default)s)",
    )
    start.add_argument(
        "--bucket",
        action="append",
        metavar="NAME",
        help="bucket to make, repeatable (default: gwp)",
    )
    start.add_argument(
        "--cluster",
        metavar="FILE",
        help="a Cluster file: its pools, their CPUs and GPUs (default: data 2, train 2, serve 4 CPUs)",
    )
    start.set_defaults(run=run_start)
    put = actions.add_parser("put", help="copy a file or folder into its S3")
    put.add_argument("path", type=Path, metavar="PATH")
    put.add_argument("uri", metavar="s3://BUCKET/PREFIX")
    put.add_argument(
        "--folder", default=_FOLDER, help="folder the mini-cluster runs from (default: %(default)s)"
    )
    put.set_defaults(run=run_put)


def run_start(args: argparse.Namespace) -> int:
    import signal
    import threading

    from clusters.mini import CPUS, MiniCluster

    cpus, gpus = _nodes(args.cluster) if args.cluster else (CPUS, {})
    ended = threading.Event()
    buckets = tuple(args.bucket or ("gwp",))
    with MiniCluster(args.folder, cpus=cpus, gpus=gpus, buckets=buckets) as mini:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        print((mini.folder / "env.sh").read_text(), end="")
        print(f"# dashboard {mini.dashboard}   MLflow {mini.mlflow.url}   S3 {mini.bucket}")
        print(f"# {_of_gpus(gpus)}")
        print(
            f"# in another shell: . {mini.folder / 'env.sh'}   (Ctrl-C here ends everything)",
            flush=True,
        )
        # Until Ctrl-C, or until a part of it is dead.
        while not ended.wait(1.0):
            if dead := mini.alive():
                from gwp.errors import GwpError

                raise GwpError(
                    f"{dead} ended by itself; see {mini.folder / 'logs'} and "
                    "/tmp/ray/session_latest/logs"  # noqa: S108
                )
    return 0


def _nodes(file: str) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """Pool -> logical CPUs of its node, and names of its GPUs."""
    from clusters.document.cluster import Cluster
    from clusters.local import cpus_of, gpus_of
    from pipelines.config.load import load_config

    cluster = load_config(file, Cluster)
    return cpus_of(cluster), gpus_of(cluster)


def _of_gpus(gpus: dict[str, tuple[str, ...]]) -> str:
    """Which pools have GPUs, in words."""
    if gpus:
        return "GPUs: " + ", ".join(f"{pool} {' '.join(names)}" for pool, names in gpus.items())
    from clusters.gpus import here

    if found := here():
        return f"GPUs: {len(found)} here and none in use; pools.train.gpus of a --cluster FILE gives them"
    return "GPUs: none on this machine; all runs on CPUs"


def run_put(args: argparse.Namespace) -> None:
    import os

    from clusters.mini import read_env
    from gwp import storage
    from gwp.errors import GwpError

    if not args.uri.startswith("s3://"):
        raise GwpError(f"{args.uri}: the mini-cluster keeps s3://BUCKET/PREFIX")
    if not args.path.exists():
        raise GwpError(f"{args.path}: not found")
    # It would win over the address of the mini-cluster, and send the files elsewhere.
    os.environ.pop("AWS_ENDPOINT_URL_S3", None)
    os.environ.update(
        {name: value for name, value in read_env(args.folder).items() if name.startswith("AWS_")}
    )
    if args.path.is_dir():
        storage.upload(args.path, args.uri)
    else:
        storage.write_bytes(storage.join(args.uri, args.path.name), args.path.read_bytes())
    print(args.uri)

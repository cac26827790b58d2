"""`gwp bench`: measurements that print what they were made with."""

import argparse
from typing import Any

from pipelines.verbs.arguments import add_visibility, numbers
from pipelines.verbs.bench import compilers, fleet, inspect, train


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("bench", help="measure, side by side in one run")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_act(verbs)
    compilers.add(verbs)
    _add_ingest(verbs)
    fleet.add(verbs)
    inspect.add(verbs)
    train.add(verbs)


def _add_act(verbs: Any) -> None:
    act = verbs.add_parser("act", help="acting against joint decoding of actions and video")
    act.add_argument(
        "--size",
        choices=("tiny", "small", "mid", "released"),
        default="small",
        help=(
            "tiny: the demo's model; mid: released token counts, narrow; released: 5-6 B, for "
            "a GPU (default: small)"
        ),
    )
    act.add_argument("--family", choices=("gwp0", "gwp05", "both"), default="both")
    add_visibility(act, "all but action-centred denoise the future, too, and are timed beside it")
    act.add_argument(
        "--batch",
        type=numbers,
        default=[1, 4],
        metavar="N,N",
        help="robots in one pass; the first is compared (default: 1,4)",
    )
    act.add_argument(
        "--steps",
        type=numbers,
        default=[10, 4, 1],
        metavar="N,N",
        help="Euler steps; the first is compared (default: 10,4,1)",
    )
    act.add_argument(
        "--robots", type=int, default=16, help="robots that ask the engine at once (default: 16)"
    )
    act.add_argument("--repeats", type=int, default=10, help="timed calls per case (default: 10)")
    act.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    act.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    act.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    act.add_argument(
        "--codec",
        choices=("auto", "pca", "wan"),
        default="auto",
        help="auto: wan at the released size (random weights), else pca, which costs next to nothing",
    )
    act.add_argument(
        "--p99",
        type=float,
        metavar="MS",
        help="also: how many robots one engine answers within MS milliseconds",
    )
    act.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="of each crowd of robots, with --p99 (default: 10)",
    )
    act.add_argument(
        "--trace",
        metavar="FILE",
        help="write a Chrome trace of some requests, and print what takes most",
    )
    act.add_argument("--json", metavar="FILE", help="write the figures there too")
    act.add_argument("--plot", metavar="FILE", help="write a picture (PNG) there")
    act.set_defaults(run=run_act)


def _add_ingest(verbs: Any) -> None:
    ingest = verbs.add_parser(
        "ingest",
        help=(
            "the stream into training workers against bare PyAV, a DataLoader and "
            "ray.data.read_videos"
        ),
    )
    ingest.add_argument(
        "--set",
        action="append",
        default=[],
        dest="sets",
        metavar="FOLDER",
        help=(
            "robot set or plain videos on this machine; may be repeated (default: two small "
            "sets that it makes)"
        ),
    )
    ingest.add_argument(
        "--from",
        default="disk,s3",
        dest="origins",
        metavar="PLACE,PLACE",
        help="disk, and S3 (a server on loopback that holds a copy of the set) (default: disk,s3)",
    )
    _add_shape(ingest)
    ingest.add_argument(
        "--no-cache", action="store_true", help="leave out the stream of cached latents"
    )
    ingest.add_argument(
        "--soak",
        type=int,
        metavar="SAMPLES",
        help="only: stream so many small samples and watch the memory",
    )
    ingest.add_argument("--json", metavar="FILE", help="write the figures there too")
    ingest.set_defaults(run=run_ingest)


def _add_shape(ingest: argparse.ArgumentParser) -> None:
    """What is read, and by how many: `pipelines.bench.ingest.jobs.Shape`."""
    ingest.add_argument(
        "--canvas",
        default="320x384",
        metavar="WxH",
        help="picture that the model sees, pixels (default: 320x384)",
    )
    ingest.add_argument(
        "--window",
        type=numbers,
        default=[48, 12],
        metavar="CHUNK,STRIDE",
        help="of robot sets (default: 48,12)",
    )
    ingest.add_argument(
        "--clip",
        type=numbers,
        default=[5, 5],
        metavar="FRAMES,FPS",
        help="windows of plain videos (default: 5,5)",
    )
    ingest.add_argument(
        "--batch", type=int, default=16, help="samples per worker and step (default: 16)"
    )
    ingest.add_argument("--steps", type=int, default=40, help="measured steps (default: 40)")
    ingest.add_argument(
        "--warm-up",
        type=int,
        default=6,
        metavar="STEPS",
        help="steps before them, and again behind them (default: 6)",
    )
    ingest.add_argument(
        "--workers", type=int, default=2, help="training workers that take the batches (default: 2)"
    )
    ingest.add_argument(
        "--cores", type=int, default=2, help="decoding processes of every side (default: 2)"
    )


def run_act(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    import torch

    from gwp.errors import GwpError
    from gwp.model.config import Family
    from pipelines.bench.act.bench import bench_act
    from pipelines.bench.act.show import draw, table
    from pipelines.bench.act.sizes import SIZES, WAN_SPATIAL

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise GwpError(
            "--device cuda: this torch sees no GPU; see `gwp doctor`, or use --device cpu"
        )
    # At the released size the codec is a good part of a request, so there it is the real one.
    codec = {"auto": "wan" if args.size == "released" else "pca"}.get(args.codec, args.codec)
    if codec == "wan" and SIZES[args.size].spatial != WAN_SPATIAL:
        raise GwpError(
            f"--codec wan: its latents have {WAN_SPATIAL} pixels a side, those of --size {args.size} "
            f"{SIZES[args.size].spatial}; take --size mid or released"
        )
    families: tuple[Family, ...]
    families = ("gwp0", "gwp05") if args.family == "both" else (args.family,)
    if args.visibility == "latent-frame":
        if args.family == "gwp05":
            raise GwpError("--visibility latent-frame: its model has one expert; say --family gwp0")
        families = ("gwp0",)
    results = []
    for family in families:
        trace_to = args.trace
        if trace_to and len(families) > 1:
            # A file for each family: a second trace would replace the first.
            trace_to = str(Path(trace_to).with_stem(f"{Path(trace_to).stem}-{family}"))
        result = bench_act(
            args.size,
            family,
            args.batch,
            args.steps,
            args.repeats,
            args.threads,
            device=args.device,
            dtype=args.dtype,
            robots=args.robots,
            codec=codec,
            p99_ms=args.p99,
            seconds=args.seconds,
            trace_to=trace_to,
            arm=args.visibility,
        )
        results.append(result)
        print(table(result), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({r["family"]: r for r in results}, indent=1))
    if args.plot:
        Path(args.plot).write_bytes(draw(results))


def run_ingest(args: argparse.Namespace) -> None:
    import json
    from pathlib import Path

    from gwp.errors import GwpError
    from pipelines.bench.ingest.bench import bench_ingest, soak
    from pipelines.bench.ingest.jobs import Shape
    from pipelines.bench.ingest.show import soak_table, table

    # Everything is looked at before a server or Ray is started.
    sides = args.canvas.split("x")
    origins = args.origins.split(",")
    if len(sides) != 2 or not all(s.isdigit() for s in sides):
        raise GwpError(f"--canvas {args.canvas}: give width and height, such as 320x384")
    if not origins or not set(origins) <= {"disk", "s3"}:
        raise GwpError(f"--from {args.origins}: give disk, s3 or both")
    if len(args.window) != 2 or len(args.clip) != 2:
        raise GwpError("--window and --clip take two numbers each, such as 48,12 and 5,5")
    shape = Shape(
        canvas=(int(sides[0]), int(sides[1])),
        chunk=args.window[0],
        stride=args.window[1],
        clip_frames=args.clip[0],
        clip_fps=float(args.clip[1]),
        batch=args.batch,
        steps=args.steps,
        warm=args.warm_up,
        workers=args.workers,
        cores=args.cores,
    )
    if args.soak:
        result = soak(args.soak, shape)
        print(soak_table(result))
    else:
        result = bench_ingest(args.sets, shape, origins, cache=not args.no_cache)
        print(table(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1))

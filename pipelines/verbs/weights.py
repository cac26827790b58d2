"""`gwp weights`: look at checkpoints, trust them, and make one of another."""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FORM = """A parity folder holds inputs.safetensors and, per model, a checkpoint folder (config.json,
diffusion_pytorch_model.safetensors) with its outputs.safetensors; DIR may also be one such
checkpoint folder. Inputs: ref_latents [B,C,1,h,w], future_latents [B,C,T,h,w], state [B,1,d],
action [B,p,d], text [B,L,text_dim], embodiment_id [B], t_action [B], t_visual [B], timestep
[B,S+R+A+F] in 0..1000, optionally sched.sigmas. Outputs: any of joint.video_pred,
joint.action_pred, joint.block0.*, action_only.action_pred, sample10.action (drawn with embodiment
row 0), rope.*, cond.*, acond.*. For GWP-0 row 0 is used throughout, as its reference does."""
_SOURCES = """CHECKPOINT is a folder (local or s3://) of GWP-0.5, GWP-0 (July or March), Wan 2.2
(diffusers or native names, with or without control) or GigaWorld-1, in safetensors or .bin, single
or sharded; or one local weight file.
For finished weights of a run, a bundle or a diffusers pipeline its folder is enough."""
_AS_WRITTEN = argparse.RawDescriptionHelpFormatter
_WORST = 12
"""Matrices that are shown of a comparison: the least alike."""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "weights", help="look at checkpoints, convert them, check them against reference tensors"
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_inspect(verbs)
    _add_convert(verbs)
    _add_merge(verbs)
    _add_parity(verbs)


def _add_inspect(verbs: Any) -> None:
    inspect = verbs.add_parser(
        "inspect",
        help="family, widths, and every tensor that does not fit",
        description=_SOURCES,
        formatter_class=_AS_WRITTEN,
    )
    inspect.add_argument("checkpoint", metavar="CHECKPOINT")
    inspect.add_argument(
        "--reference",
        metavar="CHECKPOINT",
        help="another one: cosine of each tensor with the same-named one there, and "
        "with that of the next layer (catches transposes and layers off by one)",
    )
    inspect.add_argument("--json", action="store_true", help="everything, as one JSON object")
    _allowances(inspect)
    inspect.set_defaults(run=run_inspect)


def _add_convert(verbs: Any) -> None:
    convert = verbs.add_parser(
        "convert",
        help="make a folder that `init` takes",
        description=_SOURCES,
        formatter_class=_AS_WRITTEN,
    )
    convert.add_argument("checkpoint", metavar="CHECKPOINT")
    convert.add_argument(
        "--out", required=True, metavar="DIR", help="an empty place, local or s3://"
    )
    convert.add_argument(
        "--to", choices=("gwp05", "gwp0"), help="family to make (default: its own; gwp05 of Wan)"
    )
    convert.add_argument(
        "--action-expert-dim",
        type=int,
        metavar="N",
        help="width of a new action expert (default: 1024)",
    )
    convert.add_argument(
        "--action-ffn-dim", type=int, metavar="N", help="its feed-forward width (default: 4096)"
    )
    convert.add_argument(
        "--action-channels",
        type=int,
        metavar="N",
        help="grow to N action channels (default: its own, else 16)",
    )
    convert.add_argument(
        "--embodiments",
        type=int,
        metavar="N",
        help="grow to N embodiments (default: its own, else 2)",
    )
    convert.add_argument(
        "--time-proj",
        choices=("leading", "per-slot"),
        default="leading",
        help="how the action expert's slice of the "
        "modulation projection is taken: its first rows as published, or those of each of the "
        "six slots",
    )
    convert.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    convert.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="for what the checkpoint does not have (default: 0)",
    )
    _allowances(convert)
    convert.set_defaults(run=run_convert)


def _add_merge(verbs: Any) -> None:
    merge = verbs.add_parser(
        "merge",
        help="put adapters into the weights that they were trained beside",
        description="Write the folder of a plain model. Adapters of other weights are refused.",
    )
    merge.add_argument("adapter", metavar="ADAPTER", help="`final/adapter` of a run with `lora`")
    merge.add_argument("checkpoint", metavar="CHECKPOINT", help="its run's `init`")
    merge.add_argument("--out", required=True, metavar="DIR", help="an empty place, local or s3://")
    merge.set_defaults(run=run_merge)


def _add_parity(verbs: Any) -> None:
    parity = verbs.add_parser(
        "parity",
        help="largest error per output against reference tensors",
        description=_FORM,
        formatter_class=_AS_WRITTEN,
    )
    parity.add_argument("folder", metavar="DIR")
    parity.add_argument(
        "--tolerance",
        type=float,
        default=5e-6,
        help="largest absolute error allowed (default: 5e-6)",
    )
    parity.set_defaults(run=run_parity)


def _allowances(parser: argparse.ArgumentParser) -> None:
    for what in ("missing", "unexpected"):
        parser.add_argument(
            f"--allow-{what}",
            action="append",
            default=[],
            metavar="PATTERN",
            help=f"published names that may be {what}, with * and ?; may be given again",
        )


@contextmanager
def _local(uri: str) -> Iterator[Path]:
    """The checkpoint at `uri` on this machine, for the while."""
    from gwp import storage
    from gwp.model.weights import locate

    # It may lie inside finished weights, a bundle or a pipeline.
    uri = locate(uri)
    if not storage.is_remote(uri):
        yield Path(uri.removeprefix("file://"))
        return
    with tempfile.TemporaryDirectory(prefix="gwp-weights-") as scratch:
        yield storage.download(uri, scratch)


def run_inspect(args: argparse.Namespace) -> int:
    from gwp.model.weights import open_checkpoint
    from gwp.model.weights.compare import Likeness, similarity

    rows: list[Likeness] | None = None
    # Tensors are on the meta device; numbers are read to compare, one pair at a time.
    with _local(args.checkpoint) as folder:
        checkpoint = open_checkpoint(folder)
        problems = checkpoint.problems(args.allow_missing, args.allow_unexpected)
        if args.reference:
            with _local(args.reference) as other:
                rows = similarity(checkpoint, open_checkpoint(other))
    tensors = checkpoint.tensors.values()
    report: dict[str, Any] = {
        "family": checkpoint.family,
        "form": checkpoint.form.title,
        "tensors": len(tensors),
        "parameters": sum(t.numel() for t in tensors),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors}),
        "widths": checkpoint.widths,
        "assumed": checkpoint.assumed,
        "left_out": checkpoint.left_out,
        "problems": problems,
    }
    if rows is not None:
        report["similarity"] = [vars(row) | {"verdict": row.verdict} for row in rows]
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        _print_report(report)
        if rows is not None:
            _print_similarity(rows)
    # `unlike` is for people to judge: training moves weights. A transpose or a shift of layers
    # is an error whatever was trained.
    wrong = [row for row in rows or () if row.verdict in ("transposed", "next layer")]
    return 1 if problems or wrong else 0


def _print_report(report: dict[str, Any]) -> None:
    print(
        f"{report['form']}: {report['tensors']} tensors, {report['parameters']:,} parameters, "
        f"{', '.join(report['dtypes'])}"
    )
    print("  " + "  ".join(f"{key} {value}" for key, value in report["widths"].items()))
    if report["assumed"]:
        print(
            f"  assumed, since neither config.json nor the tensors tell: {', '.join(report['assumed'])}"
        )
    for line in report["left_out"]:
        print(f"  left out, for our models have none: {line}")
    for line in report["problems"]:
        print(f"  {line}")
    if report["family"] == "wan":
        print("  no action projections: `gwp weights convert` makes a model of it")
    count = len(report["problems"])
    print(f"{count} problems: it would be refused" if count else "whole")


def _print_similarity(rows: list[Any]) -> None:
    from pipelines.console import table

    judged = [row for row in rows if row.matrix]
    if not judged:
        print("reference: no matrix in common")
        return
    following = [row.following for row in judged if row.following is not None]
    beside = f"; with the next layer's {sum(following) / len(following):.3f}" if following else ""
    print(
        f"reference: {len(rows)} tensors in common; mean cosine of {len(judged)} matrices "
        f"{sum(row.same for row in judged) / len(judged):.3f}, least "
        f"{min(row.same for row in judged):.3f}{beside}"
    )
    # Least alike first, as `similarity` gives them.
    worst = [
        {
            "least alike": row.name,
            "same": row.same,
            "next layer": "" if row.following is None else row.following,
            "transposed": "" if row.transposed is None else row.transposed,
            "verdict": row.verdict,
        }
        for row in judged[:_WORST]
    ]
    print(table(worst))
    suspicious = sum(row.verdict != "ok" for row in judged)
    print(
        f"{suspicious} of {len(judged)} matrices are suspicious"
        if suspicious
        else "every matrix is most like its namesake"
    )


def run_convert(args: argparse.Namespace) -> int:
    import torch

    from gwp import storage
    from gwp.errors import GwpError
    from gwp.model.weights import open_checkpoint
    from gwp.model.weights.checkpoint import parameters
    from gwp.model.weights.derive import convert, target_config
    from pipelines.console import progress

    if storage.is_remote(args.out) and storage.list_files(args.out):
        raise GwpError(f"{args.out}: not empty; choose another place")
    with (
        _local(args.checkpoint) as folder,
        tempfile.TemporaryDirectory(prefix="gwp-convert-") as scratch,
    ):
        # What cannot be made is told here, before anything is written.
        source = open_checkpoint(folder)
        config = target_config(
            source,
            args.to,
            action_channels=args.action_channels,
            embodiments=args.embodiments,
            action_expert_dim=args.action_expert_dim,
            action_ffn_dim=args.action_ffn_dim,
        )
        total = len(parameters(config))
        out = Path(args.out.removeprefix("file://"))
        if storage.is_remote(args.out):
            # Shards are written one by one, and uploaded when all are there.
            out = Path(scratch) / "out"
        with progress("convert", total) as shown:
            convert(
                source,
                out,
                config,
                time_proj=args.time_proj,
                dtype=getattr(torch, args.dtype),
                seed=args.seed,
                allow_missing=args.allow_missing,
                allow_unexpected=args.allow_unexpected,
                progress=shown.update,
            )
        if storage.is_remote(args.out):
            storage.upload(out, args.out)
    widths = "  ".join(
        f"{key} {value}" for key, value in config.model_dump(exclude_none=True).items()
    )
    for line in source.left_out:
        print(f"left out, for our models have none: {line}")
    print(f"{args.out}: {total} tensors of {source.form.title} to {widths}")
    return 0


def run_merge(args: argparse.Namespace) -> int:
    from gwp import storage
    from gwp.errors import GwpError
    from gwp.model.adapters import apply_adapter
    from gwp.model.weights import load_model, save_weights

    if storage.list_files(args.out):
        raise GwpError(f"{args.out}: not empty; choose another place")
    with _local(args.checkpoint) as folder, tempfile.TemporaryDirectory() as scratch:
        model = load_model(folder)
        adapter = Path(args.adapter.removeprefix("file://"))
        if storage.is_remote(args.adapter):
            adapter = storage.download(args.adapter, Path(scratch) / "adapter")
        weights = apply_adapter(adapter, model)
        save_weights(Path(scratch) / "out", model.config, weights)
        storage.upload(Path(scratch) / "out", args.out)
    print(f"{args.out}: {len(weights)} tensors, with what {args.adapter} adds")
    return 0


def run_parity(args: argparse.Namespace) -> int:
    from gwp.model.parity import check_folder

    worst = 0.0
    for model, errors in check_folder(args.folder).items():
        for name, error in errors.items():
            # Written so that NaN counts as a miss.
            fits = error <= args.tolerance
            worst = worst if fits else float("inf")
            print(f"{model:12} {name:32} {error:.3e}  {'ok' if fits else 'MISS'}")
    print(f"tolerance {args.tolerance:g}: {'all within' if worst == 0.0 else 'exceeded'}")
    return 0 if worst == 0.0 else 1

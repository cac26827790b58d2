"""`gwp weights`: look at checkpoints and trust them."""

import argparse
from typing import Any

_FORM = """A parity folder holds inputs.safetensors and, per model, a checkpoint folder (config.json,
diffusion_pytorch_model.safetensors) with its outputs.safetensors; DIR may also be one such checkpoint folder.
Inputs: ref_latents [B,C,1,h,w], future_latents [B,C,T,h,w], state [B,1,d], action [B,p,d], text [B,L,text_dim],
embodiment_id [B], t_action [B], t_visual [B], timestep [B,S+R+A+F] in 0..1000, optionally sched.sigmas.
Outputs: any of joint.video_pred, joint.action_pred, joint.block0.*, action_only.action_pred, sample10.action (drawn with
embodiment row 0), rope.*, cond.*, acond.*. For GWP-0 row 0 is used throughout, as its reference does."""


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser("weights", help="check checkpoints against reference tensors")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    parity = verbs.add_parser(
        "parity", help="largest error per output against reference tensors", description=_FORM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parity.add_argument("folder", metavar="DIR")
    parity.add_argument("--tolerance", type=float, default=5e-6, help="largest absolute error allowed (default: 5e-6)")
    parity.set_defaults(run=run_parity)


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

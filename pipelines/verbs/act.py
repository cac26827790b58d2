"""`gwp act`: one observation from the shell, to an endpoint or to a policy in this process."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from gwp.protocol.messages import ActionChunk


def add(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "act",
        help="one action chunk for one observation",
        description="Without --image and --state, prints what the policy asks for.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", metavar="URL", help="a running endpoint, ws://host:port")
    where.add_argument("--policy", metavar="URI", help="load this bundle here instead")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="CAMERA=FILE",
        help="picture of one camera (repeatable)",
    )
    parser.add_argument("--state", metavar="X,Y,...", help="robot state, in robot units")
    parser.add_argument("--prompt", default="", help="the instruction")
    parser.add_argument(
        "--embodiment", metavar="NAME", help="which robot, when the policy knows several"
    )
    parser.add_argument("--seed", type=int, default=0, help="noise seed (default 0)")
    parser.add_argument(
        "--api-key-env",
        metavar="VAR",
        default="GWP_API_KEY",
        help="variable with the API key (default GWP_API_KEY)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="longest wait for the endpoint, seconds",
    )
    parser.add_argument("--json", action="store_true", help="the whole answer as JSON")
    parser.set_defaults(run=run_act)


def run_act(args: argparse.Namespace) -> None:
    import json
    import os

    from gwp.client import Client, Observation

    images = _images(args.image)
    state = None if args.state is None else _numbers(args.state)
    # Both kinds say the same of a policy and answer the same call.
    if args.url:
        client = Client(
            args.url,
            api_key=os.environ.get(args.api_key_env),
            embodiment=args.embodiment,
            timeout_s=args.timeout,
        )
        metadata = client.metadata
        act: Callable[[Observation], ActionChunk] = client.act
    else:
        from gwp.policy.policy import Policy

        policy = Policy.load(args.policy)
        metadata = policy.contract.metadata(args.embodiment)
        act = policy.act
    # Nothing to act on: what the policy asks for is the answer.
    if state is None and not images:
        print(json.dumps(metadata, indent=1))
        return
    import numpy as np

    observation = Observation(
        images=images,
        # Of no width, so that the refusal says which numbers are missing.
        state=np.zeros(0, np.float32) if state is None else state,
        prompt=args.prompt,
        embodiment=args.embodiment,
        seed=args.seed,
    )
    chunk = act(observation)
    # Metadata of one robot names its actions; that of several, those of each.
    names = metadata.get("action_names") or metadata["embodiments"][args.embodiment]["action_names"]
    if args.json:
        answer = {
            "policy_id": chunk.policy_id,
            "valid_from": chunk.valid_from,
            "flags": chunk.flags,
            "timings_ms": chunk.timings,
        }
        print(json.dumps(answer | {"action_names": names, "actions": chunk.actions.tolist()}))
        return
    from pipelines.console import table

    rows: list[dict[str, Any]] = [
        {"step": step} | dict(zip(names, row, strict=True))
        for step, row in enumerate(chunk.actions.tolist())
    ]
    print(table(rows))
    print(
        f"policy {chunk.policy_id[:12]}  flags {', '.join(chunk.flags) or 'none'}  "
        f"{chunk.timings.get('total', 0):.0f} ms"
    )


def _images(options: list[str]) -> "dict[str, np.ndarray]":
    """Camera -> uint8 `[H, W, 3]`, from CAMERA=FILE; GwpError for what is no picture."""
    import numpy as np

    from gwp.errors import GwpError

    images = {}
    for text in options:
        camera, equals, path = text.partition("=")
        if not equals:
            raise GwpError(f"--image {text}: write it as --image CAMERA=FILE")
        from PIL import Image

        try:
            with Image.open(path) as image:
                images[camera] = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise GwpError(
                f"--image {text}: {path} cannot be read as a picture ({error})"
            ) from error
    return images


def _numbers(text: str) -> "np.ndarray":
    import numpy as np

    from gwp.errors import GwpError

    try:
        return np.array([float(part) for part in text.split(",")], np.float32)
    except ValueError as error:
        raise GwpError(
            f"--state {text}: write numbers separated by commas, e.g. --state 0.1,0.2,0.3"
        ) from error

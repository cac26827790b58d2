"""A whole bundle with random weights: what it costs to serve does not depend on their values."""

import json
from pathlib import Path

import torch

from gwp.model.codecs.hashed import HashedTextEncoder
from gwp.model.config import Family
from gwp.model.weights import save_weights
from gwp.policy.bundle import seal
from pipelines.bench.act.sizes import SIZES, Arm, random_model, random_pca, random_policy


def random_bundle(
    folder: Path, size: str, steps: int, note: str = "", arm: Arm = "action-centred"
) -> str:
    """Write one for one robot with one camera; the policy id. note: makes another id of it"""
    shape = SIZES[size]
    # Latent frames have one expert.
    family: Family = "gwp0" if arm == "latent-frame" else "gwp05"
    policy = random_policy(shape, family, steps, "cpu", torch.float32, arm=arm)
    bundle, config = policy.bundle, shape.config(family, arm)
    model = random_model(config, torch.device("cpu"), torch.float32)
    save_weights(folder / "model", config, model.state_dict())
    random_pca(shape).save(folder / "codec")
    HashedTextEncoder(dim=shape.text[1], rows=shape.text[0]).save(folder / "text")
    parts = {
        "policy": bundle.settings.model_dump(mode="json"),
        "embodiments": {n: e.model_dump(mode="json") for n, e in bundle.embodiments.items()},
        "stats": bundle.stats,
        "lineage": {"made_by": "gwp bench fleet", "note": note},
    }
    for name, part in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(part))
    return seal(folder)

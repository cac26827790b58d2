"""The short stage that tests of faults train: a robot whose picture is a dot that follows its action."""

import numpy as np
from safetensors.numpy import load

from clusters.mini import MiniCluster
from gwp import storage
from gwp.data.formats.lerobot.write import LeRobotWriter
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.training.train import StageResult
from tests.unit.pipelines.jobs.test_stages import STAGES

STEPS, EVERY = 60, 15
CALM = ("calm", "run.keep=10", "run.record_samples=true")


def write_recordings(uri: str, episodes: int = 4) -> None:
    """Short labelled episodes of 40 steps: a bright square follows the action."""
    rng = np.random.default_rng(0)
    names = ("a", "b")
    with LeRobotWriter(
        uri,
        fps=20,
        robot_type="dot",
        cameras={"top": (32, 32)},
        state_names=names,
        action_names=names,
    ) as writer:
        for _ in range(episodes):
            action = np.cumsum(rng.normal(0, 0.05, (40, 2)), axis=0).astype(np.float32)
            frames = np.full((40, 32, 32, 3), 30, np.uint8)
            for t, (x, y) in enumerate(np.clip(16 + action * 20, 2, 28).astype(int)):
                frames[t, y - 2 : y + 3, x - 2 : x + 3] = 220
            writer.add_episode({"top": frames}, "follow", action * 0.9, action)


def job(mini: MiniCluster, uri: str, name: str, *more: str) -> TrainJob:
    sets = [
        f"run.storage={mini.bucket}/chaos",
        f"run.name={name}",
        f"run.steps={STEPS}",
        f"run.checkpoint_every={EVERY}",
        "run.log_every=1",
        "cluster.train_pool=train",
        "cluster.data_pool=data",
        "engine.global_batch=8",
        "init=null",
        "codec={kind: pca, spatial: 8, channels: 24, fit_clips: 32}",
        "text={kind: hashed, dim: 64, rows: 8}",
        "data.canvas={layout: single, width: 32, height: 32}",
        "data.window={chunk: 8, stride: 2}",
        f"data.sources=[{{uri: {uri}, embodiment: dot}}]",
        "data.embodiments={dot: {replan: 4}}",
        *more,
    ]
    return load_config(STAGES / "policy.yaml", TrainJob, sets)


def weights(result: StageResult) -> dict[str, np.ndarray]:
    return load(storage.read_bytes(f"{result.final}/model/diffusion_pytorch_model.safetensors"))

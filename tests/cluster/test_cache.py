"""A stage is cached on the cluster, survives a kill, and trains from the cache as it does from
video.
"""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from clusters.mini import MiniCluster
from gwp import storage
from gwp.data.latent_cache import CACHE, shards_there
from pipelines.cli import main
from pipelines.config.load import load_config
from pipelines.jobs.train_job import TrainJob
from pipelines.tracking.runs import metric_history
from pipelines.training.train import train
from tests.support.dot import write_recordings
from tests.unit.pipelines.jobs.test_stages import STAGES

FILE = str(STAGES / "policy.yaml")
STEPS, EPISODES, LENGTH = 3, 5, 40


def fields(mini: MiniCluster) -> list[str]:
    uri = f"{mini.bucket}/cached/set"
    write_recordings(uri, EPISODES)
    return [
        f"run.storage={mini.bucket}/cached",
        f"run.steps={STEPS}",
        "run.log_every=1",
        "cluster.train_pool=train",
        "cluster.data_pool=data",
        "cluster.workers=1",
        "engine.global_batch=8",
        "init=null",
        "codec={kind: pca, spatial: 8, channels: 24, fit_clips: 32}",
        "text={kind: hashed, dim: 64, rows: 8}",
        "data.canvas={layout: single, width: 32, height: 32}",
        "data.window={chunk: 8, stride: 2}",
        f"data.sources=[{{uri: {uri}, embodiment: dot}}]",
        "data.embodiments={dot: {replan: 4}}",
        "data.augment=false",
    ]


def written(out: str) -> dict[int, object]:
    """When each shard was written."""
    fs, path = storage.filesystem(out)
    return {
        n: fs.info(f"{path}/latents/{n:06d}.safetensors")["LastModified"]
        for n in shards_there(out, "latents")
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cache_survives_a_kill_and_trains_as_video_does(
    mini: MiniCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = fields(mini)
    out = f"{mini.bucket}/cached/latents"
    # A shard per sample, so that there is a middle to be killed in.
    words = [
        "data",
        "cache",
        FILE,
        "--out",
        out,
        "--shard-mb",
        "0.01",
        *(w for s in sets for w in ("--set", s)),
    ]
    killed = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *words], stderr=subprocess.DEVNULL
    )
    try:
        limit = time.monotonic() + 300
        while len(shards_there(out, "latents")) < 3:
            assert time.monotonic() < limit
            assert killed.poll() is None
            time.sleep(0.02)
    finally:
        killed.kill()
        killed.wait(10)
    before = written(out)
    assert not storage.exists(f"{out}/{CACHE}")

    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    total = EPISODES * LENGTH
    assert (told["samples"], told["left_out"], told["shards"], told["texts"]) == (
        total,
        0,
        total,
        1,
    )
    assert 0 < told["encoded"] <= total - len(before)
    after = written(out)
    assert {n: after[n] for n in before} == before
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["encoded"] == 0

    losses = {}
    for name, cache in (("video", "null"), ("cache", out)):
        result = train(
            load_config(FILE, TrainJob, [*sets, f"run.name={name}", f"data.cache={cache}"])
        )
        losses[name] = [value for _, value in metric_history(result.run_id, "loss")]
    assert len(losses["cache"]) == STEPS
    # Latents are rounded to eight bits of mantissa.
    np.testing.assert_allclose(losses["cache"], losses["video"], rtol=5e-3)

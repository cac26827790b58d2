"""`gwp bench act` measures what it says, at its smallest."""

import json
import subprocess
import sys

import pytest
import torch

from gwp.model.transformer import WorldActionTransformer
from pipelines.bench.act import robots
from pipelines.bench.act.bench import bench_act
from pipelines.bench.act.floor import Machine, acting_floor
from pipelines.bench.act.show import table
from pipelines.bench.act.sizes import SIZES, random_policy
from pipelines.cli import main


@pytest.mark.parametrize("family", ["gwp0", "gwp05"])
def test_the_verb_writes_every_figure_and_a_picture(tmp_path, family):
    figures, picture = tmp_path / "act.json", tmp_path / "act.png"
    command = [
        "bench",
        "act",
        "--size",
        "tiny",
        "--family",
        family,
        "--batch",
        "2,1",
        "--steps",
        "2,1",
        "--repeats",
        "2",
        "--robots",
        "3",
        "--p99",
        "0.1",
        "--seconds",
        "0.5",
        "--trace",
        str(tmp_path / "trace.json"),
        "--json",
        str(figures),
        "--plot",
        str(picture),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())[family]
    wanted = {
        "act_vs_joint",
        "act_vs_joint_cached",
        "cached_vs_uncached",
        "step_vs_matmul",
        "engine_vs_sequential",
    }
    assert result["ratios"].keys() == wanted
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert {"gflop", "weights_gb", "ms", "distance"} <= result["floors"].keys()
    assert {"preprocess", "vae", "text", "prefix", "denoise", "postprocess", "total"} == result[
        "phases_ms"
    ].keys()
    assert result["by_batch"].keys() == {"1", "2"}
    assert result["by_steps"].keys() == {"1", "2"}
    assert {"hardware", "dtype", "threads", "torch", "warm_up", "cached"} <= result.keys()
    # Nobody answers within a tenth of a millisecond.
    assert result["crowds"]["robots"] == 0
    assert [row["robots"] for row in result["crowds"]["rows"]] == [1]
    assert result["crowds"]["rows"][0]["p99"] > 0.1
    assert result["trace"][0]["ms"] >= result["trace"][1]["ms"] > 0
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text())
    assert picture.read_bytes().startswith(b"\x89PNG")
    for name in wanted:
        assert name in done.stdout


@pytest.mark.parametrize("arm", ["joint", "latent-frame"])
def test_models_that_act_with_a_future_are_timed_beside_the_action_centred_one(arm):
    found = bench_act("tiny", "gwp0", [1], [2], 2, 1, robots=2, arm=arm)
    assert found["visibility"] == arm
    frames = {"state": 16, "reference": 16, "action": 16, "future": 16, "text": 8}
    assert found["tokens"] == frames | ({"state": 1, "action": 12} if arm == "joint" else {})
    assert found["ms"]["action_centred"]["p50"] > 0
    ratio = found["ms"]["act"]["p50"] / found["ms"]["action_centred"]["p50"]
    assert found["ratios"]["action_centred_vs_act"] == ratio
    assert f"tiny {arm}: " in table(found)


def test_latent_frames_have_one_expert(capsys):
    asked = ["bench", "act", "--visibility", "latent-frame", "--family", "gwp05"]
    assert main(asked) == 2
    assert "say --family gwp0" in capsys.readouterr().err


@pytest.mark.parametrize(("bound", "most"), [(40, 8), (36, 7), (500, 96), (4, 0)])
def test_the_largest_crowd_within_the_bound_is_found(monkeypatch, bound, most):
    """p99 of 5 ms per robot."""
    monkeypatch.setattr(
        robots,
        "_crowd",
        lambda engine, size, n, *_: robots.Crowd(n, 10 * n, 2.0 * n, 4.0 * n, 5.0 * n),
    )
    policy = random_policy(SIZES["tiny"], "gwp05", 1, "cpu", torch.float32)
    found = robots.robots_table(policy, SIZES["tiny"], bound, 1.0)
    assert found["robots"] == most
    shown = [row["robots"] for row in found["rows"]]
    assert shown == sorted(set(shown))
    # To about an eighth: the first that no longer holds was tried.
    assert min(n for n in shown if n > most) <= most + max(1, most // 8)


def test_the_floor_counts_what_a_chunk_needs():
    """By hand: weights of one pass of the prefix and of each step, and two operations per
    weight and token.
    """
    size = SIZES["tiny"]
    policy = random_policy(size, "gwp0", 2, "cpu", torch.float32)
    model = policy.solver.model
    machine = Machine(flops_per_s=1e9, bytes_per_s=1e18)
    floor = acting_floor(
        model, {"shared": 17}, size.chunk, size.text[0], batch=1, steps=2, machine=machine
    )
    with torch.device("meta"):
        block = WorldActionTransformer(size.config("gwp0")).blocks[0].expert("shared")
    used = [
        m
        for name, m in block.named_modules()
        if isinstance(m, torch.nn.Linear) and name not in ("attn2.to_k", "attn2.to_v")
    ]
    blocks = size.layers * sum(m.weight.numel() for m in used)
    assert floor["weights_gb"] == pytest.approx(3 * 4 * blocks / 1e9)
    attention = size.layers * 4 * 128 * (17 * (17 + 8) + 2 * size.chunk * (17 + size.chunk + 8))
    assert floor["gflop"] == pytest.approx((2 * blocks * (17 + 2 * size.chunk) + attention) / 1e9)
    assert floor["ms"] == pytest.approx(floor["gflop"] * 1e3)


def test_the_video_codec_must_fit_the_size():
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "bench",
        "act",
        "--size",
        "tiny",
        "--codec",
        "wan",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--size mid" in done.stderr


def test_a_gpu_that_is_not_there_is_one_clear_error():
    command = [
        sys.executable,
        "-m",
        "pipelines.cli",
        "bench",
        "act",
        "--size",
        "tiny",
        "--device",
        "cuda",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
    )
    assert done.returncode == 2
    assert "sees no GPU" in done.stderr

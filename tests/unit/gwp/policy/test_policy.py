"""A bundle and the policy inside it."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from gwp.errors import BundleError, ObservationError
from gwp.native.build import library
from gwp.policy.batching.engine import Engine
from gwp.policy.batching.schedule import BatchingConfig
from gwp.policy.bundle import read_bundle, read_id, seal
from gwp.policy.policy import Policy
from gwp.protocol.messages import Observation
from pipelines.bench.act.sizes import SIZES, observation, random_policy
from tests.support.tiny import TINY_ARM, make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def policy(bundle):
    return Policy.load(bundle)


def observe(seed=0, **changes):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (48, 64, 3), np.uint8)
    state = rng.uniform(-0.5, 0.5, 4).astype(np.float32)
    return replace(
        Observation({"observation.images.top": image}, state, "lift the cube", seed=seed), **changes
    )


def test_identity_is_the_digest_of_the_manifest(bundle, policy):
    assert policy.id == read_bundle(bundle).id == read_id(bundle)
    assert len(policy.id) == 64


def test_loading_imports_no_compiler(bundle):
    """torch's compiler takes as long to import as all the rest of a loaded policy, and every
    replica would pay for it.
    """
    code = (
        f"import sys; from gwp.policy.policy import Policy; Policy.load({str(bundle)!r}); "
        "print('torch._dynamo' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200
    )
    assert told.stdout.strip() == "False"


def test_a_chunk_is_in_robot_units_and_says_who_made_it(policy):
    chunk = policy.act(observe())
    assert chunk.actions.shape == (8, 4)
    assert chunk.actions.dtype == np.float32
    assert np.abs(chunk.actions).max() <= 2
    assert chunk.policy_id == policy.id
    assert {"preprocess", "vae", "text", "prefix", "denoise", "postprocess", "total"} <= set(
        chunk.timings
    )


def test_the_same_observation_and_seed_give_the_same_chunk(policy):
    assert np.array_equal(policy.act(observe()).actions, policy.act(observe()).actions)
    assert not np.array_equal(policy.act(observe()).actions, policy.act(observe(seed=1)).actions)


def test_robots_in_one_batch_do_not_see_each_other(policy):
    together = policy.act_batch([observe(s) for s in range(3)])
    for s, chunk in enumerate(together):
        np.testing.assert_allclose(chunk.actions, policy.act(observe(s)).actions, atol=1e-5)


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("family", ["gwp0", "gwp05"])
def test_to_the_last_bit_a_chunk_is_the_same_in_a_batch_and_alone(size, family):
    """With compiled layers, at widths where libraries choose kernels by the number of rows."""
    if library("passes") is None:
        pytest.skip("no compiler here: torch's operators add by the size of the batch")
    policy = random_policy(SIZES[size], family, 2, "cpu", torch.float32)
    seen = [observation(SIZES[size], seed) for seed in range(7)]
    alone = [policy.act(o).actions for o in seen]
    for together in (2, 3, 7):
        for chunk, expected in zip(policy.act_batch(seen[:together]), alone, strict=False):
            assert np.array_equal(chunk.actions, expected)
    with Engine(policy, BatchingConfig(slots=5, group=3)) as engine:
        futures = [engine.submit(o) for o in seen]
        for future, expected in zip(futures, alone, strict=True):
            assert np.array_equal(future.result(60).actions, expected)


def test_committed_actions_are_kept_and_the_reply_starts_after_them(policy):
    prefix = np.linspace(-0.5, 0.5, 12, dtype=np.float32).reshape(3, 4)
    chunk = policy.act(observe(prefix_actions=prefix, delay=2))
    np.testing.assert_allclose(chunk.actions[:2], prefix[:2], atol=1e-5)
    assert chunk.valid_from == 2
    mixed = policy.act_batch([observe(prefix_actions=prefix, delay=2), observe(1)])
    np.testing.assert_allclose(mixed[1].actions, policy.act(observe(1)).actions, atol=1e-5)


def test_acting_equals_the_action_half_of_joint_decoding(policy):
    chunk, video = policy.act_joint(observe())
    np.testing.assert_allclose(chunk.actions, policy.act(observe()).actions, atol=1e-4)
    assert video.shape == (5, 32, 32, 3)


def test_what_it_imagines_depends_on_the_actions(policy):
    seen = observe()
    chunk = policy.act(seen)
    video = policy.imagine(seen, chunk)
    assert video.shape == (5, 32, 32, 3)
    assert video.dtype == np.uint8
    assert not np.array_equal(
        video, policy.imagine(seen, replace(chunk, actions=chunk.actions + 1))
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"images": {}}, "missing"),
        ({"images": {"observation.images.top": np.zeros((48, 64, 3), np.float32)}}, "uint8"),
        ({"images": {"observation.images.top": np.zeros((48, 64), np.uint8)}}, "shape"),
        ({"images": {"observation.images.top": np.zeros((2, 2, 3), np.uint8)}}, "pixels"),
        ({"state": np.zeros(5, np.float32)}, "state"),
        ({"state": np.full(4, np.nan, np.float32)}, "NaN"),
        ({"embodiment": "spider"}, "spider"),
        ({"delay": 3}, "delay"),
    ],
)
def test_observations_that_do_not_fit_are_refused_before_any_work(policy, changes, word):
    with pytest.raises(ObservationError, match=word):
        policy.act_batch([observe(), observe(1, **changes)])


@pytest.mark.parametrize(
    "name", ["model/diffusion_pytorch_model.safetensors", "stats.json", "codec/codec.safetensors"]
)
def test_one_changed_byte_is_refused(tmp_path, name):
    folder = make_tiny_bundle(tmp_path / "b")
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(BundleError, match=name):
        Policy.load(folder)


def test_missing_and_stray_files_are_refused(tmp_path):
    folder = make_tiny_bundle(tmp_path / "b")
    (folder / "notes.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        read_bundle(folder)
    (folder / "notes.txt").unlink()
    (folder / "text" / "text.json").unlink()
    with pytest.raises(BundleError, match=r"text\.json is missing"):
        read_bundle(folder)
    (folder / "MANIFEST.json").unlink()
    with pytest.raises(BundleError, match="not a policy bundle"):
        read_bundle(folder)


def test_a_model_of_another_width_than_stated_is_refused(tmp_path):
    folder = make_tiny_bundle(tmp_path / "b")
    settings = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(settings | {"model_dim": 5}))
    seal(folder)
    with pytest.raises(BundleError, match="export the policy again"):
        Policy.load(folder)


def test_every_embodiment_of_the_bundle_is_announced(policy):
    told = policy.contract.metadata()
    assert told["policy_id"] == policy.id
    assert told["embodiment"] == TINY_ARM.name

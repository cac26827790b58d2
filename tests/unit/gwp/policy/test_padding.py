"""Channels that a robot does not have are what training showed the model, at every step and in
every way of acting; a policy whose training supervised them integrates them, as published.
"""

import json

import numpy as np
import pytest
import torch

from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.normalise import Stats
from gwp.model import denoise as sample
from gwp.model.flow import solver_sigmas
from gwp.model.inference.fused import FusedTransformer
from gwp.model.objective import ObjectiveConfig
from gwp.model.transformer import Tokens
from gwp.policy.batching.engine import Engine
from gwp.policy.bundle import PolicyConfig, read_bundle, seal
from gwp.policy.graphs import RecordedSingle
from gwp.policy.policy import Policy
from gwp.policy.solver import Shapes, Solver
from gwp.protocol.messages import Observation
from tests.support.tiny import TINY_ARM, make_tiny_bundle, tiny_model, tiny_tokens

STEPS = 4
SIGMAS = solver_sigmas(STEPS)
# Of three robots with 6, 4 and 2 of the model's 6 channels.
PADDING = torch.arange(6) >= torch.tensor([6, 4, 2])[:, None]
NARROW = TINY_ARM.model_copy(
    update={
        "name": "narrow",
        "id": 1,
        "action_names": ("x", "grip"),
        "state_names": ("x", "grip"),
        "delta_mask": (False, False),
        "limits": None,
    }
)


def shown(solver, monkeypatch):
    """The actions of every pass with a head, in order."""
    passes, run = [], solver.model.run

    def spy(tokens, noise, through, heads=()):
        if "A" in heads:
            passes.append(tokens.action.clone())
        return run(tokens, noise, through, heads)

    monkeypatch.setattr(solver.model, "run", spy)
    return passes


@pytest.fixture(params=["gwp0", "gwp05", "gwp0 eager", "gwp05 eager"])
def case(request, monkeypatch):
    family, _, eager = request.param.partition(" ")
    if eager:
        monkeypatch.setattr("gwp.model.inference.fused.library", lambda name: None)
    model = tiny_model(family)
    tokens, text, ids = tiny_tokens(3)
    C, T, h, w = tokens.future.shape[1:]
    solver = Solver(FusedTransformer(model), Shapes(tokens.action.shape[1], (C, h, w), T), STEPS)
    return model, solver, tokens, text, ids


@torch.inference_mode()
def test_every_step_sees_sigma_times_the_noise_and_the_end_is_zero(case, monkeypatch):
    model, solver, tokens, text, ids = case
    passes = shown(solver, monkeypatch)
    prefix = solver.observe(tokens.state, tokens.reference, solver.model.text_keys(text), ids)
    given = torch.where(PADDING[:, None], 0.0, tokens.action.flip(0))
    committed = torch.arange(5).expand(3, 5) < torch.tensor([[0], [0], [2]])
    for promised in (None, committed):
        passes.clear()
        ours = solver.act(
            prefix, tokens.action, None if promised is None else given, promised, PADDING
        )
        assert len(passes) == STEPS
        for x, sigma in zip([*passes, ours], SIGMAS, strict=True):
            expected = sigma * tokens.action
            if promised is not None:
                # A promised action is clean, so its padding is, too.
                expected = torch.where(promised[..., None], 0.0, expected)
            assert torch.equal(x.mT[PADDING], expected.mT[PADDING])
        context = sample.observe(model, tokens.state, tokens.reference, text, ids)
        theirs = sample.act(
            model, context, tokens.action, STEPS, 5.0, given, promised, padding=PADDING
        )
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)
    # Whoever has all channels is not concerned; integrated, the others' end elsewhere.
    integrated = solver.act(prefix, tokens.action)
    held = solver.act(prefix, tokens.action, padding_Bd=PADDING)
    assert torch.equal(held[0], integrated[0])
    assert not integrated.mT[PADDING].abs().max() < 0.01


@torch.inference_mode()
@pytest.mark.parametrize("use_prefix", [False, True])
def test_decoding_with_the_future_holds_them_too(case, use_prefix, monkeypatch):
    model, solver, tokens, text, ids = case
    passes = shown(solver, monkeypatch)
    prefix = solver.observe(tokens.state, tokens.reference, solver.model.text_keys(text), ids)
    given = Tokens(tokens.state, tokens.reference)
    noises = tokens.action, tokens.future
    ours = solver.joint(prefix, given, *noises, use_prefix, PADDING)
    for x, sigma in zip([*passes, ours[0]], SIGMAS, strict=True):
        assert torch.equal(x.mT[PADDING], (sigma * tokens.action).mT[PADDING])
    theirs = sample.joint(model, given, text, *noises, ids, STEPS, padding=PADDING)
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


@pytest.fixture(scope="module", params=["valid", "published"])
def policy(request, tmp_path_factory):
    """Of two robots: 4 and 2 of 6 channels."""
    folder = make_tiny_bundle(tmp_path_factory.mktemp("bundle"))
    settings = PolicyConfig.model_validate_json((folder / "policy.json").read_text())
    settings = settings.model_copy(update={"masking": request.param})
    (folder / "policy.json").write_text(settings.model_dump_json())
    robots = json.loads((folder / "embodiments.json").read_text())
    robots[NARROW.name] = NARROW.model_dump(mode="json")
    (folder / "embodiments.json").write_text(json.dumps(robots))
    stats = json.loads((folder / "stats.json").read_text())
    feature = FeatureStats(*(np.full(2, value) for value in (0.0, 0.5, -1.0, 1.0, -0.9, 0.9)))
    stats[NARROW.name] = Stats(feature, feature).to_json()
    (folder / "stats.json").write_text(json.dumps(stats))
    seal(folder)
    return Policy.load(folder)


def observe(seed, robot=TINY_ARM):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (48, 64, 3), np.uint8)
    state = rng.uniform(-0.5, 0.5, len(robot.state_names)).astype(np.float32)
    images = {"observation.images.top": image}
    return Observation(images, state, "lift", seed=seed, embodiment=robot.name)


def test_robots_of_different_widths_share_a_batch(policy, monkeypatch):
    observations = [observe(0), observe(1, NARROW), observe(2)]
    alone = [policy.act(o).actions for o in observations]
    passes = shown(policy.solver, monkeypatch)
    together = policy.act_batch(observations)
    noise = policy.inputs.batch([policy.inputs.admit(o) for o in observations], policy.device).noise
    padding = torch.arange(6) >= torch.tensor([4, 2, 4])[:, None]
    for x, sigma in zip(passes, SIGMAS, strict=False):
        held = torch.equal(x.mT[padding], (sigma * noise).mT[padding])
        # All begin as noise; afterwards a policy that learnt its padding moves it.
        assert held == (policy.settings.masking == "valid" or sigma == 1)
    for chunk, actions in zip(together, alone, strict=True):
        np.testing.assert_allclose(chunk.actions, actions, atol=1e-5)
    single = RecordedSingle(policy.solver, policy.text.rows)
    for observation, actions in zip(observations, alone, strict=True):
        observed = policy.observe(observation)
        batch = observed.batch
        with torch.inference_mode():
            y = single.act(observed.prefix, batch.noise, padding_Bd=batch.padding)
        chunk = policy.chunk(observed.admitted[0], y[0].numpy())
        np.testing.assert_allclose(chunk.actions, actions, atol=1e-5)
    with Engine(policy) as engine:
        # More than there are rows of: rows are taken over by robots of another width.
        futures = [(i % 3, engine.submit(observations[i % 3])) for i in range(24)]
        for number, future in futures:
            np.testing.assert_allclose(future.result(60).actions, alone[number], atol=1e-5)


def test_joint_decoding_of_a_policy_does_as_its_training(policy, monkeypatch):
    passes = shown(policy.solver, monkeypatch)
    chunk, _ = policy.act_joint(observe(1, NARROW))
    assert len(passes) == STEPS
    assert chunk.actions.shape[1] == 2
    scaled = passes[-1][0, :, 2:] / passes[0][0, :, 2:]
    held = torch.allclose(scaled, torch.full_like(scaled, float(SIGMAS[-2])), rtol=1e-5)
    assert held == (policy.settings.masking == "valid")


def test_bundles_of_before_are_read_and_hashed_as_they_were(policy):
    stored = json.loads((policy.bundle.folder / "policy.json").read_text())
    # The default is not written, so what was sealed without it keeps its id when written again.
    assert ("masking" in stored) == (policy.settings.masking == "published")
    assert read_bundle(policy.bundle.folder).settings.masking == policy.settings.masking
    stored.pop("masking", None)
    assert PolicyConfig.model_validate(stored).masking == ObjectiveConfig().masking == "valid"

"""Policies whose actions see the future act as their models do: alone, in a batch, in the engine."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gwp.errors import BundleError
from gwp.model import denoise
from gwp.model.inference.compiled import NativeLayers
from gwp.model.inference.eager import EagerLayers
from gwp.model.inference.fused import FusedTransformer
from gwp.model.transformer import Tokens
from gwp.policy.batching.engine import Engine
from gwp.policy.batching.schedule import BatchingConfig
from gwp.policy.bundle import read_bundle, seal
from gwp.policy.contract import PolicyContract
from gwp.policy.graphs import RecordedSingle
from gwp.policy.policy import Policy
from gwp.policy.solver import Shapes, Solver
from gwp.protocol.messages import Observation
from tests.support.tiny import ARMS, FAMILY_ARMS, make_tiny_bundle, tiny_model, tiny_tokens

STEPS, LIMIT = 4, 60
KINDS = [kind for kind in FAMILY_ARMS if kind[1] != "action-centred"]
CASES = [(*kind, how) for kind in KINDS for how in ("native", "eager")]


class Case:
    """One model in both arrangements, and what it is asked."""

    def __init__(self, family, arm):
        self.model = tiny_model(family, **ARMS[arm])
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        self.tokens, self.text, self.ids = tiny_tokens(3, future=2)
        C, T, h, w = self.tokens.future.shape[1:]
        self.solver = Solver(FusedTransformer(self.model), Shapes(5, (C, h, w), T), STEPS)

    def context(self):
        given = self.tokens
        return denoise.observe(self.model, given.state, given.reference, self.text, self.ids)

    def prefix(self):
        text = self.solver.model.text_keys(self.text)
        return self.solver.observe(self.tokens.state, self.tokens.reference, text, self.ids)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    family, arm, how = request.param
    with pytest.MonkeyPatch.context() as patch:
        if how == "eager":
            patch.setattr("gwp.model.inference.fused.library", lambda name: None)
        made = Case(family, arm)
    layers = made.solver.model.layers
    assert isinstance(layers, EagerLayers if how == "eager" else NativeLayers)
    return made


def same(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@pytest.mark.parametrize("promises", [False, True])
@torch.inference_mode()
def test_acting_is_the_models(case, promises):
    given = case.tokens.action.flip(0)
    committed = torch.zeros(given.shape[:2], dtype=torch.bool)
    committed[1, :3] = True
    promised = (given, committed) if promises else (None, None)
    noise, future = case.tokens.action, case.tokens.future
    theirs = denoise.act(case.model, case.context(), noise, STEPS, 5.0, *promised, future=future)
    ours = case.solver.act(case.prefix(), noise, *promised, future_BCThw=future)
    same(ours, theirs)
    if promises:
        assert torch.equal(ours[1, :3], given[1, :3])


@torch.inference_mode()
def test_imagining_is_the_models_after_acting_too(case):
    given, noise = case.tokens.action, case.tokens.future
    theirs = denoise.imagine(case.model, case.context(), given, noise, STEPS)
    prefix = case.prefix()
    case.solver.act(prefix, given, future_BCThw=noise)
    same(case.solver.imagine(prefix, given, noise), theirs)
    other = case.solver.imagine(prefix, given + 1, noise)
    if case.model.config.visibility == "joint":
        assert (other - theirs).abs().max() > 1e-4
        with pytest.raises(ValueError, match="needs actions"):
            case.solver.imagine(prefix, None, noise)
    else:
        same(other, theirs)


@torch.inference_mode()
def test_channels_that_a_robot_lacks_are_held_and_noise_is_asked_for(case):
    noise, future = case.tokens.action, case.tokens.future
    padding = torch.zeros(3, noise.shape[2], dtype=torch.bool)
    padding[:, -2:] = True
    held = case.solver.act(case.prefix(), noise, padding_Bd=padding, future_BCThw=future)
    assert not held[..., -2:].any()
    same(
        held,
        denoise.act(case.model, case.context(), noise, STEPS, padding=padding, future=future),
    )
    with pytest.raises(ValueError, match="needs its noise"):
        case.solver.act(case.prefix(), noise)


@pytest.mark.parametrize(
    "case", [kind for kind in CASES if kind[1] != "video-first"], indirect=True
)
@torch.inference_mode()
def test_joint_acting_is_joint_decoding_with_the_observation_run_anew(case):
    given = Tokens(case.tokens.state, case.tokens.reference)
    noise, future = case.tokens.action, case.tokens.future
    anew, _ = case.solver.joint(case.prefix(), given, noise, future)
    same(case.solver.act(case.prefix(), noise, future_BCThw=future), anew)


@pytest.fixture(scope="module", params=KINDS)
def policy(request, tmp_path_factory):
    family, arm = request.param
    folder = tmp_path_factory.mktemp("bundle")
    return Policy.load(make_tiny_bundle(folder, family, **ARMS[arm]))


def observe(seed=0, **changes):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (48, 64, 3), np.uint8)
    state = rng.uniform(-0.5, 0.5, 4).astype(np.float32)
    observation = Observation(
        {"observation.images.top": image}, state, f"lift cube {seed % 3}", seed=seed
    )
    return replace(observation, **changes)


def committed(seed):
    promised = np.linspace(-0.5, 0.5, 12, dtype=np.float32).reshape(3, 4)
    return observe(seed, prefix_actions=promised, delay=2)


MIXED = [committed(s) if s % 3 == 1 else observe(s) for s in range(7)]


def test_a_batch_is_its_observations_one_by_one(policy):
    together = policy.act_batch(MIXED)
    for observation, chunk in zip(MIXED, together, strict=True):
        alone = policy.act(observation)
        np.testing.assert_allclose(chunk.actions, alone.actions, atol=1e-5)
        assert chunk.valid_from == observation.delay
    # A seed is the future's, too.
    again = policy.act(replace(MIXED[0], seed=99))
    assert np.abs(again.actions - together[0].actions).max() > 1e-3


@pytest.mark.parametrize("slots", [1, 4])
def test_the_engine_answers_as_a_direct_call_does(policy, slots):
    with Engine(policy, BatchingConfig(slots=slots)) as engine:
        engine.warm_up([observe()])
        futures = [engine.submit(observation) for observation in MIXED]
        for observation, future in zip(MIXED, futures, strict=True):
            expected = policy.act(observation)
            np.testing.assert_allclose(future.result(LIMIT).actions, expected.actions, atol=1e-5)


@torch.inference_mode()
def test_one_robot_by_recordings_gets_what_the_solver_gives(policy):
    single = RecordedSingle(policy.solver, policy.text.rows)
    for observation in MIXED[:3]:
        observed = policy.observe(observation)
        batch = observed.batch
        given = (batch.noise, batch.given, batch.committed, batch.padding, batch.future)
        expected = policy.solver.act(observed.prefix, *given)
        same(single.act(observed.prefix, *given), expected, 1e-6)


def test_a_bundle_says_which_it_is_and_so_does_the_handshake(policy):
    config = policy.solver.model.config
    arm = {"visibility": config.visibility, "actions": config.actions}
    settings = read_bundle(policy.bundle.folder).settings
    assert {name: getattr(settings, name) for name in arm} == arm
    said = PolicyContract.read(str(policy.bundle.folder)).metadata()
    told = {"visibility": config.visibility, "action_form": config.actions}
    assert said | told | {"batching": "requests"} == said


def test_a_bundle_and_its_model_must_agree(tmp_path):
    folder = make_tiny_bundle(tmp_path, visibility="joint")
    said = PolicyContract.read(str(make_tiny_bundle(tmp_path / "other"))).metadata()
    assert (said["visibility"], said["batching"]) == ("action-centred", "steps")
    # Bundles of before do not name it, and keep their digest.
    plain = (tmp_path / "other" / "policy.json").read_text()
    assert "visibility" not in plain
    assert "actions" not in json.loads(plain)
    stated = json.loads((folder / "policy.json").read_text())
    for wrong in ("action-centred", "video-first"):
        (folder / "policy.json").write_text(json.dumps(stated | {"visibility": wrong}))
        seal(folder)
        with pytest.raises(BundleError, match=f"model is joint, the bundle states {wrong}"):
            Policy.load(folder)
    (folder / "policy.json").write_text(json.dumps(stated | {"actions": "latent-frame"}))
    seal(folder)
    with pytest.raises(BundleError, match="model is tokens, the bundle states latent-frame"):
        Policy.load(folder)

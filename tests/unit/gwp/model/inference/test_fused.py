"""Inference by compiled layers and by torch's operators is the model itself: every mode, both
families.
"""

import pytest
import torch

from gwp.model import denoise as sample
from gwp.model.inference.compiled import NativeLayers
from gwp.model.inference.eager import EagerLayers
from gwp.model.inference.fused import FusedTransformer
from gwp.model.transformer import Tokens
from gwp.policy.solver import Prefix, Shapes, Solver
from tests.support.tiny import tiny_model, tiny_tokens

BATCH, STEPS = 3, 4


class Case:
    """One model in both arrangements, and what it is asked."""

    def __init__(self, family):
        self.model = tiny_model(family, num_embodiments=3)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in self.model.parameters():
                # Away from zeros and ones, so that no norm or bias can be forgotten unnoticed.
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        self.tokens, self.text, _ = tiny_tokens(BATCH, future=2)
        self.ids = torch.tensor([2, 0, 1])
        C, T, h, w = self.tokens.future.shape[1:]
        self.fused = FusedTransformer(self.model)
        self.solver = Solver(self.fused, Shapes(self.tokens.action.shape[1], (C, h, w), T), STEPS)
        with torch.inference_mode():
            self.context = sample.observe(
                self.model, self.tokens.state, self.tokens.reference, self.text, self.ids
            )

    def observe(self):
        return self.solver.observe(
            self.tokens.state, self.tokens.reference, self.fused.text_keys(self.text), self.ids
        )


@pytest.fixture(scope="module", params=["gwp0", "gwp05", "gwp0 eager", "gwp05 eager"])
def case(request):
    family, _, eager = request.param.partition(" ")
    with pytest.MonkeyPatch.context() as patch:
        if eager:
            patch.setattr("gwp.model.inference.fused.library", lambda name: None)
        made = Case(family)
    assert isinstance(made.fused.layers, EagerLayers if eager else NativeLayers)
    return made


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


@torch.inference_mode()
def test_acting_is_the_models(case):
    same(
        case.solver.act(case.observe(), case.tokens.action),
        sample.act(case.model, case.context, case.tokens.action, STEPS),
    )


@torch.inference_mode()
def test_committed_actions_are_clean_tokens(case):
    given = case.tokens.action.flip(0)
    committed = torch.zeros(given.shape[:2], dtype=torch.bool)
    committed[1, :3] = True
    theirs = sample.act(
        case.model, case.context, case.tokens.action, STEPS, prefix=given, committed=committed
    )
    ours = case.solver.act(case.observe(), case.tokens.action, given, committed)
    same(ours, theirs)
    assert torch.equal(ours[1, :3], given[1, :3])


@torch.inference_mode()
def test_imagining_after_acting_goes_on_from_the_cached_prefix(case):
    prefix = case.observe()
    actions = case.solver.act(prefix, case.tokens.action)
    theirs = sample.imagine(case.model, case.context, actions, case.tokens.future, STEPS)
    same(case.solver.imagine(prefix, actions, case.tokens.future), theirs)


@torch.inference_mode()
@pytest.mark.parametrize("use_prefix", [False, True])
def test_joint_decoding_is_the_models_with_and_without_the_prefix(case, use_prefix):
    given = Tokens(case.tokens.state, case.tokens.reference)
    theirs = sample.joint(
        case.model, given, case.text, case.tokens.action, case.tokens.future, case.ids, STEPS
    )
    ours = case.solver.joint(
        case.observe(), given, case.tokens.action, case.tokens.future, use_prefix
    )
    same(ours[0], theirs[0])
    same(ours[1], theirs[1])


@torch.inference_mode()
def test_rows_at_different_steps_share_a_pass(case):
    through = case.solver.acting(case.observe())
    index = torch.tensor([[3], [0], [1]])
    together = case.solver.velocity(through, case.tokens.action, case.solver.levels(index))
    for row in range(BATCH):
        alone = case.solver.velocity(
            through, case.tokens.action, case.solver.level(int(index[row]))
        )
        same(together[row], alone[row])


@torch.inference_mode()
def test_a_prefix_is_not_touched_by_what_follows(case):
    prefix = case.observe()
    end = prefix.cache.spans["A"][0]
    before = prefix.cache.keys[..., :end, :].clone()
    case.solver.act(prefix, case.tokens.action)
    case.solver.imagine(prefix, case.tokens.action, case.tokens.future)
    assert torch.equal(prefix.cache.keys[..., :end, :], before)


@torch.inference_mode()
def test_bfloat16_stays_near_full_precision():
    exact, rough = tiny_model("gwp05"), tiny_model("gwp05").to(torch.bfloat16)
    tokens, text, _ = tiny_tokens()
    C, T, h, w = tokens.future.shape[1:]
    velocities = []
    for model in (exact, rough):
        solver = Solver(
            FusedTransformer(model), Shapes(tokens.action.shape[1], (C, h, w), T), STEPS
        )
        ids = torch.zeros(2, dtype=torch.long)
        dtype = model.proj_out.weight.dtype
        prefix: Prefix = solver.observe(
            tokens.state, tokens.reference.to(dtype), solver.model.text_keys(text), ids
        )
        velocities.append(
            solver.velocity(solver.acting(prefix), tokens.action, solver.level(1)).flatten()
        )
    assert torch.cosine_similarity(*velocities, dim=0) > 0.999

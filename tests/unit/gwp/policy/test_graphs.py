"""What a GPU would record: the same numbers from fixed buffers, and nothing in it that a
recording cannot hold.

Capturing needs a GPU; that the work stays on its device, at the released width and in bf16, is
shown on the meta device.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gwp.model.inference.fused import FusedTransformer
from gwp.model.transformer import WorldActionTransformer
from gwp.policy.batching.slots import Slots, step, whole
from gwp.policy.graphs import RecordedPrefix, RecordedSingle
from gwp.policy.policy import Policy
from gwp.policy.solver import Shapes, Solver
from pipelines.bench.act.sizes import SIZES
from tests.support.tiny import FAMILY_ARMS, make_tiny_bundle


@pytest.fixture(scope="module", params=["gwp0", "gwp05"])
def policy(request, tmp_path_factory):
    return Policy.load(make_tiny_bundle(tmp_path_factory.mktemp("bundle"), request.param))


class Case:
    """Random inputs of `count` observations."""

    def __init__(self, policy, seed, count=1):
        g, solver = torch.Generator().manual_seed(seed), policy.solver
        d, p = solver.model.config.action_channels, solver.shapes.chunk
        C, h, w = solver.shapes.latent
        self.state = torch.randn(count, 1, d, generator=g)
        self.reference = torch.randn(count, C, 1, h, w, generator=g)
        self.text = policy.text_keys([f"prompt {seed + i}" for i in range(count)])
        self.ids = torch.zeros(count, dtype=torch.long)
        self.noise, self.given = torch.randn(2, count, p, d, generator=g)
        self.committed = torch.arange(p).expand(count, p) < 2

    @property
    def observed(self):
        return self.state, self.reference, self.text, self.ids


@torch.inference_mode()
def test_one_robot_by_recordings_gets_what_the_solver_gives(policy):
    single, solver = RecordedSingle(policy.solver, policy.text.rows), policy.solver
    cases = [Case(policy, seed) for seed in range(3)]
    prefixes = [single.observe(*case.observed) for case in cases]
    for case, prefix in zip(cases, prefixes, strict=True):
        expected = solver.observe(*case.observed)
        plain, promised = (
            single.act(prefix, case.noise),
            single.act(prefix, case.noise, case.given, case.committed),
        )
        torch.testing.assert_close(plain, solver.act(expected, case.noise), atol=1e-6, rtol=0)
        torch.testing.assert_close(
            promised,
            solver.act(expected, case.noise, case.given, case.committed),
            atol=1e-6,
            rtol=0,
        )
        # The prefix goes on to the future as any other does.
        C, h, w = solver.shapes.latent
        noise = torch.randn(
            1, C, solver.shapes.future, h, w, generator=torch.Generator().manual_seed(1)
        )
        torch.testing.assert_close(
            solver.imagine(prefix, plain, noise),
            solver.imagine(expected, plain, noise),
            atol=1e-6,
            rtol=0,
        )


def test_threads_take_turns(policy):
    single, cases = (
        RecordedSingle(policy.solver, policy.text.rows),
        [Case(policy, seed) for seed in range(8)],
    )

    @torch.inference_mode()
    def robot(case):
        got = [single.act(single.observe(*case.observed), case.noise) for _ in range(5)]
        expected = policy.solver.act(policy.solver.observe(*case.observed), case.noise)
        return all(torch.allclose(x, expected, atol=1e-6) for x in got)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(robot, cases))


@torch.inference_mode()
def test_smaller_groups_use_the_same_buffers(policy):
    together = RecordedPrefix(policy.solver, 4, policy.text.rows, future=False)
    for count in (4, 1, 2):
        case = Case(policy, 10 * count, count)
        got, expected = together(*case.observed), policy.solver.observe(*case.observed)
        end = expected.cache.spans["A"][0]
        torch.testing.assert_close(
            got.cache.keys[..., :end, :], expected.cache.keys[..., :end, :], atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            got.cache.values[..., :end, :], expected.cache.values[..., :end, :], atol=1e-6, rtol=0
        )


class OnDevice(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold: tensors of the host, and questions whose answer
    the host would need.
    """

    def __init__(self, device):
        super().__init__()
        self.device, self.seen = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in (x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)):
            assert tensor.device.type == self.device, f"{func} meets a tensor of {tensor.device}"
        self.seen += 1
        return out


def meta_solver(family, arm="action-centred"):
    # Two layers of thirty: they are all alike.
    shape = replace(SIZES["released"], layers=2)
    with torch.device("meta"):
        model = WorldActionTransformer(shape.config(family, arm)).to(torch.bfloat16)
    return Solver(
        FusedTransformer(model), Shapes(shape.chunk, (shape.channels, *shape.latent), 2)
    ), shape


@pytest.mark.parametrize("family", ["gwp0", "gwp05"])
@torch.inference_mode()
def test_recorded_work_stays_on_its_device_at_full_width(family):
    solver, shape = meta_solver(family)
    observing = RecordedPrefix(solver, 2, shape.text[0], future=False)
    single, slots = RecordedSingle(solver, shape.text[0]), Slots.empty(solver, 4, shape.text[0])
    two = slots.rows(0, 2)
    works = {
        "prefix": lambda: observing._observe(2),
        "loop": lambda: single._act(False),
        "promised": lambda: single._act(True),
        "step": lambda: step(solver, two, solver.acting(two.prefix), False),
        "promised step": lambda: step(solver, slots, solver.acting(slots.prefix), True),
    }
    for name, work in works.items():
        # Tables that are kept are made in the first call, which is never recorded.
        work()
        with OnDevice("meta") as mode:
            work()
        assert mode.seen > 2 * 20, name


@pytest.mark.parametrize(
    ("family", "arm"), [kind for kind in FAMILY_ARMS if kind[1] != "action-centred"]
)
@torch.inference_mode()
def test_so_does_the_work_of_actions_that_see_the_future(family, arm):
    solver, shape = meta_solver(family, arm)
    single, slots = RecordedSingle(solver, shape.text[0]), Slots.empty(solver, 2, shape.text[0])
    works = {
        "loop": lambda: single._act(False),
        "promised": lambda: single._act(True),
        "batch": lambda: whole(solver, slots, False),
        "promised batch": lambda: whole(solver, slots.rows(0, 1), True),
    }
    for name, work in works.items():
        work()
        with OnDevice("meta") as mode:
            work()
        assert mode.seen > 2 * 20, name


@torch.inference_mode()
def test_the_watch_over_recorded_work_sees_a_host_tensor():
    with pytest.raises(AssertionError, match="cpu"), OnDevice("meta"):
        torch.zeros(3, device="meta") + torch.zeros(3)
    with pytest.raises(RuntimeError), OnDevice("meta"):
        torch.zeros((), device="meta").item()

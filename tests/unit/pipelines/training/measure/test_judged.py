"""What is acted and imagined is the solver's, and errors are in ranges: known by a model that knows."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gwp.data.canvas import Canvas
from gwp.data.decode import ClipWindow, SampleSpec
from gwp.data.stats.feature import FeatureStats
from gwp.data.stats.normalise import Normalizer, Stats
from gwp.data.window import Window
from gwp.model.draws import draw_noise
from gwp.model.objective import Batch, ModesConfig, ObjectiveConfig
from gwp.model.transformer import Tokens, Velocity
from pipelines.training.measure.judged import Judged, moved, named
from tests.support.tiny import TINY_ARM

N, P, D, WIDTH = 4, TINY_ARM.chunk, 4, 6
STATE = FeatureStats(*(np.full(D, value) for value in (0.0, 0.5, -1.0, 1.0, -1.0, 1.0)))
ACTION = FeatureStats(*(np.full(D, value) for value in (0.1, 0.5, -2.0, 2.0, -2.0, 2.0)))
STATS = Stats(STATE, ACTION)
SPEC = SampleSpec(
    canvas=Canvas(layout="single", width=32, height=32),
    window=Window(chunk=P, stride=2),
    clip=ClipWindow(frames=5, fps=5),
    embodiments={"tiny-arm": TINY_ARM},
    stats={"tiny-arm": STATS},
    model_dim=WIDTH,
    augment=False,
    seed=0,
)


class Knowing:
    """The velocity that leads to what is true, off by `wrong` in each number."""

    def __init__(self, batch: Batch, wrong: float = 0.0) -> None:
        self.batch, self.wrong = batch, wrong
        self.seen: list[Tokens] = []

    def __call__(
        self, tokens: Tokens, noise: dict[Any, Tensor], text: Tensor, robot: Tensor, heads: Any
    ) -> Velocity:
        self.seen.append(tokens)

        def velocity(x: Tensor, data: Tensor, group: str) -> Tensor:
            sigma = noise[group].reshape(-1, *[1] * (x.ndim - 1))
            return (x - data - self.wrong) / sigma

        if "A" in heads:
            assert tokens.action is not None
            return Velocity(action=velocity(tokens.action, self.batch.actions, "A"), future=None)
        assert tokens.future is not None
        return Velocity(
            action=None, future=velocity(tokens.future, self.batch.latents[:, :, 1:], "F")
        )


def decode(latents: Tensor) -> Tensor:
    """A codec of one channel whose latents are pixels in -1..1, each of four frames."""
    frames = torch.cat([latents[:, :, :1], latents[:, :, 1:].repeat_interleave(4, 2)], 2)
    pixels = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).expand(*pixels.shape[:1], -1, -1, -1, 3)


def batch_of(raw: np.ndarray, state: np.ndarray) -> Batch:
    """raw: actions in robot units `[n, p, 4]`"""
    normalizer = Normalizer(STATS, TINY_ARM)
    actions, states = np.zeros((N, P, WIDTH), np.float32), np.zeros((N, 1, WIDTH), np.float32)
    actions[..., :D] = normalizer.actions(raw, state)
    states[:, 0, :D] = normalizer.state(state)
    g = torch.Generator().manual_seed(0)
    valid = torch.ones(N, P, dtype=torch.bool)
    valid[1, 3:] = False
    return Batch(
        latents=torch.rand(N, 1, 2, 16, 16, generator=g) * 1.8 - 0.9,
        state=torch.from_numpy(states),
        actions=torch.from_numpy(actions),
        step_valid=valid,
        dim_valid=(torch.arange(WIDTH) < D).expand(N, WIDTH),
        text=torch.zeros(N, 3, 8),
        embodiment=torch.zeros(N, dtype=torch.long),
        ok=torch.ones(N, dtype=torch.bool),
    )


def figures_of(found: Judged, model: Any, device: torch.device) -> dict[str, float]:
    return named(found.sums(model, device))


def judged(
    batch: Batch, counts: Any = None, video_only: bool = False, **objective: Any
) -> tuple[Judged, np.ndarray]:
    found = Judged(ObjectiveConfig(**objective), SPEC, decode)
    frames = decode(batch.latents).numpy()
    noise = draw_noise(0, range(N), (1, 1, 16, 16), (P, WIDTH))
    counts = np.ones(N, bool) if counts is None else counts
    found.add(frames, batch, ["tiny-arm"] * N, counts, noise, video_only)
    return found, frames


@pytest.fixture
def batch() -> Batch:
    draw = np.random.default_rng(0)
    return batch_of(draw.uniform(-1, 1, (N, P, D)), draw.uniform(-1, 1, (N, D)))


CPU = torch.device("cpu")


def test_who_knows_the_truth_comes_to_it(batch: Batch) -> None:
    found, _ = judged(batch)
    figures = figures_of(found, Knowing(batch), CPU)
    assert figures["action_error"] == pytest.approx(0, abs=1e-5)
    assert figures["psnr"] > 60
    assert figures["ssim"] == pytest.approx(1)
    assert figures["action_error_hold"] > 0.05
    assert found.picture is not None


def test_an_error_is_told_in_ranges_of_its_dimension(batch: Batch) -> None:
    found, _ = judged(batch)
    # In model units, of which a range has two.
    figures = figures_of(found, Knowing(batch, wrong=0.3), CPU)
    assert figures["action_error"] == pytest.approx(0.15, abs=1e-4)


def test_baselines_are_those_of_the_robot_by_hand() -> None:
    """x, y and z count from the state, the grip is one itself."""
    state = np.tile(np.array([0.5, -0.5, 0.0, 0.25]), (N, 1))
    raw = np.zeros((N, P, D))
    raw[..., :3] = state[:, None, :3] + 0.4
    raw[..., 3] = 0.65
    found, _ = judged(batch_of(raw, state))
    figures = figures_of(found, Knowing(batch_of(raw, state)), CPU)
    # All are 0.4 from where the robot is, of a range of 4.
    assert figures["action_error_hold"] == pytest.approx(0.1, abs=1e-5)
    # The mean is 0.1 from the state, and 0.1 for the grip.
    assert figures["action_error_mean"] == pytest.approx((3 * 0.3 + 0.55) / 4 / 4, abs=1e-5)


def test_samples_that_do_not_count_change_nothing(batch: Batch) -> None:
    counts = np.array([True, True, False, False])
    some, _ = judged(batch, counts)
    figures = figures_of(some, Knowing(batch, 0.1), CPU)
    torn = moved(batch, CPU)
    torn.actions[2:] = 77.0
    torn.latents[2:] = 0.3
    other, _ = judged(torn, counts)
    again = figures_of(other, Knowing(torn, 0.1), CPU)
    alike = {name: value for name, value in figures.items() if name != "action_sensitivity"}
    assert {name: again[name] for name in alike} == pytest.approx(alike)
    none, _ = judged(batch, np.zeros(N, bool))
    assert figures_of(none, Knowing(batch), CPU) == {}  # type: ignore[arg-type]


def test_a_stage_of_video_alone_is_asked_for_no_actions(batch: Batch) -> None:
    found, _ = judged(batch, video_only=True)
    model = Knowing(batch)
    figures = figures_of(found, model, CPU)
    assert all(tokens.action is None and tokens.state is None for tokens in model.seen)
    assert figures.keys() == {
        *("psnr", "psnr_moving", "ssim"),
        *("psnr_copy", "psnr_moving_copy", "ssim_copy"),
    }


def test_who_learns_no_video_imagines_none(batch: Batch) -> None:
    found, _ = judged(batch, video_weight=0.0, modes=ModesConfig(wam=1))
    model = Knowing(batch)
    names = figures_of(found, model, CPU)
    assert names.keys() == {"action_error", "action_error_hold", "action_error_mean"}
    assert all(tokens.future is None for tokens in model.seen)


def test_what_a_robot_lacks_is_held_at_its_noise(batch: Batch) -> None:
    """As training shows it, unless padding was learnt, too."""
    for masking, held in (("valid", True), ("published", False)):
        found, _ = judged(batch, masking=masking)
        model = Knowing(batch, wrong=0.3)
        figures_of(found, model, CPU)
        noise = draw_noise(0, range(N), (1, 1, 16, 16), (P, WIDTH))[1]
        *_, last = (t.action for t in model.seen if t.future is None)
        assert last is not None
        spread = float((last[..., D:] / noise[..., D:]).std())
        assert (spread < 1e-5) is held

"""What speed costs, on recorded episodes; and that real-time chunking joins chunks of a policy
that has several ways to go.
"""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from gwp.data.robot.embodiment import Embodiment
from gwp.data.source import Source
from gwp.errors import GwpError
from gwp.model.draws import draw_noise
from gwp.model.inference.fused import FusedTransformer
from gwp.model.objective import Batch, ObjectiveConfig, levels_of, training_losses
from gwp.policy.policy import Policy
from gwp.policy.solver import Shapes, Solver
from pipelines.cli import main
from pipelines.evaluation.open_loop import distance, unbroken
from pipelines.evaluation.studies import seams_study, steps_study
from tests.support.sets import ARM, write_v30
from tests.support.tiny import make_tiny_bundle, tiny_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return Policy.load(make_tiny_bundle(tmp_path_factory.mktemp("bundle"), arm=ARM))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return str(write_v30(tmp_path_factory.mktemp("set") / "set"))


def test_fewer_steps_are_measured_against_the_most(policy, recorded):
    rows = steps_study(policy, Source(uri=recorded), (1, 4, 2, 4))
    assert [row.steps for row in rows] == [4, 2, 1]
    assert rows[0].rms == 0
    assert 0 < rows[1].rms < rows[2].rms
    assert all(row.mse > 0 < row.ms for row in rows)
    again = steps_study(policy, Source(uri=recorded), (4, 2))
    assert [(row.mse, row.rms) for row in again] == [(row.mse, row.rms) for row in rows[:2]]


def test_another_number_of_steps_shares_the_weights(policy):
    fewer = policy.with_steps(1)
    assert (policy.solver.steps, fewer.solver.steps) == (4, 1)
    assert fewer.solver.model is policy.solver.model


def test_seams_are_counted_once_and_the_same_each_time(policy, recorded):
    seams = seams_study(policy, Source(uri=recorded), delay=2)
    # 12 and 9 rows, asked for at every fourth: 3 chunks each, 2 seams between them.
    assert (seams.delay, seams.seams) == (2, 4)
    assert seams == seams_study(policy, Source(uri=recorded), delay=2)
    assert seams_study(policy, Source(uri=recorded)).delay == 4
    assert seams_study(policy, Source(uri=recorded, episodes="0"), delay=2).seams == 2
    assert all(
        value > 0
        for side in ("chunked", "naive", "inside")
        for value in asdict(seams)[side].values()
    )


@pytest.mark.parametrize("delay", [0, 5])
def test_a_delay_that_a_chunk_has_no_room_for_is_refused(policy, recorded, delay):
    with pytest.raises(GwpError, match="1 to 4 more"):
        seams_study(policy, Source(uri=recorded), delay=delay)


def test_the_verbs_print_figures_and_one_clear_error(tmp_path, recorded, capsys):
    bundle = str(make_tiny_bundle(tmp_path, arm=ARM))
    assert main(["eval", "steps", "--policy", bundle, "--steps", "2,1", recorded]) == 0
    assert [row["steps"] for row in json.loads(capsys.readouterr().out)] == [2, 1]
    assert main(["eval", "seams", "--policy", bundle, "--delay", "3", recorded]) == 0
    assert json.loads(capsys.readouterr().out)["delay"] == 3
    assert main(["eval", "seams", "--policy", bundle, "--delay", "7", recorded]) == 2
    assert "room for 1 to 4" in capsys.readouterr().err


@pytest.mark.slow
def test_real_time_chunking_stays_with_the_way_that_was_begun():
    """Swings to the left or to the right, which nothing in the observation tells: a second
    chunk that knows nothing of the first takes the other way half of the time.
    """
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, B, p, late = tiny_model("gwp05").train(), 48, 8, 4
    objective = ObjectiveConfig(chunk_prefix=0.5, max_prefix=4, video_weight=0.0)
    optimizer, generator = (
        torch.optim.AdamW(model.parameters(), 3e-3),
        torch.Generator().manual_seed(1),
    )
    way = torch.sin(torch.linspace(0.4, 2.0, p))[:, None].expand(p, 6)
    same = {
        "latents": torch.zeros(B, 4, 1, 2, 2),
        "state": torch.zeros(B, 1, 6),
        "text": torch.zeros(B, 2, 16),
        "step_valid": torch.ones(B, p, dtype=torch.bool),
        "dim_valid": torch.ones(B, 6, dtype=torch.bool),
        "embodiment": torch.zeros(B, dtype=torch.long),
        "ok": torch.ones(B, dtype=torch.bool),
    }
    try:
        for step in range(250):
            side = torch.randint(0, 2, (B, 1, 1), generator=generator) * 2.0 - 1
            positions = range(step * B, (step + 1) * B)
            levels = levels_of(objective, 1, positions, p)
            noise = draw_noise(1, positions, (4, 0, 2, 2), (p, 6))
            batch = Batch(actions=side * way, **same)
            training_losses(model, batch, objective, False, levels, noise).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.inference_mode():
            solver = Solver(FusedTransformer(model.eval()), Shapes(p, (4, 2, 2), 0))
            seen = solver.observe(
                same["state"],
                same["latents"],
                solver.model.text_keys(same["text"]),
                same["embodiment"],
            )
            first, naive = (
                solver.act(seen, torch.randn(B, p, 6, generator=generator)) for _ in range(2)
            )
            given = torch.zeros_like(first)
            # The robot has not moved: the rows that it promised are those of the same swing.
            given[:, :late] = first[:, :late]
            committed = (torch.arange(p) < late).expand(B, p)
            chunked = solver.act(seen, torch.randn(B, p, 6, generator=generator), given, committed)
    finally:
        torch.set_num_threads(threads)

    def jumps(chunk):
        step = chunk[:, late] - first[:, late - 1]
        return step.abs().mean(), (step - (first[:, late - 1] - first[:, late - 2])).abs().mean()

    # Both ways are taken, or there would be nothing to stay with.
    sides = np.sign(first.mean((1, 2)).numpy())
    assert 0.2 < (sides > 0).mean() < 0.8
    for chunked_jump, naive_jump in zip(jumps(chunked), jumps(naive), strict=True):
        assert chunked_jump < 0.5 * naive_jump


def test_errors_and_jumps_are_of_rotations_not_of_numbers():
    four = ("qx", "qy", "qz", "qw")
    names = ("yaw", *four)
    changes = {
        "state_names": names,
        "action_names": names,
        "kinds": dict.fromkeys(four, "quaternion") | {"yaw": "radians"},
    }
    arm = Embodiment.model_validate(ARM.model_dump() | changes)
    true, guess = np.array([[3.1, 0, 0, 0, 1.0]]), np.array([[-3.1, 0, 0, 0, -1.0]])
    off = distance(guess, true, arm)
    np.testing.assert_allclose(off, [[2 * np.pi - 6.2, 0, 0, 0, 0]], atol=1e-9)
    line = unbroken(np.concatenate([true, guess, true, guess]), arm)
    assert np.abs(np.diff(line, axis=0)).max() < 0.1
    np.testing.assert_array_equal(unbroken(line[:, :2], ARM), line[:, :2])

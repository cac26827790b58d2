"""Draws belong to samples, whatever batch they are in."""

import pytest
import torch

from gwp.model.draws import disturbed, draw_levels, draw_noise, generator

SETTINGS = {
    "shifts": (5.0, 2.0),
    "shared": False,
    "clean_share": 0.25,
    "prefix_share": 0.5,
    "max_prefix": 3,
}


def levels(positions, seed=0, **changes):
    return draw_levels(seed, positions, 8, **(SETTINGS | changes))


def test_a_sample_has_its_draws_in_any_batch():
    whole = levels(range(12))
    for some in (range(3), range(5, 9), [11, 2]):
        part = levels(some)
        for name in ("future", "action", "learnt", "told", "video_only"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[list(some)])
        future, actions = draw_noise(0, some, (2, 1, 3, 3), (8, 4))
        all_future, all_actions = draw_noise(0, range(12), (2, 1, 3, 3), (8, 4))
        assert torch.equal(future, all_future[list(some)])
        assert torch.equal(actions, all_actions[list(some)])
    rows = whole.of(slice(3, 7))
    assert all(torch.equal(value, getattr(whole, name)[3:7]) for name, value in vars(rows).items())


def test_a_sample_without_actions_is_video_only_and_draws_all_else_as_ever():
    plain = levels(range(2000))
    assert not plain.video_only.any()
    labelled = [i % 3 > 0 for i in range(2000)]
    mixed = levels(range(2000), labelled=labelled, video_share=0.25)
    has = torch.tensor(labelled)
    assert mixed.video_only[~has].all()
    assert float(mixed.video_only[has].float().mean()) == pytest.approx(0.25, abs=0.03)
    alone = mixed.video_only
    # Nothing of their actions is learnt, and they are no noise that anything could tell.
    assert not mixed.learnt[alone].any()
    assert not mixed.action[alone].any()
    for name in ("action", "learnt"):
        assert torch.equal(getattr(mixed, name)[~alone], getattr(plain, name)[~alone])
    assert torch.equal(mixed.future, plain.future)
    assert torch.equal(mixed.told, plain.told)


def test_samples_and_seeds_have_draws_of_their_own():
    future, actions = draw_noise(0, range(50), (3, 1, 4, 4), (8, 4))
    for noise in (future, actions, draw_noise(1, range(50), (1,), (8, 4))[1]):
        flat = noise.flatten(1)
        assert len({tuple(row.tolist()) for row in flat}) == 50
    both = torch.cat([actions, draw_noise(1, range(50), (1,), (8, 4))[1]]).flatten(1)
    # Neighbours share nothing: the mean of products of independent draws is near 0.
    near = (both[1:] * both[:-1]).mean()
    assert abs(float(near)) < 0.08
    assert float(both.mean()) == pytest.approx(0, abs=0.05)
    assert float(both.std()) == pytest.approx(1, abs=0.05)
    assert (
        torch.rand(4, generator=generator(0, 5)).tolist()
        != torch.rand(4, generator=generator(0, 6)).tolist()
    )


def test_levels_follow_their_settings():
    drawn = levels(range(2000))
    given = ~drawn.learnt
    whole = given.all(1)
    assert float(whole.float().mean()) == pytest.approx(0.25, abs=0.03)
    # Of the others, half have a prefix of 0 to 3 actions.
    lengths = given[~whole].sum(1)
    assert set(lengths.tolist()) == {0, 1, 2, 3}
    assert float((lengths > 0).float().mean()) == pytest.approx(0.5 * 3 / 4, abs=0.04)
    # Given are the first ones, clean; the rest of a sample has one level.
    assert not drawn.action[given].any()
    learnt = [row[keep].unique() for row, keep in zip(drawn.action, drawn.learnt, strict=True)]
    assert {len(row) for row in learnt} == {0, 1}
    # Shifts: the median of u is 1/2, so that of levels is shift / (1 + shift).
    assert float(drawn.future.median()) == pytest.approx(2 / 3, abs=0.03)
    assert float(torch.cat(learnt).median()) == pytest.approx(5 / 6, abs=0.03)


def test_one_level_may_be_shared():
    drawn = levels(range(30), shared=True, clean_share=0.0, prefix_share=0.0)
    assert torch.equal(drawn.action, drawn.future[:, None].expand(-1, 8))


def test_a_prefix_leaves_something_to_learn():
    drawn = levels(range(200), clean_share=0.0, prefix_share=1.0, max_prefix=100)
    assert drawn.learnt[:, -1].all()
    assert not drawn.learnt.all(1).all()


def test_a_state_is_disturbed_where_the_robot_has_one():
    state = torch.ones(400, 1, 6)
    # Dimensions that a robot does not have, or that do not move, are 0.
    state[:, :, 4:] = 0
    noisy = disturbed(state, 0.1, 0, range(400))
    assert torch.equal(noisy[:, :, 4:], state[:, :, 4:])
    change = (noisy - state)[:, :, :4]
    assert float(change.std()) == pytest.approx(0.1, rel=0.1)
    assert float(change.mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(disturbed(state[:3], 0.1, 0, [7, 1, 300]), noisy[[7, 1, 300]])
    assert disturbed(state, 0, 0, range(400)) is state

"""A policy on recorded episodes: errors of each of them, and what imagination is compared with."""

import json
from dataclasses import replace

import numpy as np
import pytest

from gwp.data.source import Source
from gwp.policy.policy import Policy
from pipelines.cli import main
from pipelines.evaluation.imagined import Clip, _windows, imagined, video_figures
from pipelines.evaluation.open_loop import GuessErrors, open_loop
from pipelines.evaluation.recordings import RecordedSet
from tests.support.sets import ARM, write_v30
from tests.support.tiny import make_tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(make_tiny_bundle(tmp_path_factory.mktemp("bundle"), arm=ARM))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return str(write_v30(tmp_path_factory.mktemp("set") / "set"))


def test_the_whole_is_made_of_its_episodes(bundle, recorded):
    policy = Policy.load(bundle)
    whole = open_loop(policy, Source(uri=recorded))
    alone = [open_loop(policy, Source(uri=recorded, episodes=str(i))) for i in (0, 1)]
    assert [e.index for e in whole.episodes] == [0, 1]
    for part, one in zip(whole.episodes, alone, strict=True):
        assert (part.mse, part.share, part.windows) == (one.mse, one.share, one.windows)
    assert whole.windows == sum(e.windows for e in whole.episodes)
    low, high = sorted(e.mse.policy for e in whole.episodes)
    assert low < whole.mse.policy < high
    assert whole.mse.policy == pytest.approx(np.mean(list(whole.per_dim.values())))


def test_a_share_counts_in_the_range_of_the_data(tmp_path, recorded):
    # Chunks that are executed whole: the lines that are drawn are all that is compared. The
    # ranges of the bundle's statistics are 1.8 wide.
    whole = ARM.model_copy(update={"replan": ARM.chunk})
    policy = Policy.load(make_tiny_bundle(tmp_path / "bundle", arm=whole))
    result = open_loop(policy, Source(uri=recorded, episodes="0"))
    _, true, guess = result.trace
    assert result.share.policy == pytest.approx(np.abs(guess - true).mean() / 1.8)
    assert result.mse.policy == pytest.approx(np.square(guess - true).mean())


@pytest.mark.parametrize(
    ("errors", "beats"), [((1, 2, 3), True), ((2, 2, 3), False), ((2.5, 2, 3), False)]
)
def test_whoever_is_no_better_than_one_of_them_beats_neither(errors, beats):
    assert GuessErrors(*errors).beats_both is beats


def test_the_command_tells_every_episode(bundle, recorded, capsys):
    main(["eval", "open-loop", recorded, "--policy", bundle])
    figures = json.loads(capsys.readouterr().out)
    assert [e["episode"] for e in figures["episodes"]] == [0, 1]
    assert {"mse", "mse_hold", "mse_mean", "share", "share_hold", "share_mean"} < set(figures)


def test_clips_are_spread_over_episodes_then_over_each(bundle, recorded):
    policy = Policy.load(bundle)
    clips = imagined(policy, Source(uri=recorded), 4)
    assert sorted(clip.episode for clip in clips[:2]) == [0, 1]
    # The second episode is so short that all its windows would be one.
    assert [(clip.episode, clip.step) for clip in clips] == [(0, 1), (1, 0), (0, 3)]
    assert all(clip.shuffled is None for clip in clips)
    assert all(clip.real.shape == clip.guess.shape for clip in clips)


def moving_square(at: int, frames: int = 3) -> np.ndarray:
    """Frames of a white square that moves from the left by `at` pixels a frame."""
    video = np.zeros((frames, 16, 16, 3), np.uint8)
    for t in range(frames):
        video[t, 4:8, t * at : t * at + 4] = 255
    return video


def test_copying_is_measured_where_something_moves():
    real = moving_square(4)
    perfect = Clip("", "", 0, 0, real, real)
    copy = Clip("", "", 0, 1, real, np.repeat(real[:1], 3, 0))
    told = video_figures([perfect])
    assert told["gain_moving"] > 50
    assert video_figures([copy])["gain_moving"] == 0
    # All pixels that move are wrong by the whole range in a copy.
    assert told["psnr_moving_copy"] == pytest.approx(0, abs=1e-6)
    assert "action_sensitivity" not in told


def test_sensitivity_is_what_wrong_actions_cost():
    real = moving_square(4)
    heeds = Clip("", "", 0, 0, real, real, moving_square(0))
    deaf = replace(heeds, shuffled=real)
    assert video_figures([heeds])["action_sensitivity"] > 50
    assert video_figures([deaf])["action_sensitivity"] == 0


def test_a_clip_where_nothing_moves_says_nothing_of_motion():
    still = moving_square(0)
    told = video_figures([Clip("", "", 0, 0, still, still)])
    assert "psnr" in told
    assert "gain_moving" not in told
    both = video_figures(
        [Clip("", "", 0, 0, still, still), Clip("", "", 0, 1, *[moving_square(4)] * 2)]
    )
    assert both["windows"] == 2
    assert both["gain_moving"] > 50


def test_imagination_is_asked_with_the_actions_of_another_clip(bundle, recorded, capsys):
    main(["eval", "video", recorded, "--policy", bundle, "--clips", "3"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["windows"] == 3
    assert "psnr_shuffled" in figures
    # An untrained model's heads still see them.
    clips = imagined(Policy.load(bundle), Source(uri=recorded), 2, shuffled=True)
    assert any((clip.guess != clip.shuffled).any() for clip in clips)


def test_the_actions_of_another_clip_are_those_of_another_episode(bundle, recorded):
    policy = Policy.load(bundle)
    # Of the two episodes the first has the first and the last of three windows.
    clips = imagined(policy, Source(uri=recorded), 3, shuffled=True)
    windows = list(
        _windows(policy, RecordedSet.of(policy.bundle.embodiments, Source(uri=recorded)), 3)
    )
    assert [clip.episode for clip in clips] == [0, 1, 0]
    other = windows[1]
    wanted = policy.imagine_given(
        windows[0].observation, other.actions, counted_from=other.observation
    )
    assert (clips[0].shuffled == wanted).all()


@pytest.mark.parametrize("clips", ["0", "-1"])
def test_no_clips_are_refused(bundle, recorded, capsys, clips):
    assert main(["eval", "video", recorded, "--policy", bundle, "--clips", clips]) != 0
    assert "give at least 1" in capsys.readouterr().err

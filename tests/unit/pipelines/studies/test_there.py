"""Studies of recordings that are there: which episodes who sees, and what is told before anything
runs.
"""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import ray

from gwp.data.source import Source
from gwp.errors import GwpError
from gwp.model.codecs.video import load_video_codec
from pipelines.cli import main
from pipelines.config.load import ConfigError, load_config
from pipelines.studies.cells.checks import require_judgeable, require_tasks, require_there
from pipelines.studies.cells.data import make_caches, make_codec, record_missing, require_nested
from pipelines.studies.cells.pieces import StudyPlan
from pipelines.studies.cells.plan import make_plan
from pipelines.studies.cells.sets import first, key, uncut
from pipelines.studies.document.scale import scaled
from pipelines.studies.document.study import Study
from pipelines.training.prepare import prepare
from tests.support.paths import ROOT
from tests.support.sets import SHARED, write_v21, write_video
from tests.unit.pipelines.studies.conftest import SET, document, plan_of
from tests.unit.pipelines.studies.test_data import write_set
from tests.unit.pipelines.studies.test_document import problems

REST, SEVENTH, THIRD = "0::4,1::4,2::4", "7::8", "3::8"
REAL = SHARED / "g1_bottle_many"
ERROR = {"kind": "open-loop", "name": "error", "data": "held-out"}


def fields(uri: str, **changes: Any) -> dict[str, Any]:
    """Of a study of one set, split in three."""
    parts = {"policy": REST, "validation": SEVENTH, "held-out": THIRD}
    own: dict[str, Any] = {
        "data": {name: {"uri": uri, "episodes": episodes} for name, episodes in parts.items()},
        "stages": {},
        "demonstrations": None,
        "seeds": [1],
        "arms": {"scratch": {}},
        "judge": [ERROR],
        "compare": [],
    }
    return own | changes


def there(folder: Path, uri: str = "/x/set", **changes: Any) -> StudyPlan:
    return plan_of(folder, **fields(uri, **changes))


def stage(given: dict[str, Any]) -> dict[str, Any]:
    return {"file": document()["stage"], "set": given}


def test_stages_and_judgements_see_their_part_alone(tmp_path: Path) -> None:
    validation = {"sources": [{"uri": "data/validation", "embodiment": "metaworld-sawyer"}]}
    plan = there(tmp_path, stage=stage({"validation": validation}))
    # No number of demonstrations is in its name: it sees them all.
    (cell,) = plan.cells.values()
    assert (cell.id, cell.demonstrations) == ("scratch-s1", None)
    (source,) = cell.job.data.sources
    assert (source.uri, source.episodes) == ("/x/set", REST)
    # What the stage says of its source stays.
    assert source.embodiment == "metaworld-sawyer"
    assert cell.job.validation is not None
    assert cell.job.validation.sources[0].episodes == SEVENTH
    assert plan.source("held-out").episodes == THIRD
    require_tasks(plan.study)
    require_judgeable(plan)


def test_a_set_says_how_it_is_read_and_a_stage_may_say_other_things(tmp_path: Path) -> None:
    policy = {"uri": "/x/set", "episodes": REST, "fps": 20, "colours": "bgr", "weight": 2}
    data = fields("/x/set")["data"] | {"policy": policy}
    sources = [{"uri": "data/policy", "embodiment": "metaworld-sawyer", "weight": 3}]
    plan = there(tmp_path, data=data, stage=stage({"data.sources": sources}))
    (source,) = plan.cells["scratch-s1"].job.data.sources
    assert (source.fps, source.colours, source.weight) == (20, "bgr", 3)
    assert (source.embodiment, source.episodes) == ("metaworld-sawyer", REST)


def test_who_chooses_episodes_twice_is_told(tmp_path: Path) -> None:
    sources = [{"uri": "data/policy", "embodiment": "metaworld-sawyer", "episodes": "0:4"}]
    with pytest.raises(ConfigError, match=r"arms\.scratch: data\.policy chooses episodes"):
        there(tmp_path, stage=stage({"data.sources": sources}))


@pytest.mark.parametrize(
    ("episodes", "count", "chosen"),
    [
        (REST, 4, [0, 1, 2, 4]),
        (REST, 6, [0, 1, 2, 4, 5, 6]),
        ("5,3:9", 3, [3, 4, 5]),
        (None, 3, [0, 1, 2]),
        # There are no more than these.
        ("0:2", 3, [0, 1]),
    ],
)
def test_the_first_demonstrations_are_the_first_that_are_chosen(
    episodes: str | None, count: int, chosen: list[int]
) -> None:
    cut = Source(uri="x", episodes=first(episodes, count))
    assert cut.select(list(range(50))) == chosen


def test_fewer_demonstrations_are_among_more_and_share_codec_and_latents(tmp_path: Path) -> None:
    plan = there(tmp_path, demonstrations=[2, 5])
    few, many = (plan.cells[f"scratch-d{count}-s1"].job for count in (2, 5))
    chosen = [set(job.data.sources[0].select(list(range(40)))) for job in (few, many)]
    assert chosen == [{0, 1}, {0, 1, 2, 4, 5}]
    assert few.data.cache == many.data.cache
    # Whole is what is chosen: nothing of the other parts is encoded, or makes the codec.
    for job in (few, many):
        (source,) = job.data.sources
        assert uncut(plan.study, source).episodes == REST
        assert key(plan.study, source) == key(plan.study, plan.source("policy"))
        assert key(plan.study, source) != key(plan.study, plan.source("held-out"))


def test_a_hash_knows_the_recordings_and_their_part(tmp_path: Path) -> None:
    def changed(name: str, **values: str) -> tuple[str, str, str]:
        data = fields("/x/set")["data"]
        plan = there(tmp_path, data=data | {name: data[name] | values})
        (cell,) = plan.cells.values()
        return plan.codec, cell.hash, plan.judgement_hash(cell, plan.study.judge[0])

    before = changed("policy")
    assert changed("policy") == before
    for values in ({"uri": "/y/set"}, {"episodes": "0::4,1::4"}):
        trained, judged = changed("policy", **values), changed("held-out", **values)
        assert all(a != b for a, b in zip(trained, before, strict=True))
        # Another set that judges is another judgement, and trains nothing again.
        assert judged[:2] == before[:2]
        assert judged[2] != before[2]


@pytest.mark.parametrize(
    ("episodes", "apart"), [("2:3", False), ("3:5", False), ("0:8:8", False), ("3:80:4", True)]
)
def test_no_episode_that_judges_is_trained_on(tmp_path: Path, episodes: str, apart: bool) -> None:
    data = fields("/x/set")["data"]
    held_out = {"uri": "/x/set", "episodes": episodes}
    plan = there(tmp_path, data=data | {"held-out": held_out})
    if apart:
        require_judgeable(plan)
        return
    told = r"judge\.error\.data: arm scratch trains on episodes of held-out"
    with pytest.raises(GwpError, match=told):
        require_judgeable(plan)
    # The same numbers of another set, or split, are other episodes.
    for other in ({"uri": "/y/set"}, {"split": "test"}, {"only": "failed"}):
        own = {"split": "train", "only": "next.success"}
        parts = {"policy": data["policy"] | own, "held-out": held_out | other}
        require_judgeable(there(tmp_path, data=data | parts))


def test_no_episode_that_validates_is_trained_on(tmp_path: Path) -> None:
    validation = {"sources": [{"uri": "data/policy", "embodiment": "metaworld-sawyer"}]}
    plan = there(tmp_path, stage=stage({"validation": validation}))
    with pytest.raises(
        GwpError, match="arm scratch: a stage trains on episodes of its `validation`"
    ):
        require_judgeable(plan)


def test_a_stage_before_it_may_not_have_seen_what_judges_either(tmp_path: Path) -> None:
    seen = {"data.sources": [{"uri": "data/held-out", "with_actions": False}]}
    stages = {"video": [{"file": document()["stages"]["video"][0], "set": seen}]}
    arms = {"scratch": {}, "begun": {"start": "video"}}
    with pytest.raises(GwpError, match="arm begun trains on episodes of held-out"):
        require_judgeable(there(tmp_path, stages=stages, arms=arms))


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({}, "data.policy.uri: missing"),
        ({"episodes": "0:4"}, "data.policy.uri: missing"),
        ({"uri": "x", "seed": 0, "episodes": 3}, "data.policy.tasks: missing"),
        ({"uri": "x", "episode": "0:4"}, "did you mean episodes?"),
        ({"uri": "x", "episodes": "4:4"}, "cannot read '4:4'; write `0:100`, `3::8` or `0,3,5`"),
        ({"uri": "x", "with_actions": False}, "labelled: policy is recorded without actions"),
        (SET | {"episodes": "0:4"}, "data.policy.episodes: should be a whole number"),
    ],
)
def test_mistakes_in_a_set_are_told(tmp_path: Path, policy: dict[str, Any], told: str) -> None:
    data = fields("x")["data"] | {"policy": policy}
    found = problems(tmp_path, **fields("x", data=data))
    assert told in found
    assert found.count("data.policy") <= 1


def test_what_is_not_there_is_told_and_never_recorded(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    plan = there(tmp_path, str(gone))
    with pytest.raises(GwpError, match=r"data\.policy: .*nothing there.*--set data\.policy\.uri="):
        require_there(plan)
    record_missing(plan)
    assert not gone.exists()


def test_as_many_as_are_asked_for_have_to_be_there(tmp_path: Path) -> None:
    uri = write_set(tmp_path, ["pick it up"] * 9)
    data = {
        "policy": {"uri": uri, "episodes": REST},
        "held-out": {"uri": uri, "episodes": THIRD},
    }
    plan = there(tmp_path, data=data, demonstrations=[2, 7])
    require_there(plan)
    require_nested(plan)
    told = r"demonstrations: of the first 8 episodes that data\.policy chooses 7 are in"
    with pytest.raises(GwpError, match=told):
        require_there(there(tmp_path, data=data, demonstrations=[2, 8]))
    # A part that holds none is a mistake.
    data["held-out"] = {"uri": uri, "episodes": "11::8"}
    with pytest.raises(GwpError, match=r"data\.held-out: .*no episode in 11::8; there are 0 to 8"):
        require_there(there(tmp_path, data=data))


def test_plain_videos_train_and_do_not_judge(tmp_path: Path) -> None:
    write_video(tmp_path / "clips" / "a.mp4", range(10))
    uri = write_set(tmp_path, ["pick it up"] * 5)
    clips = str(tmp_path / "clips")
    data = {"policy": {"uri": uri, "episodes": REST}, "held-out": {"uri": clips}}
    with pytest.raises(GwpError, match=r"data\.held-out: .*plain videos, without states"):
        require_there(there(tmp_path, data=data))
    data = {**data, "held-out": {"uri": uri, "episodes": THIRD}, "world": {"uri": clips}}
    require_there(there(tmp_path, data=data))
    # What nobody reads need not be there.
    require_there(there(tmp_path, data=data | {"world": {"uri": str(tmp_path / "gone")}}))


def test_a_smaller_study_reads_the_same_recordings(tmp_path: Path) -> None:
    whole = there(tmp_path).study
    small = scaled(whole, 0.05)
    assert (small.data, small.counts) == (whole.data, (None,))
    assert scaled(there(tmp_path, demonstrations=[20, 60]).study, 0.05).demonstrations == (1, 3)


ARM = {
    "data.sources": [{"uri": "data/policy", "embodiment": "arm"}],
    "data.embodiments": {"arm": {"id": 0}},
    "data.window": {"chunk": 4, "stride": 1},
    "data.canvas": {"layout": "single", "width": 32, "height": 32},
    "engine.global_batch": 4,
    "run.steps": 4,
}


def test_pictures_are_varied_and_the_codec_is_that_of_all_arms(tmp_path: Path) -> None:
    uri = str(write_v21(tmp_path / "set"))
    arms = {"varied": {"set": {"data.zoom": 1.2, "data.light": 0.3}}, "plain": {}}
    changes: dict[str, Any] = {
        "data": {
            "policy": {"uri": uri, "episodes": "0"},
            "held-out": {"uri": uri, "episodes": "1"},
        },
        "codec": {"kind": "pca", "spatial": 8, "channels": 24, "fit_clips": 4},
        "stage": stage(ARM),
        "arms": arms,
    }
    with pytest.raises(ConfigError, match=r"arms\.varied\.set: data\.zoom.*train_from: pictures"):
        there(tmp_path, **changes)
    plan = there(tmp_path, **changes, train_from="pictures")
    varied, plain = (plan.cells[f"{arm}-s1"].job for arm in arms)
    assert (varied.data.augment, varied.data.zoom, varied.data.light) == (True, 1.2, 0.3)
    assert (plain.data.augment, plain.data.zoom) == (True, 1)
    assert varied.data.cache is None
    make_caches(plan)
    assert not ray.is_initialized()
    make_codec(plan)
    made = load_video_codec(f"{plan.codec}/codec").digest()
    for job in (varied, plain):
        assert load_video_codec(f"{prepare(job).uri}/codec").digest() == made
    # Fitted on its own pictures it would be another one.
    run = varied.run.model_copy(update={"name": "other"})
    other = prepare(varied.model_copy(update={"codec": plan.study.codec, "run": run}))
    assert load_video_codec(f"{other.uri}/codec").digest() != made


def test_where_a_study_lies_does_not_make_its_codec_another_one(tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (cell,) = there(tmp_path / name, train_from="pictures").cells.values()
        assert cell.job.codec is not None
        hashes.append(cell.hash)
    assert hashes[0] == hashes[1]
    assert there(tmp_path / "a").cells["scratch-s1"].hash != hashes[0]


def g1(monkeypatch: pytest.MonkeyPatch, place: Path) -> StudyPlan:
    # Its stage file is seen from there.
    monkeypatch.chdir(ROOT)
    parts = [f"data.{name}.uri={place}" for name in ("train", "validation", "test")]
    return make_plan(load_config(ROOT / "pipelines" / "studies" / "g1.yaml", Study, parts))


def test_the_study_of_real_recordings_is_split_without_overlap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = g1(monkeypatch, tmp_path)
    assert len(plan.cells) == len(plan.study.arms) * len(plan.study.seeds) == 6
    require_judgeable(plan)
    parts = [set(plan.source(name).select(list(range(80)))) for name in plan.study.data]
    assert list(map(len, parts)) == [60, 10, 10]
    assert all(not one & other for one, other in combinations(parts, 2))
    assert set().union(*parts) == set(range(80))
    assert {one.data for one in plan.study.judge} == {"validation", "test"}  # type: ignore[union-attr]
    for cell in plan.cells.values():
        assert cell.job.data.cache is None
        (source,) = cell.job.data.sources
        assert source.episodes == plan.source("train").episodes
    varied, plain = (plan.cells[f"{arm}-s1"].job for arm in ("varied", "plain"))
    assert (varied.data.zoom, varied.data.light, varied.objective.state_noise) == (1.15, 0.25, 0.1)
    assert (plain.data.zoom, plain.data.light, plain.objective.state_noise) == (1, 0, 0)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real recordings are not at {REAL}")
def test_the_study_of_real_recordings_finds_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_there(g1(monkeypatch, REAL))
    parts = [f"--set=data.{name}.uri={REAL}" for name in ("train", "validation", "test")]
    assert main(["study", "pipelines/studies/g1.yaml", "--dry-run", *parts]) == 0
    assert len(json.loads(capsys.readouterr().out)["cells"]) == 6
    assert main(["study", "pipelines/studies/g1.yaml", "--dry-run"]) == 2
    assert "--set data.train.uri=FOLDER" in capsys.readouterr().err

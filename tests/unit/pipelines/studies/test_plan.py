"""Cells of a study: which there are, what they see, and what makes them anew."""

from pathlib import Path
from typing import Any

import pytest

from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.studies.cells.pieces import StudyPlan
from pipelines.studies.cells.plan import make_plan, parameters
from pipelines.studies.cells.results import result_uri
from pipelines.studies.document.scale import scaled
from pipelines.studies.document.sets import SetConfig
from pipelines.studies.document.study import Study
from tests.support.paths import ROOT
from tests.unit.pipelines.studies.conftest import SET, document, plan_of


def episodes(plan: StudyPlan, cell: str) -> set[int]:
    (source,) = plan.cells[cell].job.data.sources
    return set(source.select(list(range(50))))


def test_every_arm_seed_and_number_is_a_cell(plan: StudyPlan) -> None:
    assert set(plan.cells) == {
        f"{arm}-d{count}-s{seed}"
        for arm in ("scratch", "begun")
        for count in (5, 25)
        for seed in (1, 2)
    }
    assert set(plan.shared) == {"stages/video-s1", "stages/video-s2"}
    assert {cell.parent for cell in plan.cells.values() if cell.arm == "begun"} == set(plan.shared)
    for cell in plan.cells.values():
        assert cell.job.run.seed == cell.seed
        assert (cell.job.init is None) == (cell.arm == "scratch")
        if cell.parent:
            assert cell.job.init == plan.shared[cell.parent].jobs[-1].run.name


def test_fewer_demonstrations_are_among_more(plan: StudyPlan) -> None:
    few, many = episodes(plan, "scratch-d5-s1"), episodes(plan, "scratch-d25-s1")
    assert few < many
    # Tasks alternate, so that five of each are the first ten.
    assert (few, len(many)) == (set(range(10)), 50)
    # All arms and seeds see the same ones.
    assert episodes(plan, "begun-d5-s2") == few


def test_without_a_number_all_demonstrations_are_seen(tmp_path: Path) -> None:
    seen = {"data.sources": [{"uri": "x/policy", "with_actions": False}]}
    stages = {"video": [{"file": document()["stages"]["video"][0], "set": seen}]}
    plan = plan_of(tmp_path, demonstrations=None, seeds=[1], stages=stages)
    assert set(plan.cells) == {"scratch-s1", "begun-s1"}
    assert set(plan.shared) == {"stages/video-s1"}
    assert len(episodes(plan, "scratch-s1")) == 50


def test_codec_text_and_latents_are_those_of_all_arms(plan: StudyPlan) -> None:
    scratch, begun = (plan.cells[f"{arm}-d5-s1"].job for arm in ("scratch", "begun"))
    assert scratch.codec is not None
    assert begun.codec is None
    assert scratch.data.cache == begun.data.cache
    assert scratch.data.cache == plan.cells["scratch-d25-s2"].job.data.cache
    assert plan.shared["stages/video-s1"].jobs[0].data.cache != scratch.data.cache


def test_a_stage_that_sees_demonstrations_is_trained_for_each_number_of_them(
    tmp_path: Path,
) -> None:
    seen = {"data.sources": [{"uri": "x/policy", "with_actions": False}]}
    stages = {"video": [{"file": document()["stages"]["video"][0], "set": seen}]}
    plan = plan_of(tmp_path, stages=stages)
    assert set(plan.shared) == {
        f"stages/video-d{count}-s{seed}" for count in (5, 25) for seed in (1, 2)
    }
    (source,) = plan.shared["stages/video-d5-s1"].jobs[0].data.sources
    assert source.episodes == "0:10"


def hashes(plan: StudyPlan) -> dict[str, str]:
    return {name: piece.hash for name, piece in plan.pieces.items()}


def changed(folder: Path, **changes: Any) -> set[str]:
    """Pieces that are other ones with a changed document."""
    before, after = hashes(plan_of(folder)), hashes(plan_of(folder, **changes))
    return {name for name in before if before[name] != after.get(name)}


def test_a_hash_changes_with_all_that_makes_a_piece_and_with_nothing_else(tmp_path: Path) -> None:
    of_begun = {f"begun-d{count}-s{seed}" for count in (5, 25) for seed in (1, 2)}
    of_scratch = {f"scratch-d{count}-s{seed}" for count in (5, 25) for seed in (1, 2)}
    shared = {"stages/video-s1", "stages/video-s2"}
    assert changed(tmp_path) == set()
    assert changed(tmp_path, claim="Another.", compare=[]) == set()
    # Another arm, seed or number of demonstrations is more work, and makes nothing stale.
    assert changed(tmp_path, seeds=[1, 2, 3]) == set()
    arms = {"scratch": {}, "begun": {"start": "video", "set": {"optimizer.lr": 1e-4}}}
    assert changed(tmp_path, arms=arms) == of_begun
    longer = [{"file": document()["stages"]["video"][0], "set": {"run.steps": 7}}]
    assert changed(tmp_path, stages={"video": longer}) == shared | of_begun
    assert changed(tmp_path, set={"optimizer.weight_decay": 0.5}) == shared | of_begun | of_scratch
    # Where a run puts its checkpoints, and how often, is not what it is.
    assert changed(tmp_path, set={"run.keep": 3, "run.log_every": 2}) == set()
    data = document()["data"]
    assert of_scratch <= changed(tmp_path, data=data | {"policy": SET | {"seed": 7}})
    # Scratch has never seen those.
    embodied = SET | {"with_actions": False, "seed": 9}
    assert changed(tmp_path, data=data | {"embodied": embodied}) == shared | of_begun


def test_a_hash_knows_nothing_of_the_place(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert hashes(plan_of(tmp_path / "a")) == hashes(plan_of(tmp_path / "b"))


def test_judgements_have_hashes_of_their_own(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    cell = plan.cells["scratch-d5-s1"]
    before = {one.name: plan.judgement_hash(cell, one) for one in plan.study.judge}
    judge = document()["judge"]
    judge[0] |= {"steps": 4}
    other = plan_of(tmp_path, judge=judge)
    assert other.cells["scratch-d5-s1"].hash == cell.hash
    after = {one.name: other.judgement_hash(cell, one) for one in other.study.judge}
    assert {name for name in before if before[name] != after[name]} == {"success"}
    assert len(set(before.values())) == 3


def test_recordings_that_others_made_are_known_by_their_place(tmp_path: Path) -> None:
    def hashes_of(name: str, uri: str | None) -> tuple[str, str]:
        data = document()["data"]
        plan = plan_of(tmp_path, data=data | {name: data[name] | {"uri": uri}})
        return plan.codec, plan.judgement_hash(plan.cells["scratch-d5-s1"], plan.study.judge[1])

    for name in ("policy", "held-out"):
        uris = (None, "s3://bucket/a", "s3://bucket/b")
        codecs, judgements = zip(*(hashes_of(name, uri) for uri in uris), strict=True)
        # Another set makes another codec where it is fitted on it, and another judgement.
        assert len(set(codecs)) == (3 if name == "policy" else 1)
        assert len(set(judgements)) == 3


def test_a_set_has_the_noise_of_its_simulator(tmp_path: Path) -> None:
    data = document()["data"]
    same = data | {"policy": data["policy"] | {"noise": 0.2}}
    assert hashes(plan_of(tmp_path)) == hashes(plan_of(tmp_path, data=same))
    arms = data["policy"] | {"benchmark": "aloha", "tasks": ["transfer-cube"]}
    places = {
        plan_of(tmp_path, data=data | {"policy": arms | noise}).place("policy")
        for noise in ({}, {"noise": 0.01}, {"noise": 0.2})
    }
    assert len(places) == 2


def test_unequal_arms_are_refused_unless_it_is_said(tmp_path: Path) -> None:
    arms = {"scratch": {"set": {"run.steps": 7}}, "begun": {"start": "video"}}
    with pytest.raises(GwpError, match=r"begun and scratch differ in run\.steps"):
        plan_of(tmp_path, arms=arms)
    compare = [{"arms": ["begun", "scratch"], "measure": "success", "unequal": ["run.steps"]}]
    assert plan_of(tmp_path, arms=arms, compare=compare).cells
    less = {"data.sources": [{"uri": "x/policy", "embodiment": "metaworld-sawyer", "weight": 2}]}
    with pytest.raises(GwpError, match="differ in data"):
        plan_of(tmp_path, arms={"scratch": {"set": less}, "begun": {"start": "video"}})


def test_a_model_that_is_not_that_of_its_start_is_refused(tmp_path: Path) -> None:
    arms = {"scratch": {}, "begun": {"start": "video", "set": {"model.num_layers": 5}}}
    with pytest.raises(GwpError, match="num_layers"):
        plan_of(tmp_path, arms=arms)
    # What sees what makes no other weights.
    arms["begun"] = {"start": "video", "set": {"model.visibility": "joint"}}
    jobs = [plan_of(tmp_path, arms=arms).cells[f"{arm}-d5-s1"].job for arm in arms]
    assert parameters(jobs[0]) == parameters(jobs[1])


def test_an_arm_may_be_called_like_the_stages_it_starts_from(tmp_path: Path) -> None:
    # Seen for each number of demonstrations, they are called like its cells.
    seen = {"data.sources": [{"uri": "x/policy", "with_actions": False}]}
    stages = {"video": [{"file": document()["stages"]["video"][0], "set": seen}]}
    arms = {"video": {"start": "video"}, "scratch": {}}
    plan = plan_of(tmp_path, stages=stages, arms=arms, compare=[])
    assert len(plan.pieces) == len(plan.shared) + len(plan.cells) + len(plan.controls)
    assert len({result_uri(plan, piece) for piece in plan.pieces.values()}) == len(plan.pieces)


def test_some_cells_are_chosen_by_patterns(plan: StudyPlan) -> None:
    some = plan.chosen(["begun-d5-*", "scratch-d25-s1"])
    assert set(some.cells) == {"begun-d5-s1", "begun-d5-s2", "scratch-d25-s1"}
    assert set(some.shared) == {"stages/video-s1", "stages/video-s2"}
    assert not plan.chosen(["scratch-*"]).shared
    assert plan.chosen([]) is plan
    with pytest.raises(GwpError, match="no cell has this id"):
        plan.chosen(["nobody-*"])


def test_a_smaller_study_compares_its_smaller_numbers_of_demonstrations(tmp_path: Path) -> None:
    pair = {"arms": ["begun", "scratch"], "measure": "success"}
    pairs = [pair, pair | {"demonstrations": [5, 25]}, pair | {"demonstrations": [5, 10]}]
    study = plan_of(tmp_path, demonstrations=[5, 10, 25], compare=pairs).study
    small = scaled(study, 0.1)
    assert small.demonstrations == (1, 2)
    assert [one.demonstrations for one in small.compare] == [None, (1, 2)]


@pytest.mark.parametrize("factor", [0.01, 0.05, 0.3, 1.0])
def test_a_smaller_study_keeps_its_form(plan: StudyPlan, factor: float) -> None:
    small = scaled(plan.study, factor)
    assert list(small.arms) == list(plan.study.arms)
    assert [one.name for one in small.judge] == [one.name for one in plan.study.judge]
    counts = list(small.demonstrations)
    assert counts == sorted(set(counts))
    policy = small.data["policy"]
    assert isinstance(policy, SetConfig)
    assert counts[-1] <= policy.episodes <= 25
    again = make_plan(plan.study, factor)
    steps = {job.run.steps for job in again.jobs}
    assert min(steps) >= 6
    assert max(steps) <= max(job.run.steps for job in plan.jobs)
    for job in again.jobs:
        # Two checkpoints at least, so that there is a curve.
        assert job.run.checkpoint_every * 2 <= job.run.steps


@pytest.mark.parametrize("name", ["stages", "video", "speed"])
def test_the_studies_of_the_repository_can_be_planned(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Their stage files are seen from there.
    monkeypatch.chdir(ROOT)
    study = load_config(ROOT / "pipelines" / "studies" / f"{name}.yaml", Study)
    plan = make_plan(study)
    assert len(plan.cells) == len(study.arms) * len(study.demonstrations) * len(study.seeds)
    assert len(study.seeds) >= 3
    assert study.compare
    sets = [one for one in study.data.values() if isinstance(one, SetConfig)]
    starts = [(one.seed, one.seed + 4 * one.episodes) for one in sets]
    for low, high in starts:
        # No set holds an episode of another, or of a closed loop (from 6000 to 10000).
        assert high <= 6000 or low >= 10000
        assert sum(low < other_high and other_low < high for other_low, other_high in starts) == 1


# Results of many hours lie on disks under these. Where one changes, they are made anew.
MADE = {
    ("video", "actions-alone-d5-s1"): ("84fa049a21b7", "238a5a618f9b", "baea4bede389"),
    ("stages", "stages12-d5-s1"): ("39d2a373bd60", "f5197477e192", "baea4bede389"),
}


@pytest.mark.parametrize(("study", "cell"), MADE)
def test_what_is_on_disks_of_earlier_studies_is_found_again(
    study: str, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    plan = make_plan(load_config(ROOT / "pipelines" / "studies" / f"{study}.yaml", Study))
    job, codec = plan.cells[cell].job, plan.codec.rpartition("/")[2]
    assert job.data.cache is not None
    error = next(one for one in plan.study.judge if one.name == "error")
    cache = job.data.cache.rpartition("/")[2]
    found = plan.cells[cell].hash, plan.judgement_hash(plan.cells[cell], error), cache
    assert found == MADE[study, cell]
    assert codec == "a6041515"
    assert plan.place("policy").endswith("/common/data/policy-e1ea0b6d")

"""What is known of stages that follow each other before the first begins."""

import pytest

from gwp.errors import GwpError
from pipelines.config.load import load_config
from pipelines.jobs.sequence import parent_of, require_sequence
from pipelines.jobs.train_job import TrainJob
from tests.unit.pipelines.jobs.test_stages import DENSE, FRAMES, STAGES, TINY


def stages(*names: str, **sets: list[str]) -> list[TrainJob]:
    return [load_config(STAGES / f"{n}.yaml", TrainJob, sets.get(n, [])) for n in names]


def test_the_stages_of_the_repository_follow_each_other() -> None:
    jobs = stages(*TINY)
    require_sequence(jobs)
    places = [job.run.uri for job in jobs]
    assert [parent_of(job, places) for job in jobs] == [None, 0, 1]
    # Parents that are trained already are not among them.
    require_sequence(stages("policy"))
    require_sequence(stages("world", "policy"))


@pytest.mark.parametrize("init", ["{storage}/world", "{storage}/world/final", "{storage}/world/"])
def test_a_parent_is_known_by_its_name_and_by_its_place(init: str) -> None:
    (world,) = stages("world")
    place = init.format(storage=world.run.storage)
    (policy,) = stages("policy", policy=[f"init={place}"])
    assert parent_of(policy, [world.run.uri]) == 0


@pytest.mark.parametrize("init", ["models:/gwp@champion", "s3://b/world/final", "nobody"])
def test_other_beginnings_are_no_parents_here(init: str) -> None:
    (world,) = stages("world")
    (policy,) = stages("policy", policy=[f"init={init}"])
    assert parent_of(policy, [world.run.uri]) is None


def test_files_in_a_wrong_order_the_same_run_and_other_models_are_told() -> None:
    words = "embodied starts from world, which is given behind it"
    with pytest.raises(GwpError, match=words):
        require_sequence(stages("embodied", "world"))
    with pytest.raises(GwpError, match="policy starts from policy, which is given behind it"):
        require_sequence(stages("policy", policy=["init=policy"]))
    with pytest.raises(GwpError, match=r"two of the files are the run \S+/runs/train/world"):
        require_sequence(stages("world", "embodied", embodied=["run.name=world"]))
    with pytest.raises(GwpError, match="whose model has num_layers 4; give both the same `model`"):
        require_sequence(stages("world", "embodied", embodied=["model.num_layers=5"]))


def test_what_sees_what_may_change_from_stage_to_stage() -> None:
    # The weights are the same.
    require_sequence(stages("world", "embodied", embodied=["model.visibility=joint"]))


def test_latent_frames_may_follow_tokens_and_tokens_no_frames() -> None:
    require_sequence(stages("world", "embodied", world=DENSE, embodied=FRAMES))
    with pytest.raises(GwpError, match="whose model has actions latent-frame; give both the same"):
        require_sequence(stages("world", "embodied", world=FRAMES, embodied=DENSE))


@pytest.mark.parametrize("names", ["[HF_TOKEN=abc]", "['a b']", "['']"])
def test_a_secret_is_a_name_and_what_is_none_is_not_shown(names: str) -> None:
    with pytest.raises(GwpError, match="is no name of a variable; never give its value") as told:
        stages("policy", policy=[f"cluster.secrets={names}"])
    # Before stands what was typed.
    assert "abc" not in str(told.value).partition("cluster.secrets:")[2]

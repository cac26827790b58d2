"""What a recipe says reaches the job, and what contradicts it is refused with the difference."""

import math
import sys

import pytest

from gwp.errors import GwpError
from gwp.model.config import ModelConfig
from gwp.model.weights.names import published_name
from pipelines.config.load import ConfigError, dump_resolved, load_config
from pipelines.jobs.ray_start import require_packages
from pipelines.jobs.recipes import published
from pipelines.jobs.train_job import TrainJob
from pipelines.jobs.trained import ACTION_EXPERT, TEXT_PATH, shapes_of, trained_names
from tests.support.paths import ROOT

FULL = ROOT / "pipelines" / "stages" / "full"
PUBLISHED = FULL / "policy-published.yaml"
GWP0 = ["recipe=published"]


def frozen(config, freeze):
    """Tensors and numbers that do not train."""
    names = shapes_of(config).keys() - trained_names(config, (), freeze)
    return len(names), sum(math.prod(shapes_of(config)[name]) for name in names)


def test_the_published_text_path_is_what_was_measured():
    assert frozen(ModelConfig.released("gwp05"), TEXT_PATH) == (308, 782_798_848)


@pytest.mark.parametrize("family", ["gwp05", "gwp0"])
def test_published_sets_what_the_released_fine_tuning_does(family):
    if family == "gwp05":
        job = load_config(PUBLISHED, TrainJob)
    else:
        job = load_config(FULL / "policy-gwp0.yaml", TrainJob, GWP0)
    objective, optimizer, engine = job.objective, job.optimizer, job.engine
    assert (objective.masking, objective.timesteps) == ("published", "bf16")
    assert (objective.action_weight, objective.video_weight) == (1.0, 1.0)
    assert (objective.modes.video, objective.modes.ac_wm, objective.modes.wam) == (0, 0, 1)
    assert objective.chunk_prefix == 0
    assert (optimizer.kind, optimizer.lr, optimizer.schedule) == ("came", 6e-5, "constant")
    assert (optimizer.clip, optimizer.warmup_steps, optimizer.weight_decay) == (0, 0, 0.01)
    assert optimizer.decay == "all"
    assert (engine.global_batch, engine.precision, engine.zero_stage) == (128, "bf16", 2)
    assert (engine.ema_decay, job.run.steps) == (0.9999, 50_000)
    assert {robot.ranges for robot in job.data.embodiments.values()} == {"published"}
    if family == "gwp05":
        assert (objective.action_shift, objective.video_shift) == (5.0, 2.0)
        assert not objective.shared_noise
        assert frozen(job.model_config_, optimizer.freeze)[0] == 308
    else:
        assert (objective.action_shift, objective.video_shift) == (5.0, 5.0)
        assert objective.shared_noise
        assert optimizer.freeze == ()


@pytest.mark.parametrize("family", ["gwp05", "gwp0"])
def test_every_field_of_it_is_held_to(family, tmp_path):
    """Whatever is set otherwise is refused, but for the length; what is set alike is not."""
    changed = {float: "0.123", int: "7", bool: "false", str: "other", list: "['*.bias']"}
    file, more = (PUBLISHED, []) if family == "gwp05" else (FULL / "policy-gwp0.yaml", GWP0)
    told = published(family)
    length = told.pop("run")["steps"]
    assert load_config(file, TrainJob, more).run.steps == length
    assert load_config(file, TrainJob, [*more, "run.steps=10"]).run.steps == 10
    for part, fields in told.items():
        for name, value in fields.items():
            if isinstance(value, dict):
                name, value = f"{name}.wam", value["wam"]
            other = "true" if value is False else changed[type(value)]
            with pytest.raises(ConfigError, match=rf"{part}\.{name} is .* here and .* there"):
                load_config(file, TrainJob, [*more, f"{part}.{name}={other}"])
    # As it is written beside the run, with all fields.
    again = tmp_path / "again.yaml"
    job = load_config(file, TrainJob, more)
    again.write_text(dump_resolved(job))
    assert load_config(again, TrainJob) == job


def test_all_that_contradicts_is_told_in_one_line():
    sets = ["optimizer.lr=1e-4", "objective.masking=valid"]
    with pytest.raises(ConfigError) as error:
        load_config(PUBLISHED, TrainJob, sets)
    (line,) = error.value.lines
    assert "optimizer.lr is 0.0001 here and 6e-05 there" in line
    assert "objective.masking is valid here and published there" in line


def test_without_a_recipe_a_family_has_defaults_of_its_own():
    """Sources: the paper of GWP-0 for 5 : 1, its released trainer for the noise."""
    ours = load_config(FULL / "policy-gwp0.yaml", TrainJob).objective
    assert (ours.action_weight, ours.video_weight) == (5.0, 1.0)
    assert (ours.video_shift, ours.action_shift, ours.shared_noise) == (5.0, 5.0, True)
    ours = load_config(FULL / "policy.yaml", TrainJob, ["objective={}"]).objective
    assert (ours.action_weight, ours.video_shift, ours.shared_noise) == (1.0, 2.0, False)
    assert ours.masking == "valid"
    # They are defaults: a field that says otherwise counts.
    said = ["objective={action_weight: 2, shared_noise: false}"]
    ours = load_config(FULL / "policy-gwp0.yaml", TrainJob, said).objective
    assert (ours.action_weight, ours.shared_noise, ours.video_shift) == (2.0, False, 5.0)


def test_the_action_expert_alone():
    job = load_config(FULL / "policy.yaml", TrainJob, ["recipe=action-expert"])
    config = job.model_config_
    names = trained_names(config, job.optimizer.only)
    # Of the released shape: experts, their condition embedder and table, projections.
    assert sum(math.prod(shapes_of(config)[n]) for n in names) == (
        1_008_015_360 + 12_855_296 + 900_512 + 2 * 1024
    )
    theirs = {published_name(name, "gwp05") for name in shapes_of(config).keys() - names}
    assert all("action" not in name and "state_encoder" not in name for name in theirs)
    with pytest.raises(ConfigError, match="gwp0 has one expert"):
        load_config(FULL / "policy-gwp0.yaml", TrainJob, ["recipe=action-expert"])
    with pytest.raises(ConfigError, match=r"optimizer\.only is"):
        load_config(
            FULL / "policy.yaml",
            TrainJob,
            ["recipe=action-expert", "optimizer.only=[action_encoder]"],
        )


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ("optimizer.freeze=['blocks.*.atn2.to_k']", r"near it: .*blocks\.\*\.visual_expert"),
        ("optimizer.only=[action_encodr]", "near it: action_encoder"),
        ("optimizer.only=[blocks.30]", r"optimizer\.only: 'blocks\.30' names no part"),
        ("optimizer.freeze=['*']", "leaves nothing to train"),
    ],
)
def test_patterns_that_name_nothing_are_refused_with_what_is_near(sets, words):
    with pytest.raises(ConfigError, match=words):
        load_config(FULL / "policy.yaml", TrainJob, [sets])


def test_lora_brings_adapters_and_refuses_to_share_what_trains():
    job = load_config(FULL / "policy.yaml", TrainJob, ["recipe=lora", "lora.rank=8"])
    assert job.lora is not None
    assert (job.lora.rank, job.lora.alpha) == (8, 16.0)
    for family in ("policy", "policy-gwp0"):
        assert load_config(FULL / f"{family}.yaml", TrainJob, ["recipe=lora"]).lora
    for field in ("only", "freeze"):
        with pytest.raises(ConfigError, match="with lora its adapters"):
            load_config(
                FULL / "policy.yaml",
                TrainJob,
                ["recipe=lora", f"optimizer.{field}=[action_encoder]"],
            )
    with pytest.raises(ConfigError, match=r"lora\.on: 'blocks\.\*\.attn3' names no part"):
        load_config(FULL / "policy.yaml", TrainJob, ["recipe=lora", "lora.on=['blocks.*.attn3']"])


@pytest.mark.parametrize("data", ["3", "{embodiments: 3}", "{embodiments: {a: }}"])
def test_a_broken_file_with_a_recipe_is_told_as_any_other(data):
    with pytest.raises(ConfigError) as error:
        load_config(PUBLISHED, TrainJob, [f"data={data}"])
    assert "recipe" not in str(error.value)


def test_names_are_of_a_module_with_all_below_or_of_a_parameter():
    config = ModelConfig.released("gwp05")
    (one,) = trained_names(config, ["proj_out.bias"])
    assert one == "proj_out.bias"
    assert len(trained_names(config, ["blocks.3"])) == 54
    assert len(trained_names(config, ["blocks.3"], ["blocks.3.action_expert"])) == 27
    assert trained_names(config) == shapes_of(config).keys()
    assert trained_names(config, ACTION_EXPERT) < shapes_of(config).keys()
    with pytest.raises(GwpError):
        trained_names(config, ["blocks.3"], ["blocks.3", "nothing"])


def test_blocks_are_compiled_or_computed_again_where_that_works():
    for sets in (["engine.gradient_checkpointing=selective"], ["engine.zero_stage=3"]):
        with pytest.raises(ConfigError, match="compile goes with"):
            load_config(FULL / "policy.yaml", TrainJob, [*sets, "engine.compile=true"])
        load_config(FULL / "policy.yaml", TrainJob, sets)
    job = load_config(FULL / "policy.yaml", TrainJob, ["engine.gradient_checkpointing=10"])
    assert job.engine.recomputed(30) == pytest.approx(1 / 3)
    job = load_config(FULL / "policy.yaml", TrainJob, ["engine.gradient_checkpointing=0"])
    assert job.engine.gradient_checkpointing is False


def test_a_package_that_is_missing_is_told_before_anything_starts(monkeypatch):
    for name, file in (("peft", "policy"), ("pytorch_optimizer", "policy-published")):
        monkeypatch.setitem(sys.modules, name, None)
        sets = ["recipe=lora"] if name == "peft" else []
        job = load_config(FULL / f"{file}.yaml", TrainJob, sets)
        with pytest.raises(GwpError, match=rf"needs {name}: pip install"):
            require_packages(job)
    require_packages(load_config(FULL / "policy.yaml", TrainJob))

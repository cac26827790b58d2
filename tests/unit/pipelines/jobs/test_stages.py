"""The stage files of the repository, and what is rendered from them."""

import itertools
import json

import pytest
import torch

from gwp.data.formats.files.reader import FileReader
from gwp.data.stats.normalise import compute_stats
from gwp.errors import DataError, GwpError
from gwp.model.transformer import WorldActionTransformer
from pipelines.config.load import config_hash, load_config
from pipelines.jobs.engine import OptimizerConfig
from pipelines.jobs.resolve import compute_all_stats, init_uri
from pipelines.jobs.robots import notes, resolve_embodiments
from pipelines.jobs.train_job import TrainJob
from pipelines.training.control.changes import RUN_ONLY
from pipelines.training.engine.deepspeed_engine import deepspeed_config
from tests.support.other_sets import write_aloha
from tests.support.paths import ROOT
from tests.support.sets import TOP, WRIST, write_v21

STAGES = ROOT / "pipelines" / "stages"
TINY = ["world", "embodied", "policy"]
# A dense model whose states and actions are latent frames, of any stage.
DENSE = ["model.family=gwp0", "model.action_expert_dim=null", "model.action_ffn_dim=null"]
FRAMES = [
    *DENSE,
    "model.visibility=joint",
    "model.actions=latent-frame",
    "objective.chunk_prefix=0",
]
FULL = {
    "world": 6_021_560_928,
    "embodied": 6_021_560_928,
    "policy": 6_021_560_928,
    "policy-gwp0": 5_001_438_304,
}


def parameters(job: TrainJob) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in WorldActionTransformer(job.model_config_).parameters())


@pytest.mark.parametrize("name", TINY)
def test_tiny_stages_are_tiny_and_share_one_model(name):
    job = load_config(STAGES / f"{name}.yaml", TrainJob)
    assert parameters(job) < 5_000_000
    assert job.model == load_config(STAGES / "policy.yaml", TrainJob).model
    assert deepspeed_config(job, 2)["zero_optimization"]["stage"] == 2
    assert job.cluster.workers == 2


@pytest.mark.parametrize("name", list(FULL))
def test_full_stages_have_the_released_shapes(name):
    job = load_config(STAGES / "full" / f"{name}.yaml", TrainJob)
    assert parameters(job) == FULL[name]
    assert deepspeed_config(job, job.cluster.max_workers) == {
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 2},
        "steps_per_print": 1_000_000_000,
        "bf16": {"enabled": True, "immediate_grad_update": True},
    }


def test_each_stage_starts_from_the_one_before():
    jobs = [load_config(STAGES / f"{name}.yaml", TrainJob) for name in TINY]
    assert [job.init for job in jobs] == [None, jobs[0].run.name, jobs[1].run.name]


def test_overrides_reach_deepspeed_and_keep_the_rest():
    job = load_config(
        STAGES / "world.yaml",
        TrainJob,
        ["engine.overrides={zero_optimization: {overlap_comm: true}}"],
    )
    found = deepspeed_config(job, 2)["zero_optimization"]
    assert (found["stage"], found["overlap_comm"]) == (2, True)


def test_learning_rate_warms_up_and_decays():
    optimizer = OptimizerConfig(lr=1.0, warmup_steps=10, schedule="cosine", final_lr=0.1)
    rates = [optimizer.lr_at(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["model.in_channels=64"], "256 numbers but the model is 128 wide"),
        (["init=null"], "must name its codec and text encoder"),
        (["data.sources=[{uri: x, embodiment: nobody}]"], "nobody"),
        (["data.embodiments={metaworld-sawyer: {id: 7}}"], r"model\.num_embodiments above 7"),
        (["objective.chunk_prefix=0.5", "objective.max_prefix=0"], "max_prefix"),
        (["data.window={chunk: 12, stride: 5}"], r"4n \+ 1|chunk"),
        (["optimizer.learning_rate=1"], "learning_rate"),
        (["cluster.workers=33"], "a batch of 32 samples has none for some of 33 workers"),
        (["cluster.workers=[1, 33]"], "a batch of 32 samples has none for some of 33 workers"),
        (["cluster.workers=[2, 1]"], r"is \[2, 1\]; give a number .* 1 <= least <= most"),
        (["cluster.workers=[1, 2, 3]"], r"is \[1, 2, 3\]; give a number"),
        (["cluster.workers=0"], "is 0; give a number of workers from 1 on"),
        (
            ["engine.overrides={gradient_accumulation_steps: 2}"],
            "gradient_accumulation_steps is what engine.micro_batch says",
        ),
        (
            ["engine.overrides={zero_optimization: {stage: 1}}"],
            r"zero_optimization\.stage is what engine\.zero_stage says",
        ),
        (["objective={video_weight: 0, modes: {video: 1}}"], "nothing to learn"),
        (
            ["data.embodiments={metaworld-sawyer: {stats_of_other_data: true}}"],
            "stats_of_other_data speaks of a file; give `stats`",
        ),
        (["model.visibility=motus"], "visibility 'motus' is unknown; write one of action-centred"),
        (
            ["model.visibility=joint", "objective.video_weight=0"],
            "joint denoises a future when it acts, and with objective.video_weight 0 none is learnt",
        ),
        (
            ["model.visibility=video-first", "objective.shared_noise=true"],
            "acts upon a clean future, which objective.shared_noise never shows it",
        ),
        (
            ["model.visibility=video-first", "objective.modes={ac_wm: 1, wam: 1}"],
            "sees no actions, so that there is nothing to learn in the mode ac_wm",
        ),
        (["model.actions=latent-frame"], "set family gwp0 and visibility joint"),
        (
            ["model={released: gwp05, visibility: joint, actions: latent-frame}"],
            r"set family gwp0 and visibility joint \(here: gwp05, joint\)",
        ),
        (
            [*FRAMES, "objective.chunk_prefix=0.5"],
            "one noise level for all actions in it.*; set objective.chunk_prefix to 0",
        ),
        ([*FRAMES, "recipe=lora"], r"no projections of states and actions.*; set it to \[\]"),
        (["data.augment=false", "data.light=0.1"], "set that, or zoom to 1 and light to 0"),
    ],
)
def test_jobs_that_cannot_train_are_refused_with_the_reason(sets, words):
    with pytest.raises(GwpError, match=words):
        load_config(STAGES / "policy.yaml", TrainJob, sets)


def test_latent_frames_are_one_word_of_a_stage_and_leave_no_trace_in_others():
    job = load_config(STAGES / "policy.yaml", TrainJob, FRAMES)
    assert job.model_config_.actions == "latent-frame"
    again = TrainJob.model_validate(job.model_dump(mode="json"))
    assert again.model_config_ == job.model_config_
    plain = load_config(STAGES / "policy.yaml", TrainJob)
    assert config_hash(job, exclude=RUN_ONLY) != config_hash(plain, exclude=RUN_ONLY)
    # Runs that were begun before go on.
    assert "latent-frame" not in str(plain.model_dump())
    assert "actions" not in plain.model_dump()["model"]
    sets = ["model={released: gwp0, visibility: joint, actions: latent-frame}"]
    released = load_config(STAGES / "full/policy.yaml", TrainJob, sets)
    assert released.model_config_.actions == "latent-frame"


@pytest.mark.parametrize("visibility", ["joint", "video-first"])
def test_what_sees_what_is_one_word_of_any_stage(visibility):
    sets = [f"model.visibility={visibility}"]
    job = load_config(STAGES / "policy.yaml", TrainJob, sets)
    assert job.model_config_.visibility == visibility
    # A run begun otherwise is another run.
    plain = load_config(STAGES / "policy.yaml", TrainJob)
    assert config_hash(job, exclude=RUN_ONLY) != config_hash(plain, exclude=RUN_ONLY)
    segments = {"joint": "[[S, R], [A, F]]", "video-first": "[[S, R], [F], [A]]"}[visibility]
    listed = load_config(STAGES / "policy.yaml", TrainJob, [f"model.visibility={segments}"])
    assert listed == job
    released = load_config(
        STAGES / "full/policy.yaml",
        TrainJob,
        [f"model={{released: gwp05, visibility: {visibility}}}"],
    )
    assert released.model_config_.visibility == visibility


def test_a_stage_whose_parent_has_not_finished_says_so(tmp_path):
    job = load_config(STAGES / "embodied.yaml", TrainJob, [f"run.storage={tmp_path}"])
    with pytest.raises(GwpError, match="world/final holds no finished weights"):
        init_uri(job)


def test_a_stage_takes_statistics_of_a_file_or_says_why_not(tmp_path):
    root, file = write_v21(tmp_path / "set"), tmp_path / "stats.json"

    def stats(more: str = "", episodes: str = "'0:2'"):
        source = f"{{uri: {root}, embodiment: arm, episodes: {episodes}}}"
        robots = f"data.embodiments={{arm: {{delta_mask: [true, false]{more}}}}}"
        sets = [f"data.sources=[{source}]", robots, "data.window={chunk: 4, stride: 1}"]
        job = load_config(STAGES / "policy.yaml", TrainJob, sets)
        robots = resolve_embodiments(job, FileReader())
        return compute_all_stats(job, robots, FileReader())["arm"], compute_stats(
            job.data.sources[:1], robots["arm"], job.data.window
        )

    computed, wanted = stats()
    assert computed.to_json() == wanted.to_json()
    # Told from those that the stage would compute by one number.
    raw = json.loads(json.dumps(wanted.to_json(width=32)))
    raw["norm_stats"]["action"]["q99"][0] += 1
    file.write_text(json.dumps(raw))
    given, _ = stats(f", stats: {file}")
    assert given.action.q99[0] == wanted.action.q99[0] + 1
    assert len(given.action.q99) == 2
    part = json.loads(json.dumps(stats(episodes="'0'")[0].to_json()))
    file.write_text(json.dumps(part))
    with pytest.raises(
        DataError, match=r"computed without 1 episodes of .*set that are trained on, from 1"
    ):
        stats(f", stats: {file}")
    assert stats(f", stats: {file}, stats_of_other_data: true")[0].metadata["of_other_data"] is True


@pytest.mark.parametrize("own", [False, True])
def test_a_robot_is_seen_by_the_cameras_of_its_source_unless_it_has_its_own(tmp_path, own):
    root = write_v21(tmp_path / "set", cameras=(TOP, WRIST))
    source = f"{{uri: {root}, embodiment: arm, cameras: {{front: {WRIST}}}}}"
    robot = f"{{cameras: {{front: {TOP}}}}}" if own else "{}"
    sets = [f"data.sources=[{source}]", f"data.embodiments={{arm: {robot}}}"]
    job = load_config(STAGES / "policy.yaml", TrainJob, sets)
    (arm,) = resolve_embodiments(job, FileReader()).values()
    assert arm.cameras == {"front": TOP if own else WRIST}


def two_robots(tmp_path, ids: tuple[int, int], same: bool, *more: str):
    """Robots of two sets, resolved; what there is to tell of them."""
    one = write_v21(tmp_path / "one")
    other = write_v21(tmp_path / "other") if same else write_aloha(tmp_path / "other")
    columns = "" if same else ", fps: 10, state: [observations/qpos, observations/qvel]"
    sets = [
        f"data.sources=[{{uri: {one}, embodiment: a}}, {{uri: {other}, embodiment: b{columns}}}]",
        f"data.embodiments={{a: {{id: {ids[0]}}}, b: {{id: {ids[1]}}}}}",
        "data.window={chunk: 4, stride: 1}",
        "model.num_embodiments=2",
        *more,
    ]
    job = load_config(STAGES / "policy.yaml", TrainJob, sets)
    robots = resolve_embodiments(job, FileReader())
    return robots, " ".join(notes(job, robots))


def test_robots_that_share_a_row_of_the_projections_are_told_or_refused(tmp_path):
    robots, said = two_robots(tmp_path / "1", (0, 0), True)
    assert [robot.id for robot in robots.values()] == [0, 0]
    assert "a and b have the same id 0" in said
    assert "same id" not in two_robots(tmp_path / "2", (0, 1), True)[1]
    assert "same id" not in two_robots(tmp_path / "3", (0, 1), False)[1]
    with pytest.raises(GwpError, match=r"a and b have the same id 0 .* not their widths"):
        two_robots(tmp_path / "4", (0, 0), False)


def test_latent_frames_have_no_rows_to_share_and_that_is_told(tmp_path):
    for folder, ids in (("1", (0, 0)), ("2", (0, 1))):
        robots, said = two_robots(tmp_path / folder, ids, False, *FRAMES)
        assert tuple(robot.id for robot in robots.values()) == ids
        assert "a, b are told apart by pictures, states and instructions alone" in said
        assert "row" not in said


def test_rows_that_published_weights_of_gwp0_did_not_train_are_told(tmp_path):
    def said(folder, *sets):
        root = write_v21(tmp_path / folder)
        robots = "data.embodiments={a: {id: 0}, b: {id: 1}}"
        sources = f"data.sources=[{{uri: {root}, embodiment: a}}, {{uri: {root}, embodiment: b}}]"
        window = "data.window={chunk: 4, stride: 1}"
        job = load_config(STAGES / "policy.yaml", TrainJob, [robots, sources, window, *sets])
        return " ".join(notes(job, resolve_embodiments(job, FileReader())))

    dense = ["model.family=gwp0", "model.action_expert_dim=null", "model.action_ffn_dim=null"]
    told = said("1", *dense)
    assert "published GWP-0 weights, row 0" in told
    assert "a has id 0" not in told
    assert "row 0" not in said("2", *dense, "init=null", "codec={kind: pca}", "text={kind: hashed}")
    assert "row 0" not in said("3")


def test_cameras_that_nobody_named_are_told(tmp_path):
    assert "front = observation.images.top" in two_robots(tmp_path, (0, 1), True)[1]


def test_kinds_of_a_robot_reach_it_or_say_why_not(tmp_path):
    root = write_v21(tmp_path / "set")

    def robot(kinds: str):
        sets = [
            f"data.sources=[{{uri: {root}, embodiment: arm}}]",
            f"data.embodiments={{arm: {{kinds: {kinds}}}}}",
            "data.window={chunk: 4, stride: 1}",
        ]
        job = load_config(STAGES / "policy.yaml", TrainJob, sets)
        return resolve_embodiments(job, FileReader())["arm"]

    arm = robot("{x: radians, grip: {range: [-1, 1], binary: true}}")
    assert arm.kinds["x"] == "radians"
    assert arm.resampling == ("linear", "hold")
    with pytest.raises(GwpError, match=r"^data\.embodiments\.arm: kinds names yaw; the dimensions"):
        robot("{yaw: radians}")


@pytest.mark.parametrize(("mask", "told"), [("[true, true]", True), ("[false, true]", False)])
def test_deltas_of_another_name_are_told(tmp_path, mask, told):
    root = write_v21(tmp_path / "set")
    about = json.loads((root / "meta/info.json").read_text())
    about["features"]["action"]["names"] = ["y", "dx"]
    (root / "meta/info.json").write_text(json.dumps(about))
    sets = [
        f"data.sources=[{{uri: {root}, embodiment: arm}}]",
        f"data.embodiments={{arm: {{delta_mask: {mask}}}}}",
        "data.window={chunk: 4, stride: 1}",
    ]
    job = load_config(STAGES / "policy.yaml", TrainJob, sets)
    said = list(notes(job, resolve_embodiments(job, FileReader())))
    assert [("not of the same name (y - x)" in text) for text in said].count(True) == told


def test_any_number_of_workers_up_to_the_batch_has_its_share_and_its_micro_batches():
    sets = ["engine.global_batch=8", "engine.micro_batch=2", "cluster.workers=[1, 8]"]
    job = load_config(STAGES / "policy.yaml", TrainJob, sets)
    assert (job.cluster.elastic, job.cluster.min_workers, job.cluster.max_workers) == (True, 1, 8)
    found = [(n, job.share(n), job.passes(n)) for n in (1, 2, 3, 5, 8)]
    assert found == [(1, 8, 4), (2, 4, 2), (3, 3, 2), (5, 2, 1), (8, 1, 1)]
    for world, share, passes in found:
        config = deepspeed_config(job, world)
        micro = config["train_micro_batch_size_per_gpu"]
        assert config["gradient_accumulation_steps"] == passes
        assert micro <= 2
        assert micro * passes >= share
    fixed = load_config(STAGES / "policy.yaml", TrainJob, ["cluster.workers=3"])
    assert not fixed.cluster.elastic
    assert (fixed.cluster.min_workers, fixed.cluster.max_workers) == (3, 3)


def test_gradients_are_summed_alike_whatever_the_number_of_elastic_workers():
    sets = ["engine.global_batch=8", "engine.micro_batch=4", "engine.precision=bf16"]
    elastic = load_config(STAGES / "policy.yaml", TrainJob, [*sets, "cluster.workers=[1, 2]"])
    fixed = load_config(STAGES / "policy.yaml", TrainJob, sets)
    for world in (1, 2):
        assert deepspeed_config(elastic, world)["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in deepspeed_config(fixed, 2)


def test_units_reach_the_robot_and_change_no_hash_where_they_are_not_stated(tmp_path):
    root = write_v21(tmp_path / "set")

    def job(robot: str) -> TrainJob:
        sets = [
            f"data.sources=[{{uri: {root}, embodiment: arm}}]",
            f"data.embodiments={{arm: {robot}}}",
            "data.window={chunk: 4, stride: 1}",
        ]
        return load_config(STAGES / "policy.yaml", TrainJob, sets)

    silent = job("{}")
    # Hashes of this JSON say whether a run goes on.
    written = silent.model_dump(mode="json")["data"]["embodiments"]["arm"]
    assert not {"action_units", "state_units"} & written.keys()
    told = job("{state_units: [rad, m, m], action_units: [rad, m]}")
    assert TrainJob.model_validate(told.model_dump(mode="json")) == told
    arm = resolve_embodiments(told, FileReader())["arm"]
    assert (arm.state_units, arm.action_units) == (("rad", "m", "m"), ("rad", "m"))
    with pytest.raises(GwpError, match="state_units has 1 entries, state_names 3"):
        resolve_embodiments(job("{state_units: [rad]}"), FileReader())

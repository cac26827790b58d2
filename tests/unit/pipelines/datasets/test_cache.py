"""Cached sets: the same numbers as from video, made in any number of goes, and refused where
they do not belong. No Ray is started.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from gwp import storage
from gwp.data.formats.files.reader import FileReader
from gwp.data.latent_cache import CACHE, Key, LatentCache, sample_names, shards_there
from gwp.data.plan.manifest import Manifest
from gwp.errors import DataError, GwpError
from gwp.model.codecs.cached import CachedTextEncoder, from_stored, to_stored
from gwp.model.codecs.text import TextTable, load_text_encoder
from gwp.model.codecs.video import load_video_codec
from gwp.model.draws import draw_noise
from gwp.model.objective import Batch, levels_of, training_losses
from gwp.model.weights import build_model
from pipelines.config.load import ConfigError, load_config
from pipelines.datasets.cache.cache import (
    build_cache,
    cached_form,
    finish,
    missing_shards,
    plan_cache,
    shard_rows,
    text_rows,
)
from pipelines.datasets.cache.writers import LatentWriter, TextWriter, decode_block
from pipelines.jobs.resolve import sample_spec
from pipelines.jobs.robots import read_embodiments
from pipelines.jobs.train_job import TrainJob
from pipelines.training.prepare import PreparedRun, prepare
from pipelines.training.samples.decoder import decode_block as decoded_columns
from tests.support.sets import TOP, WRIST, write_v30, write_video
from tests.unit.pipelines.jobs.test_stages import STAGES

FIELDS = [
    "run.steps=4",
    "engine.global_batch=4",
    "init=null",
    "codec={kind: pca, spatial: 4, channels: 6, fit_clips: 8}",
    "text={kind: hashed, dim: 64, rows: 8}",
    "data.canvas={layout: single, width: 32, height: 32}",
    "data.window={chunk: 4, stride: 1}",
    f"data.embodiments={{arm: {{replan: 2, cameras: {{front: {TOP}}}}}}}",
    "data.augment=false",
    "model.in_channels=6",
    "model.num_layers=1",
]


def job(root: Path, *more: str, source: str = "embodiment: arm") -> TrainJob:
    sets = [
        *FIELDS,
        f"run.storage={root / 'runs'}",
        f"data.sources=[{{uri: {root / 'set'}, {source}}}]",
        *more,
    ]
    return load_config(STAGES / "policy.yaml", TrainJob, sets)


def write(
    found: TrainJob, uri: str, number_format: Any = "float16", only: int | None = None
) -> list[int]:
    """What the Ray job does, in this process; `only`: so many shards, then it dies. Returns the
    shards written.
    """
    plan = plan_cache(cached_form(found), uri, number_format, 0.06)
    manifest = Manifest.load(storage.join(uri, "manifest.parquet"))
    table = shard_rows(manifest, found, plan["samples_per_shard"])
    blocks = missing_shards(table, shards_there(uri, "latents"))[:only]
    spec = sample_spec(cached_form(found), read_embodiments(uri), {})
    writer = LatentWriter(uri, number_format, False)
    done = [writer(decode_block(block, spec))["shard"][0].as_py() for block in blocks]
    if only is None:
        for block in missing_shards(text_rows(manifest, found), shards_there(uri, "texts")):
            TextWriter(uri, number_format, False)(block)
        finish(
            uri,
            Key.model_validate(plan["key"]),
            table,
            text_rows(manifest, found),
            plan["text_rows"],
            plan["text_dim"],
        )
    return done


def losses(prepared: PreparedRun, steps: int = 3) -> list[float]:
    """Of a few steps with SGD, from what the ingest gives, cached or not."""
    torch.manual_seed(0)
    found = prepared.job
    model = build_model(found.model_config_, 0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    codec = load_video_codec(f"{prepared.uri}/codec")
    text = TextTable(
        CachedTextEncoder(prepared.cache)
        if prepared.cache
        else load_text_encoder(f"{prepared.uri}/text")
    )
    texts = prepared.manifest.texts()
    seen = []
    for step in range(steps):
        raw = columns(prepared, range(4 * step, 4 * step + 4))
        assert raw["ok"].all()
        t = {k: torch.from_numpy(v) for k, v in raw.items() if v.dtype.kind in "fbiu"}
        latents = from_stored(t["latents"]) if prepared.cache else codec.encode(t["frames"])
        batch = Batch(
            latents=latents,
            state=t["state"][:, None],
            actions=t["actions"],
            step_valid=t["step_valid"],
            dim_valid=t["dim_valid"],
            text=text.lookup([texts[k] for k in raw["text_key"]]),
            embodiment=t["embodiment_id"],
            ok=torch.ones(4, dtype=torch.bool),
        )
        positions = range(4 * step, 4 * step + 4)
        chunk, dims = batch.actions.shape[1:]
        levels = levels_of(found.objective, 0, positions, chunk)
        noise = draw_noise(0, positions, latents[0, :, 1:].shape, (chunk, dims))
        loss = training_losses(model, batch, found.objective, False, levels, noise).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    return seen


def columns(prepared: PreparedRun, ids: Any) -> dict[str, np.ndarray]:
    rows = pa.array(list(ids))
    table = prepared.manifest.table.take(rows)
    n = table.num_rows
    table = table.append_column("position", pa.array(range(n))).append_column(
        "batch", pa.array([n] * n)
    )
    if prepared.cached is not None:
        table = table.append_column("cached", prepared.cached.take(rows))
    return decoded_columns(table, prepared.spec, prepared.cache, FileReader())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A set of two episodes and its cache."""
    root = tmp_path_factory.mktemp("cache")
    write_v30(root / "set", cameras=(TOP, WRIST))
    uri = str(root / "cache")
    write(job(root), uri)
    return root, uri


def test_losses_are_those_of_decoded_frames(made: tuple[Path, str]) -> None:
    root, uri = made
    plain, cached = (
        prepare(job(root, "run.name=plain")),
        prepare(job(root, "run.name=cached", f"data.cache={uri}")),
    )
    np.testing.assert_allclose(losses(cached), losses(plain), rtol=2e-3)
    a, b = columns(plain, range(21)), columns(cached, range(21))
    assert set(a) - set(b) == {"frames"}
    assert b["latents"].dtype == np.float16
    for name in set(a) & set(b):
        np.testing.assert_array_equal(a[name], b[name])


def test_training_needs_no_video_once_cached(made: tuple[Path, str], tmp_path: Path) -> None:
    root, uri = made
    shutil.copytree(root / "set", tmp_path / "set")
    # At another place, and resumed: neither changes what the cache is of.
    found = job(tmp_path, f"data.cache={uri}")
    prepare(found)
    shutil.rmtree(tmp_path / "set" / "videos")
    assert columns(prepare(found), range(21))["ok"].all()


def test_a_cache_goes_on_where_it_stopped(tmp_path: Path, made: tuple[Path, str]) -> None:
    write_v30(tmp_path / "set", cameras=(TOP, WRIST))
    found, uri = job(tmp_path), str(tmp_path / "cache")
    first = write(found, uri, only=3)
    with pytest.raises(DataError, match="not finished; run `gwp data cache` again"):
        LatentCache.open(uri)
    rest = write(found, uri)
    assert first == [0, 1, 2]
    assert rest == list(range(3, len(rest) + 3))
    whole = [
        sorted((p.name, p.read_bytes()) for p in Path(place, "latents").iterdir())
        for place in (uri, made[1])
    ]
    assert whole[0] == whole[1]
    # Finished: no cluster is asked, nothing is encoded.
    shutil.rmtree(tmp_path / "set")
    again = build_cache(found, uri, "float16", 0.06, lambda *_, **__: None)
    assert (again.samples, again.encoded, again.left_out, again.texts) == (21, 0, 0, 1)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("data.canvas={layout: single, width: 48, height: 32}", "canvas .*32.* instead of .*48"),
        ("text={kind: hashed, dim: 64, rows: 7}", "text .* instead of"),
        ("data.window={chunk: 8, stride: 2}", "window .* instead of"),
    ],
)
def test_a_cache_of_another_kind_is_refused(made: tuple[Path, str], field: str, said: str) -> None:
    root, uri = made
    other = job(root, field, "run.name=other")
    with pytest.raises(GwpError, match=f"holds a cache with .*{said}.*give --out another place"):
        plan_cache(cached_form(other), uri, "float16", 0.06)
    reading = job(
        root,
        "data.canvas={layout: single, width: 48, height: 32}",
        "run.name=other",
        f"data.cache={uri}",
    )
    with pytest.raises(
        GwpError, match=r"was made with canvas .*32.* instead of .*48.*make another cache"
    ):
        prepare(reading)


def test_a_codec_of_another_size_is_refused(made: tuple[Path, str]) -> None:
    root, uri = made
    codec = [
        "codec={kind: pca, spatial: 8, channels: 6, fit_clips: 8}",
        "run.name=other",
        f"data.cache={uri}",
    ]
    with pytest.raises(
        GwpError, match="was made with a pca codec of 6 channels and blocks of 4 pixels"
    ):
        prepare(job(root, *codec))


def test_other_pictures_of_the_same_samples_are_refused(made: tuple[Path, str]) -> None:
    root, uri = made
    other = job(
        root,
        "run.name=wrist",
        f"data.cache={uri}",
        source=f"embodiment: arm, cameras: {{front: {WRIST}}}",
    )
    with pytest.raises(DataError, match=r"other pictures of sample .*21 of 21 latents"):
        prepare(other)


def test_a_stage_may_read_a_part_of_a_cache(made: tuple[Path, str], tmp_path: Path) -> None:
    root, uri = made
    part = prepare(
        job(root, "run.name=part", f"data.cache={uri}", source="embodiment: arm, episodes: '1'")
    )
    assert columns(part, range(9))["ok"].all()
    write_v30(tmp_path / "set", lengths=(12, 9, 7), cameras=(TOP, WRIST))
    with pytest.raises(DataError, match="lacks "):
        prepare(job(tmp_path, f"data.cache={uri}"))


def test_random_crops_are_not_to_be_had_from_a_cache(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"centre crops only; set data\.augment: false"):
        job(tmp_path, "data.augment=true", "data.cache=x")


def test_what_is_cached_is_a_job_without_random_looks(tmp_path: Path) -> None:
    looks = ("data.augment=true", "data.zoom=1.2", "data.light=0.1")
    cached = cached_form(job(tmp_path, *looks))
    assert TrainJob.model_validate(cached.model_dump(mode="json")) == cached
    assert cached == cached_form(job(tmp_path))


def test_a_sample_that_cannot_be_decoded_is_named_and_skipped(tmp_path: Path) -> None:
    write_v30(tmp_path / "set", cameras=(TOP, WRIST))
    found, uri = job(tmp_path), str(tmp_path / "cache")
    plan_cache(cached_form(found), uri, "float16", 0.06)
    video = next((tmp_path / "set" / "videos" / TOP).rglob("*.mp4"))
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    write(found, uri)
    video.write_bytes(whole)
    left_out = json.loads((tmp_path / "cache" / CACHE).read_text())["latents"]["left_out"]
    got = columns(prepare(job(tmp_path, f"data.cache={uri}")), range(21))
    assert 0 < left_out == (~got["ok"]).sum()
    assert all(got["reason"][~got["ok"]])
    bad = columns(prepare(job(tmp_path, f"data.cache={uri}")), np.flatnonzero(~got["ok"]))
    assert bad["latents"].shape == (left_out, *got["latents"].shape[1:])


def test_shards_are_safetensors_and_exact(made: tuple[Path, str], tmp_path: Path) -> None:
    root, _ = made
    uri = str(tmp_path / "cache")
    write(job(root), uri, "bfloat16")
    cache = LatentCache.open(uri)
    index = cache.index("latents")
    order = np.random.default_rng(0).permutation(len(index))
    places = index["place"].take(pa.array(order)).to_pylist()
    every = {k: v for p in sorted(Path(uri, "latents").iterdir()) for k, v in load_file(p).items()}
    assert len(every) == 21
    for i, array in zip(order, cache.read("latents", places), strict=True):
        there = every[index["name"][int(i)].as_py()]
        assert there.dtype == torch.bfloat16
        assert torch.equal(from_stored(torch.from_numpy(array.copy())), there.float())
    assert to_stored(torch.tensor([1e5]), "float16") is None


def test_samples_of_several_shapes_lie_in_one_cache(tmp_path: Path) -> None:
    for name, size, frames in (("wide", (64, 32), 30), ("square", (32, 32), 20)):
        write_video(tmp_path / "set" / f"{name}.mp4", range(frames), size=size)
    fields = [
        "data.buckets=[{frames: 5, height: 32, width: 32}, {frames: 9, height: 16, width: 32}]",
        "data.batch_multiple=1",
        "data.embodiments={}",
        "engine.global_batch=2",
    ]
    uri = str(tmp_path / "cache")
    write(job(tmp_path, *fields, source="weight: 1"), uri)
    plain, cached = (
        prepare(job(tmp_path, *fields, *more, source="weight: 1"))
        for more in (
            ["run.name=plain", "codec={kind: pca, spatial: 4, channels: 6, fit_clips: 8}"],
            ["run.name=cached", f"data.cache={uri}"],
        )
    )
    codec = load_video_codec(f"{plain.uri}/codec")
    shapes = set()
    for i in range(plain.manifest.table.num_rows):
        wanted = codec.encode(torch.from_numpy(columns(plain, [i])["frames"]))
        got = from_stored(torch.from_numpy(columns(cached, [i])["latents"]))
        torch.testing.assert_close(got, wanted, atol=2e-2, rtol=1e-3)
        shapes.add(tuple(got.shape))
    assert shapes == {(1, 6, 2, 8, 8), (1, 6, 3, 4, 8)}


def test_released_text_embeddings_are_read_and_compared(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    root, uri = made
    shutil.copytree(root / "set", tmp_path / "set")
    (tmp_path / "set" / "t5_embedding").mkdir()
    manifest = Manifest.load(f"{uri}/manifest.parquet")
    (text,) = manifest.texts().values()
    encoder = load_text_encoder(f"{uri}/text")
    theirs = encoder.encode([text])[0] * 1.01
    place = tmp_path / "set" / "t5_embedding" / "episode_000000.pt"
    shutil.copytree(uri, tmp_path / "cache", ignore=shutil.ignore_patterns("texts", CACHE))
    (table,) = missing_shards(text_rows(manifest, job(tmp_path), files=True), set())
    assert table["file"].to_pylist() == [None]
    torch.save({"t5_embedding": theirs.bfloat16()}, place)
    (table,) = missing_shards(text_rows(manifest, job(tmp_path), files=True), set())
    told = TextWriter(str(tmp_path / "cache"), "float16", False)(table)
    assert told["error"].to_pylist() == [""]
    (stored,) = load_file(tmp_path / "cache" / "texts" / "000000.safetensors").values()
    assert torch.equal(stored.float(), theirs.bfloat16().float()[: len(stored)])
    torch.save(theirs.flip(0), place)
    assert (
        "leave --t5-embedding out"
        in TextWriter(str(tmp_path / "cache"), "float16", False)(table)["error"][0].as_py()
    )


def test_names_tell_pictures_apart(made: tuple[Path, str]) -> None:
    root, uri = made
    table = Manifest.load(f"{uri}/manifest.parquet").table
    names = sample_names(table, [str(root / "set")]).to_pylist()
    assert len(set(names)) == 21
    changed = table.set_column(table.schema.get_field_index("fps"), "fps", pa.array([5.0] * 21))
    assert not set(names) & set(sample_names(changed, [str(root / "set")]).to_pylist())

"""Rows of the shards that a cache has: which samples and texts go into which."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gwp import storage
from gwp.data.decode import SampleSpec
from gwp.data.plan.manifest import Manifest
from gwp.data.text import text_hash
from pipelines.datasets.cache.writers import frame_shape
from pipelines.jobs.resolve import manifest_names
from pipelines.jobs.train_job import TrainJob

_TEXTS = 128
"""Texts of a shard."""


def shapes(manifest: Manifest, spec: SampleSpec) -> set[tuple[int, int, int, int]]:
    """Shapes `(T, H, W, 3)` of the frames that the manifest's samples have."""
    kinds = manifest.places["kind"].to_pylist()
    pairs = np.unique(np.stack([manifest.place, manifest.column("bucket")], 1), axis=0).tolist()
    # Far fewer than pairs: most videos are of the same kind and bucket.
    different = {(kinds[number], bucket) for number, bucket in pairs}
    return {frame_shape({"kind": kind, "bucket": bucket}, spec) for kind, bucket in different}


def shard_rows(manifest: Manifest, job: TrainJob, samples_per_shard: int) -> pa.Table:
    """Manifest rows with `name` and `shard`, each name once, in the order of the manifest."""
    names = manifest_names(manifest, job)
    # The first of each name; sorted, they are in the order of the manifest again.
    once = np.sort(
        np.unique(names.to_numpy(zero_copy_only=False).astype(str), return_index=True)[1]
    )
    table = manifest.take(once).append_column("name", names.take(pa.array(once)))
    return table.append_column(
        "shard", pa.array(np.arange(len(once)) // samples_per_shard, pa.int64())
    )


def text_rows(manifest: Manifest, job: TrainJob, files: bool = False) -> pa.Table:
    """Texts with `name`, `text`, `shard` and, with `files`, the released embedding of the first
    episode that has the text, else null.
    """
    # Sorted by hash, so that shards have the same ranges in every call.
    texts = sorted({text_hash(t): t for t in manifest.texts().values()}.items())
    return pa.table(
        {
            "name": pa.array([key for key, _ in texts], pa.string()),
            "text": pa.array([text for _, text in texts], pa.string()),
            "shard": pa.array(np.arange(len(texts)) // _TEXTS, pa.int64()),
            "file": pa.array(
                map(_embeddings(manifest, job).get, (key for key, _ in texts))
                if files
                else [None] * len(texts),
                pa.string(),
            ),
        }
    )


def _embeddings(manifest: Manifest, job: TrainJob) -> dict[str, str]:
    """Name of a text -> its `t5_embedding/episode_XXXXXX.pt`, where the set of the first
    episode with that text has one.
    """
    of_places = manifest.take(np.unique(manifest.place, return_index=True)[1])
    # An embedding is of the instruction with which its episode begins.
    of_places = of_places.filter(pc.equal(of_places["start"], 0))
    # Threads would make any row the first.
    first = of_places.group_by("text_key", use_threads=False).aggregate(
        [(n, "first") for n in ("sample_id", "source", "kind")]
    )
    there = [storage.list_files(storage.join(s.uri, "t5_embedding")) for s in job.data.sources]
    files = {}
    for row in first.to_pylist():
        name = f"episode_{row['sample_id_first'].split('/')[1]}.pt"
        if row["kind_first"] == "robot" and name in there[row["source_first"]]:
            folder = storage.join(job.data.sources[row["source_first"]].uri, "t5_embedding")
            files[text_hash(manifest.by_key[row["text_key"]])] = storage.join(folder, name)
    return files


def missing_shards(table: pa.Table, there: set[int]) -> list[pa.Table]:
    """One block per shard that is not written."""
    numbers, starts, counts = np.unique(
        table["shard"].to_numpy(), return_index=True, return_counts=True
    )
    # Rows of a shard stand together, so each is a slice.
    return [
        table.slice(s, c)
        for n, s, c in zip(numbers.tolist(), starts.tolist(), counts.tolist(), strict=True)
        if n not in there
    ]

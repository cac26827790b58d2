"""Cached sets: latents and text embeddings of a stage, encoded once, in safetensors shards with
an index.

    <cache>/PLAN.json                 what is being cached, and how it is cut; before any shard
            manifest.parquet embodiments.json codec/ text/
            latents/000000.safetensors   samples of a fixed range of the manifest, named as in `sample_names`
            texts/000000.safetensors     embeddings by text key, without the zero rows at their end
            latents.parquet texts.parquet    where each of them lies
            CACHE.json                written last: a cache without it is not finished

A sample that cannot be decoded is named in its shard with the reason. Shards are read by byte
ranges, so a row costs its own bytes.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from gwp import storage
from gwp.data.buckets import Bucket
from gwp.data.canvas import Canvas
from gwp.data.records import CachedPlace, Missing
from gwp.data.window import ClipWindow, Window
from gwp.errors import DataError

NumberFormat = Literal["float16", "bfloat16"]
Part = Literal["latents", "texts"]
CACHE, PLAN = "CACHE.json", "PLAN.json"
VERSION = 2
"""Raise it when frames of the same row come out different."""

_TAGS: dict[NumberFormat, str] = {"float16": "F16", "bfloat16": "BF16"}
PLACE = pa.struct(
    [
        # shard -1: not there, for that reason
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("shape", pa.list_(pa.int32())),
        ("reason", pa.string()),
    ]
)
# Manifest rows that are named at a time, and bytes of a shard that are asked for to find its
# header: most are shorter.
_CHUNK = 1 << 16
_HEADER = 1 << 16
_GAP = 1 << 19
"""Bytes between two wanted ranges that are rather read than asked around: asking costs an S3
client a millisecond of a core.
"""


class Key(BaseModel):
    """Everything that a cached number depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    version: int = VERSION
    """Of the way from file to frames."""
    codec: str
    """Digest of the video codec."""
    text: str
    """Digest of the text encoder."""
    texts_from: Literal["encoder", "t5_embedding"] = "encoder"
    """Who computed the embeddings: that encoder here, or whoever left `t5_embedding/` in the
    sets, which was compared with it.
    """
    canvas: Canvas
    """How camera views were composed."""
    window: Window
    """Window rule of robot samples."""
    clip: ClipWindow
    """Window rule of plain videos."""
    buckets: tuple[Bucket, ...] = ()
    """Shapes of clips."""
    crop: Literal["centre"] = "centre"
    """Where views were cropped."""
    number_format: NumberFormat
    """What latents and embeddings are stored in."""
    manifest: str
    """Fingerprint of the manifest; a stage may read a part of it."""

    def differences(self, other: "Key", ignore: Iterable[str] = ()) -> list[str]:
        """`canvas {...} instead of {...}` for each part that is not the same in `other`."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [
            f"{k} {_short(mine[k])} instead of {_short(theirs[k])}"
            for k in mine
            if k not in ignore and mine[k] != theirs[k]
        ]


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)


def sample_names(table: pa.Table, roots: Sequence[str]) -> pa.Array:
    """Names string `[samples]` of manifest rows that differ when their pictures may: sample id
    and a digest of what picks its frames.

    `roots`: URI of each source. Where a set lies does not matter, so that it may move.
    """
    # Arrow joins what is hashed into a line per row; only the hashing is done row by row.
    names = [
        f"{sample}@{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        for start in range(0, table.num_rows, _CHUNK)
        for sample, text in _picks(table.slice(start, _CHUNK).combine_chunks(), roots)
    ]
    return pa.array(names, pa.string())


def _picks(table: pa.Table, roots: Sequence[str]) -> Iterable[tuple[str, str]]:
    # `flat`: all views of all rows in one array; `owner`: the row of each.
    views = pa.concat_arrays(table["views"].chunks)
    flat, owner = views.flatten(), pc.list_parent_indices(views)
    # URIs without the folder of their source, one source at a time.
    source = table["source"].take(owner)
    uris = flat.field("uri")
    for number in pc.unique(source).to_pylist():
        inside = pc.replace_substring(uris, roots[number].rstrip("/"), "", max_replacements=1)
        uris = pc.if_else(pc.equal(source, number).combine_chunks(), inside, uris)
    # `slot|uri|start|offset|key` of each view.
    parts = [
        flat.field("slot"),
        uris,
        *(pc.cast(flat.field(n), pa.string()) for n in ("start_s", "offset")),
        flat.field("key"),
    ]
    # Nothing where there is none, so that names stay as they were.
    parts[-1] = pc.binary_join_element_wise(
        parts[-1], pc.fill_null(pc.cast(flat.field("rate"), pa.string()), ""), ""
    )
    shown = pc.binary_join_element_wise(*parts, "|", null_handling="replace")
    # Back to a list per row: offsets of the views fit their texts, which are as many.
    pictures = pc.binary_join(pa.ListArray.from_arrays(views.offsets, shown), ";")
    # Whatever else decides which frames are shown. The instruction is none of it, so a
    # changed text leaves names as they are.
    columns = ("sample_id", "kind", "bucket", "start", "length", "fps", "rows_per_step")
    rows = pc.binary_join_element_wise(
        *(pc.cast(table[n], pa.string()) for n in columns), pictures, "|", null_handling="replace"
    )
    return zip(table["sample_id"].to_pylist(), rows.to_pylist(), strict=True)


def write_shard(
    uri: str,
    part: Part,
    number: int,
    arrays: Mapping[str, np.ndarray],
    failed: Mapping[str, Missing],
    number_format: NumberFormat,
) -> int:
    """Write one shard and return its bytes. It is a safetensors file, and whole or not there.

    `arrays`: float16, or uint16 that holds the bits of bfloat16. `failed`: by name, what is
    missing.
    """
    # 8 bytes of length, a JSON header, numbers; places are counted from the end of the
    # header. The format takes only strings as metadata, hence JSON inside of JSON.
    header: dict[str, Any] = {"__metadata__": {"failed": json.dumps(dict(failed))}}
    at = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _TAGS[number_format],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header).encode()
    # Padded, as the format asks, so that numbers are aligned.
    text += b" " * (-len(text) % 8)
    data = b"".join(
        [
            len(text).to_bytes(8, "little"),
            text,
            *(np.ascontiguousarray(a).tobytes() for a in arrays.values()),
        ]
    )
    storage.write_bytes(shard_uri(uri, part, number), data)
    return len(data)


def shard_uri(uri: str, part: Part, number: int) -> str:
    return storage.join(uri, part, f"{number:06d}.safetensors")


def shards_there(uri: str, part: Part) -> set[int]:
    """Numbers of the shards that are written."""
    stems = (
        name.removesuffix(".safetensors")
        for name in storage.list_files(storage.join(uri, part))
        if name.endswith(".safetensors")
    )
    return {int(stem) for stem in stems if stem.isdigit()}


def read_header(uri: str, part: Part, number: int) -> pa.Table:
    """Index rows of one shard. DataError when it is no shard."""
    place = shard_uri(uri, part, number)
    try:
        (head,) = storage.read_ranges([place], [0], [_HEADER])
        length = int.from_bytes(head[:8], "little")
        # Many names: the header is longer than the guess. Of a damaged length, what comes is
        # short and no JSON.
        if length + 8 > len(head):
            (head,) = storage.read_ranges([place], [0], [length + 8])
        header = json.loads(head[8 : 8 + length])
        failed = json.loads(header.pop("__metadata__")["failed"])
        rows: list[CachedPlace] = [
            {
                "shard": number,
                # In the index places are counted from the begin of the file.
                "offset": 8 + length + v["data_offsets"][0],
                "bytes": v["data_offsets"][1] - v["data_offsets"][0],
                "shape": v["shape"],
                "reason": None,
            }
            for v in header.values()
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{place}: not a whole shard ({error}); remove it and run `gwp data cache` again"
        ) from error
    # Behind the others, in the order of the names below.
    rows += [
        {"shard": -1, "offset": 0, "bytes": 0, "shape": f["shape"], "reason": f["reason"]}
        for f in failed.values()
    ]
    return pa.table(
        {"name": pa.array([*header, *failed], pa.string()), "place": pa.array(rows, PLACE)}
    )


def write_index(uri: str, part: Part, tables: Sequence[pa.Table]) -> None:
    """Write where everything of a part lies, from the headers of all its shards."""
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
    storage.write_bytes(storage.join(uri, f"{part}.parquet"), buffer.getvalue())


@dataclass(frozen=True)
class LatentCache:
    """A finished cache. `text_rows`, `text_dim`: shape of a padded text embedding."""

    uri: str
    key: Key
    text_rows: int
    text_dim: int

    @classmethod
    def open(cls, uri: str) -> "LatentCache":
        """DataError when there is none, or none that is finished."""
        if not storage.exists(storage.join(uri, CACHE)):
            begun = storage.exists(storage.join(uri, PLAN))
            raise DataError(
                f"{uri}: "
                + (
                    "the cache is not finished; run `gwp data cache` again, it goes on where it stopped"
                    if begun
                    else "no cache there; make it with `gwp data cache STAGE_FILE --out URI`"
                )
            )
        try:
            about = json.loads(storage.read_bytes(storage.join(uri, CACHE)))
            return cls(
                uri,
                Key.model_validate(about["key"]),
                int(about["text_rows"]),
                int(about["text_dim"]),
            )
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise DataError(
                f"{uri}/{CACHE}: not of this version ({type(error).__name__}); make the cache again"
            ) from error

    def save(self, **about: Any) -> None:
        """Write CACHE.json, which makes the cache a finished one; `about`: what else to note
        there.
        """
        note = {
            "key": self.key.model_dump(mode="json"),
            "text_rows": self.text_rows,
            "text_dim": self.text_dim,
            **about,
        }
        storage.write_bytes(storage.join(self.uri, CACHE), json.dumps(note, indent=1).encode())

    def require(self, key: Key) -> None:
        """DataError unless the cache was made as `key` says; what is stored may be more, in
        another number format.
        """
        # A stage may read a part of what is cached; numbers are converted; texts of another
        # origin were compared with the encoder's.
        different = self.key.differences(key, ignore=("manifest", "number_format", "texts_from"))
        if different:
            raise DataError(
                f"data.cache {self.uri} was made with {'; '.join(different)}; correct the "
                "stage, or make another cache with "
                "`gwp data cache`"
            )

    def index(self, part: Part) -> pa.Table:
        """Columns `name` and `place` of everything in a part."""
        return pq.read_table(
            io.BytesIO(storage.read_bytes(storage.join(self.uri, f"{part}.parquet")))
        )

    def find(self, part: Part, names: pa.Array, index: pa.Table | None = None) -> pa.Array:
        """Places `[n]` of the named samples or texts, as `read` takes them. DataError when one
        is not in the cache.

        `index`: what `index` gave, to save another look.
        """
        index = self.index(part) if index is None else index
        # Places in the index, null for names that it lacks.
        at = pc.index_in(names, value_set=index["name"].combine_chunks())
        if at.null_count:
            first = pc.filter(names, pc.is_null(at))[0].as_py()
            # The same sample under another digest: then its pictures are picked otherwise
            # now.
            known = part == "latents" and first.rpartition("@")[0] in {
                n.rpartition("@")[0] for n in index["name"].to_pylist()
            }
            why = (
                f"has other pictures of sample {first} (cameras, rate or length)"
                if known
                else f"lacks {first}"
            )
            raise DataError(
                f"data.cache {self.uri} {why}, and so {at.null_count} of {len(names)} {part}; "
                "make another cache of this stage "
                "with `gwp data cache`"
            )
        return pa.concat_arrays(index["place"].take(at).chunks)

    def read(self, part: Part, places: Sequence[CachedPlace]) -> list[np.ndarray]:
        """Arrays at these places, none of them with a reason: float16, or uint16 that holds the
        bits of bfloat16.
        """
        # Wanted places in the order of the files, near ones joined: shard, begin, end.
        order = sorted(range(len(places)), key=lambda i: (places[i]["shard"], places[i]["offset"]))
        spans: list[tuple[int, int, int]] = []
        span_of: dict[int, int] = {}
        for i in order:
            shard, begin = places[i]["shard"], places[i]["offset"]
            end = begin + places[i]["bytes"]
            if spans and spans[-1][0] == shard and begin - spans[-1][2] <= _GAP:
                spans[-1] = (shard, spans[-1][1], max(end, spans[-1][2]))
            else:
                spans.append((shard, begin, end))
            span_of[i] = len(spans) - 1
        uris = [shard_uri(self.uri, part, shard) for shard, _, _ in spans]
        found = storage.read_ranges(uris, [s[1] for s in spans], [s[2] for s in spans])
        for uri, data, (_, begin, end) in zip(uris, found, spans, strict=True):
            if len(data) != end - begin:
                raise DataError(f"{uri}: shorter than the index says; make the cache again")
        return [
            self._cut(found[span_of[i]], place, spans[span_of[i]][1])
            for i, place in enumerate(places)
        ]

    @property
    def dtype(self) -> Any:
        """numpy dtype of what `read` returns."""
        return np.dtype(np.float16 if self.key.number_format == "float16" else np.uint16)

    def _cut(self, data: bytes, place: CachedPlace, begin: int) -> np.ndarray:
        first = place["offset"] - begin
        return np.frombuffer(data[first : first + place["bytes"]], self.dtype).reshape(
            place["shape"]
        )

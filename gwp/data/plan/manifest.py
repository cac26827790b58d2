"""The samples that a stage may read, as a table that stays small: what all samples of an
episode share is held once.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gwp import storage
from gwp.data.records import Place, Row, Skipped
from gwp.errors import DataError

VIEW = pa.struct(
    [
        ("slot", pa.string()),
        ("uri", pa.string()),
        ("bytes", pa.int64()),
        ("start_s", pa.float64()),
        # Pictures that are no video file: which ones, and the part of the file of that many
        # bytes that holds them.
        ("key", pa.string()),
        ("offset", pa.int64()),
        # Frames per second of the file, where it runs a little off the rate of the set.
        ("rate", pa.float64()),
    ]
)
PLACE = pa.schema(
    [
        ("source", pa.int32()),
        ("kind", pa.string()),
        ("weight", pa.float64()),
        ("has_action", pa.bool_()),
        ("embodiment", pa.string()),
        ("embodiment_id", pa.int64()),
        ("text_key", pa.string()),
        ("fps", pa.float64()),
        # Control steps of the episode, their rate (`fps`) and the rows of each; where the rows
        # are.
        ("length", pa.int64()),
        ("rows_per_step", pa.float64()),
        ("format", pa.string()),
        ("data_file", pa.string()),
        ("first_row", pa.int64()),
        ("rows", pa.int64()),
        ("data_offset", pa.int64()),
        ("data_bytes", pa.int64()),
        ("state_keys", pa.list_(pa.string())),
        ("action_keys", pa.list_(pa.string())),
        # Whether red and blue of its pictures are exchanged.
        ("bgr", pa.bool_()),
        # Slots of which they are, where not all are.
        ("bgr_slots", pa.list_(pa.string())),
        # Start in seconds: of the episode in that file (kind robot), of the sample (kind clip).
        ("views", pa.list_(VIEW)),
    ]
)
"""An episode or video: what its samples share, as `gwp.data.records.Place` describes it."""
OWN = pa.schema(
    [
        # data set fingerprint / episode / row, or / file / milliseconds
        ("sample_id", pa.large_string()),
        # Which of the run's shapes the sample has; the control step that it starts at.
        ("bucket", pa.int64()),
        ("start", pa.int64()),
    ]
)
SCHEMA = pa.schema([*OWN, *PLACE])
"""A whole row, as `decode_samples` takes it."""
_SAMPLES = pa.schema([*OWN, ("place", pa.int32()), ("at_s", pa.float64())])
_PIECE = 1 << 16
"""Whole rows that are in memory together. All of them may be more than a string column of Arrow
can hold (2 GiB).
"""


@dataclass(frozen=True)
class Manifest:
    """One row per sample.

    `samples`: as in OWN, with the number of the sample's row in `places` and what is added to
    the start of its views, seconds.
    `places`: as in PLACE. `skipped`: what is left out, each with `uri`, `item`, `reason` and
    whether it is `broken`. `by_key`: text_key -> text. `rule`: what the rows depend on.
    """

    samples: pa.Table
    places: pa.Table
    skipped: tuple[Skipped, ...]
    by_key: dict[str, str]
    rule: dict[str, Any]

    @classmethod
    def of(
        cls,
        table: pa.Table,
        skipped: Iterable[Skipped] = (),
        by_key: dict[str, str] | None = None,
        rule: dict[str, Any] | None = None,
    ) -> Self:
        """From whole rows."""
        own = {name: table[name] for name in OWN.names}
        table = _complete(table)
        extra = {
            "place": pa.array(np.arange(len(table)), pa.int32()),
            "at_s": pa.array(np.zeros(len(table))),
        }
        return cls(
            pa.table(own | extra, schema=_SAMPLES),
            table.select(PLACE.names),
            tuple(skipped),
            by_key or {},
            rule or {},
        )

    def __len__(self) -> int:
        return int(self.samples.num_rows)

    @cached_property
    def place(self) -> np.ndarray:
        """int32 `[samples]`: row of `places` of each sample."""
        found: np.ndarray = self.samples["place"].to_numpy()
        return found

    def column(self, name: str) -> np.ndarray:
        """A numeric or boolean column, `[samples]`."""
        if name in OWN.names:
            return np.asarray(self.samples[name].to_numpy())
        return np.asarray(self.places[name].to_numpy(zero_copy_only=False))[self.place]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the samples in order and how they are cut, whatever folder or bucket they
        lie in.
        """
        digest = hashlib.sha256(json.dumps(self.rule, sort_keys=True).encode())
        # Pieces, because all ids as Python strings are many times the manifest. The line
        # break between them makes the digest independent of where they are cut.
        for name in ("sample_id", "text_key"):
            for i, piece in enumerate(_pieces(len(self))):
                table = self.samples if name in OWN.names else self.places
                rows = (
                    np.arange(piece.start, piece.stop) if name in OWN.names else self.place[piece]
                )
                digest.update(
                    ("\n" if i else "").encode()
                    + "\n".join(table[name].take(pa.array(rows)).to_pylist()).encode()
                )
        digest.update(self.column("source").tobytes())
        return digest.hexdigest()

    @cached_property
    def files(self) -> np.ndarray:
        """int64 `[samples]`: number of the file that each sample's first view lies in."""
        views = self.places["views"].combine_chunks()
        first = pc.list_element(views, 0) if len(views) else pa.array([], VIEW)
        uris = (
            pc.fill_null(pc.struct_field(first, "uri"), "")
            .dictionary_encode()
            .indices.to_numpy(zero_copy_only=False)
        )
        offsets = pc.fill_null(pc.struct_field(first, "offset"), 0).to_numpy(zero_copy_only=False)
        # By URI and offset: a part of an archive is opened by itself, as a file is.
        found: np.ndarray = np.unique(
            np.stack([uris.astype(np.int64), offsets.astype(np.int64)], 1),
            axis=0,
            return_inverse=True,
        )[1]
        # Versions of numpy differ in the shape of an inverse along an axis.
        return found.reshape(-1)[self.place]

    def take(self, ids: np.ndarray) -> pa.Table:
        """Whole rows by position, in chunks that Arrow can hold."""
        parts = [self._whole(ids[piece]) for piece in _pieces(len(ids))]
        return pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def _whole(self, ids: np.ndarray) -> pa.Table:
        own = self.samples.take(pa.array(ids, pa.int64())).combine_chunks()
        shared = self.places.take(own["place"]).combine_chunks()
        columns = {name: own[name] for name in OWN.names} | {
            name: shared[name] for name in PLACE.names
        }
        # Only clips are shifted: a robot's views start where its episode does.
        shift = own["at_s"].to_numpy()
        if shift.any():
            columns["views"] = _later(pa.concat_arrays(shared["views"].chunks), shift)
        return pa.table(columns, schema=SCHEMA)

    @property
    def table(self) -> pa.Table:
        """All whole rows. Many times as large as the manifest: for looking at, and for small
        sets.
        """
        return self.take(np.arange(len(self)))

    def pieces(self) -> Iterator[pa.Table]:
        """All whole rows, some at a time."""
        yield from (self._whole(np.arange(piece.start, piece.stop)) for piece in _pieces(len(self)))

    def rows(self, ids: Iterable[int]) -> list[Row]:
        """Rows by position, as `decode_samples` takes them."""
        rows: list[Row] = self.take(np.fromiter(ids, np.int64)).to_pylist()
        return rows

    def texts(self) -> dict[str, str]:
        """text_key -> normalised text of every instruction and caption."""
        return dict(self.by_key)

    def save(self, uri: str) -> None:
        """Write one Parquet file of whole rows, which other tools read too."""
        about = {"skipped": self.skipped, "texts": self.by_key, "rule": self.rule}
        # Whole rows are for other tools; by these two `load` finds what they share.
        extra = [pa.field("place", pa.int32()), pa.field("at_s", pa.float64())]
        schema = pa.schema([*SCHEMA, *extra]).with_metadata({"gwp": json.dumps(about)})
        buffer = io.BytesIO()
        # One row group per piece, so that `load` has no more whole rows than that in memory.
        with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
            for piece, rows in zip(_pieces(len(self)), self.pieces(), strict=True):
                for field in extra:
                    rows = rows.append_column(
                        field, self.samples[field.name].slice(piece.start, rows.num_rows)
                    )
                writer.write_table(rows.replace_schema_metadata(schema.metadata))
        storage.write_bytes(uri, buffer.getvalue())

    @classmethod
    def load(cls, uri: str) -> Self:
        """Read what `save` wrote. DataError for anything else."""
        raw = storage.read_bytes(uri)
        try:
            file = pq.ParquetFile(io.BytesIO(raw))
            about = json.loads(file.schema_arrow.metadata[b"gwp"])
            samples, places = _compact(
                file.read_row_group(i).replace_schema_metadata(None)
                for i in range(file.num_row_groups)
            )
            return cls(samples, places, tuple(about["skipped"]), about["texts"], about["rule"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{uri}: not a manifest of this version ({error}); build it again"
            ) from error


def _pieces(count: int) -> list[slice]:
    return [slice(start, min(count, start + _PIECE)) for start in range(0, count, _PIECE)]


def _later(views: pa.Array, shift: np.ndarray) -> pa.Array:
    """Views whose starts are that many seconds later."""
    flat, owner = views.flatten(), pc.list_parent_indices(views).to_numpy()
    fields = {f.name: flat.field(f.name) for f in VIEW}
    fields["start_s"] = pc.add(fields["start_s"], pa.array(shift[owner]))
    # From the lengths: the offsets of a slice do not begin at 0, what `flatten` gives does.
    lengths = pc.fill_null(pc.list_value_length(views), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays(list(fields.values()), fields=list(VIEW))
    )


def _complete(rows: pa.Table) -> pa.Table:
    """Whole rows as they are now: those of before do not say that colours are exchanged."""
    if "bgr" not in rows.column_names:
        rows = rows.append_column("bgr", pa.repeat(False, len(rows)))
    if "bgr_slots" not in rows.column_names:
        none = pa.array([[]] * len(rows), pa.list_(pa.string()))
        rows = rows.append_column("bgr_slots", none)
    return rows


def _compact(parts: Iterable[pa.Table]) -> tuple[pa.Table, pa.Table]:
    """The inverse of whole rows: samples, and each place once. Places are numbered in the order
    of their first sample.
    """
    samples, places, known = [], [], 0
    for part in map(_complete, parts):
        samples.append(part.select(_SAMPLES.names).cast(_SAMPLES))
        # The last place of a piece may go on in the next; only a new number brings a row.
        numbers, first = np.unique(part["place"].to_numpy(), return_index=True)
        fresh = first[numbers >= known]
        known = max(known, int(numbers[-1]) + 1)
        rows = part.take(pa.array(fresh)).select([*PLACE.names, "at_s"]).combine_chunks()
        shift = rows["at_s"].to_numpy()
        if shift.any():
            # Views of whole rows were shifted for their sample; a place has them unshifted.
            views = _later(pa.concat_arrays(rows["views"].chunks), -shift)
            rows = rows.set_column(rows.column_names.index("views"), "views", views)
        places.append(rows.select(PLACE.names).cast(PLACE))
    if not samples:
        return _SAMPLES.empty_table(), PLACE.empty_table()
    return pa.concat_tables(samples).combine_chunks(), pa.concat_tables(places).combine_chunks()


class Rows:
    """Rows of one manifest while they are collected: there may be tens of millions."""

    def __init__(self) -> None:
        self.count = 0
        self._ids: list[pa.Array] = []
        self._numbers: dict[str, list[np.ndarray]] = {
            name: [] for name in ("bucket", "start", "place", "at_s")
        }
        self._places: list[Place] = []

    def add(
        self,
        ids: list[str],
        place: Place,
        starts: np.ndarray,
        at_s: np.ndarray,
        buckets: np.ndarray,
    ) -> None:
        """Samples of one episode or video."""
        # Into Arrow at once: as Python objects they would take several times as much.
        self._ids.append(pa.array(ids, pa.large_string()))
        numbers = {
            "bucket": buckets,
            "start": starts,
            "place": np.full(len(ids), len(self._places)),
            "at_s": at_s,
        }
        for name, values in numbers.items():
            self._numbers[name].append(values)
        self._places.append(place)
        self.count += len(ids)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """`samples` and `places` of a Manifest."""
        if not self.count:
            return _SAMPLES.empty_table(), PLACE.empty_table()
        columns = {
            name: pa.array(np.concatenate(parts), _SAMPLES.field(name).type)
            for name, parts in self._numbers.items()
        }
        return pa.table(
            {"sample_id": pa.concat_arrays(self._ids), **columns}, schema=_SAMPLES
        ), pa.Table.from_pylist(self._places, PLACE)

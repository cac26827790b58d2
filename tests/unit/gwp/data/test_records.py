"""Records are described as they are: schemas of tables and what decoding gives, key by key."""

from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pytest

from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.latent_cache import PLACE
from gwp.data.plan.build import build_manifest
from gwp.data.plan.manifest import OWN, SCHEMA, VIEW
from gwp.data.plan.manifest import PLACE as OF_EPISODE
from gwp.data.records import CachedPlace, Place, Row, Sample, StreamBatch, View
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from pipelines.training.samples.decoder import batch_columns
from tests.support.sets import infer_embodiment, write_v30, write_video

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
# int64 of Arrow comes out as int, and so on.
KINDS = {
    pa.types.is_string: "str",
    pa.types.is_large_string: "str",
    pa.types.is_integer: "int",
    pa.types.is_floating: "float",
    pa.types.is_boolean: "bool",
}


def kind(field: pa.Field) -> str:
    """What a plain field comes out as; "" for lists."""
    return next((name for test, name in KINDS.items() if test(field.type)), "")


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (Row, list(SCHEMA)),
        (Place, list(OF_EPISODE)),
        (View, list(VIEW)),
        (CachedPlace, list(PLACE)),
    ],
)
def test_tables_have_the_fields_of_their_records(record: Any, fields: list[pa.Field]) -> None:
    assert record.__required_keys__ == {field.name for field in fields}
    hints = get_type_hints(record)
    for field in fields:
        words = str(getattr(hints[field.name], "__name__", hints[field.name]))
        # Of a choice of words, the type is that of each.
        words = "str" if words.startswith(("Literal", "typing.Literal")) else words
        assert kind(field) in words, field


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], SampleSpec]:
    """Rows with and without actions."""
    folder: Path = tmp_path_factory.mktemp("mixture")
    uri = str(write_v30(folder / "set"))
    write_video(folder / "clips/a.mp4", range(12))
    arm = infer_embodiment(uri, "arm", 4, 2)
    labelled = Source(uri=uri, embodiment="arm")
    manifest = build_manifest(
        [labelled, Source(uri=str(folder / "clips"))],
        embodiments={"arm": arm},
        window=WINDOW,
        clip=CLIP,
    )
    stats = {"arm": compute_stats([labelled], arm, WINDOW)}
    canvas = Canvas(layout="single", width=32, height=32)
    spec = SampleSpec(canvas, WINDOW, CLIP, {"arm": arm}, stats, 6, False, 0)
    return manifest.rows([0, len(manifest) - 1]), spec


def test_rows_have_exactly_their_keys(mixture: tuple[list[Row], SampleSpec]) -> None:
    rows, _ = mixture
    assert [row["kind"] for row in rows] == ["robot", "clip"]
    for row in rows:
        assert row.keys() == Row.__required_keys__
        assert all(view.keys() == View.__required_keys__ for view in row["views"])
    assert {*OWN.names, *Place.__required_keys__} == Row.__required_keys__


def test_samples_and_columns_have_exactly_their_keys(
    mixture: tuple[list[Row], SampleSpec],
) -> None:
    rows, spec = mixture
    rows = [{**row, "position": i, "batch": 2} for i, row in enumerate(rows)]
    samples, failed = decode_samples(rows, spec, FileReader())
    assert not failed
    for sample in samples:
        assert sample.keys() == Sample.__required_keys__ | {"frames"}
    broken = {row["sample_id"]: "broken" for row in rows}
    whole, empty = batch_columns(rows, samples, {}, spec), batch_columns(rows, [], broken, spec)
    for batch in (whole, empty):
        assert batch.keys() == StreamBatch.__required_keys__ | {"frames"}
        assert {len(column) for column in batch.values()} == {2}
    assert list(whole) == list(empty)
    numbers = {"f": np.float32, "i": np.int64, "u": np.uint8, "b": np.bool_}
    for name, column in whole.items():
        assert isinstance(column, np.ndarray)
        assert column.dtype.kind == "U" or column.dtype == numbers[column.dtype.kind], name

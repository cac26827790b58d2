"""A bucket behaves like a folder."""

from pathlib import Path

import numpy as np
import pytest

from gwp import storage
from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.lerobot.read import read_set
from gwp.data.plan.build import build_manifest
from gwp.data.plan.manifest import Manifest
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import GwpError
from tests.support.sets import TOP, WRIST, infer_embodiment, write_v30, write_video

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)


def test_a_bucket_gives_the_samples_of_the_folder(bucket: str, tmp_path: Path) -> None:
    write_v30(tmp_path / "all/set", cameras=(TOP, WRIST))
    write_video(tmp_path / "all/clips/a.mp4", range(30))
    (tmp_path / "all/clips/metadata.jsonl").write_text(
        '{"file": "a.mp4", "caption": "a grey wall"}\n'
    )
    storage.upload(tmp_path / "all", f"{bucket}/all")
    found = []
    for root in (str(tmp_path / "all"), f"{bucket}/all"):
        arm = infer_embodiment(f"{root}/set", "arm", 4, 2)
        sources = [Source(uri=f"{root}/set", embodiment="arm"), Source(uri=f"{root}/clips")]
        build_manifest(sources, embodiments={"arm": arm}, window=WINDOW, clip=CLIP).save(
            f"{root}/manifest.parquet"
        )
        manifest = Manifest.load(f"{root}/manifest.parquet")
        stats = compute_stats(sources[:1], arm, WINDOW)
        canvas = Canvas(layout="horizontal", width=64, height=32)
        spec = SampleSpec(canvas, WINDOW, CLIP, {"arm": arm}, {"arm": stats}, 4, False, 0)
        samples, failures = decode_samples(
            manifest.rows(range(manifest.table.num_rows)), spec, FileReader()
        )
        assert not failures
        found.append((manifest.fingerprint, stats.to_json(), samples))
    assert found[0][:2] == found[1][:2]
    for a, b in zip(found[0][2], found[1][2], strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)


def test_what_is_missing_is_explained(bucket: str) -> None:
    with pytest.raises(GwpError, match="bucket 'nowhere' does not exist"):
        read_set("s3://nowhere/set")
    with pytest.raises(GwpError, match="not a LeRobot set"):
        read_set(f"{bucket}/nothing")
    with pytest.raises(GwpError, match="nothing there"):
        build_manifest([Source(uri=f"{bucket}/nothing")], embodiments={}, window=WINDOW, clip=CLIP)

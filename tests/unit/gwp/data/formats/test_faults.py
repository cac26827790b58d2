"""Every format on a bad day of storage: what passes changes no sample, what lasts is no broken
data, what vanishes is named.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gwp import storage
from gwp.data.canvas import Canvas
from gwp.data.decode import SampleSpec, decode_samples
from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at
from gwp.data.formats.robot_set import embodiment_of
from gwp.data.plan.build import build_manifest
from gwp.data.plan.manifest import Manifest
from gwp.data.source import Source
from gwp.data.stats.normalise import compute_stats
from gwp.data.window import ClipWindow, Window
from gwp.errors import GwpError
from gwp.storage.retry import PATIENCE
from tests.support.faults import FaultyProxy, faulty_s3
from tests.support.other_sets import write_aloha, write_rlds, write_stills, write_tars
from tests.support.sets import FPS, TOP, WRIST, write_v30

WINDOW, CLIP = Window(chunk=4, stride=1), ClipWindow(frames=5, fps=5)
TRANSIENT = ("slow down", "reset", "short", "slow")
FORMATS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "v30": (lambda r: write_v30(r, lengths=(5, 3), cameras=(TOP, WRIST)), {}),
    "stills": (lambda r: write_stills(r, "v3.0", lengths=(5, 3)), {}),
    "aloha": (lambda r: write_aloha(r, lengths=(5, 3)), {"fps": FPS}),
    "rlds": (lambda r: write_rlds(r, lengths=(5, 3)), {"fps": FPS}),
    "tars": (lambda r: write_tars(r, lengths=(9, 9, 9)), {}),
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    """S3 with a set of each format, behind a proxy."""
    with faulty_s3("bad-day") as found:
        for name, (write, _) in FORMATS.items():
            root = tmp_path_factory.mktemp(name) / "set"
            write(root)
            storage.upload(root, f"s3://bad-day/{name}")
        yield found


@pytest.fixture(autouse=True)
def _calm(proxy: FaultyProxy) -> Iterator[None]:
    yield
    proxy.fault = lambda *_: None


def prepare(name: str) -> tuple[Manifest, SampleSpec]:
    source = Source(uri=f"s3://bad-day/{name}", **FORMATS[name][1])
    data = robots_at(source)
    if data is None:
        manifest = build_manifest([source], embodiments={}, window=WINDOW, clip=CLIP)
        return manifest, SampleSpec(
            Canvas(layout="single", width=32, height=32), WINDOW, CLIP, {}, {}, 4, False, 0
        )
    arm = embodiment_of(data, "arm", 4, 2)
    source = source.model_copy(update={"embodiment": "arm"})
    manifest = build_manifest([source], embodiments={"arm": arm}, window=WINDOW, clip=CLIP)
    stats = {"arm": compute_stats([source], arm, WINDOW)}
    return manifest, SampleSpec(
        Canvas(layout="horizontal", width=64, height=32),
        WINDOW,
        CLIP,
        {"arm": arm},
        stats,
        6,
        False,
        0,
    )


@pytest.mark.parametrize("name", FORMATS)
def test_what_passes_changes_no_sample(proxy: FaultyProxy, name: str) -> None:
    manifest, spec = prepare(name)
    calm, failed = decode_samples(manifest.rows(range(len(manifest))), spec, FileReader())
    assert not failed
    turn = [0]

    def decide(method: str, *_: str) -> Any:
        """Each fifth look at an object fails, in turn in every way."""
        turn[0] += method == "GET"
        return (
            TRANSIENT[turn[0] // 5 % len(TRANSIENT)]
            if method == "GET" and turn[0] % 5 == 2
            else None
        )

    before, proxy.fault = proxy.faults, decide
    again, spec = prepare(name)
    shaken, failed = decode_samples(again.rows(range(len(again))), spec, FileReader())
    assert proxy.faults > before
    assert not failed
    assert not again.skipped
    assert again.fingerprint == manifest.fingerprint
    for a, b in zip(calm, shaken, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", FORMATS)
def test_what_lasts_is_no_broken_data(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Objects are listed and their metadata read; then storage answers no more. Nothing may be
    left out for that.
    """
    manifest, spec = prepare(name)
    monkeypatch.setenv(PATIENCE, "0.2")
    metadata = ("list-type", "/meta/", ".json")
    proxy.fault = lambda method, path, _: (
        None if method != "GET" or any(m in path for m in metadata) else "slow down"
    )
    for work in (
        lambda: prepare(name),
        lambda: decode_samples(manifest.rows(range(len(manifest))), spec, FileReader()),
    ):
        with pytest.raises(GwpError, match=r"storage (keeps failing|does not answer)"):
            work()


@pytest.mark.parametrize("name", FORMATS)
def test_what_vanishes_is_named(proxy: FaultyProxy, name: str) -> None:
    manifest, spec = prepare(name)
    proxy.fault = lambda method, path, _: (
        "vanished" if method in ("GET", "HEAD") and "list-type" not in path else None
    )
    samples, failed = decode_samples(manifest.rows(range(len(manifest))), spec, FileReader())
    assert not samples
    assert len(failed) == len(manifest)
    assert all("not found" in reason and f"s3://bad-day/{name}/" in reason for _, reason in failed)

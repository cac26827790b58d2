"""Names that others wrote never lead out of a folder, through whichever door they come in."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from gwp.data.formats.files.reader import FileReader
from gwp.data.formats.find import robots_at, set_at
from gwp.data.formats.format import FilePart
from gwp.data.formats.lerobot.read import read_set
from gwp.data.formats.lerobot.write import LeRobotWriter
from gwp.data.formats.pictures import open_frames
from gwp.data.source import Source
from gwp.data.video.probe import probe
from gwp.errors import DataError, GwpError
from gwp.model.codecs.hashed import HashedTextEncoder
from gwp.model.codecs.saved import pretrained
from gwp.model.codecs.text import TextTable
from gwp.model.weights import load_model
from gwp.policy.bundle import MANIFEST, read_bundle, seal
from gwp.storage.names import relative_name, relative_names
from pipelines.jobs.train_job import RunConfig
from pipelines.training.checkpoint import checkpoints
from tests.support.other_sets import write_aloha, write_stills, write_tars
from tests.support.sets import FPS, TOP, write_v21, write_v30, write_video

LEADING_OUT = (
    "../OWNED",
    "x/../../OWNED",
    "x/../../../OWNED",
    "..",
    "/tmp/OWNED",
    "x\\..\\OWNED",
    "C:OWNED",
)
HOSTILE = (
    *LEADING_OUT,
    "",
    ".",
    "x/./y",
    "x//y",
    "x/",
    "x\0y",
    "x\ny",
    "\x1b[2J",
    "\x85",
    "\udc80",
    "x" * 256,
    "x/" * 600 + "y",
)
PLAIN = (
    "a",
    "b/c.txt",
    "...",
    "a..b/..c",
    "model-00001-of-00002.safetensors",
    "Größe/動画 1.mp4",
    "ab:c",
    "x" * 255,
)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:20]))
def test_what_is_no_plain_relative_name_is_refused_on_one_line(name: str) -> None:
    with pytest.raises(DataError, match=r"^s3://b/set: ") as caught:
        relative_name(name, "s3://b/set", DataError)
    with pytest.raises(GwpError) as bare:
        relative_name(name, "s3://b/set")
    for error in (caught.value, bare.value):
        assert str(error).isprintable()
        assert len(str(error)) < 300


@pytest.mark.parametrize("value", [None, 3, b"a", ["a"]])
def test_what_is_no_text_is_no_name(value: object) -> None:
    with pytest.raises(GwpError, match="not a name"):
        relative_name(value, "here")


def test_plain_names_stay_as_they_are() -> None:
    assert relative_names(PLAIN, "here") == list(PLAIN)


def test_a_file_is_not_a_folder_too() -> None:
    for names in (["a/b", "a"], ["a", "a/b/c"]):
        with pytest.raises(GwpError, match="a is both a file and a folder"):
            relative_names(names, "here")
    relative_names(["a/b", "a.b", "ab"], "here")


def checkpoint_naming(folder: Path, name: str) -> tuple[str, checkpoints.CheckpointManifest]:
    """A committed checkpoint of a local run whose manifest names one more file."""
    uri = checkpoints.checkpoint_uri(str(folder / "run"), 1, 1)
    (folder / "rank").mkdir(parents=True)
    (folder / "rank/0.pt").write_bytes(b"state")
    files = checkpoints.upload_files(folder / "rank", uri)
    manifest = checkpoints.CheckpointManifest(
        files=files | {name: files["0.pt"]},
        step=1,
        samples_seen=1,
        world_size=1,
        zero_stage=2,
        attempt=1,
        plan_hash="p",
        config_hash="c",
    )
    (Path(uri) / MANIFEST).write_text(json.dumps(manifest.model_dump()))
    return uri, manifest


def by_bundle(folder: Path, name: str) -> None:
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "policy.json").write_text("{}")
    seal(bundle)
    about = json.loads((bundle / MANIFEST).read_text())
    about["files"][name] = about["files"]["policy.json"]
    (bundle / MANIFEST).write_text(json.dumps(about))
    read_bundle(bundle)


def by_checkpoint_fetch(folder: Path, name: str) -> None:
    checkpoints.fetch(*checkpoint_naming(folder, name), folder / "fetched")


def by_checkpoint_name(folder: Path, name: str) -> None:
    checkpoints.load_committed(checkpoint_naming(folder, name)[0])


def by_checkpoint_commit(folder: Path, name: str) -> None:
    uri, manifest = checkpoint_naming(folder, name)
    (Path(uri) / MANIFEST).unlink()
    checkpoints.commit(uri, manifest)


def by_weights(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": name}})
    )
    load_model(folder)


def by_codec(folder: Path, name: str) -> None:
    from diffusers import AutoencoderKLWan

    folder.mkdir(exist_ok=True)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": name}})
    )
    pretrained(AutoencoderKLWan.from_pretrained, folder, all_used=True)


def template(write: Callable[..., Any], key: str) -> Callable[[Path, str], None]:
    def door(folder: Path, name: str) -> None:
        write(folder / "set", lengths=(2,), **{key: name.replace("{", "{{").replace("}", "}}")})
        read_set(str(folder / "set"))

    return door


def by_camera(folder: Path, name: str) -> None:
    root = write_v21(folder / "set", lengths=(2,))
    about = json.loads((root / "meta/info.json").read_text())
    about["features"][name] = about["features"][TOP]
    (root / "meta/info.json").write_text(json.dumps(about | {"video_path": "{video_key}"}))
    read_set(str(root))


def by_written_camera(folder: Path, name: str) -> None:
    LeRobotWriter(str(folder / "set"), fps=10, robot_type="arm", cameras={name: (32, 32)})


def by_run_name(folder: Path, name: str) -> None:
    try:
        RunConfig(name=name, steps=1)
    except ValidationError as error:
        raise GwpError(error.errors()[0]["msg"]) from error


def by_digest(folder: Path, name: str) -> None:
    class Cached(HashedTextEncoder):
        def digest(self) -> str:
            return name

    TextTable(Cached(4, 2), cache=str(folder / "texts"))


def by_picture(folder: Path, name: str) -> None:
    """A row that names its picture and does not hold it."""
    root = write_stills(folder / "set", "v3.0", lengths=(2,))
    file = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    named = pa.array([{"bytes": None, "path": name}] * 2, kind)
    pq.write_table(table.set_column(table.column_names.index(TOP), TOP, named), file)
    with open_frames("lerobot", FilePart(str(file)), TOP, FPS, FileReader()) as frames:
        next(frames([0.0]))


DOORS: dict[str, Callable[[Path, str], None]] = {
    "bundle": by_bundle,
    "checkpoint fetched": by_checkpoint_fetch,
    "checkpoint by name": by_checkpoint_name,
    "checkpoint committed": by_checkpoint_commit,
    "weights": by_weights,
    "codec": by_codec,
    "v2 data": template(write_v21, "data_path"),
    "v2 video": template(write_v21, "video_path"),
    "v3 data": template(write_v30, "data_path"),
    "v3 video": template(write_v30, "video_path"),
    "camera": by_camera,
    "picture": by_picture,
    "camera written": by_written_camera,
    "run": by_run_name,
    "text table": by_digest,
}


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.lstat().st_size for p in folder.rglob("*")}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_takes_a_name_that_leads_out(tmp_path: Path, door: str) -> None:
    for number, name in enumerate((*LEADING_OUT, ".", "x\ny", "x//y")):
        folder = tmp_path / f"{number}" / "inner"
        # What a name that is followed would find.
        folder.mkdir(parents=True)
        (folder.parent / "OWNED").write_bytes(b"state")
        before = tree(folder.parent) | {"inner": 0}
        with pytest.raises(GwpError, match="only plain relative names") as caught:
            DOORS[door](folder, name)
        assert str(caught.value).isprintable()
        after = {path for path in tree(folder.parent) if not path.startswith("inner/")}
        assert after == before.keys()
        assert (folder.parent / "OWNED").read_bytes() == b"state"


@pytest.mark.parametrize(
    "form",
    [
        "{episode_index:999999999}",
        "{episode_index.__class__}",
        "{episode_index!r}",
        "{other}",
        "{}",
        "{0}",
        "{episode_index:{episode_chunk}}",
    ],
)
def test_a_template_puts_in_numbers_and_nothing_else(tmp_path: Path, form: str) -> None:
    write_v21(tmp_path / "set", lengths=(2,), data_path=f"data/{form}.parquet")
    with pytest.raises(DataError, match=r"meta/info\.json has data_path"):
        read_set(str(tmp_path / "set"))


def link_raw(file: h5py.File, outside: str) -> None:
    file.create_dataset("x", (6,), "f8", external=[(outside, 0, 48)])


def link_virtual(file: h5py.File, outside: str) -> None:
    layout = h5py.VirtualLayout((6,), "f8")
    layout[:] = h5py.VirtualSource(outside, "secret", (6,))
    file.create_virtual_dataset("x", layout)


def link_softly(file: h5py.File, outside: str) -> None:
    # By name before the link that leaves.
    file["a"] = h5py.SoftLink("/z/secret")
    file["z"] = h5py.ExternalLink(outside, "/")


def link_directly(file: h5py.File, outside: str) -> None:
    file["x"] = h5py.ExternalLink(outside, "/secret")


def link_demonstrations(file: h5py.File, outside: str) -> None:
    file["data"] = h5py.ExternalLink(outside, "/")


@pytest.mark.parametrize("form", ["relative", "absolute", "where this runs"])
@pytest.mark.parametrize(
    "link", [link_raw, link_virtual, link_softly, link_directly, link_demonstrations]
)
def test_hdf5_files_that_lead_elsewhere_are_left_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    link: Callable[[h5py.File, str], None],
    form: str,
) -> None:
    root = write_aloha(tmp_path / "set")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = np.arange(6.0)
    monkeypatch.chdir(tmp_path)
    outside = {
        "relative": "../secret.h5",
        "absolute": str(tmp_path / "secret.h5"),
        "where this runs": "secret.h5",
    }[form]
    with h5py.File(root / "episode_1.hdf5", "a") as file:
        link(file, outside)
    data = robots_at(Source(uri=str(root), fps=FPS, format="hdf5"))
    assert data is not None
    assert [bool(e.problem) for e in data.episodes] == [False, True]
    assert "another file" in data.episodes[1].problem


def test_hdf5_files_that_lead_to_their_neighbours_are_read(tmp_path: Path) -> None:
    root = write_aloha(tmp_path / "set")
    with h5py.File(root / "episode_1.hdf5", "a") as file:
        file["again"] = h5py.ExternalLink("episode_0.hdf5", "/action")
        file["soft"] = h5py.SoftLink("/action")
    data = robots_at(Source(uri=str(root), fps=FPS, format="hdf5"))
    assert data is not None
    assert not any(e.problem for e in data.episodes)
    assert {"again", "soft"} <= set(data.columns)


def test_a_list_of_videos_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would open what such a list names, where this process runs."""
    write_video(tmp_path / "secret.mp4", range(5))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot be read as a video"):
        probe(io.BytesIO(b"ffconcat version 1.0\nfile 'secret.mp4'\n"))


def test_members_of_an_archive_are_read_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names are names only, and `./0000.mp4` is what tar writes of a folder."""
    import tarfile

    shard = write_tars(tmp_path / "set", lengths=(5,), shards=(1,)) / "000000.tar"
    with tarfile.open(shard) as tar:
        raw = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}
    video = next(data for name, data in raw.items() if name.endswith(".mp4"))
    names = ("./0000.mp4", "../OWNED.mp4", "/tmp/OWNED.mp4", "x\n.mp4")
    with tarfile.open(shard, "w") as tar:
        for name in names:
            about = tarfile.TarInfo(name)
            about.size = len(video)
            tar.addfile(about, io.BytesIO(video))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.mp4")
            link.type, link.linkname = kind, str(tmp_path / "secret.mp4")
            tar.addfile(link)
    before = tree(tmp_path)
    clips = set_at(Source(uri=str(tmp_path / "set"))).clips
    assert [clip.name for clip in clips] == [f"000000.tar/{name}" for name in names]
    data = shard.read_bytes()
    assert all(data[clip.offset : clip.offset + clip.size] == video for clip in clips)
    assert tree(tmp_path) == before

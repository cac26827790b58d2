"""`gwp data inspect` on every format: what is there, each inconsistency with what follows from
it, and nothing but clear lines.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gwp import storage
from gwp.data.source import Source
from gwp.errors import GwpError
from pipelines.cli import main
from pipelines.datasets.inspect import describe, exit_code
from tests.support.other_sets import write_aloha, write_libero, write_rlds, write_stills, write_tars
from tests.support.sets import FPS, SHARED, TOP, WRIST, write_v21, write_v30, write_video

RATE = ["--fps", str(FPS)]
SUGGESTED = re.compile("moves|grip")
ROBOTS: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "v2.1": (lambda r: write_v21(r, cameras=(TOP, WRIST)), [], "LeRobot v2.1"),
    "v3.0": (lambda r: write_v30(r, cameras=(TOP, WRIST)), [], "LeRobot v3.0"),
    "pictures": (lambda r: write_stills(r, "v3.0"), [], "LeRobot v3.0"),
    "aloha": (write_aloha, RATE, "HDF5"),
    "libero": (lambda r: write_libero(r / "demo.hdf5"), [], "HDF5"),
    "rlds": (write_rlds, RATE, "RLDS 1.0.0"),
}


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["data", "inspect", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def what_follows(found: dict[str, Any]) -> dict[str, str]:
    return {f["what"]: f["consequence"] for f in found["findings"]}


@pytest.mark.parametrize("name", ROBOTS)
def test_every_robot_format_is_described_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write, words, form = ROBOTS[name]
    write(tmp_path / "a set")
    page = tmp_path / "the page.html"
    code, found = told(capsys, str(tmp_path / "a set") + "/", *words, "--html", str(page))
    assert code == 0
    assert (found["format"], found["episodes"], found["usable"], found["frames"], found["fps"]) == (
        form,
        2,
        2,
        21,
        FPS,
    )
    assert {c["camera"]: (c["width"], c["height"]) for c in found["cameras"]} == {
        TOP: (64, 48),
        WRIST: (64, 48),
    }
    assert (len(found["state"]), len(found["action"]), len(found["dimensions"])) == (3, 2, 5)
    # A picture per camera, the canvas, the curves.
    assert page.read_text().count("data:image/png;base64,") == 4


def test_shards_are_described_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tars(tmp_path / "tars")
    (root / "000001.tar").write_bytes((root / "000001.tar").read_bytes()[:1500])
    code, found = told(capsys, str(root), "--html", str(tmp_path / "x.html"))
    assert (code, found["usable"], found["captions"], found["frames"]) == (1, 2, 2, 54)
    assert [(f["item"], f["consequence"]) for f in found["findings"]] == [
        ("000001.tar", "left out")
    ]
    assert (tmp_path / "x.html").read_text().count("data:image/png;base64,") == 2


@pytest.mark.parametrize("rows", [3, 5])
def test_short_recordings_have_a_page_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int
) -> None:
    root = write_v21(tmp_path / "set", lengths=(rows,))
    assert main(["data", "inspect", str(root), "--html", str(tmp_path / "x.html")]) == 0
    assert ("too few for 5 frames" in (tmp_path / "x.html").read_text()) == (rows == 3)
    short = write_video(tmp_path / "clips/a.mp4", range(3)).parent
    assert main(["data", "inspect", str(short), "--html", str(tmp_path / "y.html")]) == 0
    assert "shorter than a clip" in (tmp_path / "y.html").read_text()
    capsys.readouterr()


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def test_clocks_columns_and_types_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v21(tmp_path / "set", lengths=(12, 9), wide=True)
    drifting = pa.array(np.arange(12) * 0.11, pa.float32())
    rewrite(
        root / "data/chunk-000/episode_000000.parquet",
        lambda t: with_column(t, "timestamp", drifting),
    )
    rewrite(
        root / "data/chunk-000/episode_000001.parquet", lambda t: t.drop_columns(["frame_index"])
    )
    code, found = told(capsys, str(root))
    assert code == 0
    assert {k: v for k, v in what_follows(found).items() if not SUGGESTED.search(k)} == {
        "does not start at 0 in 1 of 2 episodes": "ignored",
        "off by up to 0.110 s from row / fps in 1 of 2 episodes": "ignored",
        "no column frame_index in 1 of 2 files": "ignored",
        "stored with 64 bits in 2 of 2 files": "ignored",
    }


@pytest.mark.parametrize("lengths", [(12, 9), (12, 8)])
def test_rows_that_do_not_say_whose_they_are_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lengths: tuple[int, int]
) -> None:
    root = write_v30(tmp_path / "set")
    rewrite(
        root / "data/chunk-000/file-000.parquet",
        lambda t: t.drop_columns(["episode_index"]).slice(0, sum(lengths)),
    )
    code, found = told(capsys, str(root))
    if lengths == (12, 9):
        assert (
            code,
            found["usable"],
            what_follows(found)["no column episode_index in 1 of 1 files"],
        ) == (0, 2, "repaired")
    else:
        assert (code, found["usable"]) == (2, 0)
        assert (
            "has no column episode_index, and 20 rows where its episodes have 21"
            in found["findings"][1]["what"]
        )


def test_what_the_metadata_lack_or_say_wrongly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v21(tmp_path / "set", lengths=(12, 9), tasks=("success",), total_videos=5)
    file = root / "meta/info.json"
    about = json.loads(file.read_text())
    about["features"]["observation.state"] |= {"names": None, "shape": [4]}
    about["features"]["depth"] = {
        "dtype": "video",
        "shape": [48, 64, 1],
        "names": None,
        "info": {"video.is_depth_map": True},
    }
    file.write_text(json.dumps(about))
    write_video(root / f"videos/chunk-000/{TOP}/episode_000001.mp4", range(9), size=(32, 48))
    code, found = told(capsys, str(root))
    follows = what_follows(found)
    assert code == 2
    assert follows["state and action are 3 and 2 wide, the set says 4 and 2"] == "fatal"
    assert {k for k, v in follows.items() if v == "ignored"} == {
        "dimensions have no names, or not as many as there are",
        "2 of 2 episodes have no instruction",
        "depth pictures",
        "total_videos is 5, the set has 2",
        "different sizes: 64x48 in 1 files, 32x48 in 1 files",
        "does not start at 0 in 2 of 2 episodes",
    }


def test_a_set_of_which_no_number_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v21(tmp_path / "set", lengths=(5,))
    nothing = pa.array([[float("nan")] * 2] * 5, pa.list_(pa.float32()))
    rewrite(
        root / "data/chunk-000/episode_000000.parquet", lambda t: with_column(t, "action", nothing)
    )
    code, found = told(capsys, str(root))
    assert (code, found["dimensions"]) == (1, [])
    assert "NaN or Inf in 5 rows, first in row 0" in what_follows(found)


@pytest.mark.parametrize(
    ("place", "words", "said"),
    [
        ("nowhere", [], "nothing there; give the folder"),
        ("file.txt", [], "a file, of no kind that is read"),
        (".", [], "no videos there"),
        ("aloha", [], "set `fps`"),
        ("aloha", ["--fps", "-1"], "--fps: Input should be greater than 0"),
        (
            "aloha",
            ["--fps", "10", "--state", "observations/qpo"],
            "did you mean 'observations/qpos'",
        ),
        ("still", [], "fps is 0, no rate in Hz"),
    ],
)
def test_wrong_inputs_are_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, words: list[str], said: str
) -> None:
    (tmp_path / "file.txt").write_text("x")
    if place == "aloha":
        write_aloha(tmp_path / place, lengths=(5,))
    if place == "still":
        write_v21(tmp_path / place, lengths=(5,), fps=0)
    assert main(["data", "inspect", str(tmp_path / place), *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_bucket_is_inspected_as_a_folder_is(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.upload(write_v30(tmp_path / "set"), f"{bucket}/a set")
    # Its neighbour begins with the same letters.
    storage.upload(write_v21(tmp_path / "other", lengths=(5,)), f"{bucket}/a set 2")
    there, here = told(capsys, f"{bucket}/a set/")[1], told(capsys, str(tmp_path / "set"))[1]
    assert {k: v for k, v in there.items() if k != "uri"} == {
        k: v for k, v in here.items() if k != "uri"
    }
    for uri, said in (
        (f"{bucket}/none", "nothing there"),
        ("s3://no-such-bucket/x", "bucket 'no-such-bucket' does not exist"),
    ):
        assert main(["data", "inspect", uri]) == 2
        assert said in capsys.readouterr().err


def _mutants(raw: bytes, rng: random.Random) -> list[bytes]:
    at, flipped = rng.randrange(len(raw)), bytearray(raw)
    for _ in range(8):
        flipped[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return [
        b"",
        raw[:at],
        bytes(flipped),
        raw[:at] + bytes(min(64, len(raw) - at)) + raw[at + 64 :],
    ]


def _json_mutants(raw: bytes) -> list[bytes]:
    """Every value of a JSON file replaced by another kind of value, in turn."""
    found: list[bytes] = []
    places: list[tuple[Any, Any]] = []
    about = json.loads(raw)

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(min(2, len(node))):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(about)
    for i, (node, key) in enumerate(places):
        kept, node[key] = node[key], (None, 0, "x", [], {}, 3.7)[i % 6]
        found.append(json.dumps(about).encode())
        node[key] = kept
    return found


@pytest.mark.parametrize("name", [*ROBOTS, "tars"])
def test_damage_of_any_kind_is_told_and_never_a_traceback(tmp_path: Path, name: str) -> None:
    rng, root = random.Random(name), tmp_path / "set"
    write, words, _ = (write_tars, [], "") if name == "tars" else ROBOTS[name]
    write(root)
    source = Source(uri=str(root), fps=float(words[1]) if words else None)
    outcomes: set[int] = set()
    said: list[str] = []
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        raw = file.read_bytes()
        for damaged in _mutants(raw, rng) + (_json_mutants(raw) if file.suffix == ".json" else []):
            file.write_bytes(damaged)
            try:
                outcomes.add(exit_code(describe(source)))
            except GwpError as error:
                said.append(str(error))
        file.write_bytes(raw)
    assert said or outcomes & {1, 2}
    assert not [text for text in said if len(text.splitlines()) != 1]


def write_values(root: Path, episode: int, name: str, values: np.ndarray) -> None:
    """Other numbers into an episode of a v2.1 set."""
    file = root / f"data/chunk-000/episode_{episode:06d}.parquet"
    table = pq.read_table(file)
    column = pa.array(values.tolist(), pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index(name), name, column), file)


def test_rotations_are_suspected_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["qx", "qy", "qz", "qw", "yaw", "pan", "x"]
    about = {"dtype": "float32", "shape": [7], "names": names}
    root = write_v21(tmp_path / "set", (60,))
    meta = json.loads((root / "meta/info.json").read_text())
    meta["features"]["observation.state"] = about
    (root / "meta/info.json").write_text(json.dumps(meta))
    t = np.arange(60)
    turn = np.stack([0 * t, np.sin(t / 40), 0 * t, np.cos(t / 40)], 1)
    yaw = (t / 5 + np.pi) % (2 * np.pi) - np.pi
    rows = np.column_stack([turn, yaw, (9 * t) % 360, np.sin(t) * 3])
    write_values(root, 0, "observation.state", rows)
    code, found = told(capsys, str(root))
    assert code == 0
    advice = [f["advice"] for f in found["findings"] if f["item"] == "state"]
    four = "qx: quaternion, qy: quaternion, qz: quaternion, qw: quaternion"
    assert advice == [
        f"if so: `kinds: {{{four}}}` on the robot",
        "if so: `kinds: {yaw: radians}` on the robot",
        "if so: `kinds: {pan: degrees_positive}` on the robot",
    ]


def test_a_small_stroke_is_not_called_constant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v21(tmp_path / "set", (60,))
    t = np.arange(60)
    still = np.full(60, 0.4)
    write_values(
        root, 0, "observation.state", np.stack([np.sin(t / 9), 4e-5 * np.sin(t / 9), still], 1)
    )
    _, found = told(capsys, str(root))
    noted = [row["name"] for row in found["dimensions"] if row["note"] == "constant"]
    assert noted == ["grip"]


def test_slots_are_told_and_depth_has_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cameras = ("cam_depth", "cam_left_wrist", "cam_top")
    write_aloha(tmp_path / "set", cameras=cameras)
    code, found = told(capsys, str(tmp_path / "set"), *RATE)
    assert code == 0
    assert found["slots"] == {"front": "cam_top", "left": "cam_left_wrist"}
    assert {"cam_depth": "depth pictures"}.items() <= {
        f["item"]: f["what"] for f in found["findings"]
    }.items()
    assert main(["data", "inspect", str(tmp_path / "set"), *RATE]) == 0
    assert "front = cam_top, left = cam_left_wrist" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "usable"), [("g1_bottle_v21", 6), ("g1_bottle_v30", 6), ("clips", 9), ("embodied", 4)]
)
def test_real_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, usable: int
) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the sample set {name}")
    code, found = told(capsys, str(SHARED / name), "--html", str(tmp_path / "x.html"))
    assert (code, found["usable"]) == (0, usable)
    assert (tmp_path / "x.html").read_text().count("data:image/png;base64,") == (
        3 if name.startswith("g1") else usable
    )


def test_single_wild_rows_are_told_and_rare_motions_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_v21(tmp_path / "set", (82,))
    t = np.arange(82)
    rows = np.stack([np.sin(t / 9), np.cos(t / 9), np.sin(t / 7)], 1)
    write_values(root, 0, "observation.state", rows)
    assert not [f for f in told(capsys, str(root))[1]["findings"] if "single" in f["what"]]
    rows[40, 0] = 1e6
    write_values(root, 0, "observation.state", rows)
    (wild,) = [f for f in told(capsys, str(root))[1]["findings"] if "single" in f["what"]]
    assert wild["item"] == "state x"
    assert wild["what"].startswith("is 1e+06 in 1 single rows, and -0.99")

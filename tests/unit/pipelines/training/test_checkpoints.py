"""A checkpoint exists when its manifest does, and only whole ones are ever handed out."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwp import storage
from gwp.errors import GwpError
from pipelines.training.checkpoint import checkpoints, retention
from pipelines.training.checkpoint.checkpoints import CheckpointManifest


def _ranks(tmp_path: Path, step: int, world: int = 2) -> list[Path]:
    folders = []
    for rank in range(world):
        folder = tmp_path / f"local-{step}-{rank}"
        (folder / "ds").mkdir(parents=True)
        (folder / "ds" / f"rank_{rank}.pt").write_bytes(bytes([rank, step % 256]) * 500)
        folders.append(folder)
    return folders


def _write(
    run: str,
    tmp_path: Path,
    step: int,
    attempt: int = 1,
    committed: bool = True,
    validation: float | None = None,
) -> str:
    uri = checkpoints.checkpoint_uri(run, step, attempt)
    files = {}
    for folder in _ranks(tmp_path / f"a{attempt}", step):
        files |= checkpoints.upload_files(folder, uri)
    if committed:
        manifest = _manifest(step, attempt, files)
        checkpoints.commit(uri, manifest.model_copy(update={"validation": validation}))
    return uri


def _manifest(step: int, attempt: int, files: dict) -> CheckpointManifest:
    return CheckpointManifest(
        files=files,
        step=step,
        samples_seen=step * 16,
        world_size=2,
        zero_stage=2,
        attempt=attempt,
        plan_hash="p",
        config_hash="c",
    )


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def test_a_new_run_has_no_checkpoint(run: str) -> None:
    assert checkpoints.latest_committed(run) is None
    assert checkpoints.next_attempt(run) == 1


def test_newest_committed_wins_and_round_trips(run: str, tmp_path: Path) -> None:
    _write(run, tmp_path, 40)
    uri = _write(run, tmp_path, 80)
    found = checkpoints.latest_committed(run, deep=True)
    assert found is not None
    assert found[0] == uri
    assert (found[1].step, found[1].samples_seen, set(found[1].files)) == (
        80,
        1280,
        {"ds/rank_0.pt", "ds/rank_1.pt"},
    )
    folder = checkpoints.fetch(uri, found[1], tmp_path / "back")
    assert (folder / "ds" / "rank_1.pt").read_bytes() == bytes([1, 80]) * 500


def test_without_manifest_a_folder_does_not_exist(run: str, tmp_path: Path) -> None:
    first = _write(run, tmp_path, 40)
    orphan = _write(run, tmp_path, 80, committed=False)
    assert [uri for uri, _ in checkpoints.find_committed(run)] == [first]
    with pytest.raises(GwpError, match="was not committed"):
        checkpoints.load_committed(orphan)
    with pytest.raises(GwpError, match="does not exist"):
        checkpoints.load_committed(checkpoints.checkpoint_uri(run, 120, 1))
    assert checkpoints.load_committed(first).step == 40


def test_orphans_of_a_dead_attempt_are_never_adopted(run: str, tmp_path: Path) -> None:
    _write(run, tmp_path, 80, attempt=1, committed=False)
    assert checkpoints.next_attempt(run) == 2
    uri = _write(run, tmp_path, 80, attempt=2)
    found = checkpoints.latest_committed(run)
    assert found is not None
    assert found[0] == uri
    assert checkpoints.next_attempt(run) == 3


def _cut(content: bytes) -> Iterator[bytes]:
    """Nothing, one byte, half, and all but one."""
    yield from (content[:size] for size in (0, 1, len(content) // 2, len(content) - 1))


def _altered(content: bytes) -> Iterator[bytes]:
    """A bit is another, at the begin, in the middle and at the end; all zeros, as some file
    systems leave them.
    """
    for place in (0, len(content) // 3, len(content) // 2, len(content) - 1):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    yield bytes(len(content))


def _damages(path: Path) -> Iterator[bytes | None]:
    """Everything that may have become of a file; None: it is missing."""
    content = path.read_bytes()
    yield None
    yield from _cut(content)
    yield from _altered(content)
    yield content + b"x"


def test_no_file_can_be_damaged_and_the_checkpoint_loaded(
    run: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file, the manifest too, missing, cut, altered, longer: the one before is taken, and a
    line says so; at the latest when it is fetched.
    """
    first, second = _write(run, tmp_path, 40), _write(run, tmp_path, 80)
    files = [path for path in sorted(Path(second).rglob("*")) if path.is_file()]
    assert len(files) == 3
    tried = 0
    for path in files:
        whole = path.read_bytes()
        for damage in list(_damages(path)):
            caplog.clear()
            path.unlink() if damage is None else path.write_bytes(damage)
            uri = _gone_on_from(run, tmp_path / f"back-{tried}")
            tried += 1
            assert uri == first, (path, damage)
            # A folder without a manifest is none: nobody takes it for damaged.
            unseen = damage is None and path.name == checkpoints.MANIFEST
            assert unseen or second in caplog.text
            storage.remove(storage.join(second, checkpoints.ASIDE))
            path.write_bytes(whole)
    assert tried == 3 * 11
    assert checkpoints.latest_committed(run)[0] == second  # type: ignore[index]


def test_every_word_of_a_manifest_counts(run: str, tmp_path: Path) -> None:
    """Another digit in the position of the plan would train on other samples."""
    uri = _write(run, tmp_path, 40)
    file = Path(uri) / checkpoints.MANIFEST
    whole = file.read_text()
    for before, after in (
        ('"samples_seen": 640', '"samples_seen": 641'),
        ('zero_stage": 2', 'zero_stage": 1'),
    ):
        assert before in whole
        file.write_text(whole.replace(before, after))
        with pytest.raises(checkpoints.DamagedError, match=r"MANIFEST.json was altered"):
            checkpoints.load_committed(uri)
    # As a version before wrote it.
    record = json.loads(whole)
    del record["digest"]
    file.write_text(json.dumps(record))
    assert checkpoints.load_committed(uri).samples_seen == 640


def _gone_on_from(run: str, folder: Path) -> str:
    """The checkpoint whose state the workers would have, after as many starts as it takes."""
    for start in range(3):
        found = checkpoints.latest_committed(run)
        assert found is not None
        try:
            checkpoints.fetch(*found, folder / str(start))
        except checkpoints.DamagedError as error:
            checkpoints.set_aside(found[0], str(error))
        else:
            return found[0]
    raise AssertionError


def test_altered_bytes_of_the_same_size_are_refused(run: str, tmp_path: Path) -> None:
    first, second = _write(run, tmp_path, 40), _write(run, tmp_path, 80)
    (Path(second) / "ds" / "rank_0.pt").write_bytes(b"x" * 1000)
    manifest = checkpoints.load_committed(second)
    for attempt in (
        lambda: checkpoints.verify(second, manifest),
        lambda: checkpoints.fetch(second, manifest, tmp_path / "back"),
    ):
        with pytest.raises(GwpError, match=r"ds/rank_0\.pt was altered"):
            attempt()
    found = checkpoints.latest_committed(run, deep=True)
    assert found is not None
    assert found[0] == first


def test_a_commit_needs_all_its_files_and_happens_once(run: str, tmp_path: Path) -> None:
    uri = _write(run, tmp_path, 40)
    manifest = checkpoints.load_committed(uri)
    with pytest.raises(GwpError, match="committed already"):
        checkpoints.commit(uri, manifest)
    partial = checkpoints.checkpoint_uri(run, 80, 1)
    checkpoints.upload_files(_ranks(tmp_path / "one", 80)[0], partial)
    with pytest.raises(GwpError, match=r"rank_1\.pt is missing"):
        checkpoints.commit(partial, manifest)
    assert not storage.exists(storage.join(partial, checkpoints.MANIFEST))


def test_the_best_by_validation_is_kept(run: str, tmp_path: Path) -> None:
    losses = {20: math.nan, 40: 0.3, 60: 0.5, 80: 0.3, 100: None, 120: 0.4}
    for step, loss in losses.items():
        _write(run, tmp_path, step, validation=loss)
        retention.prune(run, keep=1)
    # The newest of equals, and the newest.
    assert [manifest.step for _, manifest in checkpoints.find_committed(run)] == [120, 80]


def test_prune_keeps_the_newest_and_what_is_in_the_making(run: str, tmp_path: Path) -> None:
    uris = [_write(run, tmp_path, step) for step in (10, 20, 30)]
    dead = _write(run, tmp_path, 20, attempt=2, committed=False)
    in_the_making = _write(run, tmp_path, 40, attempt=2, committed=False)
    assert retention.prune(run, keep=2) == sorted([uris[0], dead])
    assert [uri for uri, _ in checkpoints.find_committed(run)] == [uris[2], uris[1]]
    assert storage.list_files(in_the_making)
    with pytest.raises(GwpError, match="at least one"):
        retention.prune(run, keep=0)


def test_what_is_set_aside_is_not_gone_on_from(run: str, tmp_path: Path) -> None:
    uris = [_write(run, tmp_path, step) for step in (10, 20, 30)]
    file = Path(uris[2]) / "ds" / "rank_0.pt"
    file.write_bytes(b"x" * len(file.read_bytes()))
    found = checkpoints.latest_committed(run)
    assert found is not None
    with pytest.raises(checkpoints.DamagedError, match=r"rank_0\.pt was altered") as caught:
        checkpoints.fetch(*found, tmp_path / "back")
    checkpoints.set_aside(uris[2], str(caught.value))
    assert [uri for uri, _ in checkpoints.find_committed(run)] == [uris[1], uris[0]]
    assert "was altered" in (Path(uris[2]) / checkpoints.ASIDE).read_text()
    # A new attempt writes beside it; behind that it is pruned as others are.
    assert checkpoints.next_attempt(run) == 2
    again = _write(run, tmp_path, 30, attempt=2)
    assert sorted(retention.prune(run, 2)) == [uris[0], uris[2]]
    assert [uri for uri, _ in checkpoints.find_committed(run)] == [again, uris[1]]


def test_a_run_is_sent_back_to_a_step_that_it_has(run: str, tmp_path: Path) -> None:
    uris = [_write(run, tmp_path, step) for step in (10, 20, 30)]
    with pytest.raises(GwpError, match="no whole checkpoint at step 15; it has: 10, 20, 30"):
        checkpoints.go_back(run, 15)
    assert len(checkpoints.find_committed(run)) == 3
    checkpoints.go_back(run, 10)
    assert [uri for uri, _ in checkpoints.find_committed(run)] == [uris[0]]

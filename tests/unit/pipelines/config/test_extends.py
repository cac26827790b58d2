"""Files that take what they do not say from other files."""

from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.config.beside import beside
from pipelines.config.load import load_config
from tests.unit.pipelines.config.test_load import Adam, Job, problems, write


def test_extends_merges_mappings_and_replaces_lists(tmp_path: Path) -> None:
    write(
        tmp_path,
        "base.yaml",
        "batch_size: 2\noptimizer: {name: adam, lr: 0.5, betas: [0.1, 0.2]}\ndata: [{uri: a}, "
        "{uri: b}]\n",
    )
    top = write(
        tmp_path, "top.yaml", "extends: base.yaml\noptimizer: {lr: 1e-3}\ndata: [{uri: c}]\n"
    )
    job = load_config(top, Job)
    assert job.batch_size == 2
    assert job.optimizer == Adam(lr=1e-3, betas=(0.1, 0.2))
    assert [d.uri for d in job.data] == ["c"]


def test_a_problem_in_the_extended_file_names_that_file(tmp_path: Path) -> None:
    base = write(tmp_path, "base.yaml", "name: x\nbatchsize: 2\n")
    top = write(tmp_path, "top.yaml", "extends: base.yaml\nstage: 7\n")
    lines = problems(top)
    assert f"{base}:2 batchsize: unknown key, did you mean batch_size?" in lines
    assert any(line.startswith(f"{top}:2 stage: ") for line in lines)


def test_what_is_extended_may_extend_another(tmp_path: Path) -> None:
    """The nearest wins, and `..` is a folder up."""
    write(tmp_path, "a.yaml", "name: x\nbatch_size: 2\noptimizer: {name: adam, lr: 0.5}\n")
    (tmp_path / "b").mkdir()
    write(tmp_path / "b", "b.yaml", "extends: ../a.yaml\noptimizer: {lr: 0.25}\n")
    c = write(tmp_path, "c.yaml", "extends: b/b.yaml\nbatch_size: 3\ndata: [{uri: a}]\n")
    job = load_config(c, Job)
    assert (job.name, job.batch_size, job.optimizer) == ("x", 3, Adam(lr=0.25))


@pytest.mark.parametrize(
    ("path", "other", "found"),
    [
        ("s3://bucket/full/cards/a.yaml", "../base.yaml", "s3://bucket/full/base.yaml"),
        ("/jobs/a.yaml", "../base.yaml", "/base.yaml"),
        ("a.yaml", "base.yaml", "base.yaml"),
        ("jobs/a.yaml", "s3://bucket/base.yaml", "s3://bucket/base.yaml"),
        ("jobs/a.yaml", "/base.yaml", "/base.yaml"),
        ("jobs/a.yaml", "file:///base.yaml", "file:///base.yaml"),
        ("file:///jobs/a.yaml", "../base.yaml", "file:///base.yaml"),
    ],
)
def test_a_base_is_looked_for_beside_the_file(path: str, other: str, found: str) -> None:
    assert beside(path, other) == found


def test_the_folder_above_a_link_is_that_of_what_it_names(tmp_path: Path) -> None:
    for folder in ("shared/robots", "mine"):
        (tmp_path / folder).mkdir(parents=True)
    write(tmp_path / "shared", "base.yaml", "name: x\nbatch_size: 2\n")
    text = "extends: ../base.yaml\noptimizer: {name: adam, lr: 0.5}\ndata: [{uri: a}]\n"
    write(tmp_path / "shared" / "robots", "arm.yaml", text)
    (tmp_path / "mine" / "robots").symlink_to(tmp_path / "shared" / "robots")
    assert load_config(tmp_path / "mine" / "robots" / "arm.yaml", Job).batch_size == 2


def test_files_that_extend_each_other_through_a_link_are_told(tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(tmp_path)
    path = write(tmp_path, "a.yaml", "name: x\nextends: here/a.yaml\n")
    assert f"{path}:2 extends: {tmp_path}/here/a.yaml extends this file; remove one of them" in (
        problems(path)
    )


def test_files_that_extend_each_other_are_told(tmp_path: Path) -> None:
    a = write(tmp_path, "a.yaml", "name: x\nextends: b.yaml\n")
    b = write(tmp_path, "b.yaml", "extends: a.yaml\ndata: [{uri: a}]\n")
    assert f"{b}:1 extends: {a} extends this file; remove one of them" in problems(a)
    itself = write(tmp_path, "c.yaml", "extends: c.yaml\n")
    assert (
        problems(itself)[0] == f"{itself}:1 extends: {itself} extends this file; remove one of them"
    )


def test_missing_base_is_told_at_the_line_that_names_it(tmp_path: Path) -> None:
    (line,) = problems(write(tmp_path, "a.yaml", "name: x\nextends: gone.yaml\n"))
    assert line.startswith(f"{tmp_path}/a.yaml:2 extends: ")
    assert "gone.yaml" in line


def test_a_file_in_the_middle_is_checked_as_a_whole_one(capsys: pytest.CaptureFixture[str]) -> None:
    """What is extended need not be whole; what extends another is."""
    full = "pipelines/stages/full"
    assert main(["config", "check", f"{full}/gwp05.yaml", f"{full}/scale/policy-8.yaml"]) == 0
    assert "gwp05" not in capsys.readouterr().out
    files = [f"{full}/gwp05.yaml", f"{full}/policy.yaml", f"./{full}/scale/policy-8.yaml"]
    assert main(["config", "check", *files]) == 0
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines()] == files[1:]

"""The bench of sets far away: it makes a whole set, and its store answers what is asked."""

from pathlib import Path

import pytest

from gwp.errors import GwpError
from pipelines.bench.far.bench import bench_inspect, write_set
from pipelines.bench.far.store import Store
from tests.support.sets import write_v30


def test_a_made_set_is_whole_and_each_of_its_files_is_asked_for_once(tmp_path: Path) -> None:
    result = bench_inspect(None, 3, 1.0)
    assert (result["format"], result["episodes"], result["usable"]) == ("LeRobot v2.1", 3, 3)
    # Three of metadata; rows and a video of each episode; of some videos a picture more.
    assert 9 <= result["requests"]["GET"] <= 9 + 4
    assert result["seconds"] > 0


@pytest.mark.slow
def test_a_set_of_ones_own_is_served(tmp_path: Path) -> None:
    result = bench_inspect(str(write_v30(tmp_path / "mine")), 0, 0.0)
    assert (result["set"], result["usable"]) == ("mine", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GwpError, match="data inspect s3://far/empty failed"):
        bench_inspect(str(tmp_path / "empty"), 0, 0.0)


def test_the_store_lists_and_gives_parts(tmp_path: Path) -> None:
    write_set(tmp_path / "set", 2)
    store = Store(tmp_path, 0.0)

    def ask(target: str, *lines: str) -> tuple[str, bytes]:
        answer = store.answer("\r\n".join([f"GET {target} HTTP/1.1", *lines]).encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return head.decode(), body

    _, listed = ask("/far?prefix=set/data/&list-type=2")
    assert listed.count(b"<Key>set/data/chunk-000/episode_") == 2
    whole = (tmp_path / "set/meta/info.json").read_bytes()
    head, part = ask("/far/set/meta/info.json", "Range: bytes=3-9")
    assert part == whole[3:10]
    assert f"bytes 3-9/{len(whole)}" in head
    assert ask("/far/set/meta/info.json")[1] == whole
    assert ask("/far/nothing")[0].startswith("HTTP/1.1 404")
    assert store.counts == {"LIST": 1, "GET": 3}

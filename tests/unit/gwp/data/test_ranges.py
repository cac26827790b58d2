"""Episodes as text: which numbers a selection holds, and whether two of them meet."""

import itertools

import pytest

from gwp.data.ranges import meet, parse_ranges
from gwp.data.source import Source
from gwp.data.sources import share_episodes
from gwp.errors import DataError

MANY = 100


def numbers(text: str) -> set[int]:
    parts = parse_ranges(text, open_ended=True)
    return {n for n in range(MANY) if any(n in part for part in parts)}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("7", {7}),
        ("2:5", {2, 3, 4}),
        ("0,3,5", {0, 3, 5}),
        ("0:2, 90:", {0, 1, *range(90, MANY)}),
        ("3:30:8", {3, 11, 19, 27}),
        ("3::8", {n for n in range(MANY) if n % 8 == 3}),
        ("0::4,1::4,2::4", {n for n in range(MANY) if n % 4 != 3}),
    ],
)
def test_a_selection_holds_what_it_says(text: str, chosen: set[int]) -> None:
    assert numbers(text) == chosen
    source = Source(uri="x", episodes=text)
    assert set(source.select(list(range(MANY)))) == chosen


@pytest.mark.parametrize(
    "text", ["", "x", "-1", ":5", "5:5", "5:3", "0:9:0", "::8", "0:9:2:1", "3: 9"]
)
def test_what_says_nothing_is_refused(text: str) -> None:
    for open_ended in (False, True):
        with pytest.raises(ValueError, match="cannot read"):
            parse_ranges(text, open_ended=open_ended)


@pytest.mark.parametrize("text", ["3:", "3::8", "0,3:"])
def test_where_all_numbers_are_taken_there_has_to_be_an_end(text: str) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        parse_ranges(text)
    assert parse_ranges(text, open_ended=True)


def test_a_part_without_an_episode_is_told_as_it_was_written() -> None:
    source = Source(uri="x", episodes="0:4,90::8")
    with pytest.raises(DataError, match=r"no episode in 90::8; there are 0 to 79"):
        source.select(list(range(80)))


def test_ranges_meet_where_they_hold_the_same_number() -> None:
    texts = ["0:4", "4:9", "3:40:8", "3::8", "7::8", "0::3", "5:6", "90:", "1::6", "2:80:9", "11"]
    for one, other in itertools.product(texts, texts):
        (a,), (b,) = (parse_ranges(text, open_ended=True) for text in (one, other))
        assert meet(a, b) == bool(numbers(one) & numbers(other)), (one, other)


def test_an_interleaved_split_shares_no_episode() -> None:
    train, validation, test = (
        Source(uri="x", episodes=text) for text in ("0::4,1::4,2::4", "7::8", "3::8")
    )
    for one, other in itertools.combinations((train, validation, test), 2):
        assert not share_episodes(one, other)
    assert share_episodes(test, Source(uri="x", episodes="0:4"))
    assert share_episodes(test, Source(uri="x"))

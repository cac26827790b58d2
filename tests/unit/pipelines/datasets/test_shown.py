"""Findings for people: nothing grave is hidden, and what is alike is one line."""

from typing import Any

import pytest

from pipelines.datasets.inspect import as_text
from pipelines.datasets.shown import at_most, graver_first, grouped


def finding(item: str, what: str, consequence: str = "ignored", advice: str = "") -> dict[str, Any]:
    return {"item": item, "what": what, "consequence": consequence, "advice": advice}


def test_what_is_alike_is_one_line_that_names_all() -> None:
    findings = [
        *(finding(f"state j_{i}", "never moves") for i in range(43)),
        *(
            finding(f"episode {i}", f"videos/episode_{i:06d}.mp4 is missing", "left out")
            for i in (3, 7, 9)
        ),
        finding("episode 4", "has no rows", "left out"),
    ]
    first, second, third = grouped(findings)
    assert first["item"] == "3 episodes: 3, 7, 9"
    assert first["what"] == "videos/episode_000003.mp4 is missing (the first; the others alike)"
    assert (second["item"], second["what"]) == ("episode 4", "has no rows")
    assert third["item"].startswith("43 dimensions: state j_0, state j_1, ")
    assert third["item"].endswith(", ...")
    assert third["what"] == "never moves"


def test_different_advice_or_consequence_is_no_group() -> None:
    findings = [
        finding("a", "x 1"),
        finding("b", "x 2", advice="mend"),
        finding("c", "x 3", "repaired"),
    ]
    assert len(grouped(findings)) == 3


def test_the_gravest_comes_first_and_else_the_order_stays() -> None:
    findings = [
        finding("a", "p"),
        finding("b", "q", "left out"),
        finding("c", "r", "repaired"),
        finding("d", "s", "fatal"),
        finding("e", "t", "left out"),
    ]
    assert [f["item"] for f in graver_first(findings)] == ["d", "b", "e", "c", "a"]


@pytest.mark.parametrize("losses", [0, 3, 60])
def test_no_loss_is_cut(losses: int) -> None:
    names = [chr(ord("a") + i // 26) + chr(ord("a") + i % 26) for i in range(100)]
    findings = [finding(name, f"is {name}") for name in names[losses:]]
    findings += [finding(name, f"is {name}", "left out") for name in names[:losses]]
    groups = grouped(findings)
    shown = at_most(groups, 20)
    assert len(groups) == 100
    assert len(shown) == max(20, losses)
    assert sum(f["consequence"] == "left out" for f in shown) == losses
    facts = {
        "uri": "u",
        "format": "plain videos",
        "usable": 1,
        "episodes": 1,
        "frames": 1,
        "hours": 1.0,
        "captions": 0,
        "videos": [],
        "findings": findings,
    }
    text = as_text(facts)
    assert all(f"is {name}" in text for name in names[:losses])
    assert f"... and {100 - len(shown)} more" in text

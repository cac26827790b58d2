"""Both pages with hostile words in everything that comes from data: text stays text."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError

from pipelines.cli import main
from pipelines.evaluation.imagined import Clip
from pipelines.evaluation.report import ReportData, write_report
from pipelines.pages.axes import name_in_chart
from pipelines.pages.render import Picture, Table, render
from tests.support.sets import info, write_v21, write_video

# Markup, ends of elements and attributes, a template's and a chart's own syntax.
WORDS = (
    """<script>alert(1)</script> "onerror="alert(1)" 'x' javascript:alert(1) """
    r"""</style></title> --> {{ 7*7 }} {% raw %} $\frac{$ &lt; é"""
)
# The same without what no file may be called.
NAME = r"""<img src=x onerror=alert(1)> "onload="x" 'y' javascript:1 {{ 7*7 }} $\frac{$ &lt; é""".replace(
    "\\", ""
)
TAGS = (
    "html head meta title style body main section div h1 h2 h3 p b span small ol ul li figure "
    "figcaption img table thead tbody tr th td"
)
ATTRIBUTES = "lang charset name content http-equiv class role src alt scope"
CLASSES = (
    "lead box shortfalls cut tiles tile long note line trained empty scroll chart strip frames "
    "word text caveats problem pictures uri fatal left-out repaired ignored"
)
rng = np.random.default_rng(0)


class Reader(HTMLParser):
    """Text and attributes of a page as a browser takes them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]

    def alts(self) -> list[str]:
        return [" ".join(alt.split()) for alt in self.values("alt")]


def read(page: str) -> Reader:
    """A page of which no element and no attribute is another than the templates have."""
    reader = Reader(page)
    assert reader.tags <= set(TAGS.split())
    assert {name for name, _ in reader.attributes} <= set(ATTRIBUTES.split())
    assert set(" ".join(reader.values("class")).split()) <= set(CLASSES.split())
    assert all(source.startswith("data:image/png;base64,") for source in reader.values("src"))
    assert all(reader.alts())
    return reader


def occurrences(reader: Reader, words: str) -> int:
    wanted = " ".join(words.split())
    return sum(text.count(wanted) for text in reader.texts)


def hostile_report() -> tuple[dict, ReportData]:
    frames = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    episodes = {"success": 0.5, "episodes": 2, "success_random": 0.0, "episodes_random": 2}
    jump = {"position": 1.0, "position_p95": 1.0, "velocity": 1.0, "velocity_p95": 1.0}
    summary = {
        "stages": {WORDS: {"steps": 1, "seconds": 1.0}},
        "resume": {"killed_at_step": WORDS, "resumed_from_step": WORDS},
        "policy": {"id": f"<b>{WORDS}", "version": WORDS, "alias": WORDS, "family": WORDS},
        "closed_loop": {WORDS: episodes},
        "fleet": {
            "robots": WORDS,
            "requests": WORDS,
            "failed": WORDS,
            "p50_ms": 1.0,
            "p99_ms": 1.0,
            "replicas_min": WORDS,
            "replicas_max": 1,
            "errors": [WORDS],
        },
        "shortfalls": [WORDS],
        "cut": [{"name": WORDS, "full": WORDS, "cut": WORDS}],
    }
    media = ReportData(
        losses={WORDS: [(0, 1.0), (1, 0.5)]},
        resumed={WORDS: [1]},
        imagined=[Clip(WORDS, WORDS, 0, 0, frames, frames)],
        actions=((WORDS,), rng.normal(size=(4, 1)), rng.normal(size=(4, 1))),
        closed_loop={WORDS: {WORDS: (1, 2)}},
        steps=[{"steps": WORDS, "ms": 1.0, "mse": 1.0, "rms": 1.0}],
        seams={"delay": WORDS, "seams": WORDS, "inside": jump, "chunked": jump, "naive": jump},
        latency={WORDS: [1.0, 2.0]},
        environment={WORDS: WORDS},
        caveats=[WORDS],
    )
    return summary, media


def test_hostile_words_in_every_field_of_the_report_stay_text(tmp_path: Path) -> None:
    summary, media = hostile_report()
    reader = read(write_report(tmp_path, summary, media, title=WORDS).read_text())
    # Title twice; shortfall 1; cut 3; tiles: fleet 4, resume 2, policy 3; clip 1; closed loop 2;
    # latency 1; studies 4; error 1; environment 2; caveat 1.
    assert occurrences(reader, WORDS) == 2 + 1 + 3 + 4 + 2 + 3 + 1 + 2 + 1 + 4 + 1 + 2 + 1
    assert sum(" ".join(WORDS.split()) in alt for alt in reader.alts()) == 4


@pytest.fixture
def robot_set(tmp_path: Path) -> Path:
    """A set that calls everything by hostile names and has a camera that cannot be read."""
    root = tmp_path / NAME
    features = info("v2.1", (NAME,))["features"]
    features["observation.state"]["names"] = [f"{NAME} 0", "still", "s2"]
    features["action"]["names"] = [NAME, "a1"]
    features[f"{NAME} absent"] = features[NAME]
    return write_v21(
        root,
        lengths=(9, 8),
        cameras=(NAME,),
        tasks=(WORDS,),
        robot_type=WORDS,
        features=features,
        splits={WORDS: "0:9"},
    )


def test_hostile_words_in_every_field_of_a_robot_set_stay_text(
    tmp_path: Path, robot_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = next(robot_set.glob("videos/*/*/episode_000001.mp4"))
    broken.write_bytes(b"none")
    page = tmp_path / "page.html"
    assert main(["data", "inspect", str(robot_set), "--html", str(page), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    # What reached the page: the data do carry the words, and findings repeat them.
    assert NAME in facts["uri"]
    assert any(NAME in finding["item"] for finding in facts["findings"])
    reader = read(page.read_text())
    text = " ".join(reader.texts)
    for words in (facts["uri"], WORDS, NAME, f"{NAME} 0", f"{NAME} absent"):
        assert " ".join(words.split()) in text
    for finding in facts["findings"]:
        assert " ".join(finding["what"].split()) in text
    assert any(NAME in alt for alt in reader.alts())


def test_hostile_words_in_every_field_of_clips_stay_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / NAME
    write_video(root / f"{NAME}.mp4", range(30))
    (root / f"{NAME} broken.mp4").write_bytes(b"none")
    entries = [{"file": f"{NAME}.mp4", "caption": WORDS}, {"file": f"{NAME} gone.mp4"}]
    (root / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    page = tmp_path / "page.html"
    assert main(["data", "inspect", str(root), "--html", str(page), "--json"]) == 1
    capsys.readouterr()
    reader = read(page.read_text())
    text = " ".join(reader.texts)
    for words in (f"{NAME}.mp4", f"{NAME} broken.mp4", f"{NAME} gone.mp4", WORDS):
        assert " ".join(words.split()) in text
    assert any(NAME in alt for alt in reader.alts())


def test_a_name_that_is_no_text_does_not_spoil_the_page(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    assert "caf?.mp4" in write_report(tmp_path, {}, ReportData(caveats=[name])).read_text()


def test_a_name_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        render("report.html.j2", title="no more than a title")


def test_a_picture_lies_in_the_page() -> None:
    assert Picture(b"\x89PNG", "a picture").uri == "data:image/png;base64,iVBORw=="


def test_names_in_charts_fit_and_are_drawn_as_they_are() -> None:
    assert name_in_chart("arm_joint") == "arm_joint"
    assert name_in_chart("a\n b\t\x07c\udce9") == "a b ?c?"
    long = name_in_chart("x" * 100)
    assert (len(long), long[-1]) == (24, "…")
    assert name_in_chart("$\\frac{$") == "$\\frac{$"


def test_a_table_names_its_columns_and_rows() -> None:
    table = Table(["robot", "episodes"], [["arm", "3"], ["hand", "a long text " * 9]])
    empty = dict.fromkeys(("losses", "actions", "closed_loop", "latency", "fleet"))
    none = dict.fromkeys(("shortfalls", "cut", "headline", "trained", "imagined", "caveats"), ())
    page = render(
        "report.html.j2",
        title="t",
        studies=[table],
        fleet_errors=[],
        environment=Table((), []),
        **empty,
        **none,
    ).decode()
    assert page.count('<th scope="col">') == 2
    assert page.count('<th scope="row"') == 2
    assert page.count('class="text"') == 1

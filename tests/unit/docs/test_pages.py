"""What README and docs tell people to type is true: commands, files, fields, names."""

import ast
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.cli import build_parser
from pipelines.config.load import load_any
from pipelines.config.reference import reference
from tests.support.paths import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PACKAGES = ("gwp", "pipelines", "serve", "clusters")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OURS = re.compile(r"\bGWP_[A-Z0-9_]+\b")
_ASKING = re.compile(r"os\.(environ\.(get|setdefault|pop)|getenv)")
_LIBRARIES = "AWS|CUDA|DS|HF|MLFLOW|MUJOCO|NCCL|OMP|PYOPENGL|RAY|TORCH|XDG"
_OF_LIBRARIES = re.compile(rf"({_LIBRARIES})_[A-Za-z0-9_]+")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: where it stands, its language, its text."""

    place: str
    language: str
    text: str


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            if match[1] in languages:
                found.append(Block(f"{page.relative_to(ROOT)}:{line}", match[1], match[2]))
    return found


def commands(block: Block) -> Iterator[list[str]]:
    """Words of each command of a shell block; of a `console` block, of the lines behind `$`."""
    for line in block.text.replace("\\\n", " ").splitlines():
        typed = line
        if block.language == "console":
            prompt, found, typed = line.partition("$ ")
            if not found or prompt:
                continue
        words = shlex.split(typed, comments=True)
        ends = [i for i, word in enumerate(words) if word in (">", "|", "&&", ";")]
        if words:
            yield words[: min(ends, default=None)]


COMMANDS = [(block.place, words) for block in blocks("sh", "console") for words in commands(block)]
GWP = [(place, words[1:]) for place, words in COMMANDS if Path(words[0]).name == "gwp"]
MAKE = [(place, words[1:]) for place, words in COMMANDS if words[0] == "make"]


def parsed(words: list[str]) -> str:
    """What the argument parser says against a command; "" when it takes it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            build_parser().parse_args(words)
    except SystemExit as left:
        return said.getvalue() if left.code else ""
    return ""


def test_there_is_something_to_check() -> None:
    verbs = {words[0] for _, words in GWP}
    used = {"data", "train", "export", "promote", "serve", "act", "eval", "config", "bench"}
    assert used | {"weights", "mini", "submit"} <= verbs
    assert {"demo", "test"} <= {target for _, words in MAKE for target in words}


NAMES = [f"{place} {' '.join(words)}"[:60] for place, words in GWP]


@pytest.mark.parametrize(("place", "words"), GWP, ids=NAMES)
def test_every_gwp_command_is_one(place: str, words: list[str]) -> None:
    assert not parsed(words), f"{place}: gwp {shlex.join(words)}"


def test_the_check_of_commands_refuses_what_is_none() -> None:
    assert "invalid choice" in parsed(["trian", "x.yaml"])
    assert "unrecognized arguments" in parsed(["train", "x.yaml", "--no-such-option"])
    assert "required" in parsed(["export", "runs/train/policy"])


def test_every_make_target_is_one() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for place, words in MAKE:
        named = {word for word in words if "=" not in word}
        assert named, place
        assert named <= targets, f"{place}: make {' '.join(words)}"


def test_files_that_commands_name_take_their_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gwp train FILE --set ...`: FILE is in the repository, or a block that begins so."""
    monkeypatch.chdir(ROOT)
    written = {}
    for block in named_files():
        name = block.text.splitlines()[0].removeprefix("#").strip()
        written[name] = tmp_path / name
        written[name].write_text(block.text)
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    checked = 0
    for place, words in GWP:
        asked = build_parser().parse_args(words)
        names = [asked.file] if getattr(asked, "file", None) else []
        sets = getattr(asked, "sets", [])
        for name in names:
            assert isinstance(sets, list)
            file = written.get(name, ROOT / name)
            assert file.exists(), f"{place}: {name}"
            load_any(file, sets)
            checked += 1
    assert checked > 5


def named_files() -> list[Block]:
    return [block for block in blocks("yaml") if re.match(r"# [\w./-]+\.yaml\n", block.text)]


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_every_whole_file_of_yaml_loads(block: Block, tmp_path: Path) -> None:
    if not re.search(r"^(kind|extends):", block.text, re.MULTILINE):
        # A part of a file; the page says of which.
        return
    (tmp_path / "pipelines").symlink_to(ROOT / "pipelines")
    file = tmp_path / "file.yaml"
    file.write_text(block.text)
    load_any(file)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.place)
def test_python_compiles_and_imports_what_there_is(block: Block) -> None:
    tree = ast.parse(block.text, block.place)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "gwp":
            module = __import__(node.module or "", fromlist=["*"])
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block.place}: {node.module}.{alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Also those that mkdocs does not look at: from README, and out of docs/."""
    text = _FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        name, _, anchor = link.partition("#")
        if "://" in name or not (name or anchor):
            continue
        file = page.parent / name if name else page
        assert file.exists(), link
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), link


def anchors(page: Path) -> set[str]:
    """Of the headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_configuration_reference_is_in_step() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == reference(), "run: gwp config reference > docs/configuration.md"


def code() -> Iterator[tuple[Path, ast.AST]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def names_in_code() -> dict[str, str]:
    """Environment variable -> a file that speaks of it: ours, of libraries, and all asked for."""
    found: dict[str, str] = {}
    for path, tree in code():
        place = str(path.relative_to(ROOT))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = _OURS.findall(node.value)
                if _OF_LIBRARIES.fullmatch(node.value):
                    names.append(node.value)
                found |= dict.fromkeys(names, place)
            if name := asked_of_environment(node):
                found[name] = place
    return found


def asked_of_environment(node: ast.AST) -> str | None:
    """`os.environ["X"]`, `os.environ.get("X")` and the like, `os.getenv("X")` -> X."""
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
        inner: ast.AST = node.slice
    elif isinstance(node, ast.Call) and node.args and _ASKING.fullmatch(ast.unparse(node.func)):
        inner = node.args[0]
    else:
        return None
    return inner.value if isinstance(inner, ast.Constant) and isinstance(inner.value, str) else None


def test_every_environment_variable_is_on_its_page() -> None:
    page = (ROOT / "docs" / "environment.md").read_text()
    told = set(re.findall(r"`([A-Za-z_0-9]+)`", page))
    missing = {name: place for name, place in names_in_code().items() if name not in told}
    assert not missing
    code_names = names_in_code()
    some = {"GWP_CACHE", "GWP_STORAGE_PATIENCE_S", "AWS_ENDPOINT_URL", "RAY_ADDRESS", "CXX"}
    assert some <= code_names.keys()
    stale = {name for name in told if _OURS.fullmatch(name)} - code_names.keys()
    assert not stale


def test_the_check_of_the_environment_sees_every_form() -> None:
    text = """os.environ["A"]; os.environ.get("B"); os.getenv("C"); os.environ.setdefault("D", "1")
os.environ.pop("E"); x["F"]; f("G"); os.environ.get(x, "").split(",")"""
    found = {name for node in ast.walk(ast.parse(text)) if (name := asked_of_environment(node))}
    assert found == {"A", "B", "C", "D", "E"}

"""Configuration files: what is read, what is refused, and how it is said."""

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.config import load as config
from pipelines.config.load import ConfigError, config_hash, dump_resolved, load_any, load_config
from tests.support.paths import ROOT

STRICT = ConfigDict(extra="forbid", frozen=True)


class Adam(BaseModel):
    model_config = STRICT
    name: Literal["adam"] = "adam"
    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Sgd(BaseModel):
    model_config = STRICT
    name: Literal["sgd"]
    momentum: float = 0.9


class Preset(BaseModel):
    model_config = STRICT
    preset: Literal["small", "large"]


class Shape(BaseModel):
    model_config = STRICT
    layers: int = Field(gt=0)
    width: int = 64
    heads: int = 4

    @model_validator(mode="after")
    def _divides(self) -> "Shape":
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class Dataset(BaseModel):
    model_config = STRICT
    uri: str
    weight: float = 1.0


class Job(BaseModel):
    model_config = STRICT
    name: str = "run"
    batch_size: int = 8
    stage: Literal["world", "embodied", "policy"] = "world"
    optimizer: Annotated[Adam | Sgd, Field(discriminator="name")] = Adam()
    shape: Preset | Shape = Preset(preset="small")
    data: tuple[Dataset, ...] = ()
    robots: dict[str, Dataset] = {}
    note: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Job":
        if self.name == "cursed":
            raise ValueError("name is cursed; choose another")
        return self


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def problems(path: str, sets: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, Job, sets)
    return caught.value.lines


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("3.", 3.0),
        (".inf", float("inf")),
        ("12", 12),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("12:30:00", "12:30:00"),
        ("2026-01-31", "2026-01-31"),
        ("1_000", "1_000"),
        ("'1e-4'", "1e-4"),
        ("<<", "<<"),
        ("!!str 12", "12"),
        ("[1e-3, off]", [1e-3, "off"]),
    ],
)
def test_scalars_follow_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    class Any_(BaseModel):
        x: object

    read = load_config(write(tmp_path, "a.yaml", f"x: {text}\n"), Any_).x
    assert read == value
    assert type(read) is type(value)


def test_every_problem_is_told_with_its_line_and_the_likely_word(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "job.yaml",
        """\
name: first
batchsize: 4
stage: polisy
optimizer:
  name: adam
  lr: fast
  momentum: 1
data:
  - uri: a
    wieght: 2
  - weight: 1
robots:
  arm: {url: x}
name: second
""",
    )
    lines = problems(path)
    expected = [
        (14, "name", "duplicate key, first given at"),
        (2, "batchsize", "unknown key, did you mean batch_size?"),
        (3, "stage", "did you mean policy?"),
        (6, "optimizer.lr", "should be a number"),
        (7, "optimizer.momentum", "unknown key"),
        (10, "data.0.wieght", "unknown key, did you mean weight?"),
        (11, "data.1.uri", "missing"),
        (13, "robots.arm.url", "unknown key, did you mean uri?"),
        (13, "robots.arm.uri", "missing"),
    ]
    assert len(lines) == len(expected)
    for line, key, what in expected:
        assert any(told.startswith(f"{path}:{line} {key}: ") and what in told for told in lines), (
            line,
            key,
            lines,
        )


def test_unknown_key_without_a_likely_word_lists_the_known_ones(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "a.yaml", "optimizer: {name: sgd, zzz: 1}")) == [
        f"{tmp_path}/a.yaml:1 optimizer.zzz: unknown key; known here: name, momentum"
    ]


def test_in_a_union_only_the_variant_that_was_meant_is_spoken_of(tmp_path: Path) -> None:
    lines = problems(write(tmp_path, "a.yaml", "shape:\n  layers: 2\n  widht: 8\n"))
    assert [line.split(" ", 1)[1] for line in lines] == [
        "shape.widht: unknown key, did you mean width?"
    ]
    lines = problems(write(tmp_path, "b.yaml", "shape: {preset: smal}\n"))
    assert len(lines) == 1
    assert "did you mean small?" in lines[0]
    # What the variant says of itself as a whole, too.
    lines = problems(write(tmp_path, "c.yaml", "shape: {layers: 2, width: 30}\n"))
    assert [line.split(" ", 1)[1] for line in lines] == [
        "shape: width 30 is no multiple of heads 4"
    ]


def test_a_list_with_a_wrong_entry_is_not_also_called_short(tmp_path: Path) -> None:
    class Sources(BaseModel):
        data: tuple[Dataset, ...] = Field(min_length=1)

    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "a.yaml", "data: [{uri: a, wieght: 1}]"), Sources)
    assert [line.split(" ")[1] for line in caught.value.lines] == ["data.0.wieght:"]
    with pytest.raises(ConfigError, match="at least 1 item"):
        load_config(write(tmp_path, "b.yaml", "data: []"), Sources)


def test_wrong_discriminator(tmp_path: Path) -> None:
    (line,) = problems(write(tmp_path, "a.yaml", "optimizer:\n  name: adan\n"))
    assert line.startswith(f"{tmp_path}/a.yaml:2 optimizer.name: is 'adan'")
    assert line.endswith("did you mean adam?")
    (line,) = problems(write(tmp_path, "b.yaml", "optimizer: {lr: 1}\n"))
    assert "optimizer.name: missing" in line


def test_validator_message_is_told_as_written(tmp_path: Path) -> None:
    (line,) = problems(write(tmp_path, "a.yaml", "name: cursed\n"))
    assert line == f"{tmp_path}/a.yaml:1: name is cursed; choose another"


def test_set_comes_last_and_is_yaml(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "optimizer: {name: adam, lr: 1}\ndata: [{uri: a}]\n")
    job = load_config(
        path,
        Job,
        ["optimizer.lr=1e-4", "data.0.weight=2.5", "robots.arm={uri: z}", "note=on", "name=x=y"],
    )
    assert job.optimizer == Adam(lr=1e-4)
    assert (job.data[0].weight, job.robots["arm"].uri, job.note, job.name) == (
        2.5,
        "z",
        "on",
        "x=y",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimiser.lr=1", "--set optimiser.lr=1 optimiser: unknown key, did you mean optimizer?"),
        ("optimizer.name=sgdd", "--set optimizer.name=sgdd optimizer.name: is 'sgdd'"),
        ("batch_size", "--set batch_size: write it as"),
        ("batch_size.x=1", "--set batch_size.x=1: batch_size is the value 4 and has no keys"),
        ("data.3.uri=z", "--set data.3.uri=z: data is a list of 1"),
        ("data=[", "--set data=[:1 not valid YAML"),
        ("extends=b.yaml", "--set extends=b.yaml extends: unknown key"),
    ],
)
def test_a_wrong_set_is_told_as_it_was_typed(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, "a.yaml", "batch_size: 4\ndata: [{uri: a}]\n")
    assert problems(path, (text,))[0].startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1,\nb: 2\n", ":3 not valid YAML"),
        ("- 1\n", ":1 the file must hold"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "name: should be text"),
        ("name: !secret x\n", ":1 name: the tag !secret is not understood"),
        ("robots: &a {arm: *a}\n", "an anchor that contains itself"),
        ("? [1, 2]\n: x\n", "a key must be a plain word"),
    ],
)
def test_text_that_is_no_plain_document(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in line for line in problems(write(tmp_path, "a.yaml", text)))


def test_unreadable_files(tmp_path: Path) -> None:
    assert "not found" in problems(str(tmp_path / "none.yaml"))[0]
    assert problems(str(tmp_path))[0].startswith(f"{tmp_path}: ")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "b.yaml" in problems(str(tmp_path / "b.yaml"))[0]


def test_resolved_text_loads_as_the_same_configuration(tmp_path: Path) -> None:
    job = Job(
        name="1e-4",
        note="0o17",
        optimizer=Adam(lr=1e-7),
        robots={"on": Dataset(uri="yes"), "010": Dataset(uri="~")},
        data=(Dataset(uri="12:30:00", weight=1e22),),
    )
    assert load_config(write(tmp_path, "out.yaml", dump_resolved(job)), Job) == job


def test_kind_and_version_must_fit(tmp_path: Path) -> None:
    assert (
        load_config(write(tmp_path, "a.yaml", "kind: Job\nversion: 1\nname: x\n"), Job).name == "x"
    )
    lines = problems(write(tmp_path, "b.yaml", "kind: TrainJob\nversion: 2\n"))
    assert [line.split(" ", 1)[1] for line in lines] == [
        "kind: is 'TrainJob', should be 'Job'",
        "version: is 2, should be 1",
    ]


def test_load_any_asks_for_the_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kind: missing; write one of TrainJob, ServeApp"):
        load_any(write(tmp_path, "a.yaml", "name: x\n"))
    with pytest.raises(ConfigError, match="did you mean TrainJob"):
        load_any(write(tmp_path, "b.yaml", "kind: TrainJbo\n"))


def test_hash_sees_every_field_but_the_excluded() -> None:
    one, two = Job(name="a"), Job(name="b")
    assert config_hash(one) == config_hash(Job(name="a"))
    assert config_hash(one) != config_hash(two)
    assert config_hash(one, ["name"]) == config_hash(two, ["name"])
    assert config_hash(Job(optimizer=Adam(lr=1)), ["optimizer.lr"]) == config_hash(
        Job(optimizer=Adam(lr=2)), ["optimizer.lr"]
    )
    with pytest.raises(KeyError):
        config_hash(one, ["nmae"])


def test_schema_accepts_the_keys_of_the_loader() -> None:
    for kind in config.kinds():
        found = config.schema(kind)
        assert {"kind", "version", "extends"} <= set(found["properties"])
        assert found["additionalProperties"] is False
        json.dumps(found)


def test_schema_explains_every_field() -> None:
    """What an editor shows beside a key."""
    for kind in ("TrainJob", "ServeApp"):
        found = config.schema(kind)
        parts = {kind: found, **found["$defs"]}
        for part, fields in ((part, of.get("properties", {})) for part, of in parts.items()):
            # A field that says the same as the part it refers to leaves it to that part.
            told = {
                name: field | parts.get(field.get("$ref", "").removeprefix("#/$defs/"), {})
                for name, field in fields.items()
            }
            assert [
                f"{part}.{name}" for name, field in told.items() if "description" not in field
            ] == []


YAMLS = sorted(
    path for top in ("pipelines", "serve", "clusters") for path in (ROOT / top).rglob("*.yaml")
)


def first_document(path: Path) -> dict[str, object]:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    assert isinstance(documents[0], dict)
    return documents[0]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_yaml_of_the_repository_is_valid(path: Path) -> None:
    """A file that others extend need not be complete; it is checked as part of them."""
    extended = {
        (other.parent / str(base)).resolve()
        for other in YAMLS
        if (base := first_document(other).get("extends"))
    }
    document = first_document(path)
    if "extends" in document or (
        document.get("kind") in config.kinds() and path.resolve() not in extended
    ):
        load_any(path)

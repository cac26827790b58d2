"""Recipes: names for what several fields of a job say together.

A recipe gives the fields that the file leaves out. One that says something else is refused, so that
a run which carries the name of a recipe is one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel

from gwp.model.config import Family
from pipelines.jobs.trained import ACTION_EXPERT, TEXT_PATH

Recipe = Literal["published", "action-expert", "lora"]

FAMILY_DEFAULTS: dict[Family, dict[str, Any]] = {
    # Of GWP-0.5 they are the defaults of the fields.
    "gwp05": {},
    # Its paper has the weights, its released trainer the noise.
    "gwp0": {"objective": {"action_weight": 5.0, "video_shift": 5.0, "shared_noise": True}},
}
"""What is another default than that of the field. Given fields say otherwise at will."""


def family_of(model: Any) -> Family | None:
    """Of `model` as a file or code gives it; None where it says none that is known."""
    fields = _plain(model)
    if not isinstance(fields, Mapping):
        return None
    family = fields.get("released") or fields.get("family", "gwp05")
    return family if family in FAMILY_DEFAULTS else None


def published(family: Family) -> dict[str, Any]:
    """The released fine-tuning, as its code does it."""
    dense = family == "gwp0"
    return {
        "run": {"steps": 50_000},
        "objective": {
            "modes": {"video": 0.0, "ac_wm": 0.0, "wam": 1.0},
            # Both trainers sum them, whatever the paper of GWP-0 says.
            "action_weight": 1.0,
            "video_weight": 1.0,
            "action_shift": 5.0,
            "video_shift": 5.0 if dense else 2.0,
            "shared_noise": dense,
            "chunk_prefix": 0.0,
            "text_dropout": 0.0,
            "masking": "published",
            "timesteps": "bf16",
        },
        "optimizer": {
            "kind": "came",
            "lr": 6e-5,
            "betas": [0.9, 0.999],
            "weight_decay": 0.01,
            "decay": "all",
            "warmup_steps": 0,
            "schedule": "constant",
            "clip": 0.0,
            # GWP-0.5 computes keys and values of the text without a gradient, in training too.
            "freeze": [] if dense else list(TEXT_PATH),
            "only": [],
        },
        "engine": {
            "zero_stage": 2,
            "precision": "bf16",
            "global_batch": 128,
            "ema_decay": 0.9999,
        },
    }


def _action_expert(family: Family) -> dict[str, Any]:
    if family == "gwp0":
        raise ValueError(
            "recipe: action-expert is for gwp05; gwp0 has one expert for all tokens (its action "
            "projections alone: optimizer.only: [action_encoder, action_decoder])"
        )
    return {"optimizer": {"only": list(ACTION_EXPERT)}}


def with_recipe(data: dict[str, Any], family: Family, recipe: str | None) -> dict[str, Any]:
    """The fields of a job with those that its recipe and its family add. ValueError that names
    each field that contradicts the recipe.
    """
    given = _plain(data)
    if recipe == "published":
        ranges = {name: {"ranges": "published"} for name in _robots(given)}
        fields = published(family) | {"data": {"embodiments": ranges}}
        # How long is the run's own matter, as is going on with more.
        length = {"run": fields.pop("run")}
        given = _merged(length, _filled(given, fields, recipe))
    elif recipe == "action-expert":
        given = _filled(given, _action_expert(family), recipe)
    elif recipe == "lora":
        given = _merged({"lora": {}}, given)
    return _merged(FAMILY_DEFAULTS[family], given)


def _robots(given: Mapping[str, Any]) -> list[str]:
    data = given.get("data")
    robots = data.get("embodiments") if isinstance(data, Mapping) else None
    return list(robots) if isinstance(robots, Mapping) else []


def _filled(given: dict[str, Any], fields: dict[str, Any], recipe: str) -> dict[str, Any]:
    wrong = list(_differences(given, fields))
    if wrong:
        raise ValueError(
            f"recipe: {recipe} says otherwise: {'; '.join(wrong)}. Leave these fields out, or leave "
            "`recipe` out and write down those that you want of it (`gwp config show` prints them)"
        )
    return _merged(fields, given)


def _differences(
    given: Mapping[str, Any], fields: Mapping[str, Any], at: str = ""
) -> Iterator[str]:
    for key, value in fields.items():
        theirs = given.get(key)
        if theirs is None:
            continue
        name = f"{at}.{key}".lstrip(".")
        if isinstance(value, dict):
            # What is no mapping is told by the field itself.
            if isinstance(theirs, Mapping):
                yield from _differences(theirs, value, name)
        elif not _same(theirs, value):
            yield f"{name} is {theirs} here and {value} there"


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return list(one) == list(other)
    return bool(one == other)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` with what it lacks of `base`."""
    result = dict(over)
    for key, value in base.items():
        theirs = result.get(key)
        if theirs is None:
            result[key] = value
        elif isinstance(value, Mapping) and isinstance(theirs, Mapping):
            result[key] = _merged(value, theirs)
    return result


def _plain(value: Any) -> Any:
    """Mappings in the place of models that code hands over, with the fields that it gave."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value

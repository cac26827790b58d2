"""info.json of a LeRobot set, looked at once: whoever uses it afterwards may trust its form."""

from math import prod
from typing import Any

from gwp.data.formats.files.texts import read_json
from gwp.data.formats.finding import Finding
from gwp.data.formats.lerobot.meta.places import INFO
from gwp.data.formats.lerobot.numbers import whole_or_none
from gwp.errors import DataError
from gwp.storage.names import shown

_SLOWEST, _FASTEST = 1e-3, 1e6
"""Hz that a set may be recorded at."""
_WIDEST = 1 << 16
"""Numbers of the widest vector."""


def read_info(uri: str, raw: bytes, findings: list[Finding]) -> dict[str, Any]:
    """The content of info.json: `fps` is a float, `features` an object of objects. Features that
    are described otherwise are told and left out. DataError when it is not as it should be.
    """
    try:
        info = read_json(raw)
    except (ValueError, RecursionError) as error:
        raise broken(uri, "it is no JSON, or cut off") from error
    if not isinstance(info, dict):
        raise broken(uri, "it is no JSON object")
    features = info.get("features")
    if not isinstance(features, dict):
        raise broken(uri, "no features, or not as an object")
    good = {key: feature for key, feature in features.items() if _is_description(feature)}
    for key in features.keys() - good.keys():
        what = f"{shown(key)} is not described as a feature is"
        findings.append(Finding(INFO, what, "ignored", "it is not used; correct it"))
    return info | {"fps": _rate(uri, info.get("fps")), "features": good}


def broken(uri: str, what: str) -> DataError:
    """The error of an info.json that cannot be used."""
    return DataError(f"{uri}: broken metadata ({INFO}: {what}); correct it, or write the set again")


def _rate(uri: str, stated: Any) -> float:
    # Some conversions write numbers as texts.
    try:
        rate = float(stated) if isinstance(stated, (int, float, str)) else 0.0
    except (ValueError, OverflowError):
        rate = 0.0
    # NaN is neither.
    if isinstance(stated, bool) or not _SLOWEST <= rate <= _FASTEST:
        raise broken(uri, f"fps is {shown(repr(stated))}, no rate in Hz")
    return rate


def _is_description(feature: Any) -> bool:
    return isinstance(feature, dict) and isinstance(feature.get("dtype", ""), str)


def width_of(uri: str, feature: dict[str, Any], key: str) -> int:
    """Numbers of a vector feature; of a matrix all of them. DataError when it does not say."""
    shape = feature.get("shape")
    # A width alone is no list in some conversions.
    sides = [whole_or_none(n) for n in (shape if isinstance(shape, (list, tuple)) else [shape])]
    known = [side for side in sides if side is not None and side >= 0]
    width = prod(known)
    if len(known) < len(sides) or width > _WIDEST:
        raise broken(uri, f"{key} has shape {shown(repr(shape))}, which is none of a vector")
    return width

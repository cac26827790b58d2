"""The index that lies beside a checkpoint in several files."""

import json
from pathlib import Path

from gwp.errors import GwpError
from gwp.storage.names import relative_name, shown


def shard_names(index: Path) -> list[str]:
    """Files that a `*.index.json` names, in order.

    GwpError when it is none, or names anything but files of its own folder.
    """
    try:
        named = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise GwpError(
            f"{index}: no shard index ({type(error).__name__}: {error}); copy it again"
        ) from error
    names = sorted(relative_name(name, str(index)) for name in named)
    if strange := [name for name in names if "/" in name]:
        raise GwpError(
            f"{index}: names files outside its folder ({shown(strange[0])}); correct the index"
        )
    return names

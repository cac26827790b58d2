"""Variables of a document do not take the place of the batch script's own."""

from pathlib import Path

import pytest

from clusters.slurm.render import render
from gwp.errors import GwpError
from tests.support.clusters import STAGE, cluster


@pytest.mark.parametrize(
    "name", ["nodes", "stage", "step", "train", "ray_options", "data_options", "tasks", "PATH"]
)
def test_a_variable_of_the_script_is_refused(name: str) -> None:
    with pytest.raises(GwpError, match=f"env.{name}"):
        render(cluster(env={name: "x"}), [STAGE], Path("/out"))

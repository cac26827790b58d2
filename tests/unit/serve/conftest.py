"""Endpoints that tests of the doors make."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.place import Place


@pytest.fixture
def make() -> Iterator[Callable[..., Place]]:
    """Makes endpoints of these fields of a `ServeApp`, which are closed behind the test."""
    made: list[Place] = []

    def build(**config: Any) -> Place:
        made.append(Place(**config))
        return made[-1]

    yield build
    for one in made:
        one.close()


@pytest.fixture
def place(make: Callable[..., Place]) -> Place:
    """One with all defaults."""
    return make()

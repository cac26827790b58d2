"""Small models that tests of weights share."""

import pytest

from tests.support.tiny import tiny_model


@pytest.fixture(scope="module")
def mixture():
    return tiny_model("gwp05")


@pytest.fixture(scope="module")
def dense():
    return tiny_model("gwp0", num_embodiments=1)

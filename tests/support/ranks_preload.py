"""Imported once by the process that the ranks of `tests.support.ranks` are forked from."""

import os

# DeepSpeed chooses its accelerator when it is imported.
os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401

import pipelines.training.step  # noqa: F401
import tests.support.tiny  # noqa: F401

"""Writes the page of recipes."""

import sys

from pipelines.plan.page import page

sys.stdout.write(page())

"""Writes the page of all metrics."""

import sys

from gwp.metrics.page import page

sys.stdout.write(page())

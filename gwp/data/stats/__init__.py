"""Normalisation: the statistics, how they are computed exactly, and the files that hold them."""

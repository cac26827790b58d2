"""Measurements, side by side in one run, with what they were made with."""

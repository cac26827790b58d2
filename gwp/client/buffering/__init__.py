"""Chunks in, one action per control step out."""

"""Where the repository lies, and beside it the material that some tests read."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
SHARED = ROOT.parent / "shared"
"""Recordings and reference tensors; tests that need them skip where they are absent."""

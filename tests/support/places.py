"""Where the tests find the tree."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The repository's root."""

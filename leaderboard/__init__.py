"""Compares subnetworks with Avalanche's own strategies on the same streams, networks, budgets and data path."""

from pathlib import Path

import benchmarks  # noqa: F401  (it is imported before Avalanche because it silences upstream's import warnings)

SETTINGS = Path(__file__).parent / "settings.json"
"""File of the settings that were chosen on held-out training data."""

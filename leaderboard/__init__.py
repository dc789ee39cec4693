"""Compares subnetworks with Avalanche's own strategies on the same streams, networks, budgets and data path."""

import benchmarks  # noqa: F401  (it is imported before Avalanche because it silences upstream's import warnings)

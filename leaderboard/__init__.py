"""Subnetworks beside Avalanche's own strategies: same streams, networks, budgets and data path."""

import benchmarks  # noqa: F401  (before Avalanche: it quiets what upstream says on import)

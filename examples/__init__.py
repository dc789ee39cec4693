"""Short scripts, each run from the checkout with ``python -m examples.NAME``; offline, under two minutes."""

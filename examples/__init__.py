"""Short scripts, each run from anywhere as ``python examples/NAME.py``; offline, under two minutes."""

"""Short scripts that run from any folder as ``python examples/NAME.py``, offline and in less than two minutes."""

"""CLNP: continual learning via neural pruning. The method is in `strategy`; the other files are its parts."""

from avalanche_supermask.strategies.clnp.strategy import CLNP, CLNPPlugin

__all__ = ["CLNP", "CLNPPlugin"]

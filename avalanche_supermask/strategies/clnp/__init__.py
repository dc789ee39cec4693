"""CLNP: continual learning via neural pruning. The method is in `plugin`; the other files are its parts."""

from avalanche_supermask.strategies.clnp.plugin import CLNPPlugin
from avalanche_supermask.strategies.clnp.strategy import CLNP

__all__ = ["CLNP", "CLNPPlugin"]

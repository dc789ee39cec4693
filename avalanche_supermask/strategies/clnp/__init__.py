"""CLNP: continual learning by neuron pruning. `strategy` is the method; the other files are its parts."""

from avalanche_supermask.strategies.clnp.strategy import CLNP, CLNPPlugin

__all__ = ["CLNP", "CLNPPlugin"]

"""Effective weights of all layers at once: few operators on a device, few passes over memory on a CPU.

`functional` has the same for one layer, plainly; the bits are equal.
"""

from avalanche_supermask.effective.all_layers import Chooser, partly_trained_weights, top_k_weights

__all__ = ["Chooser", "partly_trained_weights", "top_k_weights"]

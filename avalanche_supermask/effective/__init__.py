"""Effective weights of all layers at once, with few operators on a device and few passes over memory on a CPU.

`functional` has simpler functions for one layer. Their results are bit-identical.
"""

from avalanche_supermask.effective.all_layers import Chooser, partly_trained_weights, top_k_weights
from avalanche_supermask.effective.step_memory import StepMemory

__all__ = ["Chooser", "StepMemory", "partly_trained_weights", "top_k_weights"]

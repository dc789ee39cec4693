"""The methods, one file or folder each: paper, idea, equations and deviations, then the plugin and the strategy."""

from avalanche_supermask.registry import methods
from avalanche_supermask.strategies.clnp import CLNP, CLNPPlugin
from avalanche_supermask.strategies.exssnet import ExSSNeT, ExSSNeTPlugin, SSNeT
from avalanche_supermask.strategies.hopsupsup import HopSupSup, HopSupSupPlugin
from avalanche_supermask.strategies.impresslearn import ImpressLearn, ImpressLearnPlugin
from avalanche_supermask.strategies.sparse_finetuning import SparseFineTuning, SparseFineTuningPlugin
from avalanche_supermask.strategies.supsup import SupSup, SupSupPlugin
from avalanche_supermask.strategies.supsup_nns import SupSupNNs, SupSupNNsPlugin
from avalanche_supermask.strategies.unit_masks import UnitMaskedModel

__all__ = [
    "CLNP",
    "CLNPPlugin",
    "ExSSNeT",
    "ExSSNeTPlugin",
    "HopSupSup",
    "HopSupSupPlugin",
    "ImpressLearn",
    "ImpressLearnPlugin",
    "SSNeT",
    "SparseFineTuning",
    "SparseFineTuningPlugin",
    "SupSup",
    "SupSupNNs",
    "SupSupNNsPlugin",
    "SupSupPlugin",
    "UnitMaskedModel",
    "methods",
]

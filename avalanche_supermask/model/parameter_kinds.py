"""What a parameter is for, from its module: the gain of a norm, a row of padding, a weight that its layer rescales."""

from __future__ import annotations

import math
import re

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

__all__ = ["is_gain", "is_norm", "padding_rows", "rescaled_in_place"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_CALLED_NORM = re.compile(r"norm(?!al(?!i))", re.IGNORECASE)  # norm1, RMSNorm, LayerNormalization; not "normal"


def is_norm(net: nn.Module, name: str) -> bool:
    """Whether a parameter is a norm's own: its gain or shift.

    PyTorch's norms are known by their classes; others by the word "norm" in the name of their class or of their place
    in the network, and then only parameters with one number per channel: a matrix is a weight, whatever it is called.

    Args:
        net: the network.
        name: of the parameter.

    Example:
        >>> is_norm(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "1.weight")
        True
    """
    owner, _, _ = name.rpartition(".")
    module = net.get_submodule(owner)
    if isinstance(module, _NORMS):
        return True
    shape = net.get_parameter(name).shape
    per_channel = math.prod(shape) == max(shape, default=1)
    called = _CALLED_NORM.search(type(module).__name__) or _CALLED_NORM.search(owner.rpartition(".")[2])
    return is_gain(net, name) or (per_channel and called is not None)


def is_gain(net: nn.Module, name: str) -> bool:
    """Whether a parameter is the length of a weight's rows, split off by ``weight_norm``."""
    owner, _, leaf = name.rpartition(".")
    module = net.get_submodule(owner)
    return leaf == "original0" and isinstance(module, ParametrizationList) and isinstance(module[0], _WeightNorm)


def padding_rows(net: nn.Module) -> dict[str, int]:
    """Row of each embedding that stands for padding, and never learns; by name of the weight.

    Example:
        >>> padding_rows(nn.Sequential(nn.Embedding(4, 2, padding_idx=0)))
        {'0.weight': 0}
    """
    rows = {}
    for module in net.modules():
        row, weight = getattr(module, "padding_idx", None), getattr(module, "weight", None)
        if isinstance(row, int) and isinstance(weight, Tensor) and weight.dim() == 2:
            rows[id(weight)] = row % len(weight)
    return {name: rows[id(p)] for name, p in net.named_parameters() if id(p) in rows}


def rescaled_in_place(net: nn.Module) -> frozenset[str]:
    """Names of the weights that a call shortens in place: those of embeddings with ``max_norm``."""
    weights = {
        id(module.weight)
        for module in net.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    }
    return frozenset(name for name, p in net.named_parameters(remove_duplicate=False) if id(p) in weights)

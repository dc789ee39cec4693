"""Special kinds of parameters, found from their modules: those of norms, padding rows, weights that calls rescale."""

from __future__ import annotations

import math
import re

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList

__all__ = ["is_gain", "is_norm", "padding_rows", "rescaled_in_place", "use_dense_gradients"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_CALLED_NORM = re.compile(r"norm(?!al(?!i))", re.IGNORECASE)  # norm1, RMSNorm, LayerNormalization; not "normal"


def is_norm(net: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to a norm, as its gain or shift.

    All parameters of PyTorch's norm classes belong to a norm. For other modules, the name of the class or of the place
    in the network must contain the word "norm", and the parameter must have one number per channel: a matrix is always
    a weight. Gains of ``weight_norm`` belong to a norm as well.

    Args:
        net: the network.
        name: name of the parameter.

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
    """Whether a parameter holds the lengths of a weight's rows, which ``weight_norm`` stores separately."""
    owner, _, leaf = name.rpartition(".")
    module = net.get_submodule(owner)
    return leaf == "original0" and isinstance(module, ParametrizationList) and isinstance(module[0], _WeightNorm)


def padding_rows(net: nn.Module) -> dict[str, int]:
    """Index of the padding row of each embedding, which is never trained, by name of the weight.

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
    """Names of the weights whose rows a call rescales in place: those of embeddings with ``max_norm``."""
    weights = {
        id(module.weight)
        for module in net.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None
    }
    return frozenset(name for name, p in net.named_parameters(remove_duplicate=False) if id(p) in weights)


def use_dense_gradients(net: nn.Module) -> list[str]:
    """Make embeddings with ``sparse=True`` compute dense gradients; return their names.

    The gradient of a masked weight is dense in any case, and Adam refuses sparse gradients.

    Example:
        >>> net = nn.Sequential(nn.Embedding(4, 2, sparse=True))
        >>> use_dense_gradients(net), net[0].sparse
        (['0'], False)
    """
    found = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse
    ]
    for name in found:
        net.get_submodule(name).sparse = False  # type: ignore[assignment]
    return found

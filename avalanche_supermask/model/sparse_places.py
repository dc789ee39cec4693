"""Finds the weights of a network that can be sparse, and replaces them by sparse ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from avalanche_supermask.model.sparse_kernels import CSR, complaint
from avalanche_supermask.model.sparse_weight import SparseWeight

__all__ = ["is_thin", "linear_places", "make_sparse", "sparse_places", "with_sparse"]


def sparse_places(net: nn.Module) -> frozenset[str]:
    """Names of the parameters that a sparse weight can replace: weights of layers with PyTorch's own forward method.

    A parameter that is tied to one of another kind of layer is left out, for example an output layer that shares its
    weight with an embedding.

    Example:
        >>> sorted(sparse_places(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))))
        ['1.weight']
    """
    weights: dict[int, list[bool]] = {}
    for module in net.modules():
        for leaf, p in module.named_parameters(recurse=False):
            weights.setdefault(id(p), []).append(_is_sparse_place(module, leaf))
    return frozenset(name for name, p in net.named_parameters() if all(weights[id(p)]))


def linear_places(net: nn.Module) -> frozenset[str]:
    """Names of the parameters of `sparse_places` that are weights of linear layers.

    Example:
        >>> sorted(linear_places(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))))
        ['2.weight']
    """
    linear = {id(module.weight) for module in net.modules() if isinstance(module, nn.Linear)}
    places = sparse_places(net)
    return frozenset(name for name, p in net.named_parameters() if name in places and id(p) in linear)


def _is_sparse_place(module: nn.Module, leaf: str) -> bool:
    if isinstance(module, nn.Linear):
        return leaf == "weight" and type(module).forward is nn.Linear.forward
    if isinstance(module, nn.Conv2d):
        return leaf == "weight" and type(module).forward is nn.Conv2d.forward and module.groups == 1
    if isinstance(module, nn.MultiheadAttention):
        return leaf in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return False


def with_sparse(tensors: Mapping[str, Tensor], names: frozenset[str], *, strict: bool = True) -> dict[str, Tensor]:
    """The tensors, with the named weights in sparse form; weights with more than half of their entries stay dense.

    Args:
        tensors: tensors by name.
        names: names of the weights that may be sparse.
        strict: whether a sparse weight raises an error for an input without a kernel (see `SparseWeight`).
    """
    thin = {name for name in names if is_thin(tensors[name])}
    return {n: SparseWeight(CSR(t), strict=strict) if n in thin else t for n, t in tensors.items()}


def make_sparse(net: nn.Module, names: frozenset[str]) -> None:
    """Replace the named weights of a network by sparse ones, in place, where `sparse_places` allows it.

    Raises:
        NotImplementedError: there is no kernel for the network's device or type.
    """
    some = next(net.parameters())
    reason = complaint(some.device, some.dtype)
    if reason is not None:
        raise NotImplementedError(f"{reason}; export without sparse=True, or use execution = 'auto'")
    parameters = dict(net.named_parameters())
    sparse = with_sparse({n: p.detach() for n, p in parameters.items()}, sparse_places(net) & names)
    made = {id(p): nn.Parameter(w, requires_grad=False) for n, p in parameters.items() if (w := sparse[n]) is not p}
    for module in net.modules():
        for leaf, p in module.named_parameters(recurse=False):
            if isinstance(made.get(id(p)), SparseWeight):
                setattr(module, leaf, made[id(p)])


def is_thin(weight: Tensor) -> bool:
    """Whether at most half of a weight's entries are not zero; above this share, no sparse layer was faster."""
    return 2 * int(weight.count_nonzero()) <= weight.numel()

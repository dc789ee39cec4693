"""Which weights of a network can be sparse, and putting sparse ones in their places."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from avalanche_supermask.model.sparse_kernels import CSR, complaint
from avalanche_supermask.model.sparse_weight import SparseWeight

__all__ = ["is_thin", "make_sparse", "sparse_places", "with_sparse"]


def sparse_places(net: nn.Module) -> frozenset[str]:
    """Names of the parameters that a sparse weight can stand for: weights of layers that compute as PyTorch's do.

    A parameter that is tied to one of another kind of layer, as an embedding that is also an output layer, is none.

    Example:
        >>> sorted(sparse_places(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))))
        ['1.weight']
    """
    weights: dict[int, list[bool]] = {}
    for module in net.modules():
        for leaf, p in module.named_parameters(recurse=False):
            weights.setdefault(id(p), []).append(_is_sparse_place(module, leaf))
    return frozenset(name for name, p in net.named_parameters() if all(weights[id(p)]))


def _is_sparse_place(module: nn.Module, leaf: str) -> bool:
    if isinstance(module, nn.Linear):
        return leaf == "weight" and type(module).forward is nn.Linear.forward
    if isinstance(module, nn.Conv2d):
        return leaf == "weight" and type(module).forward is nn.Conv2d.forward and module.groups == 1
    if isinstance(module, nn.MultiheadAttention):
        return leaf in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return False


def with_sparse(tensors: Mapping[str, Tensor], names: frozenset[str], *, strict: bool = True) -> dict[str, Tensor]:
    """The tensors, with sparse weights in the places of these; what keeps more than half of its numbers stays dense.

    Args:
        tensors: by name.
        names: of those that may be sparse.
        strict: see `SparseWeight`.
    """
    thin = {name for name in names if is_thin(tensors[name])}
    return {n: SparseWeight(CSR(t), strict=strict) if n in thin else t for n, t in tensors.items()}


def make_sparse(net: nn.Module, names: frozenset[str]) -> None:
    """Give a network sparse weights in the places of these, where they can stand, in place.

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
    """Whether at most half of its numbers are not zero: above that, no sparse layer was faster."""
    return 2 * int(weight.count_nonzero()) <= weight.numel()

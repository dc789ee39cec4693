"""``W ⊙ Σ_i a_i M_i`` from bits, and its gradient ``<dL/dW_eff ⊙ W, M_i>``, without n float masks.

Up to sixteen masks form a group. In a group, entry j has a code, a number whose bit i is M_i[j]. The sum over the masks
of a group then has at most 2^16 values. They are computed once per step in a table, and looked up for each entry. The
gradient works in the other direction: ``dL/dW_eff ⊙ W`` is summed for each code, and these sums are added up for each
bit. So a step needs one look-up per entry and group. The codes take 4 bytes per entry and group, whereas n float masks
would take 4n bytes per entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_supermask.bits.one_table import LARGEST, OneTable
from avalanche_supermask.bits.table_loops import TableLoops, compiled
from avalanche_supermask.loops import WORTH_COMPILING, flat, plain

__all__ = ["Mixer", "combine", "encode"]


def _group(entries: int) -> int:
    """Number of masks per group: at most 16, and so few that a table has at most as many sums as the layer has entries.

    2^16 floats fit into a processor's second-level cache.
    """
    return max(1, min(16, entries.bit_length() - 1))


def encode(masks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Codes of masks, which are divided into groups of up to sixteen masks.

    Args:
        masks: n masks, each as bool tensors by name.

    Returns:
        Codes by name, int32 of shape ``(groups, entries)``. With s masks per group, bit i in group g belongs to mask
        ``s g + i``.

    Example:
        >>> encode([{"w": torch.ones(8).bool()}, {"w": torch.zeros(8).bool()}])["w"]
        tensor([[1, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.int32)
    """
    codes = {}
    for name, first in masks[0].items():
        groups = []
        size = _group(first.numel())
        for start in range(0, len(masks), size):
            code = torch.zeros(first.numel(), dtype=torch.int32, device=first.device)
            for bit, mask in enumerate(masks[start : start + size]):
                code |= mask[name].reshape(-1).to(torch.int32) << bit
            groups.append(code)
        codes[name] = torch.stack(groups)
    return codes


class Mixer:
    """The codes of masks that are mixed in many steps, with a table that saves time but does not change results.

    Args:
        codes: codes that `encode` returned.
    """

    def __init__(self, codes: Mapping[str, Tensor]) -> None:
        self.codes = codes
        self._table: tuple[Any, OneTable | None] = (None, None)

    def table(self, names: Sequence[str], weights: Sequence[Tensor], owners: Sequence[int], n: int) -> OneTable | None:
        """The common table of these layers; None if one table per layer is faster or the common one is too large."""
        if not _by_lists(weights):
            return None
        kept, table = self._table
        wanted = (tuple(names), tuple(owners), n, weights[0].dtype)
        if kept != wanted:
            sizes = [_group(w.numel()) for w in weights]
            rows = sum(-(-n // size) for size in sizes)
            table = None
            if rows << min(max(sizes), n) <= LARGEST:
                codes, shapes = [self.codes[name] for name in names], [w.shape for w in weights]
                with torch.inference_mode(False):
                    table = OneTable(codes, shapes, sizes, owners, n=n, dtype=weights[0].dtype)
            self._table = wanted, table
        return table


def _by_lists(tensors: Sequence[Tensor]) -> bool:
    """Whether all layers are mixed at once: on a GPU, because launching an operator is most of its cost there."""
    first = tensors[0]
    return first.device.type != "cpu" and all(t.device == first.device and t.dtype == first.dtype for t in tensors)


def combine(coefficients: Mapping[str, Tensor], mixer: Mixer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``W ⊙ Σ_i a_i M_i`` of all layers, differentiable by the coefficients.

    The result is exact for one-hot coefficients, because the sum is computed before it is multiplied by the weight.

    Args:
        coefficients: the coefficients a, ``(n,)``, by name; layers may share a tensor.
        mixer: the mixer of the masks.
        weights: the weights W, by the same names as the coefficients.

    Example:
        >>> codes = encode([{"w": torch.tensor([True, False])}, {"w": torch.tensor([True, True])}])
        >>> combine({"w": torch.tensor([0.5, -1.0])}, Mixer(codes), {"w": torch.tensor([2.0, 3.0])})
        {'w': tensor([-1., -3.])}
    """
    names = list(weights)
    if not names:
        return {}
    of_layers = [coefficients[name] for name in names]
    vectors = list({id(a): a for a in of_layers}.values())
    owners = [next(i for i, vector in enumerate(vectors) if vector is a) for a in of_layers]
    given = [weights[name] for name in names]
    table = mixer.table(names, given, owners, len(vectors[0]))
    found = _Combine.apply([mixer.codes[name] for name in names], given, owners, table, *vectors)
    return dict(zip(names, found, strict=True))


def _table(coefficients: Tensor) -> Tensor:
    """Sum of the coefficients of every subset, by its number; the fixed order makes the result bit-identical."""
    table = coefficients.new_zeros(1)
    for a in coefficients:
        table = torch.cat([table, table + a])
    return table


def _folded(sums: Tensor, bits: int) -> Tensor:
    """For every bit, the sum of ``sums`` over all subsets whose number has this bit."""
    low, high = bits // 2, bits - bits // 2
    square = sums.reshape(1 << high, 1 << low)  # two short sums replace one long sum per bit
    of_low, of_high = (_has(some, sums.dtype, sums.device) for some in (low, high))
    return torch.cat([square.sum(0) @ of_low, square.sum(1) @ of_high])


@cache
def _has(bits: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """1 if the number of a subset has a bit, else 0; shape ``(2^bits, bits)``."""
    numbers, places = torch.arange(1 << bits)[:, None], torch.arange(bits)
    return numbers.bitwise_right_shift(places).bitwise_and(1).to(device, dtype)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        codes: list[Tensor],
        weights: list[Tensor],
        owners: list[int],
        table: OneTable | None,
        *vectors: Tensor,
    ) -> tuple[Tensor, ...]:
        # Plain attributes are safe, because none of these tensors is an output of this function.
        ctx.codes, ctx.weights, ctx.owners, ctx.table = codes, weights, owners, table
        ctx.n = len(vectors[0])
        ctx.set_materialize_grads(False)
        ctx.loops = _loops([*weights, *vectors])
        if table is not None:
            return tuple(table.weights(vectors, weights))
        layers = zip(owners, codes, weights, strict=True)
        return tuple(_mixed(ctx.loops, vectors[owner], code, weight) for owner, code, weight in layers)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        loops = None if torch.is_grad_enabled() else ctx.loops
        at_once = ctx.table is not None and not torch.is_grad_enabled() and all(grad is not None for grad in grads)
        if at_once:
            return None, None, None, None, *ctx.table.gradients(grads, ctx.weights)
        found: list[Tensor | None] = [None] * (max(ctx.owners) + 1)
        for owner, grad, code, weight in zip(ctx.owners, grads, ctx.codes, ctx.weights, strict=True):
            if grad is not None:
                more, before = _gradient(loops, grad, code, weight, ctx.n), found[owner]
                found[owner] = more if before is None else before + more
        return None, None, None, None, *found


def _loops(tensors: Sequence[Tensor]) -> TableLoops | None:
    """The compiled loops, if they support all these tensors and save more time than their compilation takes."""
    if sum(t.numel() for t in tensors) < WORTH_COMPILING or not plain(tensors):
        return None
    return compiled()


def _mixed(loops: TableLoops | None, coefficients: Tensor, codes: Tensor, weight: Tensor) -> Tensor:
    parts = coefficients.split(_group(weight.numel()))
    if loops is not None:
        tables, out = np.empty((len(parts), 1 << len(parts[0])), dtype=np.float32), torch.empty_like(weight)
        for part, row in zip(parts, tables, strict=True):
            loops.table(part.detach().numpy(), row)
        loops.look_up(tables, codes.numpy(), flat(weight), flat(out))
        return out
    total = torch.zeros((), dtype=coefficients.dtype, device=coefficients.device)
    for code, part in zip(codes, parts, strict=True):
        total = total + _table(part).index_select(0, code)
    return total.reshape(weight.shape).mul_(weight)


def _gradient(loops: TableLoops | None, grad: Tensor, codes: Tensor, weight: Tensor, n: int) -> Tensor:
    size = _group(weight.numel())
    widths = [min(size, n - start) for start in range(0, n, size)]
    if loops is not None and plain([grad]):
        sums = [torch.zeros(1 << bits, dtype=torch.float32) for bits in widths]
        upstream, values = flat(grad), flat(weight)
        for code, of in zip(codes, sums, strict=True):
            loops.add_up(upstream, values, code.numpy(), of.numpy())
    else:
        per_entry = (grad * weight).reshape(-1)
        sums = [
            per_entry.new_zeros(1 << bits).index_add_(0, code, per_entry)
            for code, bits in zip(codes, widths, strict=True)
        ]
    return torch.cat([_folded(of, bits) for of, bits in zip(sums, widths, strict=True)])

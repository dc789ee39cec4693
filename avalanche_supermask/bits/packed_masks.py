"""Bit-packed masks of all finished tasks, with one bit per weight and task.

Each task has one row of bytes: the masks of its layers one after the other, each padded to a whole byte. Rows are
separate buffers, so storing the mask of task 2,500 costs as much as that of task 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from avalanche_supermask.bits.counting import count
from avalanche_supermask.bits.dot_products import Kernel, compiled, products
from avalanche_supermask.bits.rice import decode, encode
from avalanche_supermask.named_tensors import NamedTensors

__all__ = ["PackedMasks", "pack", "unpack"]

CHUNK_BYTES = 64 * 2**20  # greatest size of effective weights, or of unpacked masks on a GPU, at a time
FEW = 4  # up to so many gradients, one pass over the bits per gradient is faster than one pass that unpacks them
# Greatest size of unpacked masks on a CPU at a time: memory in its cache is ten times faster than new memory.
IN_CACHE_BYTES = 4 * 2**20


def pack(mask: Tensor) -> Tensor:
    """Pack a mask into bytes of eight entries, with the first entry in the lowest bit.

    Args:
        mask: bool tensor of any shape, with n entries.

    Returns:
        uint8 tensor of shape ``(ceil(n / 8),)`` on the same device.

    Example:
        >>> pack(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    flat = mask.reshape(-1).to(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).reshape(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (padded * weights).sum(dim=1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack a mask; the inverse of `pack`.

    Args:
        bits: uint8 tensor of shape ``(ceil(n / 8),)``.
        shape: shape of the mask, with n entries.

    Returns:
        A bool tensor of that shape.

    Example:
        >>> unpack(torch.tensor([5], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    return _zeros_and_ones(bits)[: math.prod(shape)].reshape(tuple(shape)).bool()


def _zeros_and_ones(rows: Tensor) -> Tensor:
    """The bits of each row as numbers: uint8 of shape ``(*, 8 * bytes)`` from ``(*, bytes)``."""
    if rows.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(rows.numpy(), axis=-1, bitorder="little"))
    shifts = torch.arange(8, dtype=torch.uint8, device=rows.device)
    return rows.unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_(1).flatten(-2)


def _all_equal(values: Tensor) -> bool:
    return bool((values == values[0]).all())


class PackedMasks(NamedTensors):
    """The masks of finished tasks, in the order in which they were stored.

    Each mask is stored under an integer slot. The caller chooses the slots, and must not use a slot twice.

    Args:
        shapes: shape of each masked weight, by name.

    Example:
        >>> masks = PackedMasks({"fc.weight": (2, 3)})
        >>> masks.commit(0, {"fc.weight": torch.tensor([[True, False, True], [False, False, False]])})
        >>> masks.read(0)["fc.weight"].sum().item(), masks.nbytes
        (2, 1)
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._sizes = [math.ceil(math.prod(shape) / 8) for shape in self.shapes.values()]

    @property
    def row_bytes(self) -> int:
        """Number of bytes per task: the sum of ``ceil(n_l / 8)`` over the layers."""
        return sum(self._sizes)

    def slots(self) -> list[int]:
        """Slots in use, in the order in which the masks were stored."""
        return [int(key) for key in self]

    def commit(self, slot: int, masks: Mapping[str, Tensor]) -> None:
        """Store a finished task's mask.

        Args:
            slot: a slot that is not in use.
            masks: one bool tensor per masked weight, in the shape of the weight, by name.

        Raises:
            ValueError: the slot is in use, or a mask is missing or has a wrong shape or type.
        """
        if str(slot) in self:
            raise ValueError(f"slot {slot} already holds a mask, and finished masks never change")
        for name, shape in self.shapes.items():
            mask = masks.get(name)
            if mask is None or tuple(mask.shape) != shape or mask.dtype != torch.bool:
                got = "nothing" if mask is None else f"{mask.dtype} of shape {tuple(mask.shape)}"
                raise ValueError(f"mask of {name!r}: expected bool of shape {shape}, got {got}")
        self[str(slot)] = torch.cat([pack(masks[name]) for name in self.shapes])

    def read(self, slot: int) -> dict[str, Tensor]:
        """The mask in a slot: bool tensors by name.

        Raises:
            KeyError: nothing is stored there.
        """
        return self._unpack(self[str(slot)])

    def row_code(self, slot: int) -> bytes:
        """The mask in a slot in the form that is written to disk: entropy-coded, layer after layer (see `rice`)."""
        return b"".join(self.layer_codes(slot))

    def layer_codes(self, slot: int) -> list[bytes]:
        """The parts of `row_code`, one per layer."""
        return [encode(mask.cpu().numpy()) for mask in self.read(slot).values()]

    def commit_code(self, slot: int, code: bytes) -> None:
        """Store the mask of a code that `row_code` returned.

        Raises:
            ValueError: the code does not belong to these layers, or the slot is in use.
        """
        masks = {}
        for name, shape in self.shapes.items():
            flat, used = decode(code, math.prod(shape))
            masks[name], code = torch.from_numpy(flat).reshape(shape), code[used:]
        if code:
            raise ValueError(f"{len(code)} bytes are left over after the masks of {len(self.shapes)} layers")
        self.commit(slot, masks)

    def drop(self, slot: int) -> None:
        """Delete the mask in a slot.

        Raises:
            KeyError: nothing is stored there.
        """
        del self[str(slot)]

    def union(self, slots: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Entries that at least one of these tasks keeps (None: all tasks): bool tensors by name."""
        return self._unpack(self._cover(self.slots() if slots is None else slots)[0])

    def coverage(self, slots: Sequence[int] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Entries that at least one of these tasks keeps (None: all tasks), and entries that at least two keep."""
        once, twice = self._cover(self.slots() if slots is None else slots)
        return self._unpack(once), self._unpack(twice)

    def _cover(self, slots: Sequence[int]) -> tuple[Tensor, Tensor]:
        device = next((row.device for row in self.values()), torch.device("cpu"))
        once = torch.zeros(self.row_bytes, dtype=torch.uint8, device=device)
        twice = torch.zeros_like(once)
        for slot in slots:
            row = self[str(slot)]
            twice |= once & row
            once |= row
        return once, twice

    def superpose(self, coefficients: Mapping[str, Tensor], slots: Sequence[int]) -> dict[str, Tensor]:
        """``Σ a_i M_i``: float tensors by name.

        Args:
            coefficients: coefficients by layer, ``(K,)``, one per slot; slots whose coefficients are all 0 are skipped.
            slots: K slots in use.

        If all coefficients are equal, as in one-shot inference, the masks are counted on a CPU (see `counting`).
        """
        needed = torch.stack(list(coefficients.values())).ne(0).any(dim=0).tolist()
        places = [place for place, is_needed in enumerate(needed) if is_needed]
        rows = [self[str(slots[place])] for place in places]
        if rows and rows[0].device.type == "cpu" and all(_all_equal(a[places]) for a in coefficients.values()):
            counts = torch.from_numpy(count((row.numpy() for row in rows), size=self.row_bytes))
            parts = zip(self.shapes, self._by_layer(counts), strict=True)
            totals = {name: coefficients[name][places[0]].cpu() * part for name, part in parts}
        else:
            totals = self._weighted_sum(coefficients, places, slots)
        return {name: totals[name][: math.prod(shape)].reshape(shape) for name, shape in self.shapes.items()}

    def _weighted_sum(
        self, coefficients: Mapping[str, Tensor], places: Sequence[int], slots: Sequence[int]
    ) -> dict[str, Tensor]:
        """Weighted sum of the masks at these places among the slots: flat, by layer, padded to whole bytes."""
        sizes = zip(self.shapes, self._sizes, strict=True)
        totals = {name: torch.zeros(8 * size, dtype=torch.float32) for name, size in sizes}
        for chunk, bits in self._chunks([slots[place] for place in places]):
            mine, places = places[: len(chunk)], places[len(chunk) :]
            for name, part in zip(self.shapes, self._by_layer(bits), strict=True):
                totals[name] = totals[name].to(bits.device) + coefficients[name][mine].to(bits) @ part
        return totals

    def project(self, gradients: Mapping[str, Tensor], slots: Sequence[int]) -> dict[str, Tensor]:
        """``<G_q, M_i>`` for each of K slots and Q gradients: ``(K, Q)`` by layer, in one pass over the bits.

        For a few gradients on a CPU, a compiled loop is used if numba is installed (see `products`).

        Args:
            gradients: gradients by layer, ``(Q, *shape of the mask)``; missing layers are left out of the result.
            slots: K slots in use.
        """
        columns = {
            name: torch.nn.functional.pad(g.flatten(1).float(), (0, -g[0].numel() % 8)).T
            for name, g in gradients.items()
        }
        rows = [self[str(slot)] for slot in slots]
        few = all(g.shape[1] <= FEW for g in columns.values())
        kernel = compiled() if few and rows and rows[0].device.type == "cpu" else None
        if kernel is not None:
            return self._few_products(columns, rows, kernel)
        found: dict[str, list[Tensor]] = {name: [] for name in gradients}
        for _, bits in self._chunks(list(slots)):
            for name, part in zip(self.shapes, self._by_layer(bits), strict=True):
                if name in found:
                    found[name].append(part @ columns[name].to(bits.device))
        return {name: torch.cat(parts) for name, parts in found.items()}

    def _few_products(self, columns: Mapping[str, Tensor], rows: Sequence[Tensor], kernel: Kernel) -> dict[str, Tensor]:
        whole = [row.numpy() for row in rows]
        found = {}
        for name, size, end in zip(self.shapes, self._sizes, accumulate(self._sizes), strict=True):
            if name in columns:
                bits = [row[end - size : end] for row in whole]
                sums = [products(bits, vector.numpy(), kernel=kernel) for vector in columns[name].cpu().T]
                found[name] = torch.from_numpy(np.stack(sums, axis=1))  # (K, Q)
        return found

    def _by_layer(self, bits: Tensor) -> Sequence[Tensor]:
        return torch.split(bits, [8 * size for size in self._sizes], dim=-1)

    def _chunks(self, slots: Sequence[int]) -> Iterator[tuple[Sequence[int], Tensor]]:
        """Yields, for a few tasks at a time, their slots and their bits as float32 ``(tasks, 8 * row_bytes)``.

        All bits are written to the same memory, so the caller must use them before the next iteration.
        """
        device = self[str(slots[0])].device if slots else torch.device("cpu")
        limit = IN_CACHE_BYTES if device.type == "cpu" else CHUNK_BYTES
        size = min(max(1, limit // (32 * self.row_bytes)), len(slots))
        held = torch.empty(size, 8 * self.row_bytes, dtype=torch.float32, device=device)
        for start in range(0, len(slots), max(1, size)):
            chunk = slots[start : start + size]
            yield chunk, held[: len(chunk)].copy_(_zeros_and_ones(torch.stack([self[str(slot)] for slot in chunk])))

    def _unpack(self, row: Tensor) -> dict[str, Tensor]:
        parts = torch.split(row, self._sizes)
        return {name: unpack(part, shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

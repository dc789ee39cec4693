"""The storage of all tasks: frozen weights, a bit mask per task, a few floats per task, and the task being learned.

Finished tasks are frozen by construction. The tensors of finished tasks are buffers. The tensors that the current task
trains are parameters, which exist once for any number of tasks. The effective weight is

    mask * where(trainable, parameter, frozen)

and at the end of a task the trained values are written to the buffer. No optimizer, hook or plugin can reach
a finished task, because none of its tensors is a parameter. A task may also be a mixture of the masks of a basis:
then its coefficients replace the mask.

Outside the mask, a weight is zero. With a base, which is for pretrained networks, it has the value that it had in the
caller's network:

    base + mask * (where(trainable, parameter, frozen) - base)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_supermask.bits.packed_masks import PackedMasks
from avalanche_supermask.effective import partly_trained_weights
from avalanche_supermask.functional import entries_weight
from avalanche_supermask.lasting import lasting
from avalanche_supermask.model.mixtures import Mixtures
from avalanche_supermask.model.network_call import is_compiling
from avalanche_supermask.model.sparse_training import TrainedCSR
from avalanche_supermask.model.sparse_weight import SparseWeight
from avalanche_supermask.named_tensors import NamedTensors
from avalanche_supermask.selection import Selection, selected_weights

__all__ = ["LayerCapacity", "Subnetworks", "Task"]


@dataclass(frozen=True)
class Task:
    """One finished task.

    Attributes:
        slot: number under which its mask or mixture is stored.
        label: Avalanche's task label, under which it was learned; None without labels.
        entropy: mean entropy of its outputs on its training data at the end of training; None if it was not measured.
    """

    slot: int
    label: int | None
    entropy: float | None = None


@dataclass(frozen=True)
class LayerCapacity:
    """Number of weights of one layer: ``owned`` by at least one finished task, ``reused`` by two or more, ``free``."""

    total: int
    owned: int
    reused: int

    @property
    def free(self) -> int:
        """Number of weights that no finished task uses."""
        return self.total - self.owned


class Subnetworks(nn.Module):
    """The weights that tasks share, and the masks of the tasks.

    Args:
        frozen: committed value of each masked weight, by name.
        base: value of each masked weight outside the masks, by name; None: zero.
        padding: index of the padding row, by name of an embedding's weight. In every task, this row has the values
            that it has in the caller's network.
    """

    scaled_for: Mapping[str, float] = MappingProxyType({})
    """Densities for which the constants are scaled, by name; empty if they are not scaled."""

    # These defaults are attributes of the class, because pickles of 0.1.0 lack the attributes.
    padding: Mapping[str, int] = {}
    _latest_select: Selection | None = None  # also after the task is finished

    def __init__(
        self,
        frozen: Mapping[str, Tensor],
        *,
        base: Mapping[str, Tensor] | None = None,
        padding: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.padding = dict(padding or {})
        shapes = {name: tuple(weight.shape) for name, weight in frozen.items()}
        self.frozen = NamedTensors(frozen)
        self.base = NamedTensors(base)
        self.masks = PackedMasks(shapes)
        self.mixtures = Mixtures()
        # slot -> private tensors of that task: norm statistics, head and others. A task without private tensors has no
        # entry, because every device move and every search for parameters visits each module.
        self.private = nn.ModuleDict()
        # slot -> statistics that an inference method gathered for that task; a task without them has no entry.
        self.statistics = nn.ModuleDict()
        # slot -> values of the entries in its mask, for a task that was loaded from a file and whose values differ
        # from those of earlier tasks at shared entries.
        self.carried = nn.ModuleDict()
        self.scores = NamedTensors(trainable=True)
        self.values = NamedTensors(trainable=True)  # in the phase "entries": the values of the chosen entries
        self.tasks: dict[int, Task] = {}
        self.next_slot = 0
        # slot -> which weights are sparse in which class of batches, if this was measured (see `execution`).
        self.choices: dict[int, dict[str, list[str]]] = {}
        # The task being learned.
        self.active: int | None = None
        self.active_label: int | None = None
        self.phase: Literal["scores", "weights", "coefficients", "entries"] | None = None  # names the trained tensors
        self.select: Selection | None = None
        self.own_masks: frozenset[str] = frozenset()  # in the phase "coefficients": layers whose scores are trained
        self.mask = NamedTensors()  # in the phases "weights" and "entries"; in others, the scores determine the mask
        self.trainable = NamedTensors()
        self.places = NamedTensors()  # indices of `values` in the flattened weights
        # While the mask is fixed: the constant part of each weight, and 1 at its trainable entries. These are numbers,
        # not bool, because arithmetic with numbers is several times faster on a CPU.
        self._standing: dict[str, tuple[Tensor, Tensor]] = {}
        self.trained_sparsely: frozenset[str] = frozenset()
        self._sparse: dict[str, SparseWeight] = {}  # in the phase "entries": weights that are trained in sparse form

    # ------------------------------------------------------------------ inside and outside the masks

    def change(self) -> Mapping[str, Tensor]:
        """The tensors that masks multiply: the frozen weights, or their differences from the base."""
        if not len(self.base):
            return self.frozen
        return {name: weight - self.base[name] for name, weight in self.frozen.items()}

    def around(self, inside: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Effective weights, computed from the masked `change`: the base is added if there is one."""
        if not len(self.base):
            return dict(inside)
        return {name: self.base[name] + weight for name, weight in inside.items()}

    def outside(self, name: str) -> Tensor:
        """Values of one masked weight outside the masks: those of the base, or zeros."""
        return self.base[name] if len(self.base) else torch.zeros_like(self.frozen[name])

    # ------------------------------------------------------------------ padding rows

    def with_padding(self, marks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The marks (bool tensors by name), with all padding rows marked."""
        return {name: self._marked(name, mark, True) for name, mark in marks.items()}

    def without_padding(self, marks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The marks (bool tensors by name), with no padding row marked, because these rows are never trained."""
        return {name: self._marked(name, mark, False) for name, mark in marks.items()}

    def _marked(self, name: str, mark: Tensor, value: bool) -> Tensor:
        if name not in self.padding:
            return mark
        mark = mark.clone()
        mark[self.padding[name]] = value
        return mark

    @property
    def _brought(self) -> dict[str, int]:
        """Padding rows that masks must not set to zero: rows that are not zero, in a model without a base."""
        if len(self.base):
            return {}
        return {name: row for name, row in self.padding.items() if bool(self.frozen[name][row].any())}

    def _with_brought_rows(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The effective weights, in which padding rows have the values of the caller's network."""
        for name, row in self._brought.items():
            if name in weights:
                place = torch.tensor([row], device=weights[name].device)
                weights[name] = weights[name].index_copy(0, place, self.frozen[name][row : row + 1])
        return weights

    # ------------------------------------------------------------------ the task being learned

    @torch.no_grad()
    def set_scores(self, values: Mapping[str, Tensor]) -> None:
        """Write the scores in place; the first call allocates them, one tensor per layer for any number of tasks."""
        for name, value in values.items():
            if name in self.scores:
                self.scores[name].copy_(value)
            else:
                self.scores[name] = value.detach().clone().to(self.frozen[name])

    def begin(self, key: int, label: int | None) -> None:
        """Start a task; an unfinished task is dropped."""
        self.abandon()
        self.active, self.active_label = key, label

    def learn_scores(self, select: Selection, *, trainable: Mapping[str, Tensor] | None = None) -> None:
        """Start a phase that trains the scores, and also the entries marked in ``trainable`` (bool), if any."""
        self._clear_weights()
        # An equal selection of an earlier task has what a GPU recorded for it, and does not record it again.
        select = self._latest_select if self._latest_select == select else select
        self.phase, self.select, self._latest_select = "scores", select, select
        self.trainable.update({name: t.clone() for name, t in self.without_padding(trainable or {}).items()})

    def learn_coefficients(self, *, own: frozenset[str] = frozenset(), select: Selection | None = None) -> None:
        """Start a phase that trains the coefficients of a mixture, and the scores in the layers ``own``."""
        self._clear_weights()
        self.phase, self.own_masks, self.select = "coefficients", own, select

    def learning(self) -> list[Tensor]:
        """Scores, coefficients and values of entries that are trained in this phase."""
        scores = {"scores": set(self.scores), "coefficients": self.own_masks}.get(self.phase or "", set())
        mixed = self.mixtures.coefficients if self.phase == "coefficients" else {}
        return [
            *(self.values.values() if self.phase == "entries" else ()),
            *(p for name, p in self.scores.items() if name in scores),
            *(a for name, a in mixed.items() if name not in self.own_masks),
        ]

    def learn_weights(self, trainable: Mapping[str, Tensor], *, mask: Mapping[str, Tensor]) -> None:
        """Start a phase with a fixed mask that trains the entries marked in ``trainable`` (bool, inside the mask)."""
        mask = {name: m.clone() for name, m in mask.items()}
        mask.update({name: self._marked(name, mask[name], True) for name in self._brought})
        self._clear_weights()
        self.phase = "weights"
        self.mask.update(mask)
        learns = self.without_padding(trainable)
        self.trainable.update({name: learns[name] & m for name, m in mask.items()})

    def allocate_values(self, counts: Mapping[str, int]) -> None:
        """Allocate the values that `learn_entries` trains, before an optimizer collects them.

        Args:
            counts: number of values by name of the masked weight. Values that have this number are kept.
        """
        for name, count in counts.items():
            if name not in self.values or len(self.values[name]) != count:
                self.values[name] = self.frozen[name].new_zeros(count)

    @torch.no_grad()
    def learn_entries(
        self, chosen: Mapping[str, Tensor], *, mask: Mapping[str, Tensor], sparse: frozenset[str] = frozenset()
    ) -> None:
        """Start a phase with a fixed mask that trains the few entries in ``chosen`` (bool, inside the mask).

        Only the `values` of these entries are parameters, so that an optimizer keeps its state for them alone. The
        weights named in ``sparse`` are trained in sparse form; outside the mask they must be zero.
        """
        self._clear_weights()
        self.phase = "entries"
        self.mask.update({name: m.clone() for name, m in mask.items()})
        self.trained_sparsely = sparse
        for name, entries in self.without_padding(chosen).items():
            self.places[name] = entries.reshape(-1).nonzero().squeeze(1)
        self.restart_values()

    @torch.no_grad()
    def restart_values(self) -> None:
        """Give the trained values of entries their committed values."""
        for name, places in self.places.items():
            self.values[name].zero_()
            self.values[name][: len(places)] = self.frozen[name].reshape(-1)[places]

    def current_mask(self) -> dict[str, Tensor]:
        """Mask of the task being learned: bool tensors by name. That of a mixture holds the entries that are not zero.

        Raises:
            RuntimeError: no phase has begun.
        """
        if self.phase in ("weights", "entries"):
            return dict(self.mask)
        if self.phase == "coefficients":
            return {name: w.detach() != self.outside(name) for name, w in self._mixed_weights().items()}
        if self.select is None:
            raise RuntimeError("no phase has begun, so there is no current mask; call learn_scores() first")
        mask = {name: self.select.mask(name, scores) for name, scores in self.scores.items()}
        return {**mask, **{name: self._marked(name, mask[name], True) for name in self._brought}}

    def current_weights(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Effective weights of the task being learned, differentiable by the trainable tensors.

        Args:
            live: the trainable copy of each weight, by name.
        """
        # The exact top-k is never compiled, only the network is. `torch.compiler.disable` takes as long as an operator,
        # so it is used only while the compiler traces this call.
        return self._uncompiled(live) if is_compiling() else self._current_weights(live)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _uncompiled(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._current_weights(live)

    def _current_weights(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.phase == "scores" and self.select is not None:
            weights = self._learning_weights(live) if len(self.trainable) else dict(self.frozen.items())
            if len(self.base):
                weights = {name: weights[name] - base for name, base in self.base.items()}
            chosen = selected_weights(self.select, dict(self.scores.items()), weights)
            return self._with_brought_rows(self.around(chosen))
        if self.phase == "coefficients":
            return self._mixed_weights()
        if self.phase == "entries":
            return self._weights_of_entries()
        return self._learning_weights(live)

    def _learning_weights(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``where(trainable, live, frozen)``, restricted to the mask while the mask is fixed."""
        if not self._standing:
            with lasting():
                for name, trainable in self.trainable.items():
                    frozen = self.frozen[name]
                    stays = self.mask[name] & ~trainable if name in self.mask else ~trainable
                    fixed = frozen * stays
                    if name in self.base and name in self.mask:
                        fixed = torch.where(self.mask[name], fixed, self.base[name])
                    self._standing[name] = (fixed, trainable.to(frozen.dtype))
        return partly_trained_weights(live, self._standing) if self._standing else {}

    def _weights_of_entries(self) -> dict[str, Tensor]:
        """Effective weights with the trained values at their entries, and the frozen values in the rest of the mask."""
        if not self._standing and not self._sparse:
            with lasting():
                for name, mask in self.mask.items():
                    around, places = torch.where(mask, self.frozen[name], self.outside(name)), self.places[name]
                    if name in self.trained_sparsely:
                        csr = TrainedCSR(around, mask, places, self.values[name])
                        self._sparse[name] = SparseWeight(csr, strict=False)
                    else:
                        self._standing[name] = (around, places)
        dense = {
            name: entries_weight(self.values[name], places, around) for name, (around, places) in self._standing.items()
        }
        return {**dense, **self._sparse}

    def _mixed_weights(self) -> dict[str, Tensor]:
        change = self.change()
        mixed = {name: weight for name, weight in change.items() if name not in self.own_masks}
        own: dict[str, Tensor] = {}
        if self.select is not None:
            own = selected_weights(self.select, {n: self.scores[n] for n in self.own_masks}, change)
        weights = {**self.mixtures.weights(self.mixtures.coefficients, mixed, self.masks), **own}
        return self._with_brought_rows(self.around(weights))

    @torch.no_grad()
    def commit(
        self, live: Mapping[str, Tensor], private: Mapping[str, Tensor], *, entropy: float | None = None
    ) -> None:
        """Finish the task: write its trained values to the buffers, store its mask and its private tensors.

        Args:
            live: trained values, by name.
            private: tensors that only this task has, by name.
            entropy: mean entropy of its outputs on its training data (see `Task`).

        Raises:
            RuntimeError: no task is being learned.
        """
        if self.active is None:
            raise RuntimeError("commit() without begin(): no task is being learned")
        if self.phase == "coefficients":
            own = {n: self.select.mask(n, self.scores[n]) for n in self.own_masks} if self.select else {}
            self.mixtures.finish(self.next_slot, own)
        else:
            mask = self.current_mask()
            for name, trainable in self.trainable.items():
                self.frozen[name].copy_(torch.where(trainable, live[name], self.frozen[name]))
            for name, places in self.places.items():
                self.frozen[name].view(-1).index_copy_(0, places, self.values[name][: len(places)])
            self.masks.commit(self.next_slot, mask)
        if private:
            self.private[str(self.next_slot)] = NamedTensors(
                {name: tensor.detach().clone() for name, tensor in private.items()}
            )
        self.tasks[self.active] = Task(self.next_slot, self.active_label, entropy)
        self.next_slot += 1
        self.abandon()

    @torch.no_grad()
    def adopt(
        self,
        key: int,
        label: int | None,
        mask: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        private: Mapping[str, Tensor],
        *,
        entropy: float | None = None,
    ) -> None:
        """Add a task that was learned in another model.

        Its values are written to the frozen weights. If one of them differs from the committed value of an owned entry,
        all of them are stored with the task instead.

        Args:
            key: key of the task; it must not be in use.
            label: Avalanche's task label (see `Task`).
            mask: bool tensors by name.
            values: values of the entries that the mask keeps, in order, by name.
            private: tensors that only this task has, by name.
            entropy: mean entropy of its outputs on its training data (see `Task`).
        """
        owned = self.owned()
        wanted = {n: w.masked_scatter(mask[n].to(w.device), values[n].to(w)) for n, w in self.frozen.items()}
        clash = any(bool(((wanted[n] != w) & owned[n]).any()) for n, w in self.frozen.items())
        self.masks.commit(self.next_slot, {n: m.to(self.frozen[n].device) for n, m in mask.items()})
        if clash:
            kept = {name: values[name].detach().clone().to(weight) for name, weight in self.frozen.items()}
            self.carried[str(self.next_slot)] = NamedTensors(kept)
        else:
            for name, weight in self.frozen.items():
                weight.copy_(wanted[name])
        if private:
            device = next(iter(self.frozen.values())).device
            self.private[str(self.next_slot)] = NamedTensors(
                {n: t.detach().clone().to(device) for n, t in private.items()}
            )
        self.tasks[key] = Task(self.next_slot, label, entropy)
        self.next_slot += 1

    @torch.no_grad()
    def restore(
        self,
        key: int,
        task: Task,
        mask: Mapping[str, Tensor],
        private: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Restore a finished task whose mask `forget` removed; the weights must not have changed since."""
        self.masks.commit(task.slot, mask)
        if private:
            self.private[str(task.slot)] = NamedTensors(private)
        self.tasks[key] = task
        self.store_statistics(key, statistics or {})

    def add_to_basis(self, mask: Mapping[str, Tensor] | int) -> None:
        """Add a mask to the basis of mixtures: that of a finished task, by its key, or one that belongs to no task."""
        if isinstance(mask, int):
            self.mixtures.extend(self._slot(mask))
        else:
            self.masks.commit(self.next_slot, mask)
            self.mixtures.extend(self.next_slot)
            self.next_slot += 1

    def abandon(self) -> None:
        """Drop the task being learned; nothing of it is kept."""
        self._clear_weights()
        self.active = self.active_label = self.phase = self.select = None
        self.own_masks = frozenset()

    def _clear_weights(self) -> None:
        self.mask.clear()
        self.trainable.clear()
        self.places.clear()
        self.trained_sparsely = frozenset()
        self.drop_standing()

    def drop_standing(self) -> None:
        """Drop the constant parts of the weights; they are computed again when they are needed."""
        self._standing, self._sparse = {}, {}

    # ------------------------------------------------------------------ finished tasks

    def task_mask(self, key: int) -> dict[str, Tensor]:
        """Mask of a finished task: bool tensors by name. The mask of a mixture holds the entries that are not zero."""
        slot = self._slot(key)
        if slot in self.mixtures:
            return {name: w != self.outside(name) for name, w in self.task_weights(key).items()}
        return self.masks.read(slot)

    def task_weights(self, key: int) -> dict[str, Tensor]:
        """Effective weights of a finished task: ``W * M``, or with a base ``W_base + M * (W - W_base)``."""
        slot = self._slot(key)
        if slot in self.mixtures:
            mixed = self.mixtures.weights(self.mixtures.of(slot), self.change(), self.masks)
            return self._with_brought_rows(self.around(mixed))
        masks = self.masks.read(slot)
        if str(slot) in self.carried:
            values: NamedTensors = self.carried[str(slot)]  # type: ignore[assignment]
            return {name: self.outside(name).masked_scatter(mask, values[name]) for name, mask in masks.items()}
        if len(self.base):
            return {name: torch.where(mask, self.frozen[name], self.base[name]) for name, mask in masks.items()}
        return {name: self.frozen[name] * mask for name, mask in masks.items()}

    def task_values(self, key: int) -> dict[str, Tensor]:
        """Effective weights of a finished task at the entries of its mask, in order: one-dimensional, by name."""
        weights = self.task_weights(key)
        return {name: weights[name][mask] for name, mask in self.task_mask(key).items()}

    def task_choices(self, key: int) -> dict[str, list[str]]:
        """The stored choices of sparse weights for a finished task (see `execution`); new ones may be added to it."""
        return self.choices.setdefault(self._slot(key), {})

    def task_private(self, key: int) -> dict[str, Tensor]:
        """Tensors that only this task has, by name in the network."""
        slot = str(self._slot(key))
        if slot not in self.private:
            return {}
        stored: NamedTensors = self.private[slot]  # type: ignore[assignment]
        return dict(stored)

    def task_statistics(self, key: int) -> dict[str, Tensor]:
        """Statistics that inference gathered for a finished task, by name."""
        slot = str(self._slot(key))
        return dict(self.statistics[slot]) if slot in self.statistics else {}  # type: ignore[call-overload]

    def store_statistics(self, key: int, statistics: Mapping[str, Tensor]) -> None:
        """Store statistics that inference gathered for a finished task; they replace earlier ones."""
        slot = str(self._slot(key))
        if slot in self.statistics:
            del self.statistics[slot]
        if statistics:
            self.statistics[slot] = NamedTensors({name: t.detach().clone() for name, t in statistics.items()})

    def owned(self, keys: list[int] | None = None) -> dict[str, Tensor]:
        """Entries that at least one of these finished tasks uses (None: of all tasks): bool tensors by name."""
        slots = self._owners() if keys is None else self._slots_used(keys)
        union = self.masks.union(slots)
        return {name: mask.to(self.frozen[name].device) for name, mask in union.items()}

    def _owners(self) -> list[int]:
        """Slots of the masks whose values are in the frozen weights."""
        return [slot for slot in self.masks.slots() if str(slot) not in self.carried]

    def _slots_used(self, keys: list[int]) -> list[int]:
        slots = [self._slot(key) for key in keys]
        mixed = self.mixtures.basis if any(slot in self.mixtures for slot in slots) else []
        slots = [slot for slot in slots if str(slot) not in self.carried]
        return [*dict.fromkeys([*(slot for slot in slots if slot not in self.mixtures), *mixed])]

    def task_bytes(self, key: int, *, private: bool = True) -> int:
        """Bytes stored for a finished task: its packed mask or its coefficients, and its private tensors.

        Values in the frozen weights do not count, because these weights are stored in any case.
        """
        slot = self._slot(key)
        chosen = _nbytes(self.mixtures.of(slot)) if slot in self.mixtures else self.masks.row_bytes
        if str(slot) in self.carried:
            chosen += _nbytes(self.carried[str(slot)])  # type: ignore[arg-type]
        entropy = 0 if self.tasks[key].entropy is None else 4
        own = _nbytes(self.task_private(key)) + _nbytes(self.task_statistics(key)) + entropy
        return chosen + (own if private else 0)

    @property
    def basis_bytes(self) -> int:
        """Bytes of masks that belong to no finished task: masks that were drawn, or whose tasks are forgotten."""
        owned = sum(task.slot not in self.mixtures for task in self.tasks.values())
        return (len(self.masks) - owned) * self.masks.row_bytes

    def capacity(self) -> dict[str, LayerCapacity]:
        """Number of all, owned, free and reused weights of each masked layer."""
        once, twice = self.masks.coverage(self._owners())
        return {
            name: LayerCapacity(mask.numel(), int(mask.sum()), int(twice[name].sum())) for name, mask in once.items()
        }

    def _apply(self, fn: Any, recurse: bool = True) -> Subnetworks:
        self.drop_standing()
        super()._apply(fn, recurse)
        return self

    @torch.no_grad()
    def forget(self, key: int) -> dict[str, Tensor]:
        """Delete a finished task. Returns the entries that only this task owned (bool by name); they are free now.

        A mask in the basis of finished mixtures stays, and so its weights stay owned.
        """
        slot = self._slot(key)
        freed = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in self.frozen.items()}
        if slot in self.mixtures:
            self.mixtures.drop(slot)
        elif str(slot) in self.carried:
            self.masks.drop(slot)
            del self.carried[str(slot)]
        elif slot not in self.mixtures.basis or not len(self.mixtures.finished):
            rest = self.masks.union([other for other in self._owners() if other != slot])
            freed = {name: mask & ~rest[name] for name, mask in self.masks.read(slot).items()}
            self.masks.drop(slot)
            self.mixtures.reduce(slot)
        for stored in (self.private, self.statistics):
            if str(slot) in stored:
                del stored[str(slot)]
        self.choices.pop(slot, None)
        del self.tasks[key]
        return self.without_padding(freed)

    def _slot(self, key: int) -> int:
        if key not in self.tasks:
            raise KeyError(f"task {key} is not learned; learned tasks: {list(self.tasks)}")
        return self.tasks[key].slot

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> dict[str, Any]:
        """Tasks, phase and choices: the part of the state that is not in tensors."""
        return {
            "tasks": [(key, task.slot, task.label, task.entropy) for key, task in self.tasks.items()],
            "next_slot": self.next_slot,
            "active": self.active,
            "phase": self.phase,
            **({"scaled_for": dict(self.scaled_for)} if self.scaled_for else {}),
            "choices": [(slot, name, [*names]) for slot, of in self.choices.items() for name, names in of.items()],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the tasks of a saved state.

        If the state was saved while the same task was being learned, learning continues from that point, as with early
        stopping. Any other state drops the task being learned.
        """
        if self.active is None or state["active"] != self.active:
            self.abandon()
        self.phase = state["phase"] if self.active is not None else None
        self.drop_standing()
        self.tasks = {key: Task(*task) for key, *task in state["tasks"]}
        self.next_slot = state["next_slot"]
        self.scaled_for = dict(state.get("scaled_for", {}))
        self.choices = {}
        for slot, name, names in state.get("choices", ()):  # states of 0.1.0 have no choices
            self.choices.setdefault(slot, {})[name] = [*names]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_standing": {}, "_sparse": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        later: dict[str, Any] = {
            "choices": {},
            "_sparse": {},
            "trained_sparsely": frozenset(),
        }  # pickles of 0.1.0 lack these
        super().__setstate__({**later, **state})  # type: ignore[no-untyped-call]
        if "base" not in self._modules:  # a pickle of version 0.1.0
            self.base, self.places = NamedTensors(), NamedTensors()
            self.values = NamedTensors(trainable=True)
            self.carried = nn.ModuleDict()
            self.statistics = nn.ModuleDict()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for part in ("private", "statistics", "carried"):
            start = f"{prefix}{part}."
            slots = dict.fromkeys(key[len(start) :].partition(".")[0] for key in state_dict if key.startswith(start))
            # PyTorch loads the tensors of these modules next.
            setattr(self, part, nn.ModuleDict({slot: NamedTensors() for slot in slots}))


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())

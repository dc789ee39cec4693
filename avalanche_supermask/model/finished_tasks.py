"""The storage of the finished tasks: a bit mask or a mixture per task, and the few tensors that only this task has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.bits.packed_masks import PackedMasks
from avalanche_supermask.model.mixtures import Mixtures
from avalanche_supermask.model.shared_weights import SharedWeights
from avalanche_supermask.named_tensors import NamedTensors

__all__ = ["FinishedTasks", "LayerCapacity", "Task"]


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


class FinishedTasks(SharedWeights):
    """The weights that tasks share, and the finished tasks that use them; `SharedWeights` describes the arguments."""

    def __init__(
        self,
        frozen: Mapping[str, Tensor],
        *,
        base: Mapping[str, Tensor] | None = None,
        padding: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(frozen, base=base, padding=padding)
        self.masks = PackedMasks({name: tuple(weight.shape) for name, weight in frozen.items()})
        self.mixtures = Mixtures()
        # slot -> private tensors of that task: norm statistics, head and others. A task without private tensors has no
        # entry, because every device move and every search for parameters visits each module.
        self.private = nn.ModuleDict()
        # slot -> statistics that an inference method gathered for that task; a task without them has no entry.
        self.statistics = nn.ModuleDict()
        # slot -> values of the entries in its mask, for a task that was loaded from a file and whose values differ
        # from those of earlier tasks at shared entries.
        self.carried = nn.ModuleDict()
        self.tasks: dict[int, Task] = {}
        self.next_slot = 0
        # slot -> which weights are sparse in which class of batches, if this was measured (see `execution`).
        self.choices: dict[int, dict[str, list[str]]] = {}

    # ------------------------------------------------------------------ adding and deleting tasks

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
        device = next(iter(self.frozen.values())).device
        self._add(key, label, {name: tensor.to(device) for name, tensor in private.items()}, entropy)

    def _add(self, key: int, label: int | None, private: Mapping[str, Tensor], entropy: float | None) -> None:
        """Add a finished task whose mask or mixture is stored under the next slot."""
        if private:
            kept = {name: tensor.detach().clone() for name, tensor in private.items()}
            self.private[str(self.next_slot)] = NamedTensors(kept)
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
            raise KeyError(f"task {key!r} is not learned; learned tasks: {list(self.tasks)}")
        return self.tasks[key].slot

    # ------------------------------------------------------------------ reading tasks

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

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> dict[str, Any]:
        """The part of the state that is not in tensors: the tasks and the choices of sparse weights."""
        return {
            "tasks": [(key, task.slot, task.label, task.entropy) for key, task in self.tasks.items()],
            "next_slot": self.next_slot,
            **({"scaled_for": dict(self.scaled_for)} if self.scaled_for else {}),
            "choices": [(slot, name, [*names]) for slot, of in self.choices.items() for name, names in of.items()],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the tasks of a saved state."""
        self.tasks = {key: Task(*task) for key, *task in state["tasks"]}
        self.next_slot = state["next_slot"]
        self.scaled_for = dict(state.get("scaled_for", {}))
        self.choices = {}
        for slot, name, names in state.get("choices", ()):  # states of 0.1.0 have no choices
            self.choices.setdefault(slot, {})[name] = [*names]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"choices": {}, **state})  # type: ignore[no-untyped-call]
        if "base" not in self._modules:  # a pickle of version 0.1.0, which also lacks the choices
            self.base, self.carried, self.statistics = NamedTensors(), nn.ModuleDict(), nn.ModuleDict()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for part in ("private", "statistics", "carried"):
            start = f"{prefix}{part}."
            slots = dict.fromkeys(key[len(start) :].partition(".")[0] for key in state_dict if key.startswith(start))
            # PyTorch loads the tensors of these modules next.
            setattr(self, part, nn.ModuleDict({slot: NamedTensors() for slot in slots}))


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())

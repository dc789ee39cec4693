"""What the tasks own: frozen weights, a bit mask a task, a few floats a task, and the task being learned.

Frozen by construction. What a finished task uses lives in buffers; what the current task trains lives in
parameters that exist once, whatever the number of tasks. The effective weight is

    mask * where(trainable, parameter, frozen)

and at the end of a task the trained values are written to the buffer. No optimizer, hook or plugin can reach
a finished task, because none of its tensors is a parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_supermask.masks import PackedMasks
from avalanche_supermask.selection import Selection
from avalanche_supermask.tensors import NamedTensors

__all__ = ["LayerCapacity", "Subnetworks", "Task"]


@dataclass(frozen=True)
class Task:
    """Where a task's mask is kept, and the Avalanche label under which it was learned (None without labels)."""

    slot: int
    label: int | None


@dataclass(frozen=True)
class LayerCapacity:
    """Weights of one layer: ``owned`` by at least one finished task, ``reused`` by two or more, or ``free``."""

    total: int
    owned: int
    reused: int

    @property
    def free(self) -> int:
        """Weights that no finished task uses."""
        return self.total - self.owned


class Subnetworks(nn.Module):
    """The weights that tasks share and the masks that tell them apart.

    Args:
        frozen: committed value of each masked weight, by name.
    """

    def __init__(self, frozen: Mapping[str, Tensor]) -> None:
        super().__init__()
        shapes = {name: tuple(weight.shape) for name, weight in frozen.items()}
        self.frozen = NamedTensors(frozen)
        self.masks = PackedMasks(shapes)
        self.private = nn.ModuleDict()  # slot -> what only that task has: norm statistics, head, ...
        self.scores = NamedTensors(trainable=True)
        self.tasks: dict[int, Task] = {}
        self.next_slot = 0
        # The task being learned.
        self.active: int | None = None
        self.active_label: int | None = None
        self.phase: Literal["scores", "weights"] | None = None  # what learns
        self.select: Selection | None = None
        self.mask = NamedTensors()  # of the weights phase; before it, the scores choose
        self.trainable = NamedTensors()
        # While the mask stands still: what of each weight is fixed, and 1 where it learns. Numbers, not bool: on a
        # CPU, arithmetic with numbers is several times faster.
        self._standing: dict[str, tuple[Tensor, Tensor]] = {}

    # ------------------------------------------------------------------ the task being learned

    @torch.no_grad()
    def set_scores(self, values: Mapping[str, Tensor]) -> None:
        """Write the scores in place; the first call makes them: one tensor a layer, whatever the number of tasks."""
        for name, value in values.items():
            if name in self.scores:
                self.scores[name].copy_(value)
            else:
                self.scores[name] = value.detach().clone().to(self.frozen[name])

    def begin(self, key: int, label: int | None) -> None:
        """Start a task; whatever another unfinished one left is dropped."""
        self.abandon()
        self.active, self.active_label = key, label

    def learn_scores(self, select: Selection) -> None:
        """The scores choose the mask and learn; weights stand still."""
        self._clear_weights()
        self.phase, self.select = "scores", select

    def learn_weights(self, trainable: Mapping[str, Tensor], *, mask: Mapping[str, Tensor]) -> None:
        """The mask stands still; the weights marked in ``trainable`` (bool, inside the mask) learn."""
        mask = {name: m.clone() for name, m in mask.items()}
        self._clear_weights()
        self.phase = "weights"
        self.mask.update(mask)
        self.trainable.update({name: trainable[name] & m for name, m in mask.items()})

    def current_mask(self) -> dict[str, Tensor]:
        """Mask of the task being learned: bool tensors by name."""
        if self.phase == "weights":
            return dict(self.mask)
        if self.select is None:
            raise RuntimeError("no phase has begun, so there is no current mask; call learn_scores() first")
        return {name: self.select.mask(name, scores) for name, scores in self.scores.items()}

    def current_weights(self, live: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Effective weights of the task being learned, differentiable in what is learning.

        Args:
            live: the trainable copy of each weight.
        """
        if self.phase == "scores" and self.select is not None:
            select = self.select
            return {name: select.weight(name, s, self.frozen[name]) for name, s in self.scores.items()}
        if not self._standing:
            for name, trainable in self.trainable.items():
                frozen = self.frozen[name]
                self._standing[name] = (frozen * (self.mask[name] & ~trainable), trainable.to(frozen.dtype))
        return {name: torch.addcmul(fixed, learns, live[name]) for name, (fixed, learns) in self._standing.items()}

    @torch.no_grad()
    def commit(self, live: Mapping[str, Tensor], private: Mapping[str, Tensor]) -> None:
        """Finish the task: write its trained values to the buffers, store its mask and its private tensors.

        Raises:
            RuntimeError: no task is being learned.
        """
        if self.active is None:
            raise RuntimeError("commit() without begin(): no task is being learned")
        mask = self.current_mask()
        for name, trainable in self.trainable.items():
            self.frozen[name].copy_(torch.where(trainable, live[name], self.frozen[name]))
        self.masks.commit(self.next_slot, mask)
        self.private[str(self.next_slot)] = NamedTensors(
            {name: tensor.detach().clone() for name, tensor in private.items()}
        )
        self.tasks[self.active] = Task(self.next_slot, self.active_label)
        self.next_slot += 1
        self.abandon()

    def abandon(self) -> None:
        """Drop the task being learned; nothing more of it is kept."""
        self._clear_weights()
        self.active = self.active_label = self.phase = self.select = None

    def _clear_weights(self) -> None:
        self.mask.clear()
        self.trainable.clear()
        self._standing = {}

    # ------------------------------------------------------------------ finished tasks

    def task_mask(self, key: int) -> dict[str, Tensor]:
        """Mask of a finished task: bool tensors by name."""
        return self.masks.read(self._slot(key))

    def task_weights(self, key: int) -> dict[str, Tensor]:
        """Effective weights ``W * M`` of a finished task."""
        return {name: self.frozen[name] * mask for name, mask in self.task_mask(key).items()}

    def task_private(self, key: int) -> dict[str, Tensor]:
        """Tensors that only this task has, by name in the network."""
        stored: NamedTensors = self.private[str(self._slot(key))]  # type: ignore[assignment]
        return dict(stored)

    def owned(self, keys: list[int] | None = None) -> dict[str, Tensor]:
        """Weights that any of these finished tasks uses (all of them if None): bool tensors by name."""
        slots = None if keys is None else [self._slot(key) for key in keys]
        union = self.masks.union(slots)
        return {name: mask.to(self.frozen[name].device) for name, mask in union.items()}

    def task_bytes(self, key: int) -> int:
        """Bytes stored for a finished task: its packed mask and its private tensors."""
        return self.masks.row_bytes + sum(t.numel() * t.element_size() for t in self.task_private(key).values())

    def capacity(self) -> dict[str, LayerCapacity]:
        """How far each masked layer is filled."""
        once, twice = self.masks.coverage()
        return {
            name: LayerCapacity(mask.numel(), int(mask.sum()), int(twice[name].sum())) for name, mask in once.items()
        }

    def _apply(self, fn: Any, recurse: bool = True) -> Subnetworks:
        self._standing = {}
        super()._apply(fn, recurse)
        return self

    @torch.no_grad()
    def forget(self, key: int) -> dict[str, Tensor]:
        """Delete a finished task. Returns the weights that only it owned (bool by name), now free."""
        slot = self._slot(key)
        rest = self.owned([other for other in self.tasks if other != key])
        freed = {name: mask & ~rest[name] for name, mask in self.masks.read(slot).items()}
        self.masks.drop(slot)
        del self.private[str(slot)]
        del self.tasks[key]
        return freed

    def _slot(self, key: int) -> int:
        if key not in self.tasks:
            raise KeyError(f"task {key} is not learned; learned tasks: {list(self.tasks)}")
        return self.tasks[key].slot

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> dict[str, Any]:
        """Keys, slots, labels and phase: what the tensors alone do not say."""
        return {
            "tasks": [(key, task.slot, task.label) for key, task in self.tasks.items()],
            "next_slot": self.next_slot,
            "active": self.active,
            "phase": self.phase,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Make room for the tasks of a saved state; their tensors follow.

        A state that was taken while the same task was being learned goes back to that point, as early stopping
        does; any other one drops the task being learned.
        """
        if self.active is None or state["active"] != self.active:
            self.abandon()
        self.phase = state["phase"] if self.active is not None else None
        self._standing = {}
        self.tasks = {key: Task(slot, label) for key, slot, label in state["tasks"]}
        self.next_slot = state["next_slot"]
        self.private = nn.ModuleDict({str(task.slot): NamedTensors() for task in self.tasks.values()})

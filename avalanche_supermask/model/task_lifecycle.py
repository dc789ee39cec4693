"""The life of a task: it begins, is committed or abandoned, may be continued, and may be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_supermask.inference import entropy
from avalanche_supermask.model.constants import redraw_free
from avalanche_supermask.model.learning_phases import LearningPhases
from avalanche_supermask.model.subnetworks import Task

__all__ = ["Finished", "TaskLifecycle"]


class Finished(NamedTuple):
    """A finished task, kept so that it can be restored."""

    key: int
    task: Task
    mask: dict[str, Tensor]
    private: dict[str, Tensor]
    statistics: dict[str, Tensor] | None = None  # the statistics that were gathered for inference


class TaskLifecycle(LearningPhases):
    """A wrapped network to which tasks are added, one after the other, and from which they can be deleted."""

    _resumed: Finished | None = None  # the state in which the task being learned was committed before

    @torch.no_grad()
    def begin(self, key: int, label: int | None = None) -> None:
        """Start a task: per-task parameters and running statistics get their initial values.

        Raises:
            ValueError: the task is learned already.
        """
        if key in self.subnetworks.tasks:
            raise ValueError(
                f"task {key} is learned already, and finished tasks never change; learned: {self.task_keys}. "
                "Give it a new key, or forget(task) first"
            )
        if self._resumed is not None:
            self.abandon()
        self.subnetworks.begin(key, label)
        for name, live in self._live(list(self.fresh)).items():
            live.copy_(self.fresh[name])

    @torch.no_grad()
    def commit(self, outputs: Sequence[Tensor] = ()) -> None:
        """Finish the task being learned. From now on its outputs never change.

        Args:
            outputs: logits of batches of its training samples, each ``(batch, outputs)``. Their mean entropy is stored
                with the task, for `ExpectedEntropy`.

        Raises:
            RuntimeError: no task is being learned.
            FloatingPointError: a learned value is NaN or infinite; the task is abandoned.
        """
        buffers = self._live(self._buffer_names)
        for name, channels in self.frozen_channels.items():
            channels.restore(buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"])
        private = {
            **{name: b for name, b in buffers.items() if not torch.equal(b, self.fresh[name])},
            **self._live(self._own_names),
            **self._head_tensors(),
        }
        learned = [*private.values(), *(p for p in self.parameters() if p.requires_grad)]
        if not all(bool(t.isfinite().all()) for t in learned):
            key = self.active
            self.abandon()
            raise FloatingPointError(
                f"task {key} learned NaN or infinite values and was not stored; the {len(self.task_keys)} "
                "earlier tasks are intact; lower the learning rate"
            )
        expected = float(torch.cat([entropy(out.float()) for out in outputs]).mean()) if outputs else None
        self.subnetworks.commit(self._live(self.masked_names), private, entropy=expected)
        if self._resumed is not None:  # the statistics of the task's earlier data stay valid
            self.subnetworks.store_statistics(self._resumed.key, self._resumed.statistics or {})
        self._resumed = None
        self._end()

    def abandon(self) -> None:
        """Stop learning the current task and keep nothing of it; a resumed task is restored as it was."""
        self.subnetworks.abandon()
        if self._resumed is not None:
            self.subnetworks.restore(*self._resumed)
            self._resumed = None
        self._end()

    def _end(self) -> None:
        self.frozen_channels = {}
        self._clear_kept()
        self._set_learning(())

    # ------------------------------------------------------------------ finished tasks

    @torch.no_grad()
    def resume(self) -> dict[str, Tensor]:
        """Make the task that was committed last the task being learned again; returns its mask, bool tensors by name.

        The task keeps its state. It can be committed again, or abandoned; `abandon` restores it as it was. Earlier
        tasks stay bit-identical. Weights that the task's next mask leaves out keep their values and become free.
        """
        key = self.task_keys[-1]
        task, private = self.subnetworks.tasks[key], self.subnetworks.task_private(key)
        mask, statistics = self.subnetworks.task_mask(key), self.subnetworks.task_statistics(key)
        self.subnetworks.forget(key)
        self.begin(key, task.label)
        self._resumed = Finished(key, task, mask, private, statistics)
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        for name, kept in private.items():
            if name in tensors and tensors[name].shape == kept.shape:  # a head may have grown since the commit
                tensors[name].copy_(kept)
        return mask

    @torch.no_grad()
    def reopen(self, select: Any) -> None:
        """Make the task that was committed last the task being learned again, in the phase that trains its scores.

        Args:
            select: turns the scores into the mask; they still have the values of the commit.
        """
        key = self.task_keys[-1]
        label, kept = self.subnetworks.tasks[key].label, self.subnetworks.task_private(key)
        self.subnetworks.forget(key)
        self.begin(key, label)
        for name, live in self._live([name for name in self.fresh if name in kept]).items():
            live.copy_(kept[name])
        self.learn_scores(select)

    def adopt(
        self,
        key: int,
        label: int | None,
        mask: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        *,
        entropy: float | None = None,
    ) -> None:
        """Add a task that was learned in another model of the same base (see `load_task`).

        Args:
            key: key of the task; it must not be in use.
            label: Avalanche's task label, under which the task is called; None without labels.
            mask: bool tensors by name.
            values: values of the entries that the mask keeps, in order, by name.
            own: the task's own tensors, by name in the network.
            entropy: mean entropy of the task's outputs on its own training data, for `ExpectedEntropy`; None: unknown.
        """
        self.subnetworks.adopt(key, label, mask, values, own, entropy=entropy)
        self._clear_kept()
        self._set_learning(())

    def store_statistics(self, task: int, statistics: Mapping[str, Tensor]) -> None:
        """Store the statistics that an inference method gathered for a finished task; its outputs do not change."""
        self.subnetworks.store_statistics(task, statistics)
        self._clear_kept()

    @torch.no_grad()
    def forget(self, task: int) -> int:
        """Delete a finished task and free exactly the weights that only this task owned.

        Freed weights get new signed constants, so that no trace of the task is left. With ``init="keep"`` they return
        to the values of the base if one is stored, and otherwise keep their values. Other tasks stay bit-identical.

        Returns:
            Number of weights freed.

        Raises:
            KeyError: the task is not learned.
        """
        freed = self.subnetworks.forget(task)
        self._clear_kept()
        if self.init != "keep":
            of = self.subnetworks
            redraw_free(of.frozen, freed, seed=self.seed, key=task, densities=of.scaled_for)
        elif self.init == "keep" and len(self.subnetworks.base):
            for name, mask in freed.items():
                self.subnetworks.frozen[name].copy_(
                    torch.where(mask, self.subnetworks.base[name], self.subnetworks.frozen[name])
                )
        return sum(int(mask.sum()) for mask in freed.values())

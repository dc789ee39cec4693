"""The weights of all tasks: the finished tasks, and the task being learned.

Finished tasks are frozen by construction. The tensors of finished tasks are buffers. The tensors that the current task
trains are parameters, which exist once for any number of tasks. The effective weight is

    mask * where(trainable, parameter, frozen)

and at the end of a task the trained values are written to the buffer. No optimizer, hook or plugin can reach
a finished task, because none of its tensors is a parameter. A task may also be a mixture of the masks of a basis:
then its coefficients replace the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_supermask.effective import StepMemory, partly_trained_weights
from avalanche_supermask.functional import entries_weight
from avalanche_supermask.lasting import lasting
from avalanche_supermask.model.finished_tasks import FinishedTasks, LayerCapacity, Task
from avalanche_supermask.model.network_call import is_compiling
from avalanche_supermask.model.sparse_training import TrainedCSR
from avalanche_supermask.model.sparse_weight import SparseWeight
from avalanche_supermask.named_tensors import NamedTensors
from avalanche_supermask.selection import Selection, selected_weights

__all__ = ["LayerCapacity", "Subnetworks", "Task"]


class Subnetworks(FinishedTasks):
    """The finished tasks, and the task being learned; `SharedWeights` describes the arguments."""

    _latest_select: Selection | None = None  # also after the task is finished; pickles of 0.1.0 lack it

    def __init__(
        self,
        frozen: Mapping[str, Tensor],
        *,
        base: Mapping[str, Tensor] | None = None,
        padding: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(frozen, base=base, padding=padding)
        self.scores = NamedTensors(trainable=True)
        self.values = NamedTensors(trainable=True)  # in the phase "entries": the values of the chosen entries
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
        self._memory = StepMemory()
        self.trained_sparsely: frozenset[str] = frozenset()
        self._sparse: dict[str, SparseWeight] = {}  # in the phase "entries": weights that are trained in sparse form

    # ------------------------------------------------------------------ phases of the task being learned

    @torch.no_grad()
    def set_scores(self, values: Mapping[str, Tensor]) -> None:
        """Write the scores in place; the first call allocates them, one tensor per layer for any number of tasks."""
        for name, value in values.items():
            if name in self.scores:
                self.scores[name].copy_(value)
            else:
                self.scores[name] = value.detach().clone().to(self.frozen[name])

    def _slot(self, key: int) -> int:
        if key == self.active:
            raise KeyError(
                f"task {key} is being learned, and is stored when its experience ends (with SupSupNNs, by "
                f"strategy.finish()); learned tasks: {list(self.tasks)}"
            )
        return super()._slot(key)

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
        return partly_trained_weights(live, self._standing, self._memory) if self._standing else {}

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

    # ------------------------------------------------------------------ the end of the task

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
                self.frozen[name].copy_(entries_weight(self.values[name], places, self.frozen[name]))
            self.masks.commit(self.next_slot, mask)
        self._add(self.active, self.active_label, private, entropy)
        self.abandon()

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
        self._standing, self._sparse, self._memory = {}, {}, StepMemory()

    # ------------------------------------------------------------------ state

    def _apply(self, fn: Any, recurse: bool = True) -> Subnetworks:
        self.drop_standing()
        super()._apply(fn, recurse)
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """The part of the state that is not in tensors: the finished tasks, the choices, and the current phase."""
        return {**super().get_extra_state(), "active": self.active, "phase": self.phase}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over the tasks of a saved state.

        If the state was saved while the same task was being learned, learning continues from that point, as with early
        stopping. Any other state drops the task being learned.
        """
        if self.active is None or state["active"] != self.active:
            self.abandon()
        self.phase = state["phase"] if self.active is not None else None
        self.drop_standing()
        super().set_extra_state(state)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_standing": {}, "_sparse": {}, "_memory": StepMemory()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_sparse": {}, "trained_sparsely": frozenset(), **state})
        if "values" not in self._modules:  # a pickle of version 0.1.0, which also lacks the sparse form
            self.values, self.places = NamedTensors(trainable=True), NamedTensors()

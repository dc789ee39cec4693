"""The phases in which a task is learned.

A phase determines which tensors require a gradient: scores, coefficients, or marked entries of the weights. The task's
own tensors require one in every phase.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask.model.marks import check_marks, refuse_owned
from avalanche_supermask.model.sparse_places import linear_places
from avalanche_supermask.model.sparse_training import worth_training
from avalanche_supermask.model.start_values import StartValues
from avalanche_supermask.selection import Selection

__all__ = ["LearningPhases"]


class LearningPhases(StartValues):
    """A wrapped network in which the tensors of one phase are trainable."""

    @property
    def scores(self) -> Mapping[str, Tensor]:
        """Scores of the task being learned, by name of the weight; empty before `set_scores`."""
        return self.subnetworks.scores

    def set_scores(self, values: Mapping[str, Tensor]) -> None:
        """Write the scores in place; the first call allocates them, one tensor per layer for any number of tasks.

        Args:
            values: scores by name of the masked weight, each in the shape of the weight.
        """
        self.subnetworks.set_scores(values)

    def current_mask(self) -> dict[str, Tensor]:
        """Mask of the task being learned: bool tensors by name. That of a mixture holds the entries that are not zero.

        Raises:
            RuntimeError: no phase has begun.
        """
        return self.subnetworks.current_mask()

    def learn_scores(
        self, select: Selection, *, trainable: Mapping[str, Tensor] | None = None, overwrite: bool = False
    ) -> None:
        """Start a phase that trains the scores, and also the entries marked in ``trainable``, if any.

        Args:
            select: turns the scores into the mask (see `selection`).
            trainable: bool tensors by name; they must not mark entries that finished tasks own (combine them with
                ``~model.owned()[name]``). None: no weights are trained.
            overwrite: whether entries of finished tasks may change. Only control experiments that shall forget use it.

        Raises:
            TypeError: an entry of ``trainable`` is not bool.
            ValueError: ``trainable`` has unknown names, wrong shapes, or entries that a finished task owns; or, with
                ``outside="base"``, no weight differs from the base, and ``trainable`` is not given.
        """
        if trainable is not None:
            check_marks("trainable", trainable, self.masked_shapes)
        if trainable is not None and not overwrite and self.task_keys:
            refuse_owned(trainable, self.owned())
        if not trainable and all(not bool(change.any()) for change in self.subnetworks.change().values()):
            raise ValueError(
                "a mask would choose between equal weights, as the values are those of the base: pass values=, or "
                "init='signed_constant', or learn tasks by SparseFineTuning first"
            )
        self.subnetworks.learn_scores(select, trainable=trainable)
        self._learn_live_weights(self.masked_names if trainable else ())

    def learn_coefficients(self, *, own: Collection[str] = (), select: Any = None) -> None:
        """Start a phase that trains the coefficients of a mixture; they start at 1/n (see `mixtures`).

        Args:
            own: names of masked weights whose scores are trained instead, so that the task has its own mask there.
            select: turns those scores into the mask.
        """
        self.subnetworks.mixtures.restart()
        self.subnetworks.learn_coefficients(own=frozenset(own), select=select)
        self._set_learning(())

    @torch.no_grad()
    def learn_weights(
        self,
        trainable: Mapping[str, Tensor],
        *,
        mask: Mapping[str, Tensor] | None = None,
        restart: bool = True,
        overwrite: bool = False,
    ) -> None:
        """Start a phase that trains the entries marked in ``trainable``, under a fixed mask.

        Args:
            trainable: bool tensors by name; only entries inside the mask count.
            mask: bool tensors by name; None: the current mask.
            restart: whether the weights start from the committed values; False: they keep their present values.
            overwrite: whether entries of finished tasks may change. Only control experiments that shall forget use it.

        Raises:
            TypeError: an entry of ``trainable`` or ``mask`` is not bool.
            ValueError: names are missing or unknown, shapes are wrong, or a finished task owns a marked entry.
        """
        mask = self.subnetworks.current_mask() if mask is None else mask
        check_marks("trainable", trainable, self.masked_shapes)
        check_marks("mask", mask, self.masked_shapes)
        if not overwrite and self.task_keys:
            refuse_owned({name: marked & mask[name] for name, marked in trainable.items()}, self.owned())
        self.subnetworks.learn_weights(trainable, mask=mask)
        if restart:
            self._learn_live_weights(self.masked_names)

    def learn_entries(self, chosen: Mapping[str, Tensor], *, mask: Mapping[str, Tensor]) -> None:
        """Start a phase that trains a few entries under a fixed mask; an optimizer holds only those entries.

        Args:
            chosen: bool tensors by name that mark the trained entries: inside the mask, and owned by no finished task.
            mask: bool tensors by name.

        Raises:
            TypeError: an entry of ``chosen`` or ``mask`` is not bool.
            ValueError: names are missing or unknown, shapes are wrong, or a finished task owns a chosen entry.
        """
        check_marks("chosen", chosen, self.masked_shapes)
        check_marks("mask", mask, self.masked_shapes)
        if self.task_keys:
            refuse_owned(chosen, self.owned())
        self.subnetworks.learn_entries(chosen, mask=mask, sparse=self._trained_sparsely(mask))
        self._set_learning(())

    def trains_sparsely(self, mask: Mapping[str, Tensor]) -> bool:
        """Whether `learn_entries` would train a layer with this mask in sparse form (see ``execution``).

        Args:
            mask: bool tensors by name of the masked weight.
        """
        return bool(self._trained_sparsely(mask))

    def _trained_sparsely(self, mask: Mapping[str, Tensor]) -> frozenset[str]:
        """Names of the weights that `learn_entries` trains in sparse form."""
        compiled = self._compiled_call_impl is not None or self.net._compiled_call_impl is not None
        if self.execution == "dense" or compiled or len(self.subnetworks.base):
            return frozenset()
        served = linear_places(self.net) & mask.keys()
        return frozenset(name for name in served if worth_training(mask[name]))

    @torch.no_grad()
    def _learn_live_weights(self, names: Sequence[str]) -> None:
        """Copy the committed values into the trainable copies of these weights, and make the copies trainable."""
        for name, weight in self._live(names).items():
            weight.copy_(self.subnetworks.frozen[name])
        self._set_learning(names)

    def _set_learning(self, weights: Sequence[str]) -> None:
        """Make trainable: these weights, the other tensors of the phase and, while a task is active, its own tensors.

        All other parameters become frozen, and all gradients are cleared.
        """
        own = {*self._own_names, *self._head_tensors()} if self.active is not None else set()
        for name, p in self.net.named_parameters():
            p.requires_grad_((name in weights or name in own) and name not in self.frozen_names)
            p.grad = None
        learning = {id(p) for p in self.subnetworks.learning()}
        for p in self.subnetworks.parameters():
            p.requires_grad_(id(p) in learning)
            p.grad = None

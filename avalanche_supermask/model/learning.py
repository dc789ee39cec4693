"""How a task is learned in a `MaskedModel`: it begins, goes through phases, is committed, and may be forgotten.

A phase says what requires a gradient: scores, coefficients, or marked entries of the weights; and, in any of them, the
task's own tensors. Weights learn in the network's parameters, a copy of the committed ones, so that nothing of a
finished task is ever within an optimizer's reach.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from avalanche_supermask.functional import initial_scores, reordered, signed_constant
from avalanche_supermask.inference import entropy
from avalanche_supermask.model.accounting import Accounting
from avalanche_supermask.model.frozen_batchnorm import FrozenChannels
from avalanche_supermask.model.subnetworks import Task
from avalanche_supermask.model.tensor_roles import Init, head_tensors
from avalanche_supermask.named_tensors import NamedTensors
from avalanche_supermask.selection import Selection

__all__ = ["Learning"]


class _Finished(NamedTuple):
    """A finished task, so that it can be put back."""

    key: int
    task: Task
    mask: dict[str, Tensor]
    private: dict[str, Tensor]
    statistics: dict[str, Tensor] | None = None  # gathered for inference


class Learning(Accounting, MultiTaskModule):
    """The part of `MaskedModel` that changes what it has learned."""

    init: Init
    wrapping: dict[str, Any]
    seed: int
    shared: NamedTensors
    fresh: NamedTensors
    frozen_channels: dict[str, FrozenChannels]
    frozen_names: frozenset[str] = frozenset()  # parameters that were brought frozen, and stay as they are
    _own_names: list[str]
    _buffer_names: list[str]
    _resumed: _Finished | None = None  # the task being learned, as it was committed before

    @property
    def net(self) -> nn.Module:
        """The network, whose parameters are the trainable copy of the weights."""
        raise NotImplementedError

    def _clear_kept(self) -> None:
        """Drop what was made of finished tasks to answer faster."""
        raise NotImplementedError

    def fresh_scores(self, key: int) -> dict[str, Tensor]:
        """Scores that a task starts from; their values depend on the model's seed and the key, not on other tasks.

        Args:
            key: of the task; negative for masks that belong to none, which are always random.
        """
        generator = _generator(self.seed, key, 0)
        scores = {name: initial_scores(s, generator=generator) for name, s in self.masked_shapes.items()}
        if self.wrapping.get("scores") != "magnitude" or key < 0:  # files of 0.1.0 say nothing of it
            return scores
        return {name: reordered(s, self.subnetworks.frozen[name].abs().cpu()) for name, s in scores.items()}

    @torch.no_grad()
    def scale_constants(self, densities: Mapping[str, float]) -> None:
        """Scale the constants of ``init="scaled_constant"`` for masks of these densities.

        Once, before the first task: nothing happens with another ``init``, where constants are scaled or used, or where
        a task keeps the base outside its mask.

        Args:
            densities: share of each masked weight's entries that a mask keeps, by name.
        """
        of = self.subnetworks
        used = of.scaled_for or of.tasks or of.active is not None
        if self.init != "scaled_constant" or used or len(of.base):
            return
        for name, density in densities.items():
            weight, row = of.frozen[name], of.padding.get(name)
            brought = None if row is None else weight[row].clone()
            weight.mul_(density**-0.5)
            if brought is not None:
                weight[row] = brought
        of.scaled_for = {name: float(density) for name, density in densities.items()}
        self._clear_kept()

    @torch.no_grad()
    def begin(self, key: int, label: int | None = None) -> None:
        """Start a task: per-task parameters and running statistics go back to fresh ones.

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

    @property
    def scores(self) -> Mapping[str, Tensor]:
        """Scores of the task being learned, by name of the weight; empty before `set_scores`."""
        return self.subnetworks.scores

    def set_scores(self, values: Mapping[str, Tensor]) -> None:
        """Write the scores in place; the first call makes them: one tensor per layer, whatever the number of tasks.

        Args:
            values: by name of the masked weight, each in its shape.
        """
        self.subnetworks.set_scores(values)

    def current_mask(self) -> dict[str, Tensor]:
        """Mask of the task being learned: bool tensors by name. Of a mixture: where its weights are not zero.

        Raises:
            RuntimeError: no phase has begun.
        """
        return self.subnetworks.current_mask()

    def learn_scores(
        self, select: Selection, *, trainable: Mapping[str, Tensor] | None = None, overwrite: bool = False
    ) -> None:
        """Phase in which the scores learn, and with them the weights marked in ``trainable``, if any.

        Args:
            select: turns the scores into the mask (see `selection`).
            trainable: bool by name; without the entries that finished tasks own (``~model.owned()[name]``).
            overwrite: let finished tasks change. Only for controls that shall forget.

        Raises:
            TypeError: an entry of ``trainable`` is not bool.
            ValueError: unknown names, wrong shapes, or entries that a finished task owns; or, with
                ``outside="base"``, no weight differs from the base, and none learns.
        """
        if trainable is not None:
            self._check_marks("trainable", trainable)
        if trainable is not None and not overwrite:
            self._refuse_owned(trainable)
        if not trainable and all(not bool(change.any()) for change in self.subnetworks.change().values()):
            raise ValueError(
                "a mask would choose between equal weights, as the values are those of the base: pass values=, or "
                "init='signed_constant', or learn tasks by SparseFineTuning first"
            )
        self.subnetworks.learn_scores(select, trainable=trainable)
        self._learn_live_weights(self.masked_names if trainable else ())

    def learn_coefficients(self, *, own: Collection[str] = (), select: Any = None) -> None:
        """Phase in which the coefficients of a mixture learn, from 1/n (see `mixtures`).

        Args:
            own: masked weights whose scores learn instead, for a mask of the task's own.
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
        """Phase in which the weights marked in ``trainable`` learn, under a mask that stands still.

        Args:
            trainable: bool by name; only entries inside the mask count.
            mask: bool by name; the current mask if None.
            restart: start from the committed values; False: go on from where the weights are.
            overwrite: let finished tasks change. Only for controls that shall forget.

        Raises:
            TypeError: an entry of ``trainable`` or ``mask`` is not bool.
            ValueError: missing or unknown names, wrong shapes, or entries that a finished task owns.
        """
        mask = self.subnetworks.current_mask() if mask is None else mask
        self._check_marks("trainable", trainable)
        self._check_marks("mask", mask)
        if not overwrite:
            self._refuse_owned({name: marked & mask[name] for name, marked in trainable.items()})
        self.subnetworks.learn_weights(trainable, mask=mask)
        if restart:
            self._learn_live_weights(self.masked_names)

    @torch.no_grad()
    def set_free_weights(self, values: Mapping[str, Tensor]) -> None:
        """Give the weights that no finished task owns these values; what a finished task owns stays as it is.

        Args:
            values: by name of the masked weight, each in its shape; names that are left out stay as they are.
        """
        owned = self.subnetworks.with_padding(self.owned())
        for name, value in values.items():
            weight = self.subnetworks.frozen[name]
            weight.copy_(torch.where(owned[name], weight, value.to(weight)))

    def _check_marks(self, argument: str, marks: Mapping[str, Tensor]) -> None:
        """Refuse marks that are not one bool tensor in the right shape for each masked weight."""
        shapes = self.masked_shapes
        if set(marks) != set(shapes):
            wrong = sorted(set(marks) ^ set(shapes))
            raise ValueError(f"{argument} needs one entry per masked weight, {[*shapes]}; wrong or missing: {wrong}")
        for name, mark in marks.items():
            if mark.dtype != torch.bool:
                raise TypeError(f"{argument}[{name!r}] must be a bool tensor; got {mark.dtype}: compare, as in S > 0")
            if tuple(mark.shape) != shapes[name]:
                raise ValueError(f"{argument}[{name!r}] must have the shape {shapes[name]}; got {tuple(mark.shape)}")

    def _refuse_owned(self, trainable: Mapping[str, Tensor]) -> None:
        """Keep the promise: no phase may train what a finished task uses."""
        if not self.subnetworks.tasks:
            return
        owned = self.owned()
        for name, marked in trainable.items():
            taken = int((marked.to(owned[name].device) & owned[name]).sum())
            if taken:
                raise ValueError(
                    f"{taken} entries of {name!r} that shall learn belong to finished tasks, which never change; "
                    "leave them out (trainable & ~model.owned()[name]), or pass overwrite=True for a control"
                )

    def learn_entries(self, chosen: Mapping[str, Tensor], *, mask: Mapping[str, Tensor]) -> None:
        """Phase in which a few entries learn, under a mask that stands still; an optimizer holds nothing else of them.

        Args:
            chosen: bool by name, inside the mask, of entries that no finished task owns.
            mask: bool by name.

        Raises:
            TypeError: an entry of ``chosen`` or ``mask`` is not bool.
            ValueError: missing or unknown names, wrong shapes, or entries that a finished task owns.
        """
        self._check_marks("chosen", chosen)
        self._check_marks("mask", mask)
        self._refuse_owned(chosen)
        self.subnetworks.learn_entries(chosen, mask=mask)
        self._set_learning(())

    @torch.no_grad()
    def _learn_live_weights(self, names: Sequence[str]) -> None:
        """Start these weights, of which some or all entries learn, from their committed values."""
        for name, weight in self._live(names).items():
            weight.copy_(self.subnetworks.frozen[name])
        self._set_learning(names)

    @torch.no_grad()
    def commit(self, outputs: Sequence[Tensor] = ()) -> None:
        """Finish the task being learned. From now on its outputs never change.

        Args:
            outputs: logits of batches of its training samples, each ``(batch, outputs)``: how sure the task is of its
                own data is stored with it, for `ExpectedEntropy`.

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
        if self._resumed is not None:  # what was gathered of its earlier data counts on
            self.subnetworks.store_statistics(self._resumed.key, self._resumed.statistics or {})
        self._resumed = None
        self._end()

    @torch.no_grad()
    def resume(self) -> dict[str, Tensor]:
        """Take the task that was committed last back into learning, as it is; returns its mask, bool by name.

        It can be committed again, or abandoned: then it is again what it was. Earlier tasks stay bit-identical. Weights
        that its next mask leaves out keep the values that it gave them, and are free.
        """
        key = self.task_keys[-1]
        task, private = self.subnetworks.tasks[key], self.subnetworks.task_private(key)
        mask, statistics = self.subnetworks.task_mask(key), self.subnetworks.task_statistics(key)
        self.subnetworks.forget(key)
        self.begin(key, task.label)
        self._resumed = _Finished(key, task, mask, private, statistics)
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        for name, kept in private.items():
            if name in tensors and tensors[name].shape == kept.shape:  # a head may have grown since
                tensors[name].copy_(kept)
        return mask

    @torch.no_grad()
    def reopen(self, select: Any) -> None:
        """Take the task that was committed last back into the phase in which its scores learn.

        Args:
            select: turns the scores, which are still as they were at the commit, into the mask.
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
            key: of the task, not in use.
            label: of Avalanche, under which it answers; None without labels.
            mask: bool by name.
            values: at the entries of the mask, in order, by name.
            own: the task's own tensors, by name in the network.
            entropy: how sure the task is of its own training data, for `ExpectedEntropy`; None: unknown.
        """
        self.subnetworks.adopt(key, label, mask, values, own, entropy=entropy)
        self._clear_kept()
        self._set_learning(())

    @property
    def buffer_names(self) -> list[str]:
        """Names of the buffers outside heads, in the network."""
        return list(self._buffer_names)

    def abandon(self) -> None:
        """Stop learning the current task and keep nothing of it; one that was resumed is again what it was."""
        self.subnetworks.abandon()
        if self._resumed is not None:
            self.subnetworks.restore(*self._resumed)
            self._resumed = None
        self._end()

    @torch.no_grad()
    def forget(self, task: int) -> int:
        """Delete a finished task and free exactly the weights that only it owned.

        Freed weights get new signed constants, so nothing of the task is left; with ``init="keep"`` they go back to
        the base, where one is stored, and else keep their value. Other tasks stay bit-identical.

        Returns:
            Number of weights freed.

        Raises:
            KeyError: the task is not learned.
        """
        freed = self.subnetworks.forget(task)
        self._clear_kept()
        if self.init != "keep":
            generator = _generator(self.seed, task, 1)
            for name, mask in freed.items():
                weight = self.subnetworks.frozen[name]
                density = self.subnetworks.scaled_for.get(name, 1.0)
                constant = signed_constant(weight.shape, density=density, generator=generator)
                weight[mask] = constant.to(weight)[mask]
        elif self.init == "keep" and len(self.subnetworks.base):
            for name, mask in freed.items():
                self.subnetworks.frozen[name].copy_(
                    torch.where(mask, self.subnetworks.base[name], self.subnetworks.frozen[name])
                )
        return sum(int(mask.sum()) for mask in freed.values())

    # ------------------------------------------------------------------ what learns

    @property
    def has_own_tensors(self) -> bool:
        """Whether a task learns parameters of its own, beside masks and masked weights."""
        return bool({*self._own_names, *self._head_tensors()})

    def _head_tensors(self) -> dict[str, Tensor]:
        known = {*self.masked_names, *self.shared, *self.fresh}
        return head_tensors(self.net, known, self.subnetworks.active_label)

    def _live(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Tensors of the network as they are now."""
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        return {name: tensors[name] for name in names}

    def _end(self) -> None:
        self.frozen_channels = {}
        self._clear_kept()
        self._set_learning(())

    def _set_learning(self, weights: Sequence[str]) -> None:
        """Let these weights learn, what else the phase trains and, while a task is active, its own tensors."""
        own = {*self._own_names, *self._head_tensors()} if self.active is not None else set()
        for name, p in self.net.named_parameters():
            p.requires_grad_((name in weights or name in own) and name not in self.frozen_names)
            p.grad = None
        learning = {id(p) for p in self.subnetworks.learning()}
        for p in self.subnetworks.parameters():
            p.requires_grad_(id(p) in learning)
            p.grad = None


def _generator(seed: int, key: int, purpose: int) -> torch.Generator:
    """Independent streams for each task and purpose, whatever the order in which they are asked for."""
    state = np.random.SeedSequence([seed % 2**63, key % 2**63, purpose]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

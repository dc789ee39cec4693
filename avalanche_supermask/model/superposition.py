"""The superposition of all finished tasks: the network of ``W ⊙ Σ a_i M_i``, and its gradient by the coefficients."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor
from torch.func import vmap

from avalanche_supermask.bits.packed_masks import CHUNK_BYTES
from avalanche_supermask.inference.base import check_masked
from avalanche_supermask.inference.kept import Kept
from avalanche_supermask.inference.layer_inputs import common_layers, layer_inputs, owners, shared_layer
from avalanche_supermask.recurrent_gradients import differentiable

__all__ = ["Superposition"]


GROUPS = 32  # greatest number of gradients of the whole network that are in memory at a time


class Superposition:
    """The finished tasks of a model, numbered in the order in which they were learned, as `Candidates` for inference.

    Args:
        model: a `MaskedModel` in evaluation mode; it is not changed.
        extra: masks that belong to no task (bool tensors by name), numbered after the tasks; they have no private
            tensors.
    """

    def __init__(self, model: Any, *, extra: Sequence[Mapping[str, Tensor]] = ()) -> None:
        self.model = model
        self._extra = extra
        self.keys = model.task_keys
        store = model.subnetworks
        slot_of = [store.tasks[key].slot for key in self.keys]
        self._mixed = torch.tensor([slot in store.mixtures for slot in slot_of], dtype=torch.bool)
        self._mixtures = [slot for slot in slot_of if slot in store.mixtures]
        own = [slot for slot in slot_of if slot not in store.mixtures]
        basis = store.mixtures.basis if self._mixtures else []
        self._slots = list(dict.fromkeys([*own, *basis]))  # slots of the masks, each once
        place = {slot: i for i, slot in enumerate(self._slots)}
        self._own_places = torch.tensor([place[slot] for slot in own], dtype=torch.long)
        self._basis_places = torch.tensor([place[slot] for slot in basis], dtype=torch.long)
        self._start: tuple[Tensor, dict[str, Tensor]] | None = None
        self.kept = Kept()  # a model drops its superposition when its tasks change

    @property
    def expected(self) -> Tensor:
        """Mean entropy of every task's outputs on its own training data; infinite if it was not measured."""
        known = [self.model.subnetworks.tasks[key].entropy for key in self.keys]
        return torch.tensor([float("inf") if value is None else value for value in known])

    @torch.no_grad()
    def features(self, task: int, x: Any, layers: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of these layers in a call of a task, by name: ``(batch, d)``. See `layer_inputs`."""
        return layer_inputs(self.model.net, lambda: self.model.forward_task(self.keys[task], x), x, layers)

    @torch.no_grad()
    def common(self, x: Any, layers: Sequence[str]) -> frozenset[str]:
        """Names of those layers whose inputs are the same for every task. See `common_layers`."""
        store, first = self.model.subnetworks, self.keys[0]
        own = {*self.model.masked_names, *(name for key in self.keys for name in store.task_private(key))}
        return self.kept(
            ("common", *layers),
            lambda: common_layers(self.model.net, lambda: self.model.forward_task(first, x), layers, own),
        )

    @torch.no_grad()
    def shared_layer(self, task: int, x: Any) -> str:
        """Name of the layer whose input is compared between tasks. See `layer_inputs`."""
        layers = owners(self.model.masked_names)
        return shared_layer(self.model.net, lambda: self.model.forward_task(self.keys[task], x), x, layers)

    def statistics(self, task: int) -> dict[str, Tensor]:
        """Statistics that were gathered for a task, by name."""
        found: dict[str, Tensor] = self.model.subnetworks.task_statistics(self.keys[task])
        return found

    @torch.no_grad()
    def outputs(self, x: Any) -> Iterator[Tensor]:
        """Logits of every task in order, a few tasks at a time: ``(tasks, batch, classes, *positions)``."""
        start = 0
        if self._batches:
            size = max(1, CHUNK_BYTES // sum(t.nbytes for t in self.model.subnetworks.frozen.values()))
            try:
                for start in range(0, len(self.keys), size):
                    yield self._at_once(self.keys[start : start + size], x)
                return
            except RuntimeError as error:
                if "vmap" not in str(error) and "Batching rule" not in str(error):
                    raise  # only for layers that vmap does not support, such as recurrent ones, are tasks called singly
        for key in self.keys[start:]:
            yield self.model.logits_of(self.model.forward_task(key, x)).unsqueeze(0)

    @torch.no_grad()
    def task_logits(self, task: int, x: Any) -> Tensor:
        """Logits of one task: ``(batch, classes, *positions)``."""
        return self.logits(self.model.forward_task(self.keys[task], x))

    @property
    def _batches(self) -> bool:
        """Whether several tasks are computed in one call.

        This saves kernel launches on a GPU, but makes convolutions slower on a CPU. Multi-task networks never do it,
        because their heads may have different shapes.
        """
        on_cpu = all(t.device.type == "cpu" for t in self.model.subnetworks.frozen.values())
        return not on_cpu and not isinstance(self.model.net, MultiTaskModule)

    def _at_once(self, keys: Sequence[int], x: Any) -> Tensor:
        tensors = [self.model.tensors_of(key) for key in keys]
        stacked = {name: torch.stack([task[name] for task in tensors]) for name in tensors[0]}
        arguments = self.model.arguments(x, None)
        with warnings.catch_warnings():  # vmap computes some layers in a loop and warns of it
            warnings.filterwarnings("ignore", message="There is a performance drop")
            out: Tensor = vmap(self._logits_under(arguments))(stacked)
        return out

    def _logits_under(self, arguments: tuple[Any, Any]) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda tensors: self.model.logits_of(self.model.call(self.model.net, tensors, *arguments))

    def gradients(
        self,
        groups: Sequence[Any],
        coefficients: Tensor,
        objective: Callable[[Tensor], Tensor],
        *,
        layers: Sequence[str] | None = None,
    ) -> Tensor:
        """Derivative of an objective of the logits by the coefficients, for each group of inputs: ``(groups, K)``.

        Args:
            groups: groups of inputs.
            coefficients: the coefficients a_i, one per task, then one per extra mask.
            objective: function of the logits of a group; it returns a scalar.
            layers: names of the masked weights whose coefficients the derivative is by; None: all masked weights and
                the private tensors of the tasks.

        All masks are read once for the superposition, if the coefficients are new, and once for every few groups.
        Running statistics are superposed too, but they are held constant, because PyTorch does not differentiate by
        them.

        Raises:
            ValueError: the tasks have tensors under different names (such as a head per task), so that they cannot be
                summed; a task stores its own values of masked weights; or ``layers`` has an unknown name.
        """
        store = self.model.subnetworks
        carried = [key for key in self.keys if str(store.tasks[key].slot) in store.carried]
        if carried:
            raise ValueError(
                f"tasks {carried} were loaded beside others and keep their own values, which one superposition cannot "
                "hold; use task_inference='entropy' or 'max_logit'"
            )
        change = store.change()
        private = self._private
        leaves = self._weights(coefficients)
        coefficients = coefficients[: len(self.keys)]
        own = _weighted(private, coefficients / coefficients.sum() if self._extra else coefficients)
        buffers = {name for name, _ in self.model.net.named_buffers()}
        if layers is not None:
            check_masked(layers, self.model.masked_names)
        asked = {**leaves, **own} if layers is None else {name: leaves[name] for name in layers}
        learns = {n: t.detach().requires_grad_(True) for n, t in asked.items() if n not in buffers}

        def of_group(x: Any) -> dict[str, Tensor]:
            with torch.enable_grad(), differentiable(self.model.net):
                loss = objective(self.logits(self._call(x, {**leaves, **own, **learns})))
                found = torch.autograd.grad(loss, list(learns.values()), allow_unused=True)
            return {name: g for name, g in zip(learns, found, strict=True) if g is not None}

        totals = []
        for start in range(0, len(groups), GROUPS):
            chunk = [of_group(x) for x in groups[start : start + GROUPS]]
            weighted = {n: torch.stack([g[n] * change[n] for g in chunk]) for n in leaves if n in chunk[0]}
            total = self._by_task({n: v.cpu() for n, v in store.masks.project(weighted, self._slots).items()})
            for i, task in enumerate(private if private[0] else ()):
                for q, grads in enumerate(chunk):
                    total[i, q] += sum(float((grads[name] * t).sum()) for name, t in task.items() if name in grads)
            for mask in self._extra:
                by_layer = torch.stack([(w * mask[name]).flatten(1).sum(dim=1).cpu() for name, w in weighted.items()])
                total = torch.cat([total, by_layer.sum(dim=0, keepdim=True)])
            totals.append(total.T)
        return torch.cat(totals)

    def _weights(self, coefficients: Tensor) -> dict[str, Tensor]:
        """``W ⊙ Σ a_i M_i``; the first result is kept, because inference starts every batch with equal coefficients."""
        if self._start is not None and torch.equal(self._start[0], coefficients):
            return self._start[1]
        store = self.model.subnetworks
        of_tasks, of_extra = coefficients[: len(self.keys)], coefficients[len(self.keys) :]
        sums = store.masks.superpose(self._by_slot(of_tasks), self._slots)
        for a, mask in zip(of_extra, self._extra, strict=True):
            sums = {name: total + a * mask[name] for name, total in sums.items()}
        weights: dict[str, Tensor] = store.around(
            {name: weight * sums[name].to(weight) for name, weight in store.change().items()}
        )
        if self._start is None:
            self._start = coefficients.clone(), weights
        return weights

    def mean_mixture(self) -> dict[str, Tensor]:
        """Coefficients 1/n for the n masks of the basis, by layer.

        Raises:
            ValueError: the model has no basis.
        """
        store = self.model.subnetworks
        n = len(store.mixtures.basis)
        if n == 0:
            raise ValueError("there is no basis of masks to mix: 'entropy_descent' serves ImpressLearn only")
        return {name: torch.full((n,), 1.0 / n).to(weight) for name, weight in store.frozen.items()}

    def logits(self, output: Any) -> Tensor:
        """The logits in an output of the network: ``(batch, classes, *positions)``."""
        found: Tensor = self.model.logits_of(output)
        return found

    def mixed(self, x: Any, coefficients: Mapping[str, Tensor]) -> Any:
        """Output of the network for a mixture of the basis, differentiable by its coefficients.

        The private tensors of the tasks are replaced by their means over the tasks.

        Args:
            x: inputs.
            coefficients: coefficients by layer, each ``(n,)``.
        """
        store = self.model.subnetworks
        own = _weighted(self._private, torch.full((len(self.keys),), 1 / len(self.keys)))
        mixed = store.around(store.mixtures.weights(coefficients, store.change(), store.masks))
        with differentiable(self.model.net) if torch.is_grad_enabled() else nullcontext():
            return self._call(x, {**own, **mixed})

    def _call(self, x: Any, tensors: Mapping[str, Tensor]) -> Any:
        label = self.model.subnetworks.tasks[self.keys[0]].label
        fresh = {name: t.clone() for name, t in self.model.fresh.items()}  # a network may change its buffers
        given = {**fresh, **self.model.shared, **tensors}
        return self.model.call(self.model.net, given, *self.model.arguments(x, label))

    def _by_slot(self, coefficients: Tensor) -> dict[str, Tensor]:
        """Coefficients of masks from those of tasks, by layer; a mixture contributes to the masks of the basis."""
        coefficients = coefficients.float()
        plain = coefficients.new_zeros(len(self._slots)).index_copy(0, self._own_places, coefficients[~self._mixed])
        if not self._mixtures:
            return dict.fromkeys(self.model.masked_names, plain)
        mixed = coefficients[self._mixed]
        return {n: plain.index_add(0, self._basis_places, mixed @ alphas) for n, alphas in self._alphas.items()}

    def _by_task(self, by_slot: Mapping[str, Tensor]) -> Tensor:
        """Sums over the layers for each task, from values for each mask: ``(K, groups)``."""
        total = torch.stack(list(by_slot.values())).sum(dim=0)
        found = total.new_zeros(len(self.keys), total.shape[1])
        found[~self._mixed] = total[self._own_places]
        if self._mixtures:
            parts = [self._alphas[name] @ values[self._basis_places] for name, values in by_slot.items()]
            found[self._mixed] = torch.stack(parts).sum(dim=0)
        return found

    @cached_property
    def _alphas(self) -> dict[str, Tensor]:
        """Coefficients of all mixtures, by layer: ``(mixtures, n)``."""
        mixtures = self.model.subnetworks.mixtures
        return {
            name: torch.stack([mixtures.coefficients_of(slot, name).cpu().float() for slot in self._mixtures])
            for name in self.model.masked_names
        }

    @cached_property
    def _private(self) -> list[dict[str, Tensor]]:
        """Private floating-point tensors of each task; buffers that a task did not change have their initial values.

        Raises:
            ValueError: the tasks have tensors under different names.
        """
        stored = [self.model.subnetworks.task_private(key) for key in self.keys]
        moved = {name for task in stored for name in task}
        found = []
        for task in stored:
            tensors = {name: task.get(name, self.model.fresh.get(name)) for name in moved}
            found.append({name: t for name, t in tensors.items() if t is not None and t.is_floating_point()})
        if any(set(task) != set(found[0]) for task in found):
            raise ValueError(
                "the tasks have heads of their own, which cannot be superposed; use task_inference='entropy' or "
                "'max_logit', or one shared output layer"
            )
        return found


def _weighted(tasks: Sequence[Mapping[str, Tensor]], coefficients: Tensor) -> dict[str, Tensor]:
    return {
        name: torch.einsum("k,k...->...", coefficients.to(t), torch.stack([task[name] for task in tasks]))
        for name, t in tasks[0].items()
    }

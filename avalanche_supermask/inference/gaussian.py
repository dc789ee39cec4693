"""Inference by Gaussian distributions of features: it finds the task with the largest likelihood of a sample.

When a task ends, the mean of each class and the covariance of its features are measured in one pass over the training
data and stored with the task; no sample is kept. At evaluation, the cost of a sample for a task is a sum over the
layers. Each term is the smallest value, over the classes of the task, of the distance plus log-determinant (Lee et al.,
"A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018, for the
use of features; Tipping & Bishop 1999 for covariances with a few directions and a constant). With ``shared``, all tasks
have one covariance, the mean of their covariances; choosing the smallest distance is then linear discriminant analysis
(Hayes & Kanan, "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR Workshops 2020).

Densities are comparable if all tasks have the same features: the inputs themselves, or the output of a frozen encoder
in front of the masked layers. Inside the subnetworks, every task has its own features, whose densities are only roughly
comparable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_supermask import nested
from avalanche_supermask.inference.base import Answer, Candidates, Per, check_per, first_smallest
from avalanche_supermask.inference.class_gaussians import ClassGaussians, joined, pooled
from avalanche_supermask.inference.layer_inputs import INPUT, modules_named
from avalanche_supermask.inference.moments import Covariance, Moments

__all__ = ["Gaussian"]


@dataclass(frozen=True)
class Gaussian:
    """The task of the likeliest class, where each class of each task is a Gaussian over features.

    Attributes:
        layers: layers whose inputs are the features: ``"input"`` for the network's input, or names of modules. None:
            one layer is chosen. This is the network's input if it goes directly into a masked layer and has at most
            4,096 numbers (larger images are averaged to 36x36 pixels), else the input of the first masked layer, else
            (behind embeddings) that of the last masked layer.
        rank: number of kept directions of a covariance (default 20): one number, or one per layer. A smaller number can
            be set at evaluation.
        covariance: ``"class"`` stores one covariance per class (default), ``"task"`` one for all classes of a task,
            which takes fewer bytes.
        shared: whether all tasks have one covariance, the mean of their covariances: True, False (default), or names of
            layers for which it is so.
        ridge: share of the mean variance that is added to all variances (default 0.1).
        shrinkage: for ``covariance="class"``, the weight of the task's covariance in that of a class, as a number of
            samples (default 100).
        names: result of the Gaussians: the ``"task"``, whose subnetwork then predicts the class (default); the
            ``"class"`` itself (a generative classifier, which uses only the features of the network); or ``"both"``:
            the task, and then the class from the Gaussians and the subnetwork together. Its logits are the
            log-likelihoods plus ``network_weight`` times the log-probabilities of the subnetwork (a product of
            experts, Hinton 2002).
        network_weight: weight of the subnetwork for ``names="both"`` (default 16). It is above 1, because a
            log-likelihood of hundreds of numbers differs more between classes than a log-probability of a network.
        per: ``"sample"`` finds one task for each sample (default), ``"batch"`` one for the whole batch.

    The defaults of layers, rank, ridge, shrinkage and covariance were chosen on held-out training data of SplitMNIST
    and CLINC150, that of ``network_weight`` on these and on CIFAR-100's features (``docs/methods/unknown_tasks.md``).

    Raises:
        ValueError: a setting is out of its range.
    """

    layers: Sequence[str] | None = None
    rank: int | Sequence[int] = 20
    covariance: Covariance = "class"
    shared: bool | Sequence[str] = False
    ridge: float = 0.1
    shrinkage: float = 100.0
    names: Literal["task", "class", "both"] = "task"
    network_weight: float = 16.0
    per: Per = "sample"

    def __post_init__(self) -> None:
        check_per(self.per)
        for name in ("layers", "shared"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} takes names, as in {name}=({getattr(self, name)!r},); got one string")
        if self.layers is not None and not self.layers:
            raise ValueError("layers is empty: name at least one layer, such as 'input', or leave it out")
        ranks = [self.rank] if isinstance(self.rank, int) else [*self.rank]
        if any(rank < 0 for rank in ranks):
            raise ValueError(f"expected rank >= 0, the directions kept of a covariance; got {self.rank}")
        if not isinstance(self.rank, int) and (self.layers is None or len(self.rank) != len(self.layers)):
            raise ValueError(f"rank has {len(self.rank)} numbers: expected one, or one for each name in layers")
        if self.covariance not in ("class", "task"):
            raise ValueError(f"covariance must be 'class' or 'task'; got {self.covariance!r}")
        if self.names not in ("task", "class", "both"):
            raise ValueError(f"names must be 'task', 'class' or 'both'; got {self.names!r}")
        if not 0 <= self.network_weight < math.inf:
            raise ValueError(f"expected a finite network_weight >= 0; got {self.network_weight}")
        if self.ridge < 0 or self.shrinkage < 0:
            raise ValueError(f"expected ridge and shrinkage >= 0; got {self.ridge} and {self.shrinkage}")

    def check_names(self, net: nn.Module, masked: Sequence[str]) -> None:
        """Refuse ``layers`` and ``shared`` that name no layer of the network.

        Raises:
            ValueError: there is no such layer, or ``shared`` names a layer that is not in ``layers``.
        """
        shared = () if isinstance(self.shared, bool) else self.shared
        modules_named(net, [name for name in (*(self.layers or ()), *shared) if name != INPUT])
        unused = [] if self.layers is None else [name for name in shared if name not in self.layers]
        if unused:
            raise ValueError(
                f"shared names {unused[0]!r}, which is not among layers={[*(self.layers or ())]}; add it there"
            )

    # ------------------------------------------------------------------ when a task ends

    def observe(self, model: Candidates, task: int, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, Tensor]:
        """Compute the statistics of a task that has just ended, to be stored with the task.

        Args:
            model: the finished tasks, with the network in evaluation mode.
            task: number of the task.
            batches: inputs and labels of the task's training data; they are iterated once.
        """
        moments: dict[str, Moments] = {}
        layers: Sequence[str] | None = None
        for x, y in batches:
            layers = layers or self.layers or (model.shared_layer(task, x),)
            for rank, (name, features) in zip(
                self._ranks(layers), model.features(task, x, layers).items(), strict=True
            ):
                if name not in moments:
                    moments[name] = Moments(
                        features.shape[1],
                        rank=rank,
                        covariance="class" if self._of_classes(name) else "task",
                        shrinkage=self.shrinkage,
                    )
                moments[name].add(features, self._labels(y, len(features)).to(features.device))
        found = {name: each.finish() for name, each in moments.items()}
        return {f"{name}.{part}": t for name, g in found.items() for part, t in g.tensors().items()}

    def joined(self, earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Statistics of a task that was learned in several experiences, from the earlier and the new ones.

        If the features come from layers of the subnetwork, and the subnetwork was trained further, the earlier
        statistics are those of the earlier features.

        Args:
            earlier: statistics of the earlier experiences, by name.
            new: statistics of the new experience, by name.
        """
        found = {}
        for layer in dict.fromkeys(name.rpartition(".")[0] for name in new):
            both = [
                ClassGaussians.of({n.removeprefix(f"{layer}."): t for n, t in s.items() if n.startswith(f"{layer}.")})
                for s in (earlier, new)
            ]
            of_classes = all(len(g.basis) == len(g.classes) for g in both) and self._of_classes(layer)
            if not of_classes:
                both = [pooled([g])[0] if len(g.basis) > 1 else g for g in both]
            whole = joined(*both, of_classes=of_classes)
            found.update({f"{layer}.{part}": t for part, t in whole.tensors().items()})
        return found

    def _labels(self, y: Any, n: int) -> Tensor:
        """One label per sample; if the targets are not class numbers, all samples count as one class."""
        if isinstance(y, Tensor) and y.shape == (n,) and not y.is_floating_point() and not y.is_complex():
            return y
        if self.names != "task":
            form = f"{y.dtype} and shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"names={self.names!r} needs one class number per sample; got targets of {form} for {n} samples: use "
                "names='task', or integer labels"
            )
        return torch.zeros(n, dtype=torch.long)

    def _ranks(self, layers: Sequence[str]) -> list[int]:
        return [self.rank] * len(layers) if isinstance(self.rank, int) else [*self.rank]

    def _of_classes(self, layer: str) -> bool:
        return self.covariance == "class" and not self._shares(layer)

    def _shares(self, layer: str) -> bool:
        return self.shared if isinstance(self.shared, bool) else layer in self.shared

    # ------------------------------------------------------------------ at evaluation

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Tensor | Answer:
        """Return the number of each sample's task, or an `Answer` if ``names`` is not ``"task"`` (see `Inference`)."""
        by_class = self._by_class(model, n_tasks, x)
        costs = self._of_tasks(by_class)  # (K, batch)
        if self.per == "batch":
            costs = costs.mean(dim=1, keepdim=True).expand_as(costs)
        found = first_smallest(costs.T)
        if self.names == "task":
            return found
        return Answer(found, self._logits(model, by_class, found, x))

    def costs(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """-2 log-likelihood of each sample for each task, up to a constant: ``(tasks, batch)``."""
        return self._of_tasks(self._by_class(model, n_tasks, x))

    def _of_tasks(self, by_class: Sequence[Mapping[str, Tensor]]) -> Tensor:
        smallest = [torch.stack([c.amin(dim=1) for c in of_layers.values()]).sum(dim=0) for of_layers in by_class]
        return torch.stack(smallest)

    def _by_class(self, model: Candidates, n_tasks: int, x: Any) -> list[dict[str, Tensor]]:
        """Costs of each sample for each class, ``(batch, C)``, by layer; one dictionary per task."""
        gaussians = model.kept(self, lambda: self._prepared(model, n_tasks))
        layers = list(gaussians[0])
        common = model.common(x, layers)
        once = model.features(0, x, [name for name in layers if name in common])
        own = [name for name in layers if name not in common]
        found = []
        for task, of_layers in enumerate(gaussians):
            features = {**once, **model.features(task, x, own)} if own else once
            found.append({name: g.costs(features[name], ridge=self.ridge) for name, g in of_layers.items()})
        return found

    def _prepared(self, model: Candidates, n_tasks: int) -> list[dict[str, ClassGaussians]]:
        """Gaussians of each task, by layer, with shared covariances and reduced ranks as the settings require."""
        found = [self._stored(model, task) for task in range(n_tasks)]
        for name in found[0]:
            if self._shares(name):
                column = pooled([of_layers[name] for of_layers in found])
            else:
                column = [self._of_one_task(of_layers[name]) for of_layers in found]
            for of_layers, gaussians in zip(found, column, strict=True):
                of_layers[name] = gaussians
        return found

    def _of_one_task(self, gaussians: ClassGaussians) -> ClassGaussians:
        differs = self.covariance == "task" and len(gaussians.basis) > 1
        return pooled([gaussians])[0] if differs else gaussians

    def _stored(self, model: Candidates, task: int) -> dict[str, ClassGaussians]:
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in model.statistics(task).items():
            layer, _, part = name.rpartition(".")
            parts.setdefault(layer, {})[part] = tensor
        layers = [*parts] if self.layers is None else [*self.layers]
        missing = [name for name in layers if name not in parts]
        if missing or not parts:
            has = f"statistics of {', '.join(map(repr, parts))}, not of {missing[0]!r}" if parts else "no statistics"
            raise RuntimeError(
                f"task model.task_keys[{task}] has {has}: set task_inference to this Gaussian before tasks are "
                "trained, or call inference.gathering.gather_statistics(model, key, dataset) with its training data"
            )
        ranks = dict(zip(layers, self._ranks(layers), strict=True))
        return {name: ClassGaussians.of(parts[name]).truncated(ranks[name]) for name in layers}

    def _logits(self, model: Candidates, by_class: Sequence[Mapping[str, Tensor]], found: Tensor, x: Any) -> Tensor:
        """Logits: the log-likelihoods of the found task's classes, up to a constant, in the columns of their labels.

        For ``names="both"``, the weighted log-probabilities of the task's subnetwork are added to them.
        """
        gaussians = model.kept(self, lambda: self._prepared(model, len(by_class)))
        classes = [next(iter(of_layers.values())).classes for of_layers in gaussians]
        outputs = next(iter(model.outputs(nested.rows(x, slice(0, 1))))).shape[2]
        width = max(outputs, 1 + max(int(labels.max()) for labels in classes))
        first = next(iter(by_class[0].values()))
        logits = torch.full((len(found), width), ABSENT, device=first.device)
        for task, of_layers in enumerate(by_class):
            rows = (found == task).nonzero().flatten().to(first.device)
            if len(rows):
                of_classes = torch.stack([c[rows] for c in of_layers.values()]).sum(dim=0)
                likely = 0.5 * (of_classes.amin(dim=1, keepdim=True) - of_classes)
                if self.names == "both":
                    likely = likely + self.network_weight * self._of_network(model, task, rows, x, classes[task])
                logits[rows.unsqueeze(1), classes[task].to(rows.device)] = likely.clamp_min(ABSENT)
        return logits

    @staticmethod
    def _of_network(model: Candidates, task: int, rows: Tensor, x: Any, classes: Tensor) -> Tensor:
        """Log-probabilities of a task's subnetwork for the task's classes, ``(rows, C)``."""
        logits = model.task_logits(task, nested.rows(x, rows.cpu()))
        if logits.dim() != 2 or int(classes.max()) >= logits.shape[1]:
            raise ValueError(
                "names='both' needs one logit per class label, (batch, classes); the task's labels go up to "
                f"{int(classes.max())} and its logits are {tuple(logits.shape)}: use names='task'"
            )
        return logits[:, classes.to(logits.device)].float().log_softmax(dim=1)


ABSENT = -1000.0  # logit of a class that the found task does not have; with this value, the loss stays finite

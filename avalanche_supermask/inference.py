"""Who is the task? Finding it from the inputs alone, for every method.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020, sections 3.3 to 3.5; and two plain alternatives.

The superposition of K learned tasks is the network with the weights ``W ⊙ Σ a_i M_i``, ``a_i = 1/K``. An objective
of its outputs p is small where the network is sure:

    H(p) = -Σ_c softmax(p)_c log softmax(p)_c       entropy
    G(p) = logsumexp(p), the first ``classes`` logits held constant: what training pushed down is low on known data

`OneShot` takes one gradient: ``t = argmin_i dL/da_i``. `Binary` halves the candidates by it, log2 K times. `Entropy`
and `MaxLogit` try each task; `ExpectedEntropy` (ours) does not take a task's word for it where the task is less sure
than it was of its own training data. `EntropyDescent` names none, but fits ImpressLearn's mixture to the batch. The
superposition and its gradient, ``dL/da_i = <dL/dW_sup ⊙ W, M_i>``, come from packed bits, a few tasks at a time; no
task has a float copy of a layer.

What a task has for itself (running statistics, own parameters) is superposed with the same coefficients. Heads under
different names (Avalanche's multi-head modules) cannot be: only the methods that try each task serve such networks. The
paper uses inference on MNIST-like streams; on harder ones it is weak, as the networks are badly calibrated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

__all__ = [
    "Binary",
    "Candidates",
    "Entropy",
    "EntropyDescent",
    "ExpectedEntropy",
    "Inference",
    "MaxLogit",
    "Objective",
    "OneShot",
    "Per",
    "by_name",
]

Objective = Literal["H", "G"]
Per = Literal["sample", "batch"]


class Candidates(Protocol):
    """What inference asks of a model with K learned tasks, numbered in the order in which they were learned."""

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        """Logits under every task in turn, a few tasks at a time: ``(tasks, batch, outputs)``."""

    @property
    def expected(self) -> Tensor:
        """Mean entropy of every task's outputs on its own training data, ``(K,)``; infinite where it is unknown."""

    def gradients(
        self,
        groups: Sequence[Tensor],
        coefficients: Tensor,
        objective: Callable[[Tensor], Tensor],
        *,
        layers: Sequence[str] | None = None,
    ) -> Tensor:
        """Derivative of an objective of the superposition's logits by its coefficients, a row for each group."""

    def mean_mixture(self) -> dict[str, Tensor]:
        """Coefficients 1/n of every mask of the basis, by layer, for a model with mixtures."""

    def mixed(self, x: Tensor, coefficients: Mapping[str, Tensor]) -> Tensor:
        """Logits under a mixture of the basis, differentiable in its coefficients."""


class Inference(Protocol):
    """A way to find the task."""

    def __call__(self, model: Candidates, n_tasks: int, x: Tensor) -> Tensor:
        """Number of the task of each sample: int64 of shape ``(batch,)``; or, if no task answers, the logits."""


def _check_per(per: str) -> None:
    if per not in ("sample", "batch"):
        raise ValueError(f"per must be 'sample' or 'batch'; got {per!r}")


def entropy(logits: Tensor) -> Tensor:
    """H of each row: ``(batch,)``."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


@dataclass(frozen=True)
class _ByGradient:
    """Settings of the methods that use the superposition's gradient.

    Attributes:
        objective: ``"H"`` or ``"G"``.
        classes: for G, how many outputs are real; the network must have more (superfluous neurons).
        per: one task for a whole batch, or one for each sample.
        images: for ``per="batch"``, how many samples decide (the paper: 1); None: all.
        first: only the tasks learned first, so many; None: all. With ImpressLearn's n, one-shot over its basis.
        layers: names of the masked weights that are asked (ours); None: all, as in the paper. Where tasks differ in
            the order of their inputs, only the first layer knows the task, and the others add noise: there
            ``layers=(model.masked_names[0],)`` makes fewer errors (``docs/methods/unknown_tasks.md``).
    """

    objective: Objective = "H"
    classes: int | None = None
    per: Per = "sample"
    images: int | None = None
    first: int | None = None
    layers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise ValueError(f"layers takes names, as in layers=({self.layers!r},); got one string")
        if self.objective not in ("H", "G"):
            raise ValueError(f"objective must be 'H' or 'G'; got {self.objective!r}")
        _check_per(self.per)
        if self.objective == "G" and self.classes is None:
            raise ValueError("objective 'G' needs classes, the number of outputs that are real")

    def __call__(self, model: Candidates, n_tasks: int, x: Tensor) -> Tensor:
        """See `Inference`."""
        n = min(self.first or n_tasks, n_tasks)
        groups = [x[: self.images]] if self.per == "batch" else list(x.split(1))
        found = self._find(model, n, n_tasks, groups) if n > 1 else torch.zeros(len(groups), dtype=torch.long)
        return found.expand(len(x)).clone() if self.per == "batch" else found

    def _find(self, model: Candidates, n: int, n_tasks: int, groups: Sequence[Tensor]) -> Tensor:
        """Number of the task of each group, one of the first n."""
        raise NotImplementedError

    def _loss(self, logits: Tensor) -> Tensor:
        if self.objective == "H":
            return entropy(logits).mean()
        assert self.classes is not None
        if logits.shape[-1] <= self.classes:
            raise ValueError(
                f"objective 'G' has no gradient: the network has {logits.shape[-1]} outputs for {self.classes} "
                "classes; give it more outputs than classes, or use objective 'H'"
            )
        held = torch.cat([logits[..., : self.classes].detach(), logits[..., self.classes :]], dim=-1)
        return held.logsumexp(dim=-1).mean()


@dataclass(frozen=True)
class OneShot(_ByGradient):
    """One forward and one backward pass a group, whatever the number of tasks."""

    def _find(self, model: Candidates, n: int, n_tasks: int, groups: Sequence[Tensor]) -> Tensor:
        equal = torch.zeros(n_tasks)
        equal[:n] = 1.0 / n
        return _first_smallest(model.gradients(groups, equal, self._loss, layers=self.layers)[:, :n])


@dataclass(frozen=True)
class Binary(_ByGradient):
    """Halves the candidates until one is left: at most ceil(log2 K) rounds, ties included."""

    def _find(self, model: Candidates, n: int, n_tasks: int, groups: Sequence[Tensor]) -> Tensor:
        return torch.tensor([self._one(model, n, n_tasks, group) for group in groups])

    def _one(self, model: Candidates, n: int, n_tasks: int, group: Tensor) -> int:
        left = torch.arange(n)
        while len(left) > 1:
            coefficients = torch.zeros(n_tasks)
            coefficients[left] = 1.0 / len(left)
            gradient = model.gradients([group], coefficients, self._loss, layers=self.layers)[0, left]
            order = gradient.argsort(stable=True)  # ties: the task learned first stays
            left = left[order[: (len(left) + 1) // 2].sort().values]
        return int(left[0])


@dataclass(frozen=True)
class _ByTrial:
    """Settings of the methods that try each task.

    Attributes:
        per: one task for a whole batch, or one for each sample.
    """

    per: Per = "sample"

    def __post_init__(self) -> None:
        _check_per(self.per)

    def __call__(self, model: Candidates, n_tasks: int, x: Tensor) -> Tensor:
        """See `Inference`."""
        costs = torch.cat([self._cost(logits) for logits in model.outputs(x)])  # (K, batch)
        groups = costs.mean(dim=1, keepdim=True) if self.per == "batch" else costs
        found = _first_smallest(self._judge(groups, model).T)
        return found.expand(len(x)).clone() if self.per == "batch" else found

    def _cost(self, logits: Tensor) -> Tensor:
        """Of each sample, under a few tasks: ``(tasks, batch)``."""
        raise NotImplementedError

    def _judge(self, costs: Tensor, model: Candidates) -> Tensor:
        """Costs of all tasks, in the light of what is known of them: ``(K, groups)``."""
        return costs


@dataclass(frozen=True)
class Entropy(_ByTrial):
    """The task whose outputs are the surest: smallest entropy."""

    def _cost(self, logits: Tensor) -> Tensor:
        return entropy(logits)


@dataclass(frozen=True)
class ExpectedEntropy(Entropy):
    """`Entropy`, and what exceeds a task's entropy on its own training data counts ``1 + surprise`` times.

    For tasks that are not equally sure of themselves: a task that is always sure, also of what it has never seen,
    would win over one that has reason to doubt. Costs a stored number a task; one that has none is not surprised.

    Attributes:
        surprise: weight of the excess (default 2: chosen on held-out training data, ``docs/methods/unknown_tasks.md``).
    """

    surprise: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.surprise < 0:
            raise ValueError(f"expected surprise >= 0, the weight of the excess; got {self.surprise}")

    def _judge(self, costs: Tensor, model: Candidates) -> Tensor:
        expected = model.expected.to(costs).unsqueeze(1)
        return costs + self.surprise * (costs - expected).relu()


@dataclass(frozen=True)
class MaxLogit(_ByTrial):
    """The task with the largest logit."""

    def _cost(self, logits: Tensor) -> Tensor:
        return -logits.amax(dim=-1)


@dataclass(frozen=True)
class EntropyDescent:
    """No task at all: a mixture of ImpressLearn's basis, fitted to each batch by descent on its mean entropy H.

    Starts at 1/n and holds ``|a_l|_1 = 1`` in every layer: without that, scaling up the last layer alone would end
    all entropy. Answers with the logits of the mixture; no stored coefficient changes.

    Attributes:
        steps: of Adam (default 30).
        lr: its learning rate (default 0.02).
    """

    steps: int = 30
    lr: float = 0.02

    def __call__(self, model: Candidates, n_tasks: int, x: Tensor) -> Tensor:
        """See `Inference`."""
        coefficients = {name: a.requires_grad_(True) for name, a in model.mean_mixture().items()}
        optimizer = torch.optim.Adam(list(coefficients.values()), lr=self.lr)
        for _ in range(self.steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                entropy(model.mixed(x, coefficients)).mean().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                for a in coefficients.values():
                    assert a.grad is not None
                    a.grad -= (a.grad @ a.sign()) / len(a) * a.sign()  # what would only change the norm
                optimizer.step()
                for a in coefficients.values():
                    a /= a.abs().sum()
        with torch.no_grad():
            return model.mixed(x, coefficients)


def _first_smallest(rows: Tensor) -> Tensor:
    """Column of the smallest entry of each row; the first of equal ones."""
    return (rows == rows.min(dim=1, keepdim=True).values).to(torch.uint8).argmax(dim=1).cpu()


_NAMES: dict[str, Callable[[], Inference]] = {
    "oneshot": OneShot,
    "binary": Binary,
    "entropy": Entropy,
    "expected_entropy": ExpectedEntropy,
    "max_logit": MaxLogit,
    "entropy_descent": EntropyDescent,
}


def by_name(inference: str | Inference) -> Inference | None:
    """The method of a name, or the object that was given; None for ``"given"``.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(inference, str):
        return inference
    if inference == "given":
        return None
    if inference not in _NAMES:
        names: Sequence[str] = ("given", *_NAMES)
        raise ValueError(f"task_inference must be one of {', '.join(names)} or an object; got {inference!r}")
    return _NAMES[inference]()

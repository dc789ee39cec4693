"""Several witnesses heard together: their costs are added, with weights that the training data choose.

When a task ends, its training samples are tried on all tasks learned so far, for each of a fixed set of weights: every
witness alone, and mixtures in steps of a quarter. How many tasks were named rightly is stored with the task. At
evaluation the weights that were right most often over all tasks are used; of equal ones the simpler. Each witness alone
is among them, so on the data that choose the weights no single witness is better.

The samples that choose are those that the task was trained on, of which its outputs are surer than of new ones. So
outputs count for rather more than they should; features are not affected.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from avalanche_supermask.inference.base import Candidates, Per, check_per, first_smallest
from avalanche_supermask.inference.by_trial import ExpectedEntropy, MaxLogit
from avalanche_supermask.inference.gaussian import Gaussian

__all__ = ["Combined", "Witness"]

STEPS = 4  # weights are multiples of a quarter
T = TypeVar("T")


class Witness(Protocol):
    """A way of inference that says of every task how ill a sample fits it."""

    def costs(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """Smaller where the task is the likelier: ``(tasks, batch)``."""


@dataclass(frozen=True)
class Combined:
    """The task with the smallest weighted sum of the witnesses' costs.

    A witness's costs count in units of their standard deviation over a task's own training data.

    Attributes:
        witnesses: two to four (default: `Gaussian`, `ExpectedEntropy` and `MaxLogit`).
        per: one task for a whole batch, or one for each sample.

    Raises:
        ValueError: another number of witnesses, or an unknown ``per``.
    """

    witnesses: Sequence[Any] = (Gaussian(), ExpectedEntropy(), MaxLogit())
    per: Per = "sample"

    def __post_init__(self) -> None:
        check_per(self.per)
        if not 2 <= len(self.witnesses) <= 4:
            raise ValueError(f"expected two to four witnesses; got {len(self.witnesses)}")
        for witness in self.witnesses:
            if not hasattr(witness, "costs"):
                raise ValueError(
                    f"a {type(witness).__name__} has no costs of tasks that could be added; expected Gaussian, "
                    "Entropy, ExpectedEntropy or MaxLogit"
                )

    @property
    def candidates(self) -> Tensor:
        """Weights that are compared, ``(candidates, witnesses)``: each witness alone first, then mixtures."""
        n = len(self.witnesses)
        mixed = [c for c in itertools.product(range(STEPS + 1), repeat=n) if sum(c) == STEPS and max(c) < STEPS]
        return torch.cat([torch.eye(n), torch.tensor(mixed) / STEPS])

    # ------------------------------------------------------------------ when a task ends

    def observe(self, model: Candidates, task: int, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, Tensor]:
        """Statistics of the witnesses, and how often each candidate names the task rightly; two passes over the data.

        Args:
            model: in evaluation mode.
            task: number of the task.
            batches: inputs and labels of its training data; passed over twice.

        Raises:
            ValueError: the batches can be passed over only once.
        """
        found: dict[str, Tensor] = {}
        for i, witness in enumerate(self.witnesses):
            if hasattr(witness, "observe"):
                stored = witness.observe(_Part(model, i), task, batches)
                found.update({f"{i}:{name}": t for name, t in stored.items()})
        costs = [self._raw(_With(model, task, found), task + 1, x) for x, _ in batches]
        if not costs:
            raise ValueError("the batches can be passed over only once, and weights need a second pass: give a list")
        raw = torch.cat(costs, dim=2)  # (witnesses, tasks, samples)
        found["scales"] = raw[:, task].std(dim=1, correction=0).float().clamp_min(1e-6)
        totals = torch.einsum("cw,wts->cts", self.candidates.to(raw), raw / self._scales(model, task, found, raw))
        found["right"] = (totals.argmin(dim=1) == task).float().mean(dim=1)
        return found

    def _scales(self, model: Candidates, task: int, new: dict[str, Tensor], like: Tensor) -> Tensor:
        known = [model.statistics(t)["scales"] for t in range(task)]
        return torch.stack([*known, new["scales"]]).to(like).mean(dim=0)[:, None, None]

    # ------------------------------------------------------------------ at evaluation

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """See `Inference`."""
        costs = self.costs(model, n_tasks, x)
        if self.per == "batch":
            costs = costs.mean(dim=1, keepdim=True).expand_as(costs)
        return first_smallest(costs.T)

    def costs(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """Weighted sum of the witnesses' costs: ``(tasks, batch)``."""
        weights, scales = model.kept(self, lambda: self._weights(model, n_tasks))
        raw = self._raw(model, n_tasks, x)
        return torch.einsum("w,wts->ts", weights.to(raw), raw / scales.to(raw)[:, None, None])

    def _weights(self, model: Candidates, n_tasks: int) -> tuple[Tensor, Tensor]:
        """Weights that were right most often, and the witnesses' units."""
        stored = [model.statistics(task) for task in range(n_tasks)]
        for task, statistics in enumerate(stored):
            if "right" not in statistics or len(statistics["scales"]) != len(self.witnesses):
                raise RuntimeError(
                    f"the learned task number {task} has no statistics of these witnesses: set task_inference to this "
                    "Combined before tasks are trained, or call gather_statistics(model, task, batches)"
                )
        right = torch.stack([statistics["right"] for statistics in stored]).sum(dim=0)
        best = int((right >= right.max() - 1e-9).to(torch.uint8).argmax())
        return self.candidates[best], torch.stack([statistics["scales"] for statistics in stored]).mean(dim=0)

    def _raw(self, model: Any, n_tasks: int, x: Any) -> Tensor:
        each = [witness.costs(_Part(model, i), n_tasks, x) for i, witness in enumerate(self.witnesses)]
        return torch.stack([costs.float() for costs in each])


class _Part:
    """The candidates as one witness sees them: with its own statistics, and what was made of them."""

    def __init__(self, model: Any, part: int) -> None:
        self._model, self._part = model, part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def statistics(self, task: int) -> dict[str, Tensor]:
        prefix = f"{self._part}:"
        found = self._model.statistics(task)
        return {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}

    def kept(self, key: Any, make: Callable[[], T]) -> T:
        found: T = self._model.kept((self._part, key), make)
        return found


class _With:
    """The candidates, with statistics of one task that are not stored yet."""

    def __init__(self, model: Any, task: int, statistics: dict[str, Tensor]) -> None:
        self._model, self._task, self._statistics = model, task, statistics
        self._kept: list[tuple[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def statistics(self, task: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._statistics if task == self._task else self._model.statistics(task)
        return found

    def kept(self, key: Any, make: Callable[[], T]) -> T:
        for known, value in self._kept:
            if known == key:
                found: T = value
                return found
        made = make()
        self._kept.append((key, made))
        return made

"""Inference that combines several methods, called witnesses: it adds their costs with weights from the training data.

When a task ends, every fifth of its training samples is held back, and the witnesses gather statistics of the others.
Then the tasks of the samples that were held back are inferred among all tasks learned so far, with each set of weights
from a fixed list. The share of samples for which each set of weights finds the right task is stored with the task.
Finally the statistics are gathered again, from all samples.

At evaluation, the chosen weights are the simplest ones among those that were right about as often as the best. A single
witness is simpler than a mixture, and a mixture is simpler if the other witnesses have smaller weights. Weights are
good enough if they satisfy one of two rules: the one-standard-error rule (Breiman et al., "Classification and
Regression Trees", 1984), or that they keep half of the gain of the best mixture over the best single witness. Both
rules are needed, because the network was also trained on the samples that were held back, and is more confident on them
than on new ones; otherwise the outputs would get too much weight.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from avalanche_supermask import nested
from avalanche_supermask.inference.base import Candidates, Per, check_per, first_smallest
from avalanche_supermask.inference.by_trial import ByTrial, ExpectedEntropy, MaxLogit
from avalanche_supermask.inference.gaussian import Gaussian
from avalanche_supermask.inference.kept import Kept

__all__ = ["Combined", "Witness"]

LEVELS = (0.0, 1 / 64, 1 / 16, 1 / 4, 1.0)  # possible weights of a witness; the largest weight of a candidate is 1
FOLDS = 5  # every fifth sample is held back
T = TypeVar("T")


class Witness(Protocol):
    """An inference method that computes a cost of each sample for every task."""

    def costs(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """Costs ``(tasks, batch)``, which are smaller for likelier tasks."""


@dataclass(frozen=True)
class Combined:
    """The task with the smallest weighted sum of the costs of several inference methods, the witnesses.

    The costs of a witness are divided by their standard deviation over a task's own samples. Beside likelihoods, the
    right weight of outputs is a few hundredths; therefore the weights that are tried (`LEVELS`) include small ones.

    Attributes:
        witnesses: two to four inference methods with costs (default: `Gaussian`, `ExpectedEntropy` and `MaxLogit`).
        per: ``"sample"`` finds one task for each sample (default), ``"batch"`` one for the whole batch.

    Raises:
        ValueError: the number of witnesses is not two to four, a witness has no costs, or ``per`` is unknown.
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

    def check_names(self, net: nn.Module, masked: Sequence[str]) -> None:
        """Check the names in the settings of the witnesses (see `Inference`)."""
        for witness in self.witnesses:
            if hasattr(witness, "check_names"):
                witness.check_names(net, masked)

    @property
    def candidates(self) -> Tensor:
        """Sets of weights that are compared, ``(candidates, witnesses)``: first each witness alone, then mixtures.

        They are sorted by the sum of the weights. The largest weight of each set is 1.
        """
        grid = [c for c in itertools.product(LEVELS, repeat=len(self.witnesses)) if max(c) == 1.0]
        return torch.tensor(sorted(grid, key=lambda c: (sum(c), [-weight for weight in c])))

    # ------------------------------------------------------------------ when a task ends

    def observe(self, model: Candidates, task: int, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, Tensor]:
        """Gather the statistics of the witnesses, and how often each set of weights finds the right task.

        Args:
            model: the finished tasks, with the network in evaluation mode.
            task: number of the task that has ended.
            batches: inputs and labels of its training data; they are iterated three times.

        Raises:
            ValueError: there is no batch, or the batches can be iterated only once.
        """
        provisional = self._gathered(model, task, _Fold(batches, held=False))
        trial = _With(model, task, provisional)
        costs = [self._raw(trial, task + 1, x) for x, _ in _Fold(batches, held=True)]
        # If there are fewer than five samples, none is held back.
        costs = costs or [self._raw(trial, task + 1, x) for x, _ in batches]
        if not costs:
            raise ValueError(
                "the batches can be iterated only once, and the weights of the witnesses need further passes: give a "
                "list of batches"
            )
        raw = torch.cat(costs, dim=2)  # (witnesses, tasks, samples)
        scales = raw[:, task].std(dim=1, correction=0).float().clamp_min(1e-6)
        known = [model.statistics(t)["scales"].to(scales) for t in range(task)]
        unit = raw / torch.stack([*known, scales]).mean(dim=0)[:, None, None]
        right = [
            (torch.einsum("w,wts->ts", c, unit).argmin(dim=0) == task).float().mean() for c in self.candidates.to(raw)
        ]
        samples = torch.tensor([raw.shape[2]], dtype=torch.int32, device=raw.device)
        return {
            **self._gathered(model, task, batches),
            "scales": scales,
            "right": torch.stack(right),
            "samples": samples,
        }

    def joined(self, earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Statistics of a task that was learned in several experiences, from the earlier and the new ones.

        The witnesses join their own statistics (see `Gaussian.joined`). Shares and scales are averaged over samples.

        Args:
            earlier: statistics of the earlier experiences, by name.
            new: statistics of the new experience, by name.
        """
        found = dict(new)
        for i, witness in enumerate(self.witnesses):
            of_old, of_new = ({n[2:]: t for n, t in s.items() if n.startswith(f"{i}:")} for s in (earlier, new))
            if of_new:
                found.update({f"{i}:{name}": t for name, t in witness.joined(of_old, of_new).items()})
        total = earlier["samples"] + new["samples"]
        for name in ("right", "scales"):
            found[name] = (earlier[name] * earlier["samples"] + new[name] * new["samples"]) / total
        return {**found, "samples": total}

    def _gathered(self, model: Candidates, task: int, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, witness in enumerate(self.witnesses):
            if hasattr(witness, "observe"):
                stored = witness.observe(_Part(model, i), task, batches)
                found.update({f"{i}:{name}": t for name, t in stored.items()})
        return found

    # ------------------------------------------------------------------ at evaluation

    def __call__(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """Return the number of each sample's task (see `Inference`)."""
        costs = self.costs(model, n_tasks, x)
        if self.per == "batch":
            costs = costs.mean(dim=1, keepdim=True).expand_as(costs)
        return first_smallest(costs.T)

    def costs(self, model: Candidates, n_tasks: int, x: Any) -> Tensor:
        """Weighted sum of the witnesses' costs: ``(tasks, batch)``."""
        weights, scales = model.kept(self, lambda: self._weights(model, n_tasks))
        used = weights.nonzero().flatten()
        raw = self._raw(model, n_tasks, x, used.tolist())
        return torch.einsum(
            "w,wts->ts", weights[used].to(raw), raw / scales[used.to(scales.device)].to(raw)[:, None, None]
        )

    def _weights(self, model: Candidates, n_tasks: int) -> tuple[Tensor, Tensor]:
        """The simplest weights that were right about as often as the best, and the units of the witnesses' costs."""
        stored, candidates = [model.statistics(task) for task in range(n_tasks)], self.candidates
        for task, statistics in enumerate(stored):
            if "right" not in statistics or len(statistics["right"]) != len(candidates):
                raise RuntimeError(
                    f"task model.task_keys[{task}] has no statistics of these witnesses: set task_inference to this "
                    "Combined before tasks are trained, or call inference.gathering.gather_statistics(model, key, "
                    "batches) with its training data"
                )
        right = torch.stack([statistics["right"].double() for statistics in stored]).mean(dim=0)
        samples = sum(int(statistics["samples"]) for statistics in stored)
        best = float(right.max())
        total = candidates.sum(dim=1).to(right)
        alone = float(right[total == 1.0].max())
        enough = right >= min(best - math.sqrt(best * (1 - best) / samples), (best + alone) / 2) - 1e-9
        simplest = enough & (total <= total[enough].min() + 1e-9)
        chosen = int(torch.where(simplest, right, -1.0).argmax())
        return candidates[chosen], torch.stack([statistics["scales"] for statistics in stored]).mean(dim=0)

    def _raw(self, model: Any, n_tasks: int, x: Any, used: Sequence[int] | None = None) -> Tensor:
        """Costs of the witnesses with these numbers (None: of all), ``(witnesses, tasks, batch)``."""
        used = range(len(self.witnesses)) if used is None else used
        trials = [i for i in used if isinstance(self.witnesses[i], ByTrial)]
        outputs: dict[int, list[Tensor]] = {i: [] for i in trials}
        if trials:  # The witnesses that need the outputs of all tasks share one forward pass per task.
            for logits in model.outputs(x):
                for i in trials:
                    outputs[i].append(self.witnesses[i].costs_of(logits))
        each = [
            self.witnesses[i].judged(torch.cat(outputs[i]), model)[:n_tasks]
            if i in outputs
            else self.witnesses[i].costs(_Part(model, i), n_tasks, x)
            for i in used
        ]
        return torch.stack([costs.float() for costs in each])


class _Fold:
    """Batches with only the samples that are held back, or with only the others."""

    def __init__(self, batches: Iterable[tuple[Any, Tensor]], *, held: bool) -> None:
        self._batches, self._held = batches, held

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        seen = 0
        for x, y in self._batches:
            n = nested.batch_size(x)
            held = torch.arange(seen, seen + n) % FOLDS == FOLDS - 1
            rows = (held == self._held).nonzero().flatten()
            seen += n
            if len(rows):
                yield nested.rows(x, rows, n=n), nested.rows(y, rows, n=n)


class _Part:
    """The candidates for one witness: with only this witness's statistics and kept values."""

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
    """The candidates with statistics of one task that are not stored yet."""

    def __init__(self, model: Any, task: int, statistics: dict[str, Tensor]) -> None:
        self._model, self._task, self._statistics = model, task, statistics
        self.kept = Kept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def statistics(self, task: int) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self._statistics if task == self._task else self._model.statistics(task)
        return found

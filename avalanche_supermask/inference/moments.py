"""Class means and covariances of features, gathered in one pass, in any order, with no sample kept.

Narrow features accumulate the whole second moment of each class, which is exact. Wide ones accumulate its product with
a few random directions, from which the largest eigenvalues follow (the Nyström sketch of Tropp et al., "Fixed-Rank
Approximation of a Positive-Semidefinite Matrix from Streaming Data", NeurIPS 2017). Both are sums over samples, so the
order of samples and batches only moves the last digits.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from avalanche_supermask.inference.class_gaussians import ClassGaussians

__all__ = ["Covariance", "Moments"]

Covariance = Literal["class", "task"]

EXACT = 1024  # widest features whose whole second moment is accumulated


class Moments:
    """Sums over samples from which `ClassGaussians` follow.

    Args:
        width: number of features, d.
        rank: directions to keep, at most d - 1.
        covariance: ``"class"``: one for each class; ``"task"``: one for all.
        shrinkage: for ``"class"``: as how many samples the covariance of the whole task counts in that of a class,
            which without it would be degenerate where a class has few samples.
        device: where the sums are held.
        exact: widest features whose ``(d, d)`` second moment is held; of wider ones, the product with ``2 * rank + 40``
            random directions.
        seed: of these directions.

    Example:
        >>> moments = Moments(3, rank=1)
        >>> moments.add(torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([7, 7]))
        >>> found = moments.finish()
        >>> found.classes.tolist(), found.means.tolist(), found.variances.tolist()
        ([7], [[1.0, 0.0, 0.0]], [[1.0, 0.0]])
    """

    def __init__(
        self,
        width: int,
        *,
        rank: int,
        covariance: Covariance = "class",
        shrinkage: float = 0.0,
        device: torch.device | str = "cpu",
        exact: int = EXACT,
        seed: int = 0,
    ) -> None:
        self.width, self.rank = width, max(0, min(rank, width - 1))
        self.covariance, self.shrinkage = covariance, shrinkage
        self._directions: Tensor | None = None
        if width > exact:
            columns = min(width, 2 * self.rank + 40)
            random = torch.randn(width, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            self._directions = torch.linalg.qr(random).Q.to(device)
        self._shift: Tensor | None = None
        # By class: samples, their sum, the sum of their squared norms, and their second moment or its sketch.
        self._counts: dict[int, int] = {}
        self._sums: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        self._seconds: dict[int, Tensor] = {}

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor) -> None:
        """Count in a batch.

        Args:
            x: features ``(batch, d)``.
            y: labels ``(batch,)``.
        """
        x = x.float()
        if self._shift is None:  # any value near the data will do: it only keeps the sums small
            self._shift = x.mean(dim=0)
        x = x - self._shift
        for label in y.unique().tolist():
            rows = x[y == label]
            directed = rows if self._directions is None else rows @ self._directions.to(rows)
            new = (
                rows.sum(dim=0, dtype=torch.float64),
                rows.square().sum(dtype=torch.float64),
                (rows.T @ directed).double(),
            )
            for store, value in zip((self._sums, self._squares, self._seconds), new, strict=True):
                store[label] = store[label] + value if label in store else value
            self._counts[label] = self._counts.get(label, 0) + len(rows)

    @torch.no_grad()
    def finish(self) -> ClassGaussians:
        """What was gathered, on the device of the sums.

        Raises:
            ValueError: no sample was counted in.
        """
        if self._shift is None:
            raise ValueError("no sample was counted in, so there is no mean and no covariance")
        labels = sorted(self._counts)
        scatters = {label: self._scatter(label) for label in labels}
        n = sum(self._counts.values())
        whole = tuple(sum(part) / n for part in zip(*scatters.values(), strict=True))
        groups = [whole]
        if self.covariance == "class" and len(labels) > 1:
            groups = [
                tuple((s + self.shrinkage * w) / (self._counts[label] + self.shrinkage)
                      for s, w in zip(scatters[label], whole, strict=True))
                for label in labels
            ]  # fmt: skip
        found = [self._truncated(second, trace) for second, trace in groups]
        counts = torch.tensor([self._counts[label] for label in labels], device=self._shift.device)
        means = torch.stack([self._sums[label] for label in labels]) / counts.unsqueeze(1)
        return ClassGaussians(
            classes=torch.tensor(labels, device=counts.device),
            counts=counts,
            means=(means + self._shift).float(),
            basis=torch.stack([basis for basis, _ in found]).float(),
            variances=torch.stack([variances for _, variances in found]).float(),
        )

    def _scatter(self, label: int) -> tuple[Tensor, Tensor]:
        """Second moment of a class around its mean, or its sketch, and the trace; summed over the samples."""
        total, n = self._sums[label], self._counts[label]
        directed = total if self._directions is None else total @ self._directions
        return self._seconds[label] - torch.outer(total, directed) / n, self._squares[label] - total @ total / n

    def _truncated(self, second: Tensor, trace: Tensor) -> tuple[Tensor, Tensor]:
        """Directions ``(d, r)`` and variances ``(r + 1,)`` of a covariance or its sketch."""
        values, vectors = _largest(second, self._directions, self.rank)
        rest = (trace - values.sum()).clamp_min(0.0) / (self.width - self.rank)
        return vectors, torch.cat([values, rest.reshape(1)])


def _largest(second: Tensor, directions: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues of a covariance, in falling order, and their eigenvectors, ``(d, r)``."""
    if directions is None:
        values, vectors = torch.linalg.eigh((second + second.T) / 2)
        return values.flip(0)[:rank].clamp_min(0.0), vectors.flip(1)[:, :rank]
    # The shift makes the small matrix safely positive definite; it is taken off again.
    shift = math.sqrt(len(second)) * EPSILON * float(second.norm()) + torch.finfo(second.dtype).tiny
    shifted = second + shift * directions
    small = directions.T @ shifted
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    root = vectors * values.clamp_min(shift * EPSILON).rsqrt()
    found, singular, _ = torch.linalg.svd(shifted @ root, full_matrices=False)
    return (singular.square() - shift).clamp_min(0.0)[:rank], found[:, :rank]


EPSILON = 1e-6  # of the sums, whose terms are float32

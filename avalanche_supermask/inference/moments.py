"""Class means and covariances of features, gathered in one pass over the samples, in any order; no sample is kept.

For features with few dimensions, the whole second moment of each class is accumulated, which is exact. For features
with many dimensions, its product with a few random directions is accumulated, from which the largest eigenvalues follow
(the Nyström sketch of Tropp et al., "Fixed-Rank Approximation of a Positive-Semidefinite Matrix from Streaming Data",
NeurIPS 2017). Both are sums over samples, so the order of samples and batches changes only the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from avalanche_supermask.inference.class_gaussians import ClassGaussians, width_error

__all__ = ["Covariance", "Moments"]

Covariance = Literal["class", "task"]

# Greatest number of features for which the whole second moment is accumulated. For EfficientNet's 1,280 features, a
# sketch of one covariance costs two points of accuracy (held-out training data of CIFAR-100); the whole covariance
# takes two seconds when a task ends.
EXACT = {"class": 1024, "task": 2048}
EXACT_BYTES = 2**29  # greatest size of the second moments of all classes; sketches replace larger ones
ALL = -1  # key for all classes together


class Moments:
    """Sums over samples, from which `ClassGaussians` are computed.

    Args:
        width: number of features, d.
        rank: number of directions to keep, at most d - 1.
        covariance: ``"class"``: one covariance per class; ``"task"``: one for all classes.
        shrinkage: for ``"class"``, the weight of the task's covariance in that of a class, as a number of samples
            (default 0). Without shrinkage, the covariance of a class with few samples would be degenerate.
        exact: greatest number of features for which the whole ``(d, d)`` second moment is accumulated (default: 1024,
            or 2048 for one covariance of all classes). For more features, its product with ``2 * rank + 40`` random
            directions is accumulated.
        seed: seed of these directions.

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
        exact: int | None = None,
        seed: int = 0,
    ) -> None:
        self.width, self.rank = width, max(0, min(rank, width - 1))
        self.covariance, self.shrinkage = covariance, shrinkage
        self._seed = seed
        self._shift: Tensor | None = None
        # For each class: number of samples, their sum, the sum of their squared norms, and their second moment or its
        # sketch. If all classes have one covariance, the second moment of all samples is under `ALL`.
        self._counts: dict[int, int] = {}
        self._sums: dict[int, Tensor] = {}
        self._squares: dict[int, Tensor] = {}
        self._seconds: dict[int, Tensor] = {}
        self._directions = self._sketch("cpu") if width > (EXACT[covariance] if exact is None else exact) else None

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor) -> None:
        """Add a batch to the sums.

        Args:
            x: features ``(batch, d)``.
            y: labels ``(batch,)``.

        Raises:
            ValueError: the number of features is not that of the earlier batches.
        """
        if x.shape[1] != self.width:
            raise ValueError(width_error(x.shape[1], self.width))
        x = x.float()
        if self._shift is None:  # any value near the data is suitable, because it only keeps the sums small
            self._shift = x.mean(dim=0)
        x = x - self._shift
        if self._directions is not None:
            self._directions = self._directions.to(x.device)
        for label in y.unique().tolist():
            rows = x[y == label]
            directed = rows if self._directions is None else rows @ self._directions.to(rows.dtype)
            new = (
                rows.sum(dim=0, dtype=torch.float64),
                rows.square().sum(dtype=torch.float64),
                (rows.T @ directed).double(),
            )
            second = label if self.covariance == "class" else ALL
            for store, key, value in zip(
                (self._sums, self._squares, self._seconds), (label, label, second), new, strict=True
            ):
                store[key] = store[key] + value if key in store else value
            self._counts[label] = self._counts.get(label, 0) + len(rows)
            if self._directions is None and len(self._seconds) * new[2].nbytes > EXACT_BYTES:
                self._directions = self._sketch(x.device)

    @torch.no_grad()
    def finish(self) -> ClassGaussians:
        """Compute the Gaussians from the sums, on the device of the sums.

        Raises:
            ValueError: no sample was added.
        """
        if self._shift is None:
            raise ValueError("no sample was counted in, so there is no mean and no covariance")
        labels = sorted(self._counts)
        n = sum(self._counts.values())
        second, trace = self._scatter(labels)
        whole = second / n, trace / n
        if self.covariance == "class" and len(labels) > 1:
            found = [self._truncated(*self._shrunk(label, *whole)) for label in labels]
        else:
            found = [self._truncated(*whole)]
        counts = torch.tensor([self._counts[label] for label in labels], device=self._shift.device)
        means = torch.stack([self._sums[label] for label in labels]) / counts.unsqueeze(1)
        return ClassGaussians(
            classes=torch.tensor(labels, device=counts.device),
            counts=counts,
            means=(means + self._shift).float(),
            basis=torch.stack([basis for basis, _ in found]).float(),
            variances=torch.stack([variances for _, variances in found]).float(),
        )

    def _shrunk(self, label: int, second: Tensor, trace: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance of a class or its sketch, and the trace; both are averaged with those of the task."""
        own, own_trace = self._scatter([label])
        n = self._counts[label] + self.shrinkage
        return (own + self.shrinkage * second) / n, (own_trace + self.shrinkage * trace) / n

    def _scatter(self, labels: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Second moment of classes around their means or its sketch, and the trace, summed over the samples."""
        keys = labels if self.covariance == "class" else [ALL]
        second = torch.zeros_like(self._seconds[keys[0]])
        for key in keys:
            second += self._seconds[key]
        trace = torch.stack([self._squares[label] for label in labels]).sum()
        for label in labels:
            total, n = self._sums[label], self._counts[label]
            directed = total if self._directions is None else total @ self._directions
            second -= torch.outer(total, directed) / n
            trace = trace - total @ total / n
        return second, trace

    def _sketch(self, device: torch.device | str) -> Tensor:
        """Draw the random directions, and multiply the second moments that were accumulated before by them."""
        columns = min(self.width, 2 * self.rank + 40)
        random = torch.randn(
            self.width, columns, generator=torch.Generator().manual_seed(self._seed), dtype=torch.float64
        )
        directions: Tensor = torch.linalg.qr(random).Q.to(device)
        self._seconds = {key: second @ directions for key, second in self._seconds.items()}
        return directions

    def _truncated(self, second: Tensor, trace: Tensor) -> tuple[Tensor, Tensor]:
        """Directions ``(d, r)`` and variances ``(r + 1,)`` of a covariance or its sketch."""
        values, vectors = _largest(second, self._directions, self.rank)
        rest = (trace - values.sum()).clamp_min(0.0) / (self.width - self.rank)
        return vectors, torch.cat([values, rest.reshape(1)])


def _largest(second: Tensor, directions: Tensor | None, rank: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues of a covariance in descending order, and their eigenvectors, ``(d, r)``."""
    if directions is None:
        values, vectors = torch.linalg.eigh((second + second.T) / 2)
        return values.flip(0)[:rank].clamp_min(0.0), vectors.flip(1)[:, :rank]
    # The shift makes sure that the small matrix is positive definite; it is subtracted at the end.
    shift = math.sqrt(len(second)) * EPSILON * float(second.norm()) + torch.finfo(second.dtype).tiny
    shifted = second + shift * directions
    small = directions.T @ shifted
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    root = vectors * values.clamp_min(shift * EPSILON).rsqrt()
    found, singular, _ = torch.linalg.svd(shifted @ root, full_matrices=False)
    return (singular.square() - shift).clamp_min(0.0)[:rank], found[:, :rank]


EPSILON = 1e-6  # relative precision of the sums, whose terms are float32

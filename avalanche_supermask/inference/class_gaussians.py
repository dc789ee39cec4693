"""Gaussian distributions of classes: each has a mean, and a covariance with a few directions and a constant.

Tipping & Bishop, "Probabilistic Principal Component Analysis", Journal of the Royal Statistical Society B, 1999: the
covariance is ``U diag(λ) U^T + σ² (I - U U^T)``, where λ and U are the largest eigenvalues and their directions, and σ²
is the mean of the other eigenvalues.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["ClassGaussians", "joined", "pooled", "width_error"]


@dataclass(frozen=True)
class ClassGaussians:
    """Gaussians of the C classes of one task over d features, with one covariance per class or one for all classes.

    Attributes:
        classes: labels, int64 ``(C,)``.
        counts: number of samples of each class, int64 ``(C,)``.
        means: mean of each class, ``(C, d)``.
        basis: orthonormal directions of the largest variances, ``(G, d, r)``. The number G of covariances is C or 1.
        variances: variances along these directions; the last entry is the mean variance of all other directions:
            ``(G, r + 1)``.
    """

    classes: Tensor
    counts: Tensor
    means: Tensor
    basis: Tensor
    variances: Tensor

    @property
    def width(self) -> int:
        """Number of features, d."""
        return self.means.shape[1]

    @property
    def rank(self) -> int:
        """Number of kept directions, r."""
        return self.basis.shape[2]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store, by name: means in float32; directions in float16, as their entries are within ±1."""
        return {
            "classes": self.classes.int(),
            "counts": self.counts.int(),
            "means": self.means.float(),
            "basis": self.basis.half(),
            "variances": self.variances.float(),
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ClassGaussians:
        """Make Gaussians from stored tensors (see `tensors`)."""
        found = cls(**{field.name: tensors[field.name] for field in fields(cls)})
        return replace(
            found,
            classes=found.classes.long(),
            counts=found.counts.long(),
            means=found.means.float(),
            basis=found.basis.float(),
            variances=found.variances.float(),
        )

    def truncated(self, rank: int) -> ClassGaussians:
        """The same Gaussians with fewer directions; the constant includes the variances of the removed directions."""
        if rank >= self.rank:
            return self
        dropped = self.variances[:, rank:-1].sum(dim=1) + (self.width - self.rank) * self.variances[:, -1]
        constant = (dropped / (self.width - rank)).unsqueeze(1)
        return replace(
            self, basis=self.basis[:, :, :rank], variances=torch.cat([self.variances[:, :rank], constant], dim=1)
        )

    def costs(self, x: Tensor, *, ridge: float) -> Tensor:
        """Squared distance plus log-determinant of each sample for each class, ``(batch, C)``.

        This is -2 log p, up to a constant that is the same for all classes of all tasks with the same number of
        features.

        Args:
            x: features ``(batch, d)``.
            ridge: share of the mean variance that is added to all variances.

        Raises:
            ValueError: the samples have another number of features than the means.
        """
        if x.shape[1] != self.width:
            raise ValueError(width_error(x.shape[1], self.width))
        centre = self.means.mean(dim=0)  # subtracted to avoid rounding errors from differences of large numbers
        x, means = x.float() - centre, self.means - centre
        weights = torch.full((self.rank + 1,), 1.0, device=x.device)
        weights[-1] = self.width - self.rank
        mean_variance = (self.variances * weights).sum(dim=1, keepdim=True) / self.width
        # If all variances are zero, 1 replaces their mean: the unit of the features does not matter then.
        mean_variance = torch.where(mean_variance > 0, mean_variance, torch.ones_like(mean_variance))
        variances = self.variances + max(ridge, SMALLEST) * mean_variance
        determinants = (variances.log() * weights).sum(dim=1)
        found = []
        for g, (basis, variance) in enumerate(zip(self.basis, variances, strict=True)):
            mine = means[g : g + 1] if len(self.basis) > 1 else means
            found.append(torch.cdist(_white(x, basis, variance), _white(mine, basis, variance)).square())
        return torch.cat(found, dim=1) + determinants


def width_error(got: int, expected: int) -> str:
    """Message of the error for samples whose number of features is not that of the Gaussians."""
    return (
        f"samples have {got} features, and those of the Gaussians have {expected}; expected inputs of one size: for "
        "inputs whose length varies, name a layer that gets one vector per sample, as in Gaussian(layers=('fc',))"
    )


SMALLEST = 1e-6  # smallest share of the mean variance that is added, because a variance of zero has no logarithm


def _white(x: Tensor, basis: Tensor, variance: Tensor) -> Tensor:
    """Transformed features ``(n, d + r)``, whose squared Euclidean distances are those under one covariance."""
    along = x @ basis
    rest = x - along @ basis.T
    return torch.cat([rest * variance[-1].rsqrt(), along * variance[:-1].rsqrt()], dim=1)


@torch.no_grad()
def pooled(tasks: Sequence[ClassGaussians]) -> list[ClassGaussians]:
    """Gaussians of the same classes with one covariance for all of them: the mean, weighted by the numbers of samples.

    Args:
        tasks: Gaussians of one or more tasks, over the same features.

    Returns:
        The same number of Gaussians, which share ``basis`` and ``variances``.
    """
    counts = [t.counts if len(t.basis) == len(t.counts) else t.counts.sum().reshape(1) for t in tasks]
    weights = torch.cat(counts).double()
    weights = weights / weights.sum()
    parts = [part for t in tasks for part in zip(t.basis, t.variances, strict=True)]
    basis, spread = _mean(weights, parts)
    basis, spread = basis.unsqueeze(0), spread.unsqueeze(0)
    return [replace(t, basis=basis, variances=spread) for t in tasks]


@torch.no_grad()
def joined(first: ClassGaussians, second: ClassGaussians, *, of_classes: bool) -> ClassGaussians:
    """Gaussians of two sets of samples together, as if they had been gathered in one pass.

    The result is exact, except for the parts of the covariances that the low ranks leave out.

    Args:
        first: Gaussians of the first set.
        second: Gaussians of the second set, of the same task and over the same features; its classes may be others.
        of_classes: whether each class has its own covariance; False: all classes share one.
    """
    both, rank = (first, second), max(first.rank, second.rank)
    labels = sorted({*first.classes.tolist(), *second.classes.tolist()})
    places = [{label: i for i, label in enumerate(g.classes.tolist())} for g in both]
    held = {label: [(g, at[label]) for g, at in zip(both, places, strict=True) if label in at] for label in labels}
    counts = {label: torch.stack([g.counts[i] for g, i in held[label]]).double() for label in labels}
    means, shifts = [], {}
    for label, n in counts.items():
        of_label = torch.stack([g.means[i] for g, i in held[label]]).double()
        means.append(((n / n.sum()) @ of_label).float())
        if len(n) == 2:  # the scatter of both sets is the sum of their scatters plus the outer product of this vector
            shifts[label] = (n.prod() / n.sum()).sqrt() * (of_label[0] - of_label[1])
    if of_classes:
        groups = [
            (n, [(g.basis[i], g.variances[i]) for g, i in held[label]], [shifts[label]] if label in shifts else [])
            for label, n in counts.items()
        ]
    else:
        totals = torch.stack([g.counts.sum() for g in both]).double()
        groups = [(totals, [(g.basis[0], g.variances[0]) for g in both], [*shifts.values()])]
    found = [
        _mean(n / n.sum(), parts, [shift / n.sum().sqrt() for shift in columns], rank=rank)
        for n, parts, columns in groups
    ]
    return ClassGaussians(
        classes=torch.tensor(labels, device=first.means.device),
        counts=torch.stack([n.sum().long() for n in counts.values()]),
        means=torch.stack(means),
        basis=torch.stack([basis for basis, _ in found]),
        variances=torch.stack([variances for _, variances in found]),
    )


def _mean(
    weights: Tensor, parts: Sequence[tuple[Tensor, Tensor]], more: Sequence[Tensor] = (), *, rank: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted mean of covariances ``(basis, variances)`` plus outer products of some vectors, in the same form."""
    variances = [variance.double() for _, variance in parts]
    constant = sum(w * v[-1] for w, v in zip(weights, variances, strict=True))
    # Every covariance is a constant plus a few directions with larger variances, and so is their mean.
    excess = [(w * (v[:-1] - v[-1]).clamp_min(0.0)).sqrt() for w, v in zip(weights, variances, strict=True)]
    scaled = [basis.double() * e for (basis, _), e in zip(parts, excess, strict=True)]
    columns = torch.cat([*scaled, *(vector.unsqueeze(1) for vector in more)], dim=1)  # (d, directions)
    most = columns.shape[1] if rank is None else rank
    width, rank = columns.shape[0], min(most, columns.shape[1], columns.shape[0] - 1)
    if columns.shape[1] < width:
        values, inner = torch.linalg.eigh(columns.T @ columns)
        values, inner = values.flip(0).clamp_min(0.0), inner.flip(1)
        directions = columns @ inner / values.sqrt().clamp_min(1e-150)
        directions = torch.where(values > values[:1] * 1e-12, directions, torch.zeros_like(directions))
    else:
        values, directions = torch.linalg.eigh(columns @ columns.T)
        values, directions = values.flip(0).clamp_min(0.0), directions.flip(1)
    trace = values.sum() + width * constant
    kept = values[:rank] + constant
    rest = ((trace - kept.sum()) / (width - rank)).reshape(1).clamp_min(0.0)
    return directions[:, :rank].float(), torch.cat([kept, rest]).float()

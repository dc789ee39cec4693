"""Gaussians of classes: a mean each, and a covariance of a few directions and a constant.

Tipping & Bishop, "Probabilistic Principal Component Analysis", Journal of the Royal Statistical Society B, 1999: the
covariance is ``U diag(λ) U^T + σ² (I - U U^T)``, its largest eigenvalues with their directions, and the mean of the
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["ClassGaussians", "pooled"]


@dataclass(frozen=True)
class ClassGaussians:
    """Gaussians of the classes of one task over d features; a covariance a class, or one for all of them.

    Attributes:
        classes: labels, int64 ``(C,)``.
        counts: samples of each class, int64 ``(C,)``.
        means: ``(C, d)``.
        basis: orthonormal directions of the largest variances, ``(G, d, r)``, G being C or 1.
        variances: along them, and last the mean variance of all other directions: ``(G, r + 1)``.
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
        """Number of directions kept, r."""
        return self.basis.shape[2]

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name: directions in float16, as their entries lie within ±1; means in float32."""
        return {
            "classes": self.classes.int(),
            "counts": self.counts.int(),
            "means": self.means.float(),
            "basis": self.basis.half(),
            "variances": self.variances.float(),
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> ClassGaussians:
        """The Gaussians of what was stored."""
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
        """The same with fewer directions; the variance along the others joins the constant."""
        if rank >= self.rank:
            return self
        dropped = self.variances[:, rank:-1].sum(dim=1) + (self.width - self.rank) * self.variances[:, -1]
        constant = (dropped / (self.width - rank)).unsqueeze(1)
        return replace(
            self, basis=self.basis[:, :, :rank], variances=torch.cat([self.variances[:, :rank], constant], dim=1)
        )

    def costs(self, x: Tensor, *, ridge: float) -> Tensor:
        """Squared distance plus log-determinant of each sample under each class, ``(batch, C)``.

        That is -2 log p up to a constant that is the same for all classes of all tasks over as many features.

        Args:
            x: features ``(batch, d)``.
            ridge: added to all variances, as a share of their mean.
        """
        centre = self.means.mean(dim=0)  # near the data, so that differences of large numbers are rare
        x, means = x.float() - centre, self.means - centre
        weights = torch.full((self.rank + 1,), 1.0, device=x.device)
        weights[-1] = self.width - self.rank
        mean_variance = (self.variances * weights).sum(dim=1, keepdim=True) / self.width
        # Where nothing varies at all, the features are as good as those of any other unit.
        mean_variance = torch.where(mean_variance > 0, mean_variance, torch.ones_like(mean_variance))
        variances = self.variances + max(ridge, SMALLEST) * mean_variance
        determinants = (variances.log() * weights).sum(dim=1)
        found = []
        for g, (basis, variance) in enumerate(zip(self.basis, variances, strict=True)):
            mine = means[g : g + 1] if len(self.basis) > 1 else means
            found.append(torch.cdist(_white(x, basis, variance), _white(mine, basis, variance)).square())
        return torch.cat(found, dim=1) + determinants


SMALLEST = 1e-6  # share of the mean variance that is added in any case: a variance of zero has no logarithm


def _white(x: Tensor, basis: Tensor, variance: Tensor) -> Tensor:
    """Features whose squared Euclidean distances are the distances under one covariance: ``(n, d + r)``."""
    along = x @ basis
    rest = x - along @ basis.T
    return torch.cat([rest * variance[-1].rsqrt(), along * variance[:-1].rsqrt()], dim=1)


@torch.no_grad()
def pooled(tasks: Sequence[ClassGaussians]) -> list[ClassGaussians]:
    """The same classes under one covariance for all of them, the mean over their samples.

    Args:
        tasks: over the same features.

    Returns:
        As many, that share ``basis`` and ``variances``.
    """
    counts = [t.counts if len(t.basis) == len(t.counts) else t.counts.sum().reshape(1) for t in tasks]
    weights = torch.cat(counts).double()
    weights = weights / weights.sum()
    variances = [row for t in tasks for row in t.variances.double()]
    bases = [basis for t in tasks for basis in t.basis]
    constant = sum(w * v[-1] for w, v in zip(weights, variances, strict=True))
    # Every covariance is a constant and a few directions that exceed it; so is their mean.
    excess = [(w * (v[:-1] - v[-1]).clamp_min(0.0)).sqrt() for w, v in zip(weights, variances, strict=True)]
    columns = torch.cat([basis.double() * e for basis, e in zip(bases, excess, strict=True)], dim=1)  # (d, G * r)
    width, rank = columns.shape[0], min(columns.shape[1], columns.shape[0] - 1)
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
    basis = directions[:, :rank].float().unsqueeze(0)
    spread = torch.cat([kept, rest]).float().unsqueeze(0)
    return [replace(t, basis=basis, variances=spread) for t in tasks]

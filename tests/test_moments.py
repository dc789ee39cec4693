import pytest
import torch

from avalanche_supermask.inference.class_gaussians import ClassGaussians, joined, pooled
from avalanche_supermask.inference.moments import Moments


def data(n=200, d=12, classes=3, seed=0):
    """Return samples of classes with different means, whose variances decrease over the dimensions."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    spread = torch.linspace(2.0, 0.05, d)
    return torch.randn(n, d, generator=draw) * spread + 3 * torch.randn(classes, d, generator=draw)[y] + 100, y


def gathered(x, y, *, batch=7, **settings):
    moments = Moments(x.shape[1], **settings)
    for rows, labels in zip(x.split(batch), y.split(batch), strict=True):
        moments.add(rows, labels)
    return moments.finish()


def covariance(g, group=0):
    """Return the dense covariance that the stored directions and the constant describe."""
    basis, variance = g.basis[group].double(), g.variances[group].double()
    rest = torch.eye(g.width, dtype=torch.float64) - basis @ basis.T
    return basis @ variance[:-1].diag() @ basis.T + variance[-1] * rest


def within(x, y, label=None):
    """Compute the covariance within the classes, or of one class, naively."""
    rows = [x[y == c].double() for c in y.unique() if label is None or c == label]
    return torch.cat([r - r.mean(dim=0) for r in rows]).T.cov(correction=0)


@pytest.mark.parametrize("covariance_of", ["class", "task"])
def test_with_all_directions_it_is_the_naive_covariance(covariance_of):
    x, y = data()
    found = gathered(x, y, rank=11, covariance=covariance_of)
    assert torch.allclose(found.means, torch.stack([x[y == c].mean(dim=0) for c in range(3)]), atol=1e-4)
    for group in range(len(found.basis)):
        label = group if covariance_of == "class" else None
        assert torch.allclose(covariance(found, group), within(x, y, label), atol=2e-4)


def test_few_directions_are_the_largest_and_the_rest_is_their_mean():
    x, y = data()
    found = gathered(x, y, rank=4, covariance="task")
    values = torch.linalg.eigvalsh(within(x, y)).flip(0)
    assert torch.allclose(found.variances[0, :4].double(), values[:4], rtol=1e-3)
    assert torch.allclose(found.variances[0, 4].double(), values[4:].mean(), rtol=1e-3)
    assert torch.allclose(gathered(x, y, rank=9, covariance="task").truncated(4).variances, found.variances, rtol=1e-3)


def test_the_order_of_samples_and_batches_only_moves_the_last_digits():
    x, y = data()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    first, second = gathered(x, y, rank=5), gathered(x[order], y[order], batch=31, rank=5)
    assert torch.allclose(first.variances, second.variances, rtol=1e-3, atol=1e-5)
    assert torch.allclose(covariance(first), covariance(second), atol=1e-3)


def test_the_sketch_of_wide_features_finds_the_same_directions():
    x, y = data(n=400, d=150)
    x[:, :3] *= 5
    exact, sketched = (gathered(x, y, rank=3, covariance="task", exact=exact) for exact in (150, 10))
    assert torch.allclose(exact.variances, sketched.variances, rtol=4e-2)
    overlap = torch.linalg.svdvals(exact.basis[0].T @ sketched.basis[0])
    assert float(overlap.min()) > 0.99


def test_shrinkage_moves_a_small_class_towards_its_task():
    x, y = data()
    rare = torch.cat([torch.arange(0, 200, 3)[:2], (y != 0).nonzero().flatten()])
    x, y = x[rare], y[rare]
    found = gathered(x, y, rank=11, shrinkage=50.0)
    expected = (2 * within(x, y, 0) + 50 * within(x, y)) / 52
    assert torch.allclose(covariance(found, 0), expected, atol=2e-4)


def test_costs_are_those_of_the_dense_gaussian():
    x, y = data()
    found = gathered(x, y, rank=5)
    costs = found.costs(x[:9], ridge=0.0)
    for label in range(3):
        dense = covariance(found, label)
        dense += 1e-6 * dense.trace() / len(dense) * torch.eye(len(dense), dtype=torch.float64)
        likely = torch.distributions.MultivariateNormal(found.means[label].double(), dense).log_prob(x[:9].double())
        constant = found.width * torch.log(torch.tensor(2 * torch.pi))
        assert torch.allclose(costs[:, label].double(), -2 * likely - constant, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("rank", [2, 11])
def test_the_shared_covariance_is_the_mean_over_all_samples(rank):
    tasks = [gathered(*data(n=n, seed=n), rank=rank) for n in (90, 200)]
    weighted = [(int(c), covariance(t, g)) for t in tasks for g, c in enumerate(t.counts)]
    expected = sum(c * dense for c, dense in weighted) / sum(c for c, _ in weighted)
    first, second = pooled(tasks)
    assert first.basis is second.basis
    assert torch.equal(first.means, tasks[0].means)
    assert torch.allclose(covariance(first), expected, atol=2e-3)


@pytest.mark.parametrize("covariance_of", ["class", "task"])
def test_samples_of_two_parts_are_joined_as_if_gathered_together(covariance_of):
    x, y = data()
    first = (torch.arange(200) < 80) & (y < 2)  # The second part has one class more.
    settings = {"rank": 11, "covariance": covariance_of}
    parts = [gathered(x[rows], y[rows], **settings) for rows in (first, ~first)]
    found = joined(*parts, of_classes=covariance_of == "class")
    whole = gathered(x, y, **settings)
    assert found.classes.tolist() == [0, 1, 2]
    assert torch.equal(found.counts, whole.counts)
    assert torch.allclose(found.means, whole.means, atol=1e-4)
    for group in range(len(whole.basis)):
        assert torch.allclose(covariance(found, group), covariance(whole, group), atol=2e-3)
    assert found.rank == 11


def test_where_second_moments_of_many_classes_would_be_large_they_are_sketched(monkeypatch):
    x, y = data(d=60)
    exact = gathered(x, y, rank=4)
    monkeypatch.setattr("avalanche_supermask.inference.moments.EXACT_BYTES", 2 * 60 * 60 * 8)  # enough for two classes
    late = gathered(x, y, rank=4, batch=70)
    monkeypatch.setattr("avalanche_supermask.inference.moments.EXACT_BYTES", 0)
    early = gathered(x, y, rank=4)
    assert torch.allclose(late.variances, early.variances, rtol=1e-3)
    assert torch.allclose(late.variances, exact.variances, rtol=0.05)


def test_what_is_stored_is_read_again():
    x, y = data()
    found = gathered(x, y, rank=4)
    read = ClassGaussians.of(found.tensors())
    assert found.tensors()["basis"].dtype == torch.float16
    assert torch.allclose(read.costs(x, ridge=0.1), found.costs(x, ridge=0.1), rtol=1e-2)


def test_without_samples_there_is_nothing_to_finish():
    with pytest.raises(ValueError, match="no sample was counted in"):
        Moments(3, rank=1).finish()

"""The Hopfield memory agrees with the learning rule, computed entry by entry."""

import torch

from avalanche_supermask.strategies.hopfield import Hopfield


def patterns(n, units, seed=0):
    return torch.randint(0, 2, (n, units), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def storkey(stored, units):
    """Compute the rule naively, as sums over indices."""
    psi = [[0.0] * units for _ in range(units)]
    for z in stored.tolist():
        h = [sum(psi[i][k] * z[k] for k in range(units)) for i in range(units)]
        psi = [
            [psi[i][j] + (z[i] * z[j] - (i == j) - z[i] * h[j] - h[i] * z[j]) / units for j in range(units)]
            for i in range(units)
        ]
    return torch.tensor(psi)


def test_the_rule():
    stored = patterns(3, 7)
    memory = Hopfield(7)
    for z in stored:
        memory.store(z)
    assert torch.allclose(memory.weights, storkey(stored, 7), atol=1e-6)
    assert torch.allclose(memory.mean, stored.mean(dim=0), atol=1e-6)


def test_stored_patterns_are_found_again_from_nearby():
    memory, stored = Hopfield(200), patterns(12, 200)
    for z in stored:
        memory.store(z)
    for z in stored:
        damaged = z.clone()
        damaged[:20] *= -1
        assert torch.equal(memory.settle(damaged), z)
        assert memory.energy(z) < memory.energy(damaged) < memory.energy(patterns(1, 200, seed=9)[0])


def test_its_size_does_not_grow():
    memory = Hopfield(50)
    before = sum(b.numel() for b in memory.buffers())
    for z in patterns(5, 50):
        memory.store(z)
    assert sum(b.numel() for b in memory.buffers()) == before

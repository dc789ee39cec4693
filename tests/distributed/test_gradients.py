"""After its backward pass, every process has the gradient of the whole batch."""

import pytest
import torch
from torch import nn

from avalanche_supermask.distributed import GradientAverage, averaged
from tests.distributed.processes import group_of


def network(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.Linear(3, 2)).to(dtype)


def data(n):
    generator = torch.Generator().manual_seed(2)
    return torch.randn((n, 5), generator=generator), torch.arange(n) % 2


def shares(n, rank, size):
    """Return the share of a process. Shares are uneven: the last process has all samples that remain."""
    edges = [*range(size), n]
    return slice(edges[rank], edges[rank + 1])


def of_whole_batch(n, *, reduction="mean", times=1, dtype=torch.float32):
    net = network(dtype)
    for _ in range(times):
        x, y = data(n)
        nn.CrossEntropyLoss(reduction=reduction)(net(x.to(dtype)), y).backward()
    return [p.grad for p in net.parameters()]


def of_the_group(rank, n, size, *, reduction="mean", times=1, bucket_bytes=2**20, dtype=torch.float32, autocast=False):
    net, part = network(dtype), shares(n, rank, size)
    x, y = (t[part] for t in data(n))
    with GradientAverage(net.parameters(), summed=reduction == "sum", bucket_bytes=bucket_bytes) as average:
        for _ in range(times):
            average.samples = len(y)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = nn.CrossEntropyLoss(reduction=reduction)(net(x.to(dtype)), y)
            loss.backward()
    hooks_left = sum(bool(p._post_accumulate_grad_hooks) for p in net.parameters())
    return [p.grad for p in net.parameters()], average.samples_by_rank, hooks_left


CASES = {
    "one bucket": {},
    "many buckets": {"bucket_bytes": 64},
    "a loss that is a sum": {"reduction": "sum"},
    "three passes accumulated": {"times": 3},
    "double": {"dtype": torch.float64},
    "half": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_uneven_shares_give_the_gradient_of_the_whole_batch(case, size):
    options = CASES[case]
    found = group_of(size).run(_of_the_group, 11, size, options)
    expected = of_whole_batch(11, **{k: v for k, v in options.items() if k != "bucket_bytes"})
    tolerance = {torch.bfloat16: 2e-2, torch.float64: 1e-12}.get(options.get("dtype"), 1e-6)
    for grads, samples, hooks_left in found:
        assert samples == [1] * (size - 1) + [11 - size + 1]
        assert hooks_left == 0
        for mine, first, whole in zip(grads, found[0][0], expected, strict=True):
            assert torch.equal(mine, first)
            assert torch.allclose(mine, whole, atol=tolerance, rtol=tolerance)


def _of_the_group(rank, n, size, options):
    return of_the_group(rank, n, size, **options)


def test_without_weights_by_samples_it_would_be_another_gradient():
    parts = []
    for rank in range(2):
        net = network()
        x, y = (t[shares(11, rank, 2)] for t in data(11))
        nn.CrossEntropyLoss()(net(x), y).backward()
        parts.append(net[0].weight.grad)
    assert not torch.allclose((parts[0] + parts[1]) / 2, of_whole_batch(11)[0], atol=1e-3)


def test_autocast():
    (grads, *_), (others, *_) = group_of(2).run(_of_the_group, 11, 2, {"autocast": True})
    for mine, other, whole in zip(grads, others, of_whole_batch(11), strict=True):
        assert torch.equal(mine, other)
        assert torch.allclose(mine, whole, atol=3e-2)


def _partly_used(rank):
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    with GradientAverage([a, b, c]) as average:
        average.samples = 1
        ((a.sum() + b.sum()) if rank else a.sum()).backward()
    return a.grad, b.grad, c.grad


def test_a_parameter_without_a_gradient_here_takes_that_of_the_others():
    for a, b, c in group_of(2).run(_partly_used):
        assert torch.equal(a, torch.ones(2))
        assert torch.equal(b, torch.full((2,), 0.5))
        assert c is None, "no process has one: weight decay must not move it"


def _voted(rank):
    p = nn.Parameter(torch.ones(2))
    votes = []
    with GradientAverage([p]) as average:
        for vote in (False, rank == 1, False):
            average.vote = vote
            p.sum().backward()
            votes.append(average.voted)
    return votes


def test_one_vote_to_stop_is_heard_by_all():
    assert group_of(2).run(_voted) == [[False, True, False]] * 2


def _not_a_number(rank):
    p = nn.Parameter(torch.ones(2))
    with GradientAverage([p]):
        (p.sum() * (float("nan") if rank else 1.0)).backward()
    return p.grad


def test_not_a_number_in_one_process_is_one_in_all():
    assert all(grad.isnan().all() for grad in group_of(2).run(_not_a_number))


def test_a_process_that_learns_alone_exchanges_nothing():
    net = network()
    with averaged(net.parameters()) as average:
        average.samples = 3
        assert not any(p._post_accumulate_grad_hooks for p in net.parameters())

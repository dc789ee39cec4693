"""Gradients averaged over the group within the backward pass: `GradientAverage`.

When ``loss.backward()`` returns, every process holds the gradient of the whole batch, whatever a plugin or template
does with it next: clipping, penalties, a gradient scaler, an optimizer. Gradients are sent in buckets, in the order in
which the backward pass completes them, while it goes on with the earlier layers.

With n_r samples in the batch of rank r and its mean gradient g_r, the mean over all samples is Σ n_r g_r / Σ n_r, so a
smaller last batch counts for what it is. Numbers of samples travel behind the last bucket. Accumulation over several
backward passes works, as what is averaged already is equal in every process and its mean is itself.

A wrapper such as ``DistributedDataParallel`` sets its hooks once, for the parameters that learn at that time; with
phases and heads these change. Here the hooks last for an epoch at most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avalanche_supermask.distributed.group import in_group, rank, size

__all__ = ["GradientAverage", "averaged"]

BUCKET_BYTES = 25 * 2**20  # PyTorch's own default for its wrapper


@dataclass
class _Bucket:
    """Gradients that are sent together.

    Attributes:
        parameters: all on one device and of one type.
        missing: how many of them the backward pass has not reached.
        flat: what is sent: gradients, then whether each is there, then (last bucket only) samples by rank and a vote.
        work: the exchange while it runs.
    """

    parameters: list[nn.Parameter]
    missing: int = 0
    flat: Tensor = field(default_factory=lambda: torch.empty(0))
    work: Any = None


class GradientAverage:
    """Averages the gradients of some parameters over the group whenever a backward pass has computed them.

    A context manager; hooks are set when it is entered and gone when it is left. All processes must run their backward
    passes the same number of times.

    Args:
        parameters: the same ones in the same order in every process; those that require no gradient are left out.
        summed: add the gradients up instead, for a loss that is a sum over samples.
        bucket_bytes: gradients that are sent together (default 25 MiB, PyTorch's).

    Attributes:
        samples: of this process's batch that count, 0 or more; set it before each backward pass.
        vote: whether this process wants to end the training; set it before a backward pass.
        samples_by_rank: of the latest backward pass.
        voted: whether any process wanted to, at the latest backward pass.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, summed: bool = False, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.summed = summed
        self.samples, self.vote = 1, False
        self.samples_by_rank: list[int] = []
        self.voted = False
        learning = [p for p in parameters if p.requires_grad]
        self._buckets = _in_buckets(reversed(learning), bucket_bytes)  # the backward pass begins at the end
        self._bucket_of = {id(p): bucket for bucket in self._buckets for p in bucket.parameters}
        self._hooks: list[Any] = []
        self._running = False
        self._sent = 0

    def __enter__(self) -> GradientAverage:
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._computed) for b in self._buckets for p in b.parameters
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _computed(self, parameter: Tensor) -> None:
        if not self._running:
            self._running, self._sent = True, 0
            for bucket in self._buckets:
                bucket.missing = len(bucket.parameters)
            # As PyTorch's own wrapper does: called when the whole backward pass is done.
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._bucket_of[id(parameter)].missing -= 1
        # In the same order in every process, or unlike buckets would be added up.
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            self._send(self._buckets[self._sent])

    @torch.no_grad()
    def _send(self, bucket: _Bucket) -> None:
        self._sent += 1
        last = self._sent == len(self._buckets)
        dtype = torch.promote_types(bucket.parameters[0].dtype, torch.float32)
        weight = float(self.samples > 0) if self.summed else float(self.samples)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket.parameters]
        notes = [float(p.grad is not None) for p in bucket.parameters]
        if last:
            counts = [0.0] * size()
            counts[rank()] = float(self.samples)
            notes += [*counts, float(self.vote)]
        flat = torch.cat([g.reshape(-1).to(dtype) for g in grads]).mul_(weight)
        bucket.flat = torch.cat([flat, torch.tensor(notes, dtype=dtype, device=flat.device)])
        bucket.work = dist.all_reduce(bucket.flat, async_op=True)

    @torch.no_grad()
    def _finish(self) -> None:
        self._running = False
        while self._sent < len(self._buckets):  # some parameters took no part in this loss
            self._send(self._buckets[self._sent])
        for bucket in self._buckets:
            bucket.work.wait()
        *counts, votes = self._buckets[-1].flat[-size() - 1 :].tolist()
        self.samples_by_rank, self.voted = [int(n) for n in counts], votes > 0
        total = 1.0 if self.summed else sum(counts)
        for bucket in self._buckets:
            _write_back(bucket, total)
            bucket.flat, bucket.work = torch.empty(0), None


def _in_buckets(parameters: Iterable[nn.Parameter], most: int) -> list[_Bucket]:
    buckets: list[_Bucket] = []
    held, kind = 0, None
    for p in parameters:
        bytes_of_p = p.numel() * max(4, p.element_size())
        if not buckets or kind != (p.device, p.dtype) or held + bytes_of_p > most:
            buckets.append(_Bucket([]))
            held, kind = 0, (p.device, p.dtype)
        buckets[-1].parameters.append(p)
        held += bytes_of_p
    return buckets


def _write_back(bucket: _Bucket, total: float) -> None:
    """Put the averages into the gradients; a parameter that has a gradient in no process is left without."""
    sizes = [p.numel() for p in bucket.parameters]
    averages = bucket.flat[: sum(sizes)].div_(total).split(sizes)
    there = None
    for i, (p, average) in enumerate(zip(bucket.parameters, averages, strict=True)):
        value = average.view_as(p)
        if p.grad is not None:
            p.grad.copy_(value)
            continue
        if there is None:  # looked at only where needed, as a look waits for the device
            there = bucket.flat[sum(sizes) : sum(sizes) + len(sizes)].tolist()
        if there[i]:
            p.grad = value.to(p.dtype).clone()


@contextlib.contextmanager
def averaged(parameters: Iterable[nn.Parameter], *, summed: bool = False) -> Iterator[GradientAverage]:
    """A `GradientAverage` while it is open; where one process learns alone, one that does nothing.

    Args:
        parameters: whose gradients are averaged.
        summed: see `GradientAverage`.
    """
    with GradientAverage(parameters if in_group() else (), summed=summed) as average:
        yield average

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
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avalanche_supermask.distributed.group import in_group, rank, size

__all__ = ["GradientAverage", "averaged"]

BUCKET_BYTES = 25 * 2**20  # PyTorch's own default for its wrapper


class _Bucket:
    """Gradients that are sent together, all on one device and of one type.

    Attributes:
        parameters: whose gradients they are.
        missing: how many of them the backward pass has not reached.
        work: the exchange while it runs.
    """

    def __init__(self, parameters: list[nn.Parameter], notes: int) -> None:
        self.parameters = parameters
        self.missing = 0
        self.work: Any = None
        sizes = [p.numel() for p in parameters]
        dtype = torch.promote_types(parameters[0].dtype, torch.float32)  # sums of halves would lose bits
        # What is sent: the gradients, whether each is there, and the notes of the last bucket. Made once, as new memory
        # of that size for every batch takes about as long as filling it.
        self._flat = torch.empty(sum(sizes) + len(parameters) + notes, dtype=dtype, device=parameters[0].device)
        *views, self._there, self._notes = self._flat.split([*sizes, len(parameters), notes])
        self._views = [view.view_as(p) for view, p in zip(views, parameters, strict=True)]

    def send(self, weight: float, notes: list[float]) -> None:
        """Begin to add up, over the group, the gradients times a weight; and the notes."""
        there = [float(p.grad is not None) for p in self.parameters]
        for p, view in zip(self.parameters, self._views, strict=True):
            if p.grad is None:
                view.zero_()
            else:
                torch.mul(p.grad, weight, out=view)
        self._there.copy_(torch.tensor(there))
        if notes:
            self._notes.copy_(torch.tensor(notes))
        self.work = dist.all_reduce(self._flat, async_op=True)

    def notes(self) -> list[float]:
        """What the notes of all processes add up to, once the exchange is done."""
        return [float(note) for note in self._notes.tolist()]

    def write_back(self, total: float) -> None:
        """Put the sums over the total into the gradients; a parameter that has one in no process is left without."""
        there = None
        for i, (p, view) in enumerate(zip(self.parameters, self._views, strict=True)):
            if p.grad is None:
                if there is None:  # looked at only where needed, as a look waits for the device
                    there = self._there.tolist()
                if not there[i]:
                    continue
                p.grad = torch.empty_like(p)
            torch.div(view, total, out=p.grad)
        self.work = None


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
        notes: list[float] = []
        if self._sent == len(self._buckets):
            notes = [0.0] * size() + [float(self.vote)]
            notes[rank()] = float(self.samples)
        bucket.send(float(self.samples > 0) if self.summed else float(self.samples), notes)

    @torch.no_grad()
    def _finish(self) -> None:
        self._running = False
        while self._sent < len(self._buckets):  # some parameters took no part in this loss
            self._send(self._buckets[self._sent])
        for bucket in self._buckets:
            bucket.work.wait()
        *counts, votes = self._buckets[-1].notes()
        self.samples_by_rank, self.voted = [int(n) for n in counts], votes > 0
        for bucket in self._buckets:
            bucket.write_back(1.0 if self.summed else sum(counts))


def _in_buckets(parameters: Iterable[nn.Parameter], most: int) -> list[_Bucket]:
    groups: list[list[nn.Parameter]] = []
    held, kind = 0, None
    for p in parameters:
        bytes_of_p = p.numel() * max(4, p.element_size())
        if not groups or kind != (p.device, p.dtype) or held + bytes_of_p > most:
            groups.append([])
            held, kind = 0, (p.device, p.dtype)
        groups[-1].append(p)
        held += bytes_of_p
    return [_Bucket(group, size() + 1 if group is groups[-1] else 0) for group in groups]


@contextlib.contextmanager
def averaged(parameters: Iterable[nn.Parameter], *, summed: bool = False) -> Iterator[GradientAverage]:
    """A `GradientAverage` while it is open; where one process learns alone, one that does nothing.

    Args:
        parameters: whose gradients are averaged.
        summed: see `GradientAverage`.
    """
    with GradientAverage(parameters if in_group() else (), summed=summed) as average:
        yield average

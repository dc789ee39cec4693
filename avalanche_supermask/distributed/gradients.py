"""Average gradients over the group within the backward pass: `GradientAverage`.

When ``loss.backward()`` returns, every process holds the gradient of the whole batch. Therefore the following steps of
plugins and templates work unchanged: clipping, penalties, a gradient scaler, an optimizer. Gradients are sent in
buckets. A bucket is sent as soon as the backward pass has computed its gradients, while the pass continues with the
earlier layers.

If rank r has n_r samples with the mean gradient g_r, the mean over all samples is Σ n_r g_r / Σ n_r. So every sample
has the same weight, also in a smaller last batch. The numbers of samples are sent at the end of the last bucket.
Gradients may be accumulated over several backward passes, because averaged gradients are equal in every process, and
averaging them again does not change them.

A wrapper such as ``DistributedDataParallel`` registers its hooks once, for the parameters that are trainable at that
time. Phases and new heads change the trainable parameters. Therefore the hooks of this module last for at most an
epoch.
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
    """Gradients that are sent together; all are on one device and have one type.

    The last bucket also sends notes: the number of samples of each process, and the votes to end the training.

    Attributes:
        parameters: the parameters whose gradients are sent.
        missing: number of gradients that the backward pass has not computed yet.
        work: handle of the exchange while it runs; otherwise None.
    """

    def __init__(self, parameters: list[nn.Parameter], notes: int) -> None:
        self.parameters = parameters
        self.missing = 0
        self.work: Any = None
        sizes = [p.numel() for p in parameters]
        dtype = torch.promote_types(parameters[0].dtype, torch.float32)  # sums in half precision would lose bits
        # The message contains the gradients, a flag for each of them that is 1 if the gradient exists, and the notes.
        # It is allocated once, because allocating it for every batch would take about as long as filling it.
        self._flat = torch.empty(sum(sizes) + len(parameters) + notes, dtype=dtype, device=parameters[0].device)
        *views, self._there, self._notes = self._flat.split([*sizes, len(parameters), notes])
        self._views = [view.view_as(p) for view, p in zip(views, parameters, strict=True)]

    def send(self, weight: float, notes: list[float]) -> None:
        """Start the exchange that sums the notes, and the gradients times ``weight``, over the group."""
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
        """Return the sums of the notes over all processes, after the exchange."""
        return [float(note) for note in self._notes.tolist()]

    def write_back(self, total: float) -> None:
        """Divide the sums by ``total``, and write them to the gradients.

        A parameter that has a gradient in no process keeps the gradient None.
        """
        there = None
        for i, (p, view) in enumerate(zip(self.parameters, self._views, strict=True)):
            if p.grad is None:
                if there is None:  # read only if needed, because reading waits for the device
                    there = self._there.tolist()
                if not there[i]:
                    continue
                p.grad = torch.empty_like(p)
            torch.div(view, total, out=p.grad)
        self.work = None


class GradientAverage:
    """Averages the gradients of some parameters over the group whenever a backward pass has computed them.

    It is a context manager, which registers its hooks at the start and removes them at the end. All processes must run
    the same number of backward passes.

    Args:
        parameters: parameters of the model, in the same order in every process; parameters that require no gradient
            are left out.
        summed: whether gradients are summed instead of averaged, for a loss that is a sum over samples (default False).
        bucket_bytes: size of the gradients that are sent together, in bytes (default 25 MiB, as in PyTorch).

    Attributes:
        samples: number of samples in this process's batch that count, 0 or more; the caller sets it before each
            backward pass.
        vote: whether this process votes to end the training; the caller sets it before a backward pass.
        samples_by_rank: number of samples of each process in the latest backward pass.
        voted: whether any process voted to end the training in the latest backward pass.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, summed: bool = False, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.summed = summed
        self.samples, self.vote = 1, False
        self.samples_by_rank: list[int] = []
        self.voted = False
        learning = [p for p in parameters if p.requires_grad]
        # The order is reversed, because the backward pass starts with the last parameters.
        self._buckets = _in_buckets(reversed(learning), bucket_bytes)
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
            # The callback runs at the end of the whole backward pass. PyTorch's own wrapper uses the same call.
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._bucket_of[id(parameter)].missing -= 1
        # Every process must send the buckets in the same order, because the n-th messages of all processes are added.
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
        while self._sent < len(self._buckets):  # the loss did not depend on their parameters
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
    """Context in which a `GradientAverage` is active; it does nothing if one process learns alone.

    Args:
        parameters: parameters whose gradients are averaged.
        summed: whether gradients are summed instead of averaged (default False).
    """
    with GradientAverage(parameters if in_group() else (), summed=summed) as average:
        yield average

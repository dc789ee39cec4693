"""`DistributedPlugin`: the work at Avalanche's callbacks when several processes learn together.

The plugin of every method calls `join` when a process of a group starts to train or to evaluate. `join` adds the
`DistributedPlugin` behind the method's plugin, and the method then works with gradients of whole batches. A method
needs code for the group only where it makes a decision from data.
"""

from __future__ import annotations

from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from avalanche.training.plugins import SupervisedPlugin

from avalanche_supermask import nested
from avalanche_supermask.distributed.agreement import require_alike
from avalanche_supermask.distributed.digests import digest, require_equal_tensors
from avalanche_supermask.distributed.gradients import GradientAverage
from avalanche_supermask.distributed.group import anywhere, in_group, is_first, rank, size
from avalanche_supermask.distributed.loaders import for_this_process
from avalanche_supermask.distributed.random_states import draw_alike, draw_apart, seed_for
from avalanche_supermask.distributed.statistics import average_statistics
from avalanche_supermask.distributed.whole_batches import whole

__all__ = ["DistributedPlugin", "join", "refuse"]


def join(strategy: Any, method: Any) -> None:
    """Prepare a strategy to learn with the other processes of its group, if there are any.

    The loggers of all processes except rank 0 are removed.

    Args:
        strategy: the strategy that gets a `DistributedPlugin`.
        method: the method's plugin; the `DistributedPlugin` is placed behind it.

    Raises:
        RuntimeError: the method does not support several processes.
    """
    if not in_group():
        return
    if not getattr(method, "supports_distributed", False):
        refuse(type(method).__name__.removesuffix("Plugin"))
    if not any(isinstance(plugin, DistributedPlugin) for plugin in strategy.plugins):
        strategy.plugins.insert(strategy.plugins.index(method) + 1, DistributedPlugin())
    if not is_first():
        strategy.evaluator.loggers = []


def refuse(method: str) -> None:
    """Raise an error for a method that runs only in one process, if there are several processes.

    Args:
        method: name of the method, for the error message.

    Raises:
        RuntimeError: there are several processes.
    """
    if in_group():
        raise RuntimeError(
            f"{method} does not run in several processes, and this is one of {size()}: start it without torchrun, or "
            "use SupSup, ExSSNeT, CLNP, ImpressLearn or SparseFineTuning (docs/distributed.md says how others may)"
        )


class DistributedPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Keeps the models of a group of processes equal, and computes gradients and metrics over their whole batches.

    It does nothing in a process that learns alone. Its callbacks run after those of the method's plugin and before the
    metrics.
    """

    def __init__(self) -> None:
        super().__init__()
        self._compared = False  # whether the initial networks were compared
        self._average: GradientAverage | None = None  # active within an epoch
        self._measured = False  # whether the evaluator has metrics
        self._stop = False  # whether stop_training() was called in this process within an epoch
        self._seen = 0  # number of evaluated samples of the current experience
        self._dealt = False  # whether the samples of the current experience are divided among the processes

    # ------------------------------------------------------------------ before a task

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Compare the strategies and the initial networks of the processes."""
        if not in_group():
            return
        require_alike(
            {
                "their strategy": type(strategy).__name__,
                "train_epochs": strategy.train_epochs,
                "train_mb_size": strategy.train_mb_size,
                "eval_mb_size": strategy.eval_mb_size,
                "eval_every": strategy.eval_every,
                "learned tasks": strategy.model.task_keys,
            },
            remedy="run the same script with the same arguments in all of them",
        )
        if not self._compared:
            require_equal_tensors(
                {"model.seed": strategy.model.seed, **strategy.model.state_dict()},
                when="the processes start from different networks; give all of them the same seed, as in "
                "DistributedHelper.init_distributed(random_seed=0), and build the network after it",
            )
            self._compared = True
        draw_alike()

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Compare the training data of the processes."""
        if not in_group():
            return
        data = strategy.adapted_dataset
        labels = torch.as_tensor([*data.targets]) if hasattr(data, "targets") else torch.empty(0)
        require_alike(
            {
                "the index of their experience": strategy.experience.current_experience,
                "their numbers of training samples": len(data),
                "the labels of their training data (digests)": digest(labels).hex(),
            },
            remedy="build the same stream in all of them: give the benchmark a seed",
        )

    # ------------------------------------------------------------------ an epoch

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Divide the data, compare the numbers of batches, and start to average gradients."""
        self._end_averaging()  # an error may have ended the last epoch
        if not in_group():
            return
        strategy._stop_training = anywhere(strategy._stop_training or self._stop)
        self._stop = False
        draw_alike()
        strategy.dataloader = for_this_process(strategy.dataloader, seed=seed_for(strategy.clock.train_iterations))
        require_alike(
            {"their numbers of batches": len(strategy.dataloader)},
            remedy="pass the same data, the same train_mb_size and the same plugins in all of them",
        )
        draw_apart()
        self._measured = anywhere(bool(strategy.evaluator.metrics))
        summed = getattr(strategy._criterion, "reduction", "mean") == "sum"
        self._average = GradientAverage(strategy.model.parameters(), summed=summed)
        self._average.__enter__()

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Set the number of samples in this process's part of the batch."""
        if self._average is not None:
            counts = getattr(strategy.dataloader, "counts", None)  # a share may hold a sample that does not count
            self._average.samples = nested.batch_size(strategy.mb_y) if counts is None else counts
            self._average.vote = self._stop

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Put the whole batch together for the metrics, and stop all processes at the same batch."""
        average = self._average
        if average is None:
            return
        self._stop = self._stop or strategy._stop_training  # the next backward pass sends this vote
        strategy._stop_training = average.voted
        if self._measured:
            self._show_whole_batch(strategy, average.samples_by_rank)

    def _show_whole_batch(self, strategy: Any, samples: list[int]) -> None:
        rows = [max(1, n) for n in samples]
        loss = torch.as_tensor(strategy.loss).detach().expand(rows[rank()]).clone()  # one row per sample
        x, *rest = strategy.mbatch
        everyones = whole((strategy.mb_output, rest, loss), rows=rows)
        strategy.mb_output, rest, losses = nested.rows(everyones, slice(0, sum(samples)), n=sum(rows))
        strategy.mbatch, strategy.loss = [x, *rest], losses.mean()

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Make running statistics and random states equal in all processes."""
        if not in_group():
            return
        self._end_averaging()
        average_statistics(strategy.model.net.buffers())
        draw_alike()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Compare the models of the processes, including the task that was just committed."""
        self._end_averaging()
        require_equal_tensors(
            strategy.model.state_dict(),
            when="the processes do not hold the same model any more, though they saw the same gradients",
        )

    def _end_averaging(self) -> None:
        if self._average is not None:
            self._average.__exit__()
            self._average = None

    # ------------------------------------------------------------------ evaluation

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Make running statistics equal in all processes, if a task is being trained."""
        if in_group() and strategy.model.active is not None:
            average_statistics(strategy.model.net.buffers())

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Check whether the samples of the new experience are divided among the processes."""
        loader = strategy.dataloader
        dealt = loader.distributed_sampling if isinstance(loader, MultiDatasetDataLoader) else False
        self._dealt = in_group() and (dealt or getattr(loader, "shared_out", False))
        self._seen = 0

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Put the whole batch together in the order of the data, so that loss and metrics cover all data."""
        if not self._dealt:
            return
        n = nested.batch_size(strategy.mb_y)
        mine = (strategy.mb_output, list(strategy.mbatch), strategy.model.inferred_task)
        everyones = whole(mine, rows=[n] * size(), dealt=True)
        real = min(n * size(), len(strategy.adapted_dataset) - self._seen)  # the rest are repeated samples
        strategy.mb_output, strategy.mbatch, strategy.model.inferred_task = nested.rows(
            everyones, slice(0, real), n=n * size()
        )
        self._seen += real

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_average": None}

"""`CheckpointPlugin`: checkpoints at the ends of epochs, so that a run that was killed can continue its experience.

A checkpoint of an unfinished experience is an ordinary checkpoint with the index of this experience. When it is loaded
and this experience is trained again, Avalanche first sets up everything as for a new experience: loaders, heads, a new
task. Then, before the first epoch, the plugin restores the state of the checkpoint: all plugins, metrics, weights, the
optimizer and the random states. After that, only the missing epochs are trained. Objects of the data (experience,
loader) are not restored; they remain those that Avalanche has set up.
"""

from __future__ import annotations

import io
import os
import random
from typing import Any

import dill
import numpy as np
import torch
from avalanche.training.plugins import SupervisedPlugin

from avalanche_supermask.distributed import size
from avalanche_supermask.saving.checkpoint import by_reference, refuse_parametrized, save_checkpoint

__all__ = ["CheckpointPlugin"]

OF_THE_DATA = ("experience", "adapted_dataset", "dataloader", "mbatch", "mb_output", "loss", "_eval_streams",
               "current_eval_stream")  # fmt: skip


class CheckpointPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Saves a strategy every few epochs and after each experience; `maybe_load_checkpoint` loads it.

    Put it first among the plugins. ``kill -9`` at any moment loses at most ``every`` epochs. The resumed run equals the
    uninterrupted one bit for bit, on a CPU or with deterministic kernels, if the data do not change. If several
    processes learn together, rank 0 writes the file; after one or all of them were killed, start the whole group again.

    Args:
        path: path of the file to write. Each new checkpoint replaces the old one in one step, when it is complete.
        every: number of epochs between two checkpoints inside an experience (default 1).

    Raises:
        ValueError: ``every`` is below 1, or the folder of ``path`` does not exist.

    Example:
        >>> from avalanche_supermask import SupSup, maybe_load_checkpoint
        >>> strategy = SupSup(torch.nn.Linear(2, 2), plugins=[CheckpointPlugin("run.pkl")], evaluator=None)
        >>> strategy, first = maybe_load_checkpoint(strategy, "no such file")
        >>> first  # for experience in stream.train_stream[first:]: strategy.train(experience)
        0
    """

    _tried = False  # whether the plugin has checked that the strategy can be saved
    _processes = 1  # number of processes that learned the unfinished experience of a checkpoint

    def __init__(self, path: str | os.PathLike[str], *, every: int = 1) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every counts epochs: expected 1 or more, got {every}")
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise ValueError(f"no folder {folder} to write checkpoints into; make it first")
        self.path, self.every = os.fspath(path), every
        self._epochs_done = 0  # number of finished epochs in the unfinished experience of a checkpoint
        self._random: dict[str, Any] = {}
        self._held: bytes = b""  # the state to restore, while Avalanche sets up the experience

    # ------------------------------------------------------------------ Avalanche's callbacks

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check once that the strategy can be saved; after a load, keep a copy of the state.

        The copy is needed because Avalanche overwrites the state when it sets up the experience.

        Raises:
            ValueError: a part of the strategy cannot be pickled.
            RuntimeError: another number of processes was learning the unfinished experience of the checkpoint.
        """
        if not self._tried:
            _try_to_save(strategy)
            self._tried = True
        if self._epochs_done:
            if self._processes != size():
                raise RuntimeError(
                    f"{self.path} interrupts an experience that {self._processes} processes were learning, and these "
                    f"are {size()}: start {self._processes} of them, until the experience has ended"
                )
            state = {k: v for k, v in strategy.__dict__.items() if k not in OF_THE_DATA}
            buffer = io.BytesIO()
            with by_reference():
                torch.save(state, buffer, pickle_module=dill)
            self._held = buffer.getvalue()

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """After a load, restore the state; otherwise save it, because the previous epoch is completely finished now."""
        if self._held:
            self._put_back(strategy)
            return
        done = strategy.clock.train_exp_epochs
        unfinished = 0 < done < strategy.train_epochs and not strategy._stop_training
        if unfinished and done % self.every == 0:
            self._save(strategy, epochs_done=done)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Stop a resumed experience after its last epoch, because Avalanche would otherwise train too many epochs."""
        if self._epochs_done and strategy.clock.train_exp_epochs + 1 >= strategy.train_epochs:
            strategy.stop_training()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note that the experience is finished."""
        self._epochs_done = 0

    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        """Save the strategy between experiences."""
        self._save(strategy, epochs_done=0)

    # ------------------------------------------------------------------ saving and restoring

    def _save(self, strategy: Any, *, epochs_done: int) -> None:
        resumed, self._epochs_done = self._epochs_done, epochs_done
        self._processes = size()
        self._random = _random_state()
        save_checkpoint(strategy, self.path, exclude=[name for name in OF_THE_DATA if name in strategy.__dict__])
        self._epochs_done = resumed

    def _put_back(self, strategy: Any) -> None:
        with by_reference():
            state = torch.load(io.BytesIO(self._held), pickle_module=dill, weights_only=False)
        for plugin, saved in zip(strategy.plugins, state.pop("plugins"), strict=True):
            if plugin is not self:
                put_back = getattr(plugin, "put_back", plugin.__dict__.update)
                put_back({k: v for k, v in saved.__dict__.items() if k != "loggers"})
        for shared in ("evaluator", "clock"):
            state.pop(shared, None)  # these two are plugins, which are restored above
        strategy.__dict__.update(state)
        self._held = b""
        _set_random_state(self._random)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": b""}


def _try_to_save(strategy: Any) -> None:
    """Check before training that a checkpoint can be written.

    Raises:
        ValueError: a part of the strategy cannot be pickled.
    """
    refuse_parametrized(strategy)
    for name, value in strategy.__dict__.items():
        if name in OF_THE_DATA:
            continue
        try:
            with by_reference():
                torch.save(value, io.BytesIO(), pickle_module=dill)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"no checkpoint can be written: strategy.{name} cannot be pickled ({reason}); define its classes and "
                "functions at the top level of a module, not inside a function"
            ) from error


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])

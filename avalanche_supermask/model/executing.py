"""The part of `MaskedModel` that decides how a finished task computes (see `execution`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from avalanche_supermask.model.cache import TaskTensors
from avalanche_supermask.model.execution import NONE, Arguments, Execution, Executor, checked
from avalanche_supermask.model.subnetworks import Subnetworks

__all__ = ["Executing"]


class Executing:
    """How the finished tasks of a model compute: with dense weights, with sparse ones, or as was measured."""

    subnetworks: Subnetworks
    training: bool
    _executor: Executor | None = None  # of the class: pickles of 0.1.0 have none

    @property
    def net(self) -> nn.Module:
        """The network."""
        raise NotImplementedError

    def _task_tensors(self, key: int) -> TaskTensors:
        """Dense tensors of a finished task."""
        raise NotImplementedError

    def _call_task(self, tensors: TaskTensors, arguments: Arguments) -> Any:
        """Outputs of the network with these tensors."""
        raise NotImplementedError

    def _clear_kept(self) -> None:
        """Drop what was made of finished tasks to answer faster."""
        raise NotImplementedError

    @property
    def execution(self) -> Execution:
        """How finished tasks compute in evaluation mode: ``"dense"``, ``"sparse"``, or ``"auto"``.

        ``"sparse"`` keeps the weights of linear layers and convolutions in CSR form, on a CPU. ``"auto"`` measures for
        each task, class of batches and number of threads which layers gain by it, at the first such call; the choice is
        stored with the task. Outputs are bit-identical for ever within one execution; those of two agree to rounding.

        Example:
            >>> from avalanche_supermask import MaskedModel
            >>> model = MaskedModel(nn.Linear(4, 2), seed=0)
            >>> model.execution = "auto"
        """
        return self._executor.execution if self._executor is not None else "dense"

    @execution.setter
    def execution(self, execution: Execution) -> None:
        self._executor = Executor(checked(execution))
        self._clear_kept()

    def _sparse_names(self, key: int, arguments: Arguments) -> frozenset[str]:
        if self.execution == "dense" or self.training:
            return NONE
        if torch.compiler.is_compiling():  # it makes one piece of code of all layers, and knows dense ones
            return NONE
        assert self._executor is not None
        found = self._executor.known(key, arguments)
        if found is not None:
            return found
        return self._executor.sparse_names(
            key,
            arguments,
            net=self.net,
            masked=self.subnetworks.frozen,
            choices=self.subnetworks.task_choices(key),
            dense=lambda: self._task_tensors(key),
            call=lambda tensors: self._call_task(tensors, arguments),
        )

    def _forget_executor(self) -> None:
        if self._executor is not None:
            self._executor.forget()

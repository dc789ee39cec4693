"""Calls of the network with the weights of one task, dense or sparse.

The tensors of the tasks that were called last are kept, because building them takes longer than a call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.lasting import lasting
from avalanche_supermask.logits import Logits, find_logits
from avalanche_supermask.model.cache import Recent, TaskTensors
from avalanche_supermask.model.execution import NONE, Arguments, Execution, Executor, checked
from avalanche_supermask.model.frozen_batchnorm import FrozenChannels
from avalanche_supermask.model.inputs import arguments_of
from avalanche_supermask.model.network_call import NetworkCall, is_compiling
from avalanche_supermask.model.sparse_places import with_sparse
from avalanche_supermask.model.task_contents import TaskContents
from avalanche_supermask.model.tensor_roles import moving_buffers
from avalanche_supermask.model.wrapped_network import Wrapped

__all__ = ["TaskCalls"]


class TaskCalls(TaskContents):
    """A wrapped network that can be called with the weights of each task.

    Args:
        wrapped: the network and the roles of its tensors.
        logits: which tensor of the network's output is the logits (see `MaskedModel`).

    Attributes:
        call: calls the network with other tensors in place of its own.
        frozen_channels: BatchNorm layers in which earlier tasks claimed some channels, while another task is being
            learned, by name of the module.
    """

    # These defaults are attributes of the class because pickles of 0.1.0 lack the attributes.
    logits: Logits = None
    class_dimension: int = 1
    _executor: Executor | None = None

    def __init__(self, wrapped: Wrapped, *, logits: Logits = None) -> None:
        super().__init__(wrapped)
        self.logits = logits
        self.frozen_channels: dict[str, FrozenChannels] = {}
        self.call = NetworkCall()
        self._recent = Recent()

    def forward_all_tasks(self, x: Any) -> dict[int, Any]:
        """Outputs of every finished task, and of the task being learned, by task key."""
        keys = self.task_keys + ([] if self.active is None else [self.active])
        return {key: self.forward_task(key, x) for key in keys}

    def forward_task(self, key: int | None, x: Any) -> Any:
        """Outputs of the network with the weights of one task.

        Args:
            key: key of the task; None: the network with its initial weights, without a mask.
            x: the network's input, or `Inputs` with several arguments.
        """
        if key is None:
            weights = self.subnetworks.base or self.subnetworks.frozen
            fresh = {name: tensor.clone() for name, tensor in self.fresh.items()}  # a call may change buffers
            return self.call(self.net, {**weights, **self.shared, **fresh}, *self.arguments(x, 0))
        if key == self.active:
            net = self.net
            current = self.subnetworks.current_weights(self._live_weights())
            arguments = arguments_of(net, x, self.subnetworks.active_label or 0)
            return self.call(net, {**current, **dict(self.shared.items())}, *arguments, hooks=self.frozen_channels)
        arguments = self.arguments(x, self.subnetworks.tasks[key].label)
        with self.call.lock:
            sparse = self._sparse_names(key, arguments)
            tensors = self._recent.get((key, sparse), lambda: self._task_tensors(key, sparse))
        output = self._call_task(tensors, arguments)
        if self.active is not None and self.training and torch.is_grad_enabled():
            # A-GEM and GEM differentiate the loss of old samples, which depends on no trainable tensor.
            for tensor in nested.tensors(output):
                if tensor.is_floating_point() and not tensor.requires_grad:
                    tensor.requires_grad_(True)
        return output

    def _sparse_names(self, key: int, arguments: Arguments) -> frozenset[str]:
        if self.execution == "dense" or self.training:
            return NONE
        if is_compiling():  # the compiler supports dense weights only
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

    def _live_weights(self) -> dict[str, Tensor]:
        """The trainable copies of the masked weights; empty in a phase in which none of their entries learn."""
        return self.call.own(self.net, self.masked_names) if len(self.subnetworks.trainable) else {}

    def _call_task(self, tensors: TaskTensors, arguments: Arguments) -> Any:
        return self.call(self.net, tensors.for_call(training=self.training), *arguments)

    @lasting()
    def _task_tensors(self, key: int, sparse: frozenset[str] = NONE) -> TaskTensors:
        """The tensors of `tensors_of` with the named weights in sparse form, and the names of the buffers to copy."""
        tensors = with_sparse(self.tensors_of(key), sparse, strict=self.execution == "sparse")
        trained, counted = (names & tensors.keys() for names in moving_buffers(self.net))
        return TaskTensors(tensors, trained, counted)

    def arguments(self, x: Any, label: int | None) -> Arguments:
        """Positional and keyword arguments for a call of the network itself, for a batch of one task label."""
        return arguments_of(self.net, x, label or 0)

    def logits_of(self, output: Any) -> Tensor:
        """The logits in an output of the network of any form: ``(batch, classes, *positions)``.

        Raises:
            TypeError: no tensor of the output could be the logits (see ``logits``).
        """
        found = find_logits(output, self.logits)
        return found if self.class_dimension == 1 else found.movedim(self.class_dimension, 1)

    # ------------------------------------------------------------------ sparse or dense

    @property
    def execution(self) -> Execution:
        """How finished tasks compute in evaluation mode: ``"dense"``, ``"sparse"``, or ``"auto"``.

        ``"sparse"`` keeps the weights of linear layers and convolutions in CSR form, on a CPU. ``"auto"`` measures
        which layers become faster by it, at the first call for each task, class of batches and number of threads. The
        choice is stored with the task. Within one execution, outputs are always bit-identical; the outputs of two
        executions agree up to rounding.

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

    # ------------------------------------------------------------------ what is kept between calls

    def _clear_kept(self) -> None:
        """Drop everything that was cached to make calls of finished tasks faster."""
        self.call.forget()
        self._recent.clear()
        if self._executor is not None:
            self._executor.forget()

    def _apply(self, fn: Any, recurse: bool = True) -> TaskCalls:
        self._clear_kept()
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "call": NetworkCall(), "_recent": Recent()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"call": NetworkCall(), **state})  # pickles of 0.1.0 lack this entry

"""The forward pass for a batch: the labels of the samples or an inference method determine their tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avalanche_supermask import nested
from avalanche_supermask.inference import Answer, Inference, by_name
from avalanche_supermask.lasting import lasting, ordinary
from avalanche_supermask.logits import Logits
from avalanche_supermask.model.inputs import UNSET, packed, task_labels_of
from avalanche_supermask.model.labels import LabelReader
from avalanche_supermask.model.network_call import is_compiling
from avalanche_supermask.model.repeated_calls import MISSED, RepeatedCalls
from avalanche_supermask.model.routing import Router, forward_mixed
from avalanche_supermask.model.superposition import Superposition
from avalanche_supermask.model.task_calls import TaskCalls
from avalanche_supermask.model.wrapped_network import Wrapped

__all__ = ["ForwardPass"]


class ForwardPass(TaskCalls):
    """A wrapped network that is called with batches of any tasks.

    Args:
        wrapped: the network and the roles of its tensors.
        task_inference: how the task is found at evaluation (see `MaskedModel`).
        logits: which tensor of the network's output is the logits (see `MaskedModel`).

    Attributes:
        router: finds the task of a label.
        inferred_task: task key of each sample, after a call that inferred the tasks; otherwise None.
    """

    # These defaults are attributes of the class because pickles of 0.1.0 lack the attributes.
    _repeated: RepeatedCalls | None = None  # the fast path of calls; made again after `_clear_kept`
    _superposition: Superposition | None = None  # of the finished tasks, made when inference needs it first

    def __init__(self, wrapped: Wrapped, *, task_inference: str | Inference = "given", logits: Logits = None) -> None:
        super().__init__(wrapped, logits=logits)
        self.router = Router()
        self.task_inference = task_inference
        self.inferred_task: Tensor | None = None
        self._labels = LabelReader()

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Outputs of the network for a batch: ``model(x)``, ``model(x, task_labels)`` or ``model(**batch)``.

        Args:
            args: first the input of the network, a tensor or a structure of tensors whose first dimension is the batch;
                then, optionally, the task labels: an int, or a tensor of one label per sample (the samples may have
                different labels). Omitted: the model uses the task being learned, or else the latest one. None: the
                model returns a dictionary of outputs by task key. For a label that was never trained, the model uses
                the latest task and warns once. In evaluation mode with task inference, the labels are not used, except
                None: the model infers the task of each sample. Further arguments go to the network.
            keywords: passed on to the network, except ``task_labels``.

        Returns:
            The network's output. If the tasks of a batch have outputs of different widths, the narrower ones are filled
            up to the widest with -1000. The output for an empty batch has the width of the latest task's outputs.

        Raises:
            TypeError: there is no input, or the second argument cannot be task labels.
        """
        if len(args) == 2 and not keywords:
            answer = self._again(*args)
            if answer is not MISSED:
                return answer
        labels = keywords.pop("task_labels", UNSET)
        if len(args) > 1:
            labels, args = args[1], (args[0], *args[2:])
        return self._forward(packed(args, keywords), labels)

    def _forward(self, x: Any, task_labels: Any) -> Any:
        if self.infers and not (task_labels is None or self.training):
            return self._forward_inferred(x)
        if task_labels is UNSET:
            return self.forward_task(self.router.latest(self.subnetworks), x)
        if task_labels is None:
            return self.forward_all_tasks(x)
        if isinstance(task_labels, int):
            return self._forward_label(x, task_labels)
        labels = task_labels_of(task_labels)
        label = self._labels.only(labels)
        return self._forward_mixed(x, labels, self._forward_label) if label is None else self._forward_label(x, label)

    def _forward_mixed(self, x: Any, labels: Tensor, forward: Callable[[Any, int], Any]) -> Any:
        if len(labels) or not nested.is_empty(x):
            return forward_mixed(x, labels, forward)
        return self.forward_task(self.router.latest(self.subnetworks), x)

    def _again(self, x: Any, labels: Any) -> Any:
        """The output of a finished task that was called before, if the fast path serves this call; else `MISSED`."""
        if self.training or self._task_inference != "given" or is_compiling():
            return MISSED
        if self._repeated is None:
            self._repeated = RepeatedCalls(
                self.net, self.call, self._labels, self.router, self.subnetworks, self._recent
            )
        return self._repeated(x, labels, self._executor)

    def _forward_label(self, x: Any, label: int) -> Any:
        answer = self._again(x, label)
        if answer is not MISSED:
            return answer
        return self.forward_task(self.router.resolve(label, self.subnetworks), x)

    def forward_single_task(self, x: Any, task_label: int) -> Any:
        """Outputs for a batch of one task."""
        return self.forward(x, task_label)

    # ------------------------------------------------------------------ inference of the task

    @property
    def task_inference(self) -> str | Inference:
        """How the task is found at evaluation, while no task is being learned."""
        return self._task_inference

    @task_inference.setter
    def task_inference(self, inference: str | Inference) -> None:
        check_names = getattr(by_name(inference), "check_names", None)  # raises now if the name is unknown
        if check_names is not None:
            check_names(self.net, self.masked_names)
        self._task_inference = inference
        self._superposition = None  # it keeps tensors of the previous inference

    @property
    def infers(self) -> bool:
        """Whether a call in evaluation mode infers the task."""
        return (
            self._task_inference != "given" and not self.router.given and self.active is None and bool(self.task_keys)
        )

    @property
    def candidates(self) -> Superposition:
        """The finished tasks, in the form that inference uses."""
        if self._superposition is None:
            self._superposition = Superposition(self)
        return self._superposition

    def _forward_inferred(self, x: Any) -> Any:
        find = by_name(self._task_inference)
        assert find is not None
        with self.call.lock, lasting():
            answer = find(self.candidates, len(self.task_keys), ordinary(x))
        if isinstance(answer, Answer):
            self.inferred_task = torch.tensor(self.task_keys)[answer.tasks]
            return answer.outputs
        if not isinstance(answer, Tensor) or answer.is_floating_point():
            self.inferred_task = None  # the output belongs to no single task
            return answer
        self.inferred_task = torch.tensor(self.task_keys)[answer]
        return self._forward_mixed(x, self.inferred_task, lambda part, key: self.forward_task(key, part))

    # ------------------------------------------------------------------ what is kept between calls

    def _clear_kept(self) -> None:
        super()._clear_kept()
        self._repeated = None
        self._superposition = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_labels": LabelReader(), "_repeated": None, "_superposition": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_labels": LabelReader(), **state})  # pickles of 0.1.0 lack this entry

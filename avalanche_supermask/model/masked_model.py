"""`MaskedModel`: a wrapper that calls any ``nn.Module`` with the weights of a chosen task.

This module is the only place that touches the user's network. It calls a copy of the network with other tensors in
place of the network's own (see `network_call`), so that the classes, names and attributes of the network do not change.
The tensors depend on the task:

* *masked* weights (two or more dimensions): each task uses a subnetwork of the weights that all tasks share;
* *head* tensors (inside Avalanche's dynamic modules) and, on request, norm and bias parameters: each task has its own;
* buffers that training changes (running statistics): each task has its own, and they are never shared;
* all other tensors: they are frozen and are the same for every task.

A task begins, goes through phases, is committed, and may be forgotten. A phase determines which tensors require a
gradient: scores, coefficients, or marked entries of the weights. The task's own tensors require one in every phase.
During training, the weights are the network's parameters, which are a copy of the committed weights. So an optimizer
can never reach a tensor of a finished task. The class is the interface both for users and for authors of methods. The
modules beside it, above all `subnetworks`, do whatever takes more than a few lines.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from avalanche.models import DynamicModule, MultiTaskModule
from avalanche.models.utils import avalanche_model_adaptation
from torch import Tensor, nn

from avalanche_supermask import nested
from avalanche_supermask.functional import overlap
from avalanche_supermask.inference import Answer, Inference, by_name, entropy
from avalanche_supermask.lasting import lasting, ordinary
from avalanche_supermask.logits import Logits, find_logits
from avalanche_supermask.model.cache import Recent, TaskTensors
from avalanche_supermask.model.constants import fresh_scores, redraw_free, scale_constants
from avalanche_supermask.model.copied_functions import copy_of
from avalanche_supermask.model.execution import NONE, Arguments, Execution, Executor, checked
from avalanche_supermask.model.frozen_batchnorm import FrozenChannels
from avalanche_supermask.model.inputs import UNSET, arguments_of, packed, task_labels_of
from avalanche_supermask.model.labels import LabelReader
from avalanche_supermask.model.marks import check_marks, refuse_owned
from avalanche_supermask.model.network_call import NetworkCall, is_compiling
from avalanche_supermask.model.parameter_kinds import padding_rows, use_dense_gradients
from avalanche_supermask.model.repeated_calls import MISSED, RepeatedCalls
from avalanche_supermask.model.routing import Router, forward_mixed
from avalanche_supermask.model.sparse_places import linear_places, make_sparse, with_sparse
from avalanche_supermask.model.sparse_training import worth_training
from avalanche_supermask.model.subnetworks import LayerCapacity, Subnetworks, Task
from avalanche_supermask.model.superposition import Superposition
from avalanche_supermask.model.tensor_roles import (
    Frozen,
    Init,
    Maskable,
    Outside,
    PerTask,
    Scores,
    Statistics,
    classify,
    grow_heads,
    head_tensors,
    moving_buffers,
    output_weight,
    own_values,
    redraw,
    running_norms,
    say_what_stays,
)
from avalanche_supermask.model.weight_norm import use_masked_weight_norm, use_plain_weight_norm
from avalanche_supermask.model.wrappable import check_wrappable, refuse_integers
from avalanche_supermask.named_tensors import NamedTensors
from avalanche_supermask.selection import Selection

__all__ = ["MaskedModel"]


class _Host(DynamicModule):
    """Holds the network, so that Avalanche does not adapt it for tasks that are only evaluated."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(auto_adapt=False)
        self.net = net


class _Finished(NamedTuple):
    """A finished task, kept so that it can be restored."""

    key: int
    task: Task
    mask: dict[str, Tensor]
    private: dict[str, Tensor]
    statistics: dict[str, Tensor] | None = None  # the statistics that were gathered for inference


class MaskedModel(MultiTaskModule):
    """A network that holds many tasks, each in its own subnetwork.

    Args:
        net: any module. The model works on a deep copy, so the caller's network does not change.
        init: initial values of the masked weights. ``"signed_constant"`` redraws them as ``±sqrt(2 / fan_in)`` and
            sets the biases to zero (SupSup's default). ``"scaled_constant"`` does the same, and the first method that
            trains makes them ``±sqrt(2 / (k fan_in))``, where k is the density of its masks in the layer. So the
            activations of a sparse subnetwork are as large as those of the whole network. ``"keep"`` keeps the values
            that ``net`` has, for pretrained networks.
        outside: value of a weight outside a task's mask. ``"zero"`` sets it to zero (as in the papers). ``"base"``
            keeps the value that the weight has in ``net``, so that a task is a change of this base:
            ``W_base + M * (W - W_base)``. The base is stored once, beside W.
        values: with ``outside="base"``, the weights W, given as another network of the same structure (or its state).
            It may be a fine-tuned network, for example: then the masks select entries of the change that fine-tuning
            made. None: ``init`` determines W.
        frozen: treatment of parameters that are frozen in ``net`` (``requires_grad=False``). ``"keep"`` keeps their
            values in every task and neither masks nor redraws them, unless ``own`` names them; the model warns once.
            ``"mask"`` treats them like the others.
        statistics: ``"task"`` gives each task its own running statistics (BatchNorm). ``"frozen"`` uses the running
            statistics of ``net`` for all tasks, in training as well.
        per_task: which parameters each task learns for itself, besides the masked weights: ``"none"`` (as in the
            papers: norms without gain and shift, no biases), ``"norm"``, or ``"all"`` (norms and biases).
            A module is a norm by its class, or if the name of its class or place contains "norm"; gains of
            ``weight_norm`` count as norms. Each number costs 4 bytes per task. Running statistics and heads are per
            task in any case.
        exclude: regular expressions. A parameter whose whole name matches one of them is not masked.
        own: regular expressions. A parameter whose whole name matches one of them is not masked. Each task has its own
            copy of it, which starts from the initial values. So an output layer that is named here becomes a head per
            task.
        mask: ``"weights"`` masks parameters of two or more dimensions; ``"all"`` masks biases and norms as well.
        scores: initial scores of a task: ``"random"`` (as in SupSup), or ``"magnitude"``, which sorts them like the
            magnitudes of the weights, so that the first mask keeps the largest weights. The latter is for pretrained
            networks, with ``init="keep"``.
        seed: seed of the constants and of every task's fresh scores; None draws one from torch's generator.
        task_inference: how the task is found at evaluation: ``"given"`` (by the labels), ``"oneshot"``, ``"binary"``,
            ``"entropy"``, ``"expected_entropy"``, ``"max_logit"``, ``"entropy_descent"``, ``"gaussian"``,
            ``"combined"``, or an object of `inference` with settings. It can be set later.
        logits: which tensor of the network's output is the logits (inference, KKT and metrics need them): an
            attribute or key, an index, or a function of the output. None: the output itself if it is a tensor, its
            ``logits``, or else its first tensor. It can be set later.

    Attributes:
        class_dimension: dimension of the logits that counts the classes (default 1, as in PyTorch's criteria).
            Training sets it to the last dimension where the shape of the targets shows that the classes are there.

    Raises:
        ValueError: ``net`` has no weight to mask, an option is unknown, or some weights are not parameters (the old
            ``torch.nn.utils.weight_norm``, ``prune``, lazy layers), or functions in attributes or hooks refer to
            modules of ``net``, so that a copy would call the original.
        TypeError: the network cannot be called with other weights (`DataParallel`, TorchScript).

    Example:
        >>> model = MaskedModel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), seed=0)
        >>> model.masked_names, model.task_keys
        (['0.weight', '2.weight'], [])
    """

    # These defaults are attributes of the class because pickles of 0.1.0 lack the attributes.
    _repeated: RepeatedCalls | None = None  # the fast path of calls; made again after `_clear_kept`
    _superposition: Superposition | None = None  # of the finished tasks, made when inference needs it first
    logits: Logits = None
    class_dimension: int = 1
    frozen_names: frozenset[str] = frozenset()  # parameters that are frozen in the caller's network and never change
    _executor: Executor | None = None
    _sparse_embeddings: Sequence[str] = ()  # embeddings that compute sparse gradients in the caller's network
    _resumed: _Finished | None = None  # the state in which the task being learned was committed before

    def __init__(
        self,
        net: nn.Module,
        *,
        init: Init = "signed_constant",
        per_task: PerTask = "none",
        exclude: Sequence[str] = (),
        own: Sequence[str] = (),
        mask: Maskable = "weights",
        scores: Scores = "random",
        outside: Outside = "zero",
        values: nn.Module | Mapping[str, Tensor] | None = None,
        statistics: Statistics = "task",
        frozen: Frozen = "keep",
        seed: int | None = None,
        task_inference: str | Inference = "given",
        logits: Logits = None,
    ) -> None:
        super().__init__()
        if init not in ("scaled_constant", "signed_constant", "keep"):
            raise ValueError(f"init must be 'scaled_constant', 'signed_constant' or 'keep'; got {init!r}")
        if scores not in ("random", "magnitude"):
            raise ValueError(f"scores must be 'random' or 'magnitude'; got {scores!r}")
        if outside not in ("zero", "base"):
            raise ValueError(f"outside must be 'zero' or 'base'; got {outside!r}")
        if statistics not in ("task", "frozen"):
            raise ValueError(f"statistics must be 'task' or 'frozen'; got {statistics!r}")
        if values is not None and outside == "zero":
            raise ValueError("values are what masks put in the place of the base: expected outside='base', got 'zero'")
        if outside == "base":
            refuse_integers(net)
        self.init: Init = init if values is None else "given"
        # The arguments that wrap another copy of the network in the same way.
        self.wrapping = {
            "init": self.init, "per_task": per_task, "exclude": [*exclude], "own": [*own], "mask": mask,
            "scores": scores, "outside": outside, "statistics": statistics, "frozen": frozen,
        }  # fmt: skip
        self.seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
        check_wrappable(net)
        self.host = _Host(copy_of(net))
        self._sparse_embeddings = use_dense_gradients(self.net)
        use_masked_weight_norm(self.net)
        layout = classify(self.net, per_task=per_task, exclude=exclude, own=own, mask=mask, frozen=frozen)
        say_what_stays(net, layout)
        padding = {name: row for name, row in padding_rows(self.net).items() if name in layout.masked}
        base = _copies(layout.masked) if outside == "base" else None
        if init != "keep" and values is None:
            redraw(layout, self.seed, biases=base is None, padding=padding)
        weights = _copies(layout.masked) if values is None else own_values(values, layout.masked)
        self.subnetworks = Subnetworks(weights, base=base, padding=padding)
        self.shared = NamedTensors(_copies(layout.shared))
        # Initial values of a new task: those of its own parameters and of every buffer.
        self.fresh = NamedTensors(_copies({**layout.private, **layout.buffers}))
        self._own_names = list(layout.private)
        self.frozen_names = layout.frozen
        self._buffer_names = list(layout.buffers)
        self.router = Router()
        self.task_inference = task_inference
        self.logits = logits
        self.inferred_task: Tensor | None = None  # task key of each sample, after a call that inferred the tasks
        # BatchNorm layers in which earlier tasks claimed some channels, while another task is being learned.
        self.frozen_channels: dict[str, FrozenChannels] = {}
        self.call = NetworkCall()
        self._labels = LabelReader()
        self._recent = Recent()
        self._set_learning(())

    # ------------------------------------------------------------------ the network's tensors

    @property
    def net(self) -> nn.Module:
        """The network, a copy of the caller's. Its parameters are the trainable copy of the weights."""
        return self.host.net

    # ------------------------------------------------------------------ the tasks and their cost

    @property
    def active(self) -> int | None:
        """Key of the task being learned; None if there is none."""
        return self.subnetworks.active

    @property
    def task_keys(self) -> list[int]:
        """Keys of the finished tasks, in the order in which they were learned."""
        return list(self.subnetworks.tasks)

    @property
    def outside(self) -> str:
        """Value of a weight outside a task's mask: ``"zero"``, or that of the ``"base"``."""
        return "base" if len(self.subnetworks.base) else "zero"

    @property
    def masked_names(self) -> list[str]:
        """Names, in the network, of the masked weights."""
        return list(self.subnetworks.frozen)

    @property
    def masked_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each masked weight."""
        return self.subnetworks.masks.shapes

    def task_mask(self, task: int) -> dict[str, Tensor]:
        """Mask of a finished task: bool tensors by name. The mask of a mixture holds the entries that are not zero.

        Raises:
            KeyError: the task is not learned.
        """
        return self.subnetworks.task_mask(task)

    def owned(self, tasks: list[int] | None = None) -> dict[str, Tensor]:
        """Entries that at least one of these finished tasks uses: bool tensors by name.

        Args:
            tasks: keys of the tasks; None: all finished tasks.
        """
        return self.subnetworks.owned(tasks)

    def effective_weights(self, task: int) -> dict[str, Tensor]:
        """Effective weights of a finished task, by name: ``W * M``, or ``W_base + M * (W - W_base)``."""
        return self.subnetworks.task_weights(task)

    def bytes_per_task(self, *, private: bool = True) -> dict[int, int]:
        """Bytes stored for each finished task: one bit per masked weight, or the coefficients of a mixture.

        Args:
            private: whether to count the task's private tensors as well: running statistics, head, own parameters, the
                statistics that inference gathered, and 4 bytes for the entropy of its outputs on its own data.
        """
        return {key: self.subnetworks.task_bytes(key, private=private) for key in self.task_keys}

    @property
    def basis_bytes(self) -> int:
        """Bytes of the masks of the basis that belong to no finished task."""
        return self.subnetworks.basis_bytes

    def capacity(self) -> dict[str, LayerCapacity]:
        """Number of all, owned, free and reused weights of each masked layer."""
        return self.subnetworks.capacity()

    def overlap(self) -> dict[int, float]:
        """Share of each task's mask that the masks of earlier tasks also keep; 0 for the first task."""
        return {key: self.overlap_of(key) for key in self.task_keys}

    def overlap_of(self, task: int) -> float:
        """Share of one task's mask that the masks of earlier tasks also keep.

        Raises:
            KeyError: the task is not learned.
        """
        mask = self.subnetworks.task_mask(task)
        earlier = self.task_keys[: self.task_keys.index(task)]
        return overlap(mask, self.subnetworks.owned(earlier))

    # ------------------------------------------------------------------ calling the network

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

    def store_statistics(self, task: int, statistics: Mapping[str, Tensor]) -> None:
        """Store the statistics that an inference method gathered for a finished task; its outputs do not change."""
        self.subnetworks.store_statistics(task, statistics)
        self._clear_kept()

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

    def forward_single_task(self, x: Any, task_label: int) -> Any:
        """Outputs for a batch of one task."""
        return self.forward(x, task_label)

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

    def tensors_of(self, key: int) -> dict[str, Tensor]:
        """All tensors of the network for a finished task, by name."""
        task = self.subnetworks
        return {**task.task_weights(key), **self.shared, **self.fresh, **task.task_private(key)}

    @lasting()
    def _task_tensors(self, key: int, sparse: frozenset[str] = NONE) -> TaskTensors:
        """The tensors of `tensors_of` with the named weights in sparse form, and the names of the buffers to copy."""
        tensors = with_sparse(self.tensors_of(key), sparse, strict=self.execution == "sparse")
        trained, counted = (names & tensors.keys() for names in moving_buffers(self.net))
        return TaskTensors(tensors, trained, counted)

    # ------------------------------------------------------------------ learning a task

    def fresh_scores(self, key: int) -> dict[str, Tensor]:
        """Initial scores of a task; their values depend on the model's seed and the key, not on other tasks.

        Args:
            key: key of the task; negative for masks that belong to no task, whose scores are always random.
        """
        # Files of 0.1.0 lack the entry "scores".
        by_magnitude = self.wrapping.get("scores") == "magnitude" and key >= 0
        magnitudes = self.subnetworks.frozen if by_magnitude else None
        return fresh_scores(self.masked_shapes, seed=self.seed, key=key, magnitudes=magnitudes)

    @torch.no_grad()
    def scale_constants(self, densities: Mapping[str, float]) -> None:
        """Scale the constants of ``init="scaled_constant"`` for masks of these densities.

        The constants are scaled once, before the first task. The method does nothing if ``init`` is another one, if the
        constants are already scaled, if a task has begun, or if the model has a base.

        Args:
            densities: share of each masked weight's entries that a mask keeps, by name.
        """
        of = self.subnetworks
        used = of.scaled_for or of.tasks or of.active is not None
        if self.init != "scaled_constant" or used or len(of.base):
            return
        scale_constants(of.frozen, densities, of.padding)
        of.scaled_for = {name: float(density) for name, density in densities.items()}
        self._clear_kept()

    @property
    def shrinks_outputs(self) -> bool:
        """Whether `shrink_outputs` may be called: scaled constants, a masked output layer, and no finished task."""
        return not self.task_keys and output_weight(self.net) in self.subnetworks.scaled_for

    @torch.no_grad()
    def shrink_outputs(self, factor: float) -> None:
        """Multiply the scaled constants of the output layer by a factor, while the first task is learned.

        Args:
            factor: factor of the constants, in (0, 1].

        Raises:
            RuntimeError: a task is finished, the constants are not scaled, or the output layer is not masked.
        """
        if not self.shrinks_outputs:
            raise RuntimeError(
                "the constants of the output layer can change only while the first task is learned, with "
                "init='scaled_constant' and a masked output layer"
            )
        of, last = self.subnetworks, output_weight(self.net)
        density = factor**-2  # `scale_constants` multiplies by the root of its inverse
        scale_constants(of.frozen, {last: density}, of.padding)
        of.scaled_for = {**of.scaled_for, last: of.scaled_for[last] * density}
        of.drop_standing()
        self._clear_kept()

    @torch.no_grad()
    def begin(self, key: int, label: int | None = None) -> None:
        """Start a task: per-task parameters and running statistics get their initial values.

        Raises:
            ValueError: the task is learned already.
        """
        if key in self.subnetworks.tasks:
            raise ValueError(
                f"task {key} is learned already, and finished tasks never change; learned: {self.task_keys}. "
                "Give it a new key, or forget(task) first"
            )
        if self._resumed is not None:
            self.abandon()
        self.subnetworks.begin(key, label)
        for name, live in self._live(list(self.fresh)).items():
            live.copy_(self.fresh[name])

    @property
    def scores(self) -> Mapping[str, Tensor]:
        """Scores of the task being learned, by name of the weight; empty before `set_scores`."""
        return self.subnetworks.scores

    def set_scores(self, values: Mapping[str, Tensor]) -> None:
        """Write the scores in place; the first call allocates them, one tensor per layer for any number of tasks.

        Args:
            values: scores by name of the masked weight, each in the shape of the weight.
        """
        self.subnetworks.set_scores(values)

    def current_mask(self) -> dict[str, Tensor]:
        """Mask of the task being learned: bool tensors by name. That of a mixture holds the entries that are not zero.

        Raises:
            RuntimeError: no phase has begun.
        """
        return self.subnetworks.current_mask()

    def learn_scores(
        self, select: Selection, *, trainable: Mapping[str, Tensor] | None = None, overwrite: bool = False
    ) -> None:
        """Start a phase that trains the scores, and also the entries marked in ``trainable``, if any.

        Args:
            select: turns the scores into the mask (see `selection`).
            trainable: bool tensors by name; they must not mark entries that finished tasks own (combine them with
                ``~model.owned()[name]``). None: no weights are trained.
            overwrite: whether entries of finished tasks may change. Only control experiments that shall forget use it.

        Raises:
            TypeError: an entry of ``trainable`` is not bool.
            ValueError: ``trainable`` has unknown names, wrong shapes, or entries that a finished task owns; or, with
                ``outside="base"``, no weight differs from the base, and ``trainable`` is not given.
        """
        if trainable is not None:
            check_marks("trainable", trainable, self.masked_shapes)
        if trainable is not None and not overwrite and self.task_keys:
            refuse_owned(trainable, self.owned())
        if not trainable and all(not bool(change.any()) for change in self.subnetworks.change().values()):
            raise ValueError(
                "a mask would choose between equal weights, as the values are those of the base: pass values=, or "
                "init='signed_constant', or learn tasks by SparseFineTuning first"
            )
        self.subnetworks.learn_scores(select, trainable=trainable)
        self._learn_live_weights(self.masked_names if trainable else ())

    def learn_coefficients(self, *, own: Collection[str] = (), select: Any = None) -> None:
        """Start a phase that trains the coefficients of a mixture; they start at 1/n (see `mixtures`).

        Args:
            own: names of masked weights whose scores are trained instead, so that the task has its own mask there.
            select: turns those scores into the mask.
        """
        self.subnetworks.mixtures.restart()
        self.subnetworks.learn_coefficients(own=frozenset(own), select=select)
        self._set_learning(())

    @torch.no_grad()
    def learn_weights(
        self,
        trainable: Mapping[str, Tensor],
        *,
        mask: Mapping[str, Tensor] | None = None,
        restart: bool = True,
        overwrite: bool = False,
    ) -> None:
        """Start a phase that trains the entries marked in ``trainable``, under a fixed mask.

        Args:
            trainable: bool tensors by name; only entries inside the mask count.
            mask: bool tensors by name; None: the current mask.
            restart: whether the weights start from the committed values; False: they keep their present values.
            overwrite: whether entries of finished tasks may change. Only control experiments that shall forget use it.

        Raises:
            TypeError: an entry of ``trainable`` or ``mask`` is not bool.
            ValueError: names are missing or unknown, shapes are wrong, or a finished task owns a marked entry.
        """
        mask = self.subnetworks.current_mask() if mask is None else mask
        check_marks("trainable", trainable, self.masked_shapes)
        check_marks("mask", mask, self.masked_shapes)
        if not overwrite and self.task_keys:
            refuse_owned({name: marked & mask[name] for name, marked in trainable.items()}, self.owned())
        self.subnetworks.learn_weights(trainable, mask=mask)
        if restart:
            self._learn_live_weights(self.masked_names)

    @torch.no_grad()
    def set_free_weights(self, values: Mapping[str, Tensor]) -> None:
        """Set the entries that no finished task owns to these values; owned entries do not change.

        Args:
            values: values by name of the masked weight, each in the shape of the weight. Weights whose names are left
                out do not change.
        """
        owned = self.subnetworks.with_padding(self.owned())
        for name, value in values.items():
            weight = self.subnetworks.frozen[name]
            weight.copy_(torch.where(owned[name], weight, value.to(weight)))

    def learn_entries(self, chosen: Mapping[str, Tensor], *, mask: Mapping[str, Tensor]) -> None:
        """Start a phase that trains a few entries under a fixed mask; an optimizer holds only those entries.

        Args:
            chosen: bool tensors by name that mark the trained entries: inside the mask, and owned by no finished task.
            mask: bool tensors by name.

        Raises:
            TypeError: an entry of ``chosen`` or ``mask`` is not bool.
            ValueError: names are missing or unknown, shapes are wrong, or a finished task owns a chosen entry.
        """
        check_marks("chosen", chosen, self.masked_shapes)
        check_marks("mask", mask, self.masked_shapes)
        if self.task_keys:
            refuse_owned(chosen, self.owned())
        self.subnetworks.learn_entries(chosen, mask=mask, sparse=self._trained_sparsely(mask))
        self._set_learning(())

    def trains_sparsely(self, mask: Mapping[str, Tensor]) -> bool:
        """Whether `learn_entries` would train a layer with this mask in sparse form (see ``execution``).

        Args:
            mask: bool tensors by name of the masked weight.
        """
        return bool(self._trained_sparsely(mask))

    def _trained_sparsely(self, mask: Mapping[str, Tensor]) -> frozenset[str]:
        """Names of the weights that `learn_entries` trains in sparse form."""
        compiled = self._compiled_call_impl is not None or self.net._compiled_call_impl is not None
        if self.execution == "dense" or compiled or len(self.subnetworks.base):
            return frozenset()
        served = linear_places(self.net) & mask.keys()
        return frozenset(name for name in served if worth_training(mask[name]))

    @torch.no_grad()
    def _learn_live_weights(self, names: Sequence[str]) -> None:
        """Copy the committed values into the trainable copies of these weights, and make the copies trainable."""
        for name, weight in self._live(names).items():
            weight.copy_(self.subnetworks.frozen[name])
        self._set_learning(names)

    @torch.no_grad()
    def commit(self, outputs: Sequence[Tensor] = ()) -> None:
        """Finish the task being learned. From now on its outputs never change.

        Args:
            outputs: logits of batches of its training samples, each ``(batch, outputs)``. Their mean entropy is stored
                with the task, for `ExpectedEntropy`.

        Raises:
            RuntimeError: no task is being learned.
            FloatingPointError: a learned value is NaN or infinite; the task is abandoned.
        """
        buffers = self._live(self._buffer_names)
        for name, channels in self.frozen_channels.items():
            channels.restore(buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"])
        private = {
            **{name: b for name, b in buffers.items() if not torch.equal(b, self.fresh[name])},
            **self._live(self._own_names),
            **self._head_tensors(),
        }
        learned = [*private.values(), *(p for p in self.parameters() if p.requires_grad)]
        if not all(bool(t.isfinite().all()) for t in learned):
            key = self.active
            self.abandon()
            raise FloatingPointError(
                f"task {key} learned NaN or infinite values and was not stored; the {len(self.task_keys)} "
                "earlier tasks are intact; lower the learning rate"
            )
        expected = float(torch.cat([entropy(out.float()) for out in outputs]).mean()) if outputs else None
        self.subnetworks.commit(self._live(self.masked_names), private, entropy=expected)
        if self._resumed is not None:  # the statistics of the task's earlier data stay valid
            self.subnetworks.store_statistics(self._resumed.key, self._resumed.statistics or {})
        self._resumed = None
        self._end()

    @torch.no_grad()
    def resume(self) -> dict[str, Tensor]:
        """Make the task that was committed last the task being learned again; returns its mask, bool tensors by name.

        The task keeps its state. It can be committed again, or abandoned; `abandon` restores it as it was. Earlier
        tasks stay bit-identical. Weights that the task's next mask leaves out keep their values and become free.
        """
        key = self.task_keys[-1]
        task, private = self.subnetworks.tasks[key], self.subnetworks.task_private(key)
        mask, statistics = self.subnetworks.task_mask(key), self.subnetworks.task_statistics(key)
        self.subnetworks.forget(key)
        self.begin(key, task.label)
        self._resumed = _Finished(key, task, mask, private, statistics)
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        for name, kept in private.items():
            if name in tensors and tensors[name].shape == kept.shape:  # a head may have grown since the commit
                tensors[name].copy_(kept)
        return mask

    @torch.no_grad()
    def reopen(self, select: Any) -> None:
        """Make the task that was committed last the task being learned again, in the phase that trains its scores.

        Args:
            select: turns the scores into the mask; they still have the values of the commit.
        """
        key = self.task_keys[-1]
        label, kept = self.subnetworks.tasks[key].label, self.subnetworks.task_private(key)
        self.subnetworks.forget(key)
        self.begin(key, label)
        for name, live in self._live([name for name in self.fresh if name in kept]).items():
            live.copy_(kept[name])
        self.learn_scores(select)

    def adopt(
        self,
        key: int,
        label: int | None,
        mask: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        *,
        entropy: float | None = None,
    ) -> None:
        """Add a task that was learned in another model of the same base (see `load_task`).

        Args:
            key: key of the task; it must not be in use.
            label: Avalanche's task label, under which the task is called; None without labels.
            mask: bool tensors by name.
            values: values of the entries that the mask keeps, in order, by name.
            own: the task's own tensors, by name in the network.
            entropy: mean entropy of the task's outputs on its own training data, for `ExpectedEntropy`; None: unknown.
        """
        self.subnetworks.adopt(key, label, mask, values, own, entropy=entropy)
        self._clear_kept()
        self._set_learning(())

    @property
    def buffer_names(self) -> list[str]:
        """Names of the buffers outside heads, in the network."""
        return list(self._buffer_names)

    def abandon(self) -> None:
        """Stop learning the current task and keep nothing of it; a resumed task is restored as it was."""
        self.subnetworks.abandon()
        if self._resumed is not None:
            self.subnetworks.restore(*self._resumed)
            self._resumed = None
        self._end()

    @torch.no_grad()
    def forget(self, task: int) -> int:
        """Delete a finished task and free exactly the weights that only this task owned.

        Freed weights get new signed constants, so that no trace of the task is left. With ``init="keep"`` they return
        to the values of the base if one is stored, and otherwise keep their values. Other tasks stay bit-identical.

        Returns:
            Number of weights freed.

        Raises:
            KeyError: the task is not learned.
        """
        freed = self.subnetworks.forget(task)
        self._clear_kept()
        if self.init != "keep":
            of = self.subnetworks
            redraw_free(of.frozen, freed, seed=self.seed, key=task, densities=of.scaled_for)
        elif self.init == "keep" and len(self.subnetworks.base):
            for name, mask in freed.items():
                self.subnetworks.frozen[name].copy_(
                    torch.where(mask, self.subnetworks.base[name], self.subnetworks.frozen[name])
                )
        return sum(int(mask.sum()) for mask in freed.values())

    # ------------------------------------------------------------------ the trainable tensors

    @property
    def has_own_tensors(self) -> bool:
        """Whether a task learns its own parameters besides masks and masked weights."""
        return bool({*self._own_names, *self._head_tensors()})

    def _head_tensors(self) -> dict[str, Tensor]:
        known = {*self.masked_names, *self.shared, *self.fresh}
        return head_tensors(self.net, known, self.subnetworks.active_label)

    def _live(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The network's present tensors of these names."""
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        return {name: tensors[name] for name in names}

    def _end(self) -> None:
        self.frozen_channels = {}
        self._clear_kept()
        self._set_learning(())

    def _set_learning(self, weights: Sequence[str]) -> None:
        """Make trainable: these weights, the other tensors of the phase and, while a task is active, its own tensors.

        All other parameters become frozen, and all gradients are cleared.
        """
        own = {*self._own_names, *self._head_tensors()} if self.active is not None else set()
        for name, p in self.net.named_parameters():
            p.requires_grad_((name in weights or name in own) and name not in self.frozen_names)
            p.grad = None
        learning = {id(p) for p in self.subnetworks.learning()}
        for p in self.subnetworks.parameters():
            p.requires_grad_(id(p) in learning)
            p.grad = None

    # ------------------------------------------------------------------ methods that Avalanche or PyTorch calls

    def adaptation(self, experience: Any) -> None:
        """Adapt the network's heads in training mode; evaluation allocates nothing."""
        if self.training:
            avalanche_model_adaptation(self.net, experience)

    def train(self, mode: bool = True) -> MaskedModel:
        """Set the mode of the network; with ``statistics="frozen"``, norms stay in evaluation mode.

        This applies to norms with running statistics.
        """
        super().train(mode)
        if self.wrapping.get("statistics") == "frozen":
            for norm in running_norms(self.net):
                norm.training = False
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> MaskedModel:
        self._clear_kept()
        super()._apply(fn, recurse)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state like any module; a model without tasks takes all tasks of the state, including their heads."""
        device = next(iter(self.subnetworks.frozen.values())).device
        self.grow_heads(state_dict)
        result = super().load_state_dict(state_dict, *args, **kwargs)
        self.to(device)
        self._set_learning(self.masked_names if self.subnetworks.phase == "weights" else ())
        return result

    def grow_heads(self, state: Mapping[str, Any]) -> None:
        """Add the heads of all tasks of a state to a multi-head network, so that the network can load the state."""
        outputs = {}
        for _, slot, label, *_ in state.get("subnetworks._extra_state", {}).get("tasks", ()):
            prefix = f"subnetworks.private.{slot}."
            heads = [t for n, t in state.items() if n.startswith(prefix) and n.endswith("weight") and t.dim() == 2]
            outputs[label or 0] = len(heads[-1]) if heads else 1
        learned = {task.label for task in self.subnetworks.tasks.values()}
        grow_heads(self.net, {label: n for label, n in outputs.items() if label not in learned})

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.subnetworks.frozen.values())
        tasks = self.bytes_per_task()
        cost = f", {round(sum(tasks.values()) / len(tasks)):,} bytes per task" if tasks else ""
        learning = "" if self.active is None else f", learning task {self.active}"
        return (
            f"MaskedModel({type(self.net).__name__}: {weights:,} masked weights in {len(self.masked_names)} layers, "
            f"{len(tasks)} tasks{cost}{learning})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "call": NetworkCall(),
            "_labels": LabelReader(),
            "_recent": Recent(),
            "_repeated": None,
            "_superposition": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickles of 0.1.0 lack these two entries.
        super().__setstate__({"call": NetworkCall(), "_labels": LabelReader(), **state})

    def _clear_kept(self) -> None:
        """Drop everything that was cached to make calls of finished tasks faster."""
        self.call.forget()
        self._recent.clear()
        self._repeated = None
        if self._executor is not None:
            self._executor.forget()
        self._superposition = None

    # ------------------------------------------------------------------ exporting tasks

    def export(self, task: int, *, sparse: bool = False) -> nn.Module:
        """Return a plain copy of the network with one task's weights: it has no masks and gives equal outputs.

        Args:
            task: key of the task.
            sparse: whether the weights of linear layers and convolutions are stored in CSR form. They are smaller and,
                on a CPU, faster, as under ``execution = "sparse"``. Such weights cannot be trained, and stay on the
                CPU.

        Raises:
            NotImplementedError: ``sparse`` is set, and there is no kernel for the weights' device or type.
        """
        net = copy.deepcopy(self.net)
        slots = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        for name, tensor in self.tensors_of(task).items():
            slots[name].data = tensor.detach().clone()  # with .data, tied weights remain tied
        use_plain_weight_norm(net)
        for name in self._sparse_embeddings:
            net.get_submodule(name).sparse = True  # type: ignore[assignment]
        for name, p in net.named_parameters():
            p.requires_grad_(name not in self.frozen_names)
        if sparse:
            make_sparse(net, frozenset(self.masked_names))
        return net.eval()


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors.items()}

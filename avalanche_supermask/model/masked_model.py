"""`MaskedModel`: any ``nn.Module``, untouched, called with the weights of one task or another.

The only place that touches the user's network, which is called with other tensors in the places of its own (see
`network_call`), so that its classes, names and attributes stay as they are. Which ones depends on the task:

* *masked* weights (two or more dimensions): the task's subnetwork of weights that all tasks share;
* *head* tensors (inside Avalanche's dynamic modules) and, on request, norm and bias parameters: the task's own;
* buffers that training changes (running statistics): the task's own, never shared;
* everything else: frozen, the same for every task.

A task begins, goes through phases, is committed, and may be forgotten. A phase says what requires a gradient: scores,
coefficients, or marked entries of the weights; and, in any of them, the task's own tensors. Weights learn in the
network's parameters, a copy of the committed ones, so that nothing of a finished task is ever within an optimizer's
reach. The class is one face for its users and for authors of methods: what takes more than a few lines is done by the
parts beside it, above all by `subnetworks`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
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
from avalanche_supermask.model.execution import NONE, Arguments, Execution, Executor, checked
from avalanche_supermask.model.frozen_batchnorm import FrozenChannels
from avalanche_supermask.model.inputs import UNSET, arguments_of, packed, task_labels_of
from avalanche_supermask.model.labels import LabelReader
from avalanche_supermask.model.marks import check_marks, refuse_owned
from avalanche_supermask.model.network_call import NetworkCall
from avalanche_supermask.model.parameter_kinds import padding_rows
from avalanche_supermask.model.repeated_calls import MISSED, RepeatedCalls
from avalanche_supermask.model.routing import Router, forward_mixed
from avalanche_supermask.model.sparse_places import make_sparse, with_sparse
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
    own_values,
    redraw,
    refuse_integers,
    running_norms,
    say_what_stays,
)
from avalanche_supermask.model.weight_norm import use_masked_weight_norm, use_plain_weight_norm
from avalanche_supermask.model.wrappable import check_wrappable
from avalanche_supermask.named_tensors import NamedTensors
from avalanche_supermask.selection import Selection

__all__ = ["MaskedModel"]


class _Host(DynamicModule):
    """Keeps Avalanche from adapting the network on its own, as it would for tasks that are only evaluated."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(auto_adapt=False)
        self.net = net


class _Finished(NamedTuple):
    """A finished task, so that it can be put back."""

    key: int
    task: Task
    mask: dict[str, Tensor]
    private: dict[str, Tensor]
    statistics: dict[str, Tensor] | None = None  # gathered for inference


class MaskedModel(MultiTaskModule):
    """A network that holds many tasks, each in a subnetwork of its own.

    Args:
        net: any module; deep-copied, so the caller's stays as it is.
        init: ``"signed_constant"`` redraws the masked weights as ``±sqrt(2 / fan_in)`` and zeroes the biases
            (SupSup's default). ``"scaled_constant"`` does the same, and the first method that trains makes them
            ``±sqrt(2 / (k fan_in))``, k being the density of its masks in the layer: so the activations of a sparse
            subnetwork are as large as those of the whole network. ``"keep"`` keeps the weights that were brought, for
            pretrained networks.
        outside: what a weight is outside a task's mask: ``"zero"`` cuts it (the papers' masks); ``"base"`` keeps what
            the network that was brought has there, so that a task is a change of it:
            ``W_base + M * (W - W_base)``. The base is stored once, beside W.
        values: with ``outside="base"``, W: another network of the same structure (or its state), for example one that
            was fine-tuned, of whose change the masks select; None: W is as ``init`` says.
        frozen: parameters that are brought frozen (``requires_grad=False``) stay as they are in every task, neither
            masked nor redrawn (``"keep"``), with one warning, unless ``own`` names them; or they are treated like the
            others (``"mask"``).
        statistics: running statistics (BatchNorm) are each ``"task"``'s own; or ``"frozen"``: those that were brought
            serve all tasks, in training as well.
        per_task: which parameters besides the masked weights each task learns for itself: ``"none"`` (the
            papers: norms without gain and shift, no biases), ``"norm"``, or ``"all"`` (norms and biases).
            Norms are known by their class, or by "norm" in the name of their class or place; gains of ``weight_norm``
            count as norms. Each number costs 4 bytes per task. Running statistics and heads are per task in any case.
        exclude: regular expressions; parameters whose whole name matches one are not masked.
        own: regular expressions; parameters whose whole name matches one are each task's own, unmasked, and start
            anew for every task: an output layer named here becomes a head per task.
        mask: ``"weights"`` masks parameters of two or more dimensions; ``"all"`` biases and norms as well.
        scores: where the scores of a task start: ``"random"`` (SupSup's), or in the order of ``"magnitude"``, so that
            the first mask keeps the largest weights: for pretrained networks, with ``init="keep"``.
        seed: of the constants and of every task's fresh scores; drawn from torch's generator if None.
        task_inference: who names the task at evaluation: ``"given"`` (the labels), ``"oneshot"``, ``"binary"``,
            ``"entropy"``, ``"expected_entropy"``, ``"max_logit"``, ``"entropy_descent"``, ``"gaussian"``, or an
            object of `inference` with settings. Can be set later.
        logits: which tensor of the network's output is the logits, for what needs them (inference, KKT, metrics): an
            attribute or key, an index, or a function of the output. None: the output itself if it is a tensor, its
            ``logits``, or else its first tensor. Can be set later.

    Attributes:
        class_dimension: dimension of the logits that counts the classes (default 1, as PyTorch's criteria take them);
            training sets it where the targets tell that it is the last one.

    Raises:
        ValueError: nothing to mask in ``net``, an unknown option, or weights that are no parameters (the old
            ``torch.nn.utils.weight_norm``, ``prune``, lazy layers).
        TypeError: a network that cannot be called with other weights: `DataParallel`, TorchScript.

    Example:
        >>> model = MaskedModel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), seed=0)
        >>> model.masked_names, model.task_keys
        (['0.weight', '2.weight'], [])
    """

    _repeated: RepeatedCalls | None = None  # the short way of calls; made anew whenever what is kept is dropped
    _superposition: Superposition | None = None  # of the finished tasks, once inference asked for it
    logits: Logits = None
    class_dimension: int = 1
    frozen_names: frozenset[str] = frozenset()  # parameters that were brought frozen, and stay as they are
    _executor: Executor | None = None  # of the class, like those above and below: pickles of 0.1.0 have none
    _resumed: _Finished | None = None  # the task being learned, as it was committed before

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
        # How to wrap another copy of the network in the same way.
        self.wrapping = {
            "init": self.init, "per_task": per_task, "exclude": [*exclude], "own": [*own], "mask": mask,
            "scores": scores, "outside": outside, "statistics": statistics, "frozen": frozen,
        }  # fmt: skip
        self.seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
        check_wrappable(net)
        self.host = _Host(copy.deepcopy(net))
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
        # What a new task starts from: its own parameters, and every buffer.
        self.fresh = NamedTensors(_copies({**layout.private, **layout.buffers}))
        self._own_names = list(layout.private)
        self.frozen_names = layout.frozen
        self._buffer_names = list(layout.buffers)
        self.router = Router()
        self.task_inference = task_inference
        self.logits = logits
        self.inferred_task: Tensor | None = None  # task key of each sample, after a call that inferred
        # BatchNorm layers of the task being learned in which some channels are claimed by earlier ones.
        self.frozen_channels: dict[str, FrozenChannels] = {}
        self.call = NetworkCall()
        self._labels = LabelReader()
        self._recent = Recent()
        self._set_learning(())

    # ------------------------------------------------------------------ the network's tensors

    @property
    def net(self) -> nn.Module:
        """The network: a copy of the caller's. Its parameters are the trainable copy of the weights."""
        return self.host.net

    # ------------------------------------------------------------------ which tasks there are, and what they cost

    @property
    def active(self) -> int | None:
        """Key of the task being learned."""
        return self.subnetworks.active

    @property
    def task_keys(self) -> list[int]:
        """Keys of the finished tasks, in the order in which they were learned."""
        return list(self.subnetworks.tasks)

    @property
    def outside(self) -> str:
        """What a weight is outside a task's mask: ``"zero"``, or what the ``"base"`` has."""
        return "base" if len(self.subnetworks.base) else "zero"

    @property
    def masked_names(self) -> list[str]:
        """Names, in the network, of the weights that masks select from."""
        return list(self.subnetworks.frozen)

    @property
    def masked_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each masked weight."""
        return self.subnetworks.masks.shapes

    def task_mask(self, task: int) -> dict[str, Tensor]:
        """Mask of a finished task: bool tensors by name. Of a mixture: where its weights are not zero.

        Raises:
            KeyError: the task is not learned.
        """
        return self.subnetworks.task_mask(task)

    def owned(self, tasks: list[int] | None = None) -> dict[str, Tensor]:
        """Weights that any of these finished tasks uses: bool tensors by name.

        Args:
            tasks: their keys; None: all finished tasks.
        """
        return self.subnetworks.owned(tasks)

    def effective_weights(self, task: int) -> dict[str, Tensor]:
        """Weights ``W * M`` of a finished task, or ``W_base + M * (W - W_base)``, by name in the network."""
        return self.subnetworks.task_weights(task)

    def bytes_per_task(self, *, private: bool = True) -> dict[int, int]:
        """Bytes stored for each finished task: one bit a masked weight, or the coefficients of a mixture.

        Args:
            private: count what else only the task has: statistics, head, own parameters, what inference gathered of it,
                and 4 bytes for how sure it was of its own data.
        """
        return {key: self.subnetworks.task_bytes(key, private=private) for key in self.task_keys}

    @property
    def basis_bytes(self) -> int:
        """Bytes of masks that mixtures are made of and that belong to no finished task."""
        return self.subnetworks.basis_bytes

    def capacity(self) -> dict[str, LayerCapacity]:
        """Total, owned, free and reused weights of each masked layer."""
        return self.subnetworks.capacity()

    def overlap(self) -> dict[int, float]:
        """Share of each task's mask that the masks of earlier tasks already held; 0 for the first task."""
        return {key: self.overlap_of(key) for key in self.task_keys}

    def overlap_of(self, task: int) -> float:
        """Share of one task's mask that the masks of earlier tasks already held."""
        earlier = self.task_keys[: self.task_keys.index(task)]
        return overlap(self.subnetworks.task_mask(task), self.subnetworks.owned(earlier))

    # ------------------------------------------------------------------ calling the network

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Outputs of the network for a batch: ``model(x)``, ``model(x, task_labels)`` or ``model(**batch)``.

        Args:
            args: what the network takes, a tensor or a structure of tensors whose first dimension is the batch; and
                second, if any, the task labels: an int, or a tensor of one label a sample (mixed tasks are fine).
                Omitted: the task being learned, else the latest; None: a dictionary of outputs by task key. A label
                that was never trained is answered by the latest task, with one warning.
            keywords: passed on to the network, ``task_labels`` excepted.

        Returns:
            The network's output; with mixed tasks of different widths, filled up to the widest with -1000.

        Raises:
            TypeError: no input, or a second argument that cannot be task labels.
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
        return forward_mixed(x, labels, self._forward_label) if label is None else self._forward_label(x, label)

    def _again(self, x: Any, labels: Any) -> Any:
        """The answer of a finished task that was called before, if that is all there is to it; else `MISSED`."""
        if self.training or self._task_inference != "given" or torch.compiler.is_compiling():
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
        """Who names the task at evaluation, while no task is being learned."""
        return self._task_inference

    @task_inference.setter
    def task_inference(self, inference: str | Inference) -> None:
        by_name(inference)  # complain now
        self._task_inference = inference
        self._superposition = None  # it keeps what the last way started from

    @property
    def infers(self) -> bool:
        """Whether a call in evaluation mode would infer the task."""
        return (
            self._task_inference != "given" and not self.router.given and self.active is None and bool(self.task_keys)
        )

    @property
    def candidates(self) -> Superposition:
        """The finished tasks, as a way of inference sees them."""
        if self._superposition is None:
            self._superposition = Superposition(self)
        return self._superposition

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

    def store_statistics(self, task: int, statistics: Mapping[str, Tensor]) -> None:
        """Keep what a way of inference has gathered of a finished task; its outputs do not change."""
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
            self.inferred_task = None  # no single task answered
            return answer
        self.inferred_task = torch.tensor(self.task_keys)[answer]
        return forward_mixed(x, self.inferred_task, lambda part, key: self.forward_task(key, part))

    def forward_single_task(self, x: Any, task_label: int) -> Any:
        """Outputs for a batch of one task."""
        return self.forward(x, task_label)

    def forward_all_tasks(self, x: Any) -> dict[int, Any]:
        """Outputs of every learned task, and of the one being learned, by task key."""
        keys = self.task_keys + ([] if self.active is None else [self.active])
        return {key: self.forward_task(key, x) for key in keys}

    def forward_task(self, key: int | None, x: Any) -> Any:
        """Outputs under one task, by its key; None: the network as it was initialised, without a mask.

        Args:
            key: of the task.
            x: the network's input, or several `Inputs`.
        """
        if key is None:  # nothing learned yet: the whole network as it was initialised
            weights = self.subnetworks.base or self.subnetworks.frozen
            fresh = {name: tensor.clone() for name, tensor in self.fresh.items()}  # a call may move buffers
            return self.call(self.net, {**weights, **self.shared, **fresh}, *self.arguments(x, 0))
        if key == self.active:
            weights = self.subnetworks.current_weights(self._live_weights())
            arguments = self.arguments(x, self.subnetworks.active_label)
            return self.call(self.net, {**weights, **dict(self.shared.items())}, *arguments, hooks=self.frozen_channels)
        arguments = self.arguments(x, self.subnetworks.tasks[key].label)
        with self.call.lock:
            sparse = self._sparse_names(key, arguments)
            tensors = self._recent.get((key, sparse), lambda: self._task_tensors(key, sparse))
        output = self._call_task(tensors, arguments)
        if self.active is not None and self.training and torch.is_grad_enabled():
            # A-GEM and GEM differentiate the loss of old samples, in which nothing that learns has a part.
            for tensor in nested.tensors(output):
                if tensor.is_floating_point() and not tensor.requires_grad:
                    tensor.requires_grad_(True)
        return output

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

    def _live_weights(self) -> dict[str, Tensor]:
        """The trainable copies of the masked weights, in a phase in which any of their entries learn."""
        names = self.masked_names if len(self.subnetworks.trainable) else []
        return self.call.own(self.net, names)

    def _call_task(self, tensors: TaskTensors, arguments: Arguments) -> Any:
        return self.call(self.net, tensors.for_call(training=self.training), *arguments)

    def arguments(self, x: Any, label: int | None) -> Arguments:
        """Arguments and keywords of a call of the network itself, for a batch of one task label."""
        return arguments_of(self.net, x, label or 0)

    def logits_of(self, output: Any) -> Tensor:
        """The logits in an output of the network, whatever its form: ``(batch, classes, *positions)``.

        Raises:
            TypeError: there is no tensor that could be the logits (see ``logits``).
        """
        found = find_logits(output, self.logits)
        return found if self.class_dimension == 1 else found.movedim(self.class_dimension, 1)

    def tensors_of(self, key: int) -> dict[str, Tensor]:
        """All tensors of the network under a finished task, by name."""
        task = self.subnetworks
        return {**task.task_weights(key), **self.shared, **self.fresh, **task.task_private(key)}

    @lasting()
    def _task_tensors(self, key: int, sparse: frozenset[str] = NONE) -> TaskTensors:
        """The same, these of them sparse, with what else a call has to know, kept for the next calls."""
        tensors = with_sparse(self.tensors_of(key), sparse, strict=self.execution == "sparse")
        trained, counted = (names & tensors.keys() for names in moving_buffers(self.net))
        return TaskTensors(tensors, trained, counted)

    # ------------------------------------------------------------------ learning a task

    def fresh_scores(self, key: int) -> dict[str, Tensor]:
        """Scores that a task starts from; their values depend on the model's seed and the key, not on other tasks.

        Args:
            key: of the task; negative for masks that belong to none, which are always random.
        """
        # Files of 0.1.0 do not name what scores start from.
        by_magnitude = self.wrapping.get("scores") == "magnitude" and key >= 0
        magnitudes = self.subnetworks.frozen if by_magnitude else None
        return fresh_scores(self.masked_shapes, seed=self.seed, key=key, magnitudes=magnitudes)

    @torch.no_grad()
    def scale_constants(self, densities: Mapping[str, float]) -> None:
        """Scale the constants of ``init="scaled_constant"`` for masks of these densities.

        Once, before the first task: nothing happens with another ``init``, where constants are scaled or used, or where
        a task keeps the base outside its mask.

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

    @torch.no_grad()
    def begin(self, key: int, label: int | None = None) -> None:
        """Start a task: per-task parameters and running statistics go back to fresh ones.

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
        """Write the scores in place; the first call makes them: one tensor per layer, whatever the number of tasks.

        Args:
            values: by name of the masked weight, each in its shape.
        """
        self.subnetworks.set_scores(values)

    def current_mask(self) -> dict[str, Tensor]:
        """Mask of the task being learned: bool tensors by name. Of a mixture: where its weights are not zero.

        Raises:
            RuntimeError: no phase has begun.
        """
        return self.subnetworks.current_mask()

    def learn_scores(
        self, select: Selection, *, trainable: Mapping[str, Tensor] | None = None, overwrite: bool = False
    ) -> None:
        """Phase in which the scores learn, and with them the weights marked in ``trainable``, if any.

        Args:
            select: turns the scores into the mask (see `selection`).
            trainable: bool by name; without the entries that finished tasks own (``~model.owned()[name]``).
            overwrite: let finished tasks change. Only for controls that shall forget.

        Raises:
            TypeError: an entry of ``trainable`` is not bool.
            ValueError: unknown names, wrong shapes, or entries that a finished task owns; or, with
                ``outside="base"``, no weight differs from the base, and none learns.
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
        """Phase in which the coefficients of a mixture learn, from 1/n (see `mixtures`).

        Args:
            own: masked weights whose scores learn instead, for a mask of the task's own.
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
        """Phase in which the weights marked in ``trainable`` learn, under a mask that stands still.

        Args:
            trainable: bool by name; only entries inside the mask count.
            mask: bool by name; the current mask if None.
            restart: start from the committed values; False: go on from where the weights are.
            overwrite: let finished tasks change. Only for controls that shall forget.

        Raises:
            TypeError: an entry of ``trainable`` or ``mask`` is not bool.
            ValueError: missing or unknown names, wrong shapes, or entries that a finished task owns.
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
        """Give the weights that no finished task owns these values; what a finished task owns stays as it is.

        Args:
            values: by name of the masked weight, each in its shape; names that are left out stay as they are.
        """
        owned = self.subnetworks.with_padding(self.owned())
        for name, value in values.items():
            weight = self.subnetworks.frozen[name]
            weight.copy_(torch.where(owned[name], weight, value.to(weight)))

    def learn_entries(self, chosen: Mapping[str, Tensor], *, mask: Mapping[str, Tensor]) -> None:
        """Phase in which a few entries learn, under a mask that stands still; an optimizer holds nothing else of them.

        Args:
            chosen: bool by name, inside the mask, of entries that no finished task owns.
            mask: bool by name.

        Raises:
            TypeError: an entry of ``chosen`` or ``mask`` is not bool.
            ValueError: missing or unknown names, wrong shapes, or entries that a finished task owns.
        """
        check_marks("chosen", chosen, self.masked_shapes)
        check_marks("mask", mask, self.masked_shapes)
        if self.task_keys:
            refuse_owned(chosen, self.owned())
        self.subnetworks.learn_entries(chosen, mask=mask)
        self._set_learning(())

    @torch.no_grad()
    def _learn_live_weights(self, names: Sequence[str]) -> None:
        """Start these weights, of which some or all entries learn, from their committed values."""
        for name, weight in self._live(names).items():
            weight.copy_(self.subnetworks.frozen[name])
        self._set_learning(names)

    @torch.no_grad()
    def commit(self, outputs: Sequence[Tensor] = ()) -> None:
        """Finish the task being learned. From now on its outputs never change.

        Args:
            outputs: logits of batches of its training samples, each ``(batch, outputs)``: how sure the task is of its
                own data is stored with it, for `ExpectedEntropy`.

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
        if self._resumed is not None:  # what was gathered of its earlier data counts on
            self.subnetworks.store_statistics(self._resumed.key, self._resumed.statistics or {})
        self._resumed = None
        self._end()

    @torch.no_grad()
    def resume(self) -> dict[str, Tensor]:
        """Take the task that was committed last back into learning, as it is; returns its mask, bool by name.

        It can be committed again, or abandoned: then it is again what it was. Earlier tasks stay bit-identical. Weights
        that its next mask leaves out keep the values that it gave them, and are free.
        """
        key = self.task_keys[-1]
        task, private = self.subnetworks.tasks[key], self.subnetworks.task_private(key)
        mask, statistics = self.subnetworks.task_mask(key), self.subnetworks.task_statistics(key)
        self.subnetworks.forget(key)
        self.begin(key, task.label)
        self._resumed = _Finished(key, task, mask, private, statistics)
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        for name, kept in private.items():
            if name in tensors and tensors[name].shape == kept.shape:  # a head may have grown since
                tensors[name].copy_(kept)
        return mask

    @torch.no_grad()
    def reopen(self, select: Any) -> None:
        """Take the task that was committed last back into the phase in which its scores learn.

        Args:
            select: turns the scores, which are still as they were at the commit, into the mask.
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
            key: of the task, not in use.
            label: of Avalanche, under which it answers; None without labels.
            mask: bool by name.
            values: at the entries of the mask, in order, by name.
            own: the task's own tensors, by name in the network.
            entropy: how sure the task is of its own training data, for `ExpectedEntropy`; None: unknown.
        """
        self.subnetworks.adopt(key, label, mask, values, own, entropy=entropy)
        self._clear_kept()
        self._set_learning(())

    @property
    def buffer_names(self) -> list[str]:
        """Names of the buffers outside heads, in the network."""
        return list(self._buffer_names)

    def abandon(self) -> None:
        """Stop learning the current task and keep nothing of it; one that was resumed is again what it was."""
        self.subnetworks.abandon()
        if self._resumed is not None:
            self.subnetworks.restore(*self._resumed)
            self._resumed = None
        self._end()

    @torch.no_grad()
    def forget(self, task: int) -> int:
        """Delete a finished task and free exactly the weights that only it owned.

        Freed weights get new signed constants, so nothing of the task is left; with ``init="keep"`` they go back to
        the base, where one is stored, and else keep their value. Other tasks stay bit-identical.

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

    # ------------------------------------------------------------------ what learns

    @property
    def has_own_tensors(self) -> bool:
        """Whether a task learns parameters of its own, beside masks and masked weights."""
        return bool({*self._own_names, *self._head_tensors()})

    def _head_tensors(self) -> dict[str, Tensor]:
        known = {*self.masked_names, *self.shared, *self.fresh}
        return head_tensors(self.net, known, self.subnetworks.active_label)

    def _live(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Tensors of the network as they are now."""
        tensors = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        return {name: tensors[name] for name in names}

    def _end(self) -> None:
        self.frozen_channels = {}
        self._clear_kept()
        self._set_learning(())

    def _set_learning(self, weights: Sequence[str]) -> None:
        """Let these weights learn, what else the phase trains and, while a task is active, its own tensors."""
        own = {*self._own_names, *self._head_tensors()} if self.active is not None else set()
        for name, p in self.net.named_parameters():
            p.requires_grad_((name in weights or name in own) and name not in self.frozen_names)
            p.grad = None
        learning = {id(p) for p in self.subnetworks.learning()}
        for p in self.subnetworks.parameters():
            p.requires_grad_(id(p) in learning)
            p.grad = None

    # ------------------------------------------------------------------ what Avalanche calls

    def adaptation(self, experience: Any) -> None:
        """Adapt the network's heads before training; evaluation allocates nothing."""
        if self.training:
            avalanche_model_adaptation(self.net, experience)

    def train(self, mode: bool = True) -> MaskedModel:
        """Set the mode of the network and of everything in it."""
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
        """As of any module; a model without tasks takes all the tasks of the state, heads included."""
        device = next(iter(self.subnetworks.frozen.values())).device
        self.grow_heads(state_dict)
        result = super().load_state_dict(state_dict, *args, **kwargs)
        self.to(device)
        self._set_learning(self.masked_names if self.subnetworks.phase == "weights" else ())
        return result

    def grow_heads(self, state: Mapping[str, Any]) -> None:
        """Give a multi-head network the heads of all tasks of a state, so that the state loads into it."""
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
        super().__setstate__({"call": NetworkCall(), "_labels": LabelReader(), **state})  # pickles of 0.1.0 have none

    def _clear_kept(self) -> None:
        """Drop what was made of finished tasks to answer faster."""
        self.call.forget()
        self._recent.clear()
        self._repeated = None
        if self._executor is not None:
            self._executor.forget()
        self._superposition = None

    # ------------------------------------------------------------------ taking tasks out

    def export(self, task: int, *, sparse: bool = False) -> nn.Module:
        """A plain copy of the network with one task's weights: no masks, equal outputs.

        Args:
            task: its key.
            sparse: keep the weights of linear layers and convolutions in CSR form: smaller and, on a CPU, faster, as
                under ``execution = "sparse"``. Such weights do not learn, and stay on the CPU.

        Raises:
            NotImplementedError: ``sparse``, and there is no kernel for the weights' device or type.
        """
        net = copy.deepcopy(self.net)
        slots = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        for name, tensor in self.tensors_of(task).items():
            slots[name].data = tensor.detach().clone()  # .data: tied weights stay tied
        use_plain_weight_norm(net)
        for name, p in net.named_parameters():
            p.requires_grad_(name not in self.frozen_names)
        if sparse:
            make_sparse(net, frozenset(self.masked_names))
        return net.eval()


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors.items()}

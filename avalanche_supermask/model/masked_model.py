"""`MaskedModel`: a wrapper that calls any ``nn.Module`` with the weights of a chosen task.

The classes of `MaskedModel` are the only place that touches the user's network. They call a copy of the network with
other tensors in place of the network's own (see `network_call`), so that the classes, names and attributes of the
network do not change. The tensors depend on the task:

* *masked* weights (two or more dimensions): each task uses a subnetwork of the weights that all tasks share;
* *head* tensors (inside Avalanche's dynamic modules) and, on request, norm and bias parameters: each task has its own;
* buffers that training changes (running statistics): each task has its own, and they are never shared;
* all other tensors: they are frozen and are the same for every task.

During training, the weights are the network's parameters, which are a copy of the committed weights. So an optimizer
can never reach a tensor of a finished task. The class is the interface both for users and for authors of methods. It
is built from classes that each add one idea to the one before it, one module each:

* `wrapped_network`: the copy of the network, and the tensors that tasks have there;
* `task_contents`: what finished tasks hold, and a plain network of one task;
* `task_calls`: calls of the network with the weights of one task;
* `forward_pass`: the forward pass for a batch, whose tasks are given by labels or inferred;
* `start_values`: the values from which training starts;
* `learning_phases`: which tensors a phase trains;
* `task_lifecycle`: begin, commit, abandon, resume, forget;
* this module: how a network is wrapped, and how a state is loaded.

The modules beside them, above all `subnetworks`, do whatever takes more than a few lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_supermask.checked_arguments import checked
from avalanche_supermask.inference import Inference
from avalanche_supermask.logits import Logits
from avalanche_supermask.model.copied_functions import copy_of
from avalanche_supermask.model.heads import grow_heads
from avalanche_supermask.model.parameter_kinds import padding_rows, use_dense_gradients
from avalanche_supermask.model.subnetworks import Subnetworks
from avalanche_supermask.model.task_lifecycle import TaskLifecycle
from avalanche_supermask.model.tensor_roles import (
    Frozen,
    Init,
    Maskable,
    Outside,
    PerTask,
    Scores,
    Statistics,
    classify,
    own_values,
    redraw,
    running_norms,
    say_what_stays,
)
from avalanche_supermask.model.weight_norm import use_masked_weight_norm
from avalanche_supermask.model.wrappable import check_wrappable, refuse_integers
from avalanche_supermask.model.wrapped_network import Wrapped
from avalanche_supermask.named_tensors import copies

__all__ = ["MaskedModel"]


class MaskedModel(TaskLifecycle):
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

    @checked
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
        if values is not None and outside == "zero":
            raise ValueError("values are what masks put in the place of the base: expected outside='base', got 'zero'")
        if outside == "base":
            refuse_integers(net)
        # The arguments that wrap another copy of the network in the same way.
        arguments = {
            "init": init if values is None else "given", "per_task": per_task, "exclude": [*exclude], "own": [*own],
            "mask": mask, "scores": scores, "outside": outside, "statistics": statistics, "frozen": frozen,
        }  # fmt: skip
        seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
        check_wrappable(net)
        copied = copy_of(net)
        sparse_embeddings = use_dense_gradients(copied)
        use_masked_weight_norm(copied)
        layout = classify(copied, per_task=per_task, exclude=exclude, own=own, mask=mask, frozen=frozen)
        say_what_stays(net, layout)
        padding = {name: row for name, row in padding_rows(copied).items() if name in layout.masked}
        base = copies(layout.masked) if outside == "base" else None
        if init != "keep" and values is None:
            redraw(layout, seed, biases=base is None, padding=padding)
        weights = copies(layout.masked) if values is None else own_values(values, layout.masked)
        tasks = Subnetworks(weights, base=base, padding=padding)
        wrapped = Wrapped(copied, layout, tasks, arguments, seed, sparse_embeddings)
        super().__init__(wrapped, task_inference=task_inference, logits=logits)
        self._set_learning(())

    # ------------------------------------------------------------------ methods that Avalanche or PyTorch calls

    def train(self, mode: bool = True) -> MaskedModel:
        """Set the mode of the network; with ``statistics="frozen"``, norms stay in evaluation mode.

        This applies to norms with running statistics.
        """
        super().train(mode)
        if self.wrapping.get("statistics") == "frozen":
            for norm in running_norms(self.net):
                norm.training = False
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load a state like any module; a model without tasks takes all tasks of the state, including their heads."""
        device = next(iter(self.subnetworks.frozen.values())).device
        self.grow_heads(state_dict)
        result = super().load_state_dict(state_dict, *args, **kwargs)
        self._clear_kept()
        if device.type != "meta":  # a state that replaces tensors without values stays where it is
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

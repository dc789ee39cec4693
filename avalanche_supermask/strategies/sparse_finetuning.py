"""Sparse fine-tuning: each task changes a few entries of a pretrained network, which no other task may change.

It follows Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022 (LT-SFT); Panda et al.,
"Lottery Ticket Adaptation", 2024; and Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024 (SHiRA). The exclusive
ownership of the entries comes from Yadav & Bansal 2023 (see `exssnet`).

Idea. The pretrained network is the base. Outside the mask of a task, the weights are those of the base:

    W_t = W_base + M_t ⊙ (V - W_base)          M_t ∧ M_s = ∅  for s < t

M_t contains a fraction ``density`` of each layer. Its entries are chosen among those that no finished task owns, and
the values of V at these entries are trained. No two tasks own the same entry, so one buffer V is enough for all tasks,
and 1/density tasks fit. The argument ``choose`` sets how the entries are chosen:

* ``"gradient"``: the entries with the largest |Σ dL/dW| over a sample of the task's training data, at the base.
* ``"magnitude"``: the entries with the largest |W_base|.
* ``"change"``: all free entries train in the first epochs; the entries that changed most are chosen and start again
  (LT-SFT).
* ``"random"``: entries drawn at random with the model's seed and the task's key.

Outside its own entries, a task reads the base (``reads="base"``), or the base with the changes of all earlier tasks
(``reads="earlier"``). The task's output layer is fitted to the features of the base first (see `output_layer_start`).

Deviations. The number of entries is fixed for each layer, not for the whole network together. With ``"change"``, the
task's own tensors (output layer, norms) do not start again after the first epochs.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask import nested
from avalanche_supermask.checked_arguments import Count, Epochs, LearningRate, Share, checked
from avalanche_supermask.class_outputs import NAME_OUTPUT_LAYER, check_output_layer
from avalanche_supermask.functional import initial_scores, top_k_free
from avalanche_supermask.model.heads import output_pattern
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.wrappable import check_wrappable
from avalanche_supermask.plugin import Phase, Schedule, SubnetworkPlugin, TaskKey
from avalanche_supermask.pretrained import left_out, said_of
from avalanche_supermask.recurrent_gradients import differentiable
from avalanche_supermask.registry import register
from avalanche_supermask.selection import LayerDensities, TopK, selection
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.output_layer_start import fit_output_layer
from avalanche_supermask.strategy import AllArguments, SubnetworkStrategy
from avalanche_supermask.strategy_batch import minibatch, random_sample

__all__ = ["Choose", "Reads", "SparseFineTuning", "SparseFineTuningPlugin"]

Choose = Literal["gradient", "magnitude", "change", "random"]
Reads = Literal["base", "earlier"]


class SparseFineTuningPlugin(SubnetworkPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Sparse fine-tuning as a plugin for any template whose model is a `MaskedModel` with ``outside="base"``.

    Args:
        density: fraction of the masked weights that a task changes (default 0.01).
        layer_densities: how the overall density is divided among the layers: ``"uniform"`` (default, the same density
            in every layer), ``"erdos_renyi"`` (a higher density in small layers) or ``"balanced"`` (uniform, but with
            a few entries for every unit).
        choose: how the entries are chosen. ``"gradient"`` (default): the largest gradient at the base.
            ``"magnitude"``: the largest weights of the base. ``"change"``: the entries that change most when all free
            entries train first. ``"random"``: at random.
        choose_samples: number of training samples for ``choose="gradient"``, drawn with the model's seed (default
            1,000).
        choose_epochs: number of first epochs in which all free entries train, for ``choose="change"``; None (default):
            half of ``train_epochs``.
        reads: which weights a task reads outside its own entries: the ``"base"`` (default), or the base with the
            changes of all ``"earlier"`` tasks.
        head_epochs: number of epochs in which the task's own output layer alone is trained first, on features of
            ``choose_samples`` training samples that are computed once (default 5, not part of ``train_epochs``). 0:
            the output layer starts at random values. ``settings_used`` holds 0 if the layer could not be trained
            alone, because the logits of the network are not the outputs of its last layer, or because it is masked.
        lr: learning rate; None (default): the optimizer's rate.

    Raises:
        ValueError: a density outside (0, 1], or an unknown option; when training starts, a ``choose_epochs`` that
            leaves no epoch for the chosen entries, or a model without ``outside="base"`` and ``init="keep"``.
    """

    @checked
    def __init__(
        self,
        *,
        density: Share = 0.01,
        layer_densities: LayerDensities = "uniform",
        choose: Choose = "gradient",
        choose_samples: Count = 1000,
        choose_epochs: Count | None = None,
        reads: Reads = "base",
        head_epochs: Epochs = 5,
        lr: LearningRate | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(task_key=task_key, schedule=schedule)
        self.density, self.layer_densities, self.head_epochs = density, layer_densities, head_epochs
        self.choose: Choose = choose
        self.choose_samples, self.choose_epochs = choose_samples, choose_epochs
        self.reads: Reads = reads
        self.lr = lr
        self._chosen: dict[str, Tensor] = {}  # entries of the current task

    # ------------------------------------------------------------------ the lifecycle of a task

    def phases(self, epochs: int) -> list[Phase]:
        """Return the phase of the chosen entries; with ``choose="change"``, a phase of all free entries precedes it."""
        if self.choose != "change":
            return [Phase("entries", epochs, self.lr)]
        first = epochs // 2 if self.choose_epochs is None else self.choose_epochs
        if epochs < 2:
            raise ValueError(
                "choose='change' trains all free entries first, and then those it chose: expected train_epochs of 2 or "
                f"more, got {epochs}; raise train_epochs, or use another choose"
            )
        if not 0 < first < epochs:
            raise ValueError(
                f"choose='change' trains all free entries for choose_epochs of the train_epochs: expected 1 to "
                f"{epochs - 1}, got {first}; choose it within this range, or raise train_epochs for more"
            )
        return [Phase("all", first, self.lr), Phase("entries", epochs - first, self.lr)]

    def check_model(self, model: MaskedModel) -> None:
        """Refuse a model that does not keep the values of the network as its base."""
        if model.outside != "base" or model.init != "keep":
            raise ValueError(
                "sparse fine-tuning changes a few entries of the network that it is given: expected outside='base' and "
                f"init='keep', got {model.outside!r} and {model.init!r}; leave both out, or pass the expected ones to "
                "MaskedModel"
            )

    def prepare(self, model: MaskedModel) -> None:
        """Allocate the trainable values of one task's entries."""
        model.subnetworks.allocate_values(self.counts(model))

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Fit the output layer; choose the entries, except with ``choose="change"``, which chooses them later."""
        self._learn_all(model)
        fitted = fit_output_layer(strategy, model, self._sample(strategy, model), epochs=self.head_epochs)
        self.settings_used["head_epochs"] = self.head_epochs if fitted else 0
        if self.choose != "change":
            self._chosen = self._among_free(model, self._scores(strategy, model))

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Train all free entries, or the chosen entries."""
        if phase.name == "all":
            self._learn_all(model)
            return
        if self.choose == "change":
            self._chosen = self._among_free(model, self._moved(model))
        owned = model.subnetworks.owned() if self.reads == "earlier" else {}
        model.learn_entries(
            self._chosen,
            mask={name: chosen | owned[name] if owned else chosen for name, chosen in self._chosen.items()},
        )

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Check at the first batch that the loss depends on the task's own output layer."""
        if self._iterations == 1:
            check_output_layer(strategy.model, remedy=NAME_OUTPUT_LAYER)

    # ------------------------------------------------------------------ how many

    def counts(self, model: MaskedModel) -> dict[str, int]:
        """Return the number of entries of each masked weight that a task changes."""
        select = selection(model.masked_shapes, density=self.density, layer_densities=self.layer_densities)
        assert isinstance(select, TopK)
        return dict(select.counts)

    def tasks_left(self, model: MaskedModel) -> int:
        """Return how many more tasks fit, so that each finds its full number of free entries in every layer."""
        counts = self.counts(model)
        return min(layer.free // counts[name] for name, layer in model.capacity().items())

    # ------------------------------------------------------------------ which

    def _among_free(self, model: MaskedModel, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mark the entries with the largest scores among those that no finished task owns; warn if they are too few."""
        counts, owned = self.counts(model), model.subnetworks.owned()
        chosen = {name: top_k_free(score, owned[name], counts[name]) for name, score in scores.items()}
        found = {name: int(entries.sum()) for name, entries in chosen.items()}
        short = [name for name, count in counts.items() if found[name] < count]
        if not any(found.values()) and not model.has_own_tensors:
            key = model.active
            model.abandon()
            raise ValueError(
                f"task {key} cannot be learned: the {len(model.task_keys)} finished tasks own every entry; forget one, "
                "start with a lower density, or give tasks an output layer or norms of their own"
            )
        if short:
            some = f"learns only {sum(found.values())}" if any(found.values()) else "learns only tensors of its own"
            warnings.warn(
                f"task {model.active} {some}: {sum(found.values())} of the {sum(counts.values())} entries that its "
                f"density stands for are free ({found[short[0]]} of {counts[short[0]]} in {short[0]!r}, the first of "
                f"{len(short)} layers with too few); forget(task) frees entries, a lower density needs fewer",
                stacklevel=2,
            )
        return chosen

    def _scores(self, strategy: Any, model: MaskedModel) -> dict[str, Tensor]:
        frozen = model.subnetworks.frozen
        if self.choose == "magnitude":
            return dict(model.subnetworks.base)
        if self.choose == "random":
            generator = torch.Generator().manual_seed(model.seed + 1_000_003 * (model.active or 0))
            drawn = {name: initial_scores(shape, generator=generator) for name, shape in model.masked_shapes.items()}
            return {name: scores.to(frozen[name].device) for name, scores in drawn.items()}
        return self._gradients(strategy, model)

    def _gradients(self, strategy: Any, model: MaskedModel) -> dict[str, Tensor]:
        """Return Σ dL/dW over a random sample of the training data, at the base and in evaluation mode."""
        live = dict(model.net.named_parameters())
        was_training = model.training
        model.eval()
        try:
            for batch in self._sample(strategy, model):
                with minibatch(strategy, batch), model.router.answering(model.active), differentiable(model.net):
                    strategy.mb_output = strategy.forward()
                    (strategy.criterion() * nested.batch_size(strategy.mb_y)).backward()
            found = {name: live[name].grad for name in model.masked_names}
        finally:
            model.train(was_training)
            model.zero_grad(set_to_none=True)
        gradients = {n: torch.zeros_like(live[n]) if g is None else g for n, g in found.items()}
        if not all(bool(g.isfinite().all()) for g in gradients.values()):
            key = model.active
            model.abandon()
            raise FloatingPointError(
                f"the gradient of task {key} at the base is NaN or infinite, so no entry can be chosen by it; the "
                f"{len(model.task_keys)} earlier tasks are intact; look at the inputs, the labels and the criterion"
            )
        return gradients

    def _sample(self, strategy: Any, model: MaskedModel) -> Any:
        """Return a random sample of the current training data in batches, drawn with the seeds of model and task."""
        seed = model.seed + (model.active or 0)
        dataset, size = strategy.experience.dataset, strategy.train_mb_size
        return random_sample(dataset, self.choose_samples, seed=seed, batch_size=size)

    def _learn_all(self, model: MaskedModel) -> None:
        """Train every free entry; the other entries are those that the task reads."""
        free = {name: ~owned for name, owned in model.subnetworks.owned().items()}
        everything = {name: torch.ones_like(entries) for name, entries in free.items()}
        model.learn_weights(free, mask=free if self.reads == "base" else everything)

    def _moved(self, model: MaskedModel) -> dict[str, Tensor]:
        """Return the difference between each trained entry and the base."""
        live = dict(model.net.named_parameters())
        return {name: live[name].detach() - base for name, base in model.subnetworks.base.items()}


@register("sparse_finetuning")
class SparseFineTuning(SubnetworkStrategy):
    """Sparse fine-tuning of a pretrained network: each task changes a few entries that no other task changes.

    It needs the identity of the task in training, and at test unless ``task_inference`` infers the task. It forgets
    nothing: the outputs of finished tasks stay bit-identical.

    Args:
        model: a pretrained network, for example from `pretrained.classifier`; it is deep-copied and wrapped.
        optimizer: an optimizer with the parameters of ``model``; None (default): Adam at ``lr``. While the chosen
            entries train, the optimizer's state covers only these and the task's own tensors.
        head: ``"linear"`` (default): each task trains its own output layer; ``"masked"``: each task changes a few
            entries of the output layer, as in the other layers.
        norm: ``"frozen"`` (default): norm layers never change, including their running statistics; ``"own"``: each
            task has its own norm parameters and running statistics.
        lr: learning rate; None (default): the rate of the optimizer that was passed, or
            ``1e-3 sqrt(0.1 / density)`` if none was passed (3.2e-3 for a density of 1 %).
        schedule: schedule of the learning rate within each phase, ``"constant"`` or ``"cosine"``; None (default):
            cosine if no optimizer was passed, else constant.
        arguments: arguments of `MaskedModel` and of any Avalanche strategy. Without ``exclude``, no task changes
            embeddings, position tables and similar parameters (see `pretrained.left_out`); a printed line names them.

    Raises:
        ValueError: quantised or integer weights, or an unknown option.

    Example:
        >>> net = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 2))
        >>> strategy = SparseFineTuning(net, density=0.05, train_epochs=2, evaluator=None)
        SparseFineTuning: a task changes 10 of 200 weights in 1 tensor; its own: 2.weight, 2.bias
        >>> strategy.tasks_left
        20
    """

    method: SparseFineTuningPlugin

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        density: Share = 0.01,
        layer_densities: LayerDensities = "uniform",
        choose: Choose = "gradient",
        choose_samples: Count = 1000,
        choose_epochs: Count | None = None,
        reads: Reads = "base",
        head_epochs: Epochs = 5,
        head: Literal["linear", "masked"] = "linear",
        norm: Literal["frozen", "own"] = "frozen",
        lr: LearningRate | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule | None = None,
        **arguments: Unpack[AllArguments],
    ) -> None:
        if not isinstance(model, MaskedModel):
            check_wrappable(model)
        given = {
            **taken_by(SparseFineTuningPlugin, locals()),
            "schedule": schedule or ("cosine" if optimizer is None else "constant"),
        }
        method = SparseFineTuningPlugin(**given)
        chosen_by_default = not isinstance(model, MaskedModel) and "exclude" not in arguments
        if chosen_by_default:
            arguments["exclude"] = left_out(model)
        if not isinstance(model, MaskedModel):
            own = [*arguments.get("own", ())]
            if head == "linear":
                own.append(output_pattern(model))
            arguments["own"] = own
            arguments.setdefault("init", "keep")
            arguments.setdefault("outside", "base")
            arguments.setdefault("per_task", "norm" if norm == "own" else "none")
            arguments.setdefault("statistics", "task" if norm == "own" else "frozen")
        default_lr = lr or 1e-3 * (0.1 / density) ** 0.5
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=default_lr, **arguments)
        if chosen_by_default:
            print(said_of(self.model, changes=sum(method.counts(self.model).values())))

    @property
    def tasks_left(self) -> int:
        """How many more tasks fit, so that each finds its full number of free entries in every layer."""
        left: int = self.method.tasks_left(self.model)
        return left

"""CLNP: continual learning via neural pruning. A task keeps the neurons that were active, and frees the rest.

Golkar, Kagan & Cho, "Continual Learning via Neural Pruning", 2019 (arXiv 1903.04476).

Idea. Units (neurons, filters) are active, once claimed by a task, or free. A new task may read active units but
never write to them. With A_l the active units of layer l, the entry (i, j) of W_l, from unit j to unit i, is

    frozen         i ∈ A_l and j ∈ A_{l-1}      stays as it is
    interference   i ∈ A_l and j ∉ A_{l-1}      is zero, or a later task would disturb unit i
    free           i ∉ A_l                      trains, with an L1 penalty α Σ|w|

After training, a unit is kept if its mean activity exceeds a threshold θ: the largest one at which accuracy on
held-out training data stays within a margin (graceful forgetting, the only one that ever happens). Kept units are
claimed; all others are re-initialised for the tasks to come. So a weight is used from task t on if and only if

    claimed(j) ≤ claimed(i) ≤ t        (inputs are claimed from the start)

Heads. By default each task has an output layer of its own (the paper's multi-head). ``head="gated"`` shares one:
task t sees the columns of units claimed by t, and trains those of free units.

BatchNorm. A claimed channel normalises with the statistics it had when it was claimed, in training as well.

Deviations. θ is sought over 40 geometric steps, ascending, up to the first that costs too much, and then by
bisection below that one; ``min_new`` lets a task claim more than θ does, ``max_new`` less. With ``reads="active"`` a
task's units train on their own first, and then read, of the units claimed before, those that are active on it; in the
paper they read all of them from the start. Old tasks do not rest on the zeros alone: each keeps the bit mask of its
weights, like every other method.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask import nested
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.distributed import agreed
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.tensor_roles import Frozen
from avalanche_supermask.model.tensor_roles import output_layer as last_layer
from avalanche_supermask.plugin import Phase, Schedule, SubnetworkPlugin, TaskKey
from avalanche_supermask.registry import register
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.clnp.activity import Activity, unit_activity
from avalanche_supermask.strategies.clnp.l1 import L1, L1Form
from avalanche_supermask.strategies.clnp.pruning import (
    PruningReport,
    UnitCapacity,
    capacity_after,
    prune,
    strength_that_claims_least,
)
from avalanche_supermask.strategies.clnp.quality import BATCH, Found, found_on, quality
from avalanche_supermask.strategies.clnp.unit_owners import Reads, UnitOwners
from avalanche_supermask.strategies.short_training import train_copy
from avalanche_supermask.strategy import StrategyArguments, SubnetworkStrategy

__all__ = ["CLNP", "CLNPPlugin"]

LEFT = 0.15  # share of a layer's units that is free after the tasks of a stream
USUAL_TASKS = 10  # of a stream that does not tell
_OF_THE_EXPERIENCE: dict[str, Any] = {"_held_out": [], "_trained_on": None, "_criterion": None}


class CLNPPlugin(SubnetworkPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """CLNP as a plugin of any template whose model is a ``MaskedModel(net, mask="all", init="keep")``.

    Args:
        l1: strength α of the penalty Σ|w| on the weights that train (default 1e-4; the paper's is unknown).
        l1_search: strengths to choose from at each task: a copy is trained at each for ``search_epochs`` and pruned;
            of those whose accuracy is within the margin of the best, the one that claims the fewest units wins.
        search_epochs: epochs of a copy (default 1), besides ``train_epochs``.
        l1_form: ``"subgradient"`` adds α sign(w) to the gradient; ``"proximal"`` shrinks weights by the learning
            rate times α after each step, which gives exact zeros, but under Adam needs an α a hundred to ten
            thousand times larger, as Adam scales the gradient and not the step.
        margin: accuracy that pruning may cost, absolute (default 0.005, half a point); where the targets are no class
            numbers, the share of the loss that pruning may bring back (see `quality`).
        min_new: share of each layer's units that a task claims at least, as far as free ones were active (default
            0, the paper's). The margin looks at accuracy before fine-tuning; only new units fine-tune.
        max_new: share of each layer's free units that a task claims at most (the paper's: 1); None: such that about
            15 % of a layer are free after all tasks that the stream announces (see `share_of_free`). The penalty on
            the weights does not always bring activities down: the first task may claim all units otherwise.
        reads: which claimed units a task's new ones read: ``"all"``, from the start (the paper's); or ``"active"``:
            none until the pruning, and then, beginning at zero, those at least as active on the task as the least
            active unit of their layer that it claims. For tasks that have little in common: the rest is noise to them.
        activity: ``"mean"`` activation after the ReLU (the paper's); ``"rate"``, how often it is positive; or the mean
            ``"relative"`` to its layer's, where one threshold would empty one layer and leave another full.
        validation_share: of the experience's training data, held out to choose the threshold (default 0.1).
        finetune_epochs: last epochs of ``train_epochs``, in which the kept weights train on without penalty; None:
            three quarters.
        head: ``"own"``: what is each task's own in the model is its head; ``"gated"``: one shared output layer.
        on_exhausted: ``"warn"`` and train what is left, or ``"error"``, where a layer has no free unit.
        weight_lr: learning rate of both phases; None: the optimizer's, or chosen from the number of steps where the
            strategy made the optimizer.

    Raises:
        ValueError: an unknown or impossible option.
    """

    def __init__(
        self,
        *,
        l1: float = 1e-4,
        l1_search: Sequence[float] = (),
        search_epochs: int = 1,
        l1_form: L1Form = "subgradient",
        margin: float = 0.005,
        min_new: float = 0.0,
        max_new: float | None = None,
        reads: Reads = "all",
        activity: Activity = "mean",
        validation_share: float = 0.1,
        finetune_epochs: int | None = None,
        head: Literal["own", "gated"] = "own",
        on_exhausted: Literal["warn", "error"] = "warn",
        weight_lr: float | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(task_key=task_key, schedule=schedule)
        _expect("l1_form", l1_form, ("proximal", "subgradient"))
        _expect("reads", reads, ("all", "active"))
        _expect("activity", activity, ("mean", "rate", "relative"))
        _expect("head", head, ("own", "gated"))
        _expect("on_exhausted", on_exhausted, ("warn", "error"))
        if l1 < 0 or not 0 <= margin <= 1 or not 0 < validation_share < 1:
            raise ValueError(
                "expected l1 >= 0, 0 <= margin <= 1 and 0 < validation_share < 1; got "
                f"{l1}, {margin} and {validation_share}"
            )
        if not 0 <= min_new <= 1 or (max_new is not None and not 0 < max_new <= 1):
            raise ValueError(f"expected 0 <= min_new <= 1 and 0 < max_new <= 1; got {min_new} and {max_new}")
        if reads == "active" and finetune_epochs == 0:
            raise ValueError('reads="active" reads claimed units while it fine-tunes: give finetune_epochs')
        self.l1, self.l1_form, self.margin, self.activity = l1, l1_form, margin, activity
        self.min_new, self.max_new = min_new, max_new
        self.l1_search, self.search_epochs = tuple(l1_search), search_epochs
        self.validation_share, self.finetune_epochs = validation_share, finetune_epochs
        self.head, self.on_exhausted, self.weight_lr = head, on_exhausted, weight_lr
        self.reports: dict[int, PruningReport] = {}
        self.claims = UnitOwners(reads=reads)
        self._held_out: list[Any] = []
        self._trained_on: Any = None
        self._criterion: Any = None
        self._pruned = False

    _share = 1.0  # of the free units that the current task claims at most
    _chosen_rate = 1e-3  # for the current task, where nobody gave one

    # ------------------------------------------------------------------ the lifecycle of a task

    def phases(self, epochs: int) -> list[Phase]:
        """Training, then fine-tuning of what is kept."""
        last = 3 * epochs // 4 if self.finetune_epochs is None else self.finetune_epochs
        if not 0 <= last < epochs:
            raise ValueError(f"finetune_epochs is part of train_epochs: expected 0 to {epochs - 1}, got {last}")
        rate = self._chosen_rate if self.weight_lr is None and self.rule_applies else self.weight_lr
        return [Phase("train", epochs - last, rate, "weight_lr"), Phase("finetune", last, rate, "weight_lr")]

    def prepare(self, model: MaskedModel) -> None:
        """There are no scores: weights learn from the start.

        Raises:
            ValueError: the model keeps a base outside its masks.
        """
        if model.outside == "base":
            raise ValueError(
                "CLNP prunes units, so that what is outside a mask must be zero: expected outside='zero', got 'base'; "
                "for pretrained networks use SparseFineTuning"
            )

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Take the held-out share out of the training data, before a loader is made of them."""
        dataset = strategy.adapted_dataset
        seed = getattr(strategy.model, "seed", 0) + strategy.experience.current_experience
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
        cut = round(self.validation_share * len(dataset))
        self._held_out = load_tensors(dataset.eval().subset(order[:cut] or order), strategy.device)
        self._criterion = strategy._criterion
        batches = math.ceil((len(dataset) - cut) / strategy.train_mb_size)
        self._chosen_rate = dense_rate(batches * strategy.train_epochs)
        strategy.adapted_dataset = self._trained_on = dataset.subset(order[cut:])

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Find the units at the first task; look how many are free."""
        if not self.claims.units.count:
            two = nested.rows(self._held_out[0], slice(2))
            self.claims.find(model, model.arguments(two, model.subnetworks.active_label)[0])
        full = self.claims.full()
        if full:
            message = (
                f"task {model.active}: no free unit is left in {', '.join(full)}; what is left trains on, nothing "
                "is overwritten. Use a wider network, a larger l1 or margin"
            )
            if self.on_exhausted == "error":
                model.abandon()
                raise RuntimeError(message)
            warnings.warn(message, stacklevel=2)
        self._pruned = False
        self._share = share_of_free(strategy.experience) if self.max_new is None else self.max_new
        self.settings_used |= {
            "max_new": self._share, "finetune_epochs": self.phases(strategy.train_epochs)[1].epochs,
            "min_new": self.min_new, "margin": self.margin,
        }  # fmt: skip
        model.frozen_channels = dict(self.claims.statistics)
        if self.l1_search:
            self.l1 = self._search_l1(strategy, model)
        self.settings_used["l1"] = self.l1

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """Train the free weights; or prune, and train those of them that are kept."""
        if phase.name == "train":
            model.learn_weights(self.claims.free(model), mask=self.claims.seen(model))
        else:
            self._claim(model)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """L1 as a sub-gradient, until the pruning."""
        if not self._pruned:
            self._penalty.after_backward(strategy.model)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """L1 as a proximal step, until the pruning."""
        if not self._pruned:
            self._penalty.after_step(strategy.model, strategy.optimizer.param_groups[0]["lr"])

    @property
    def _penalty(self) -> L1:
        return L1(self.l1, self.l1_form)

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Prune, if no fine-tuning did."""
        if not self._pruned:
            self._claim(model)
        self.claims.keep_statistics(model)

    def task_committed(self, strategy: Any, model: MaskedModel, key: int) -> None:
        """What is free begins anew."""
        self.claims.reinitialise(model)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """End the task, and let go of its data."""
        super().after_training_exp(strategy, **kwargs)
        self._held_out, self._trained_on, self._criterion = [], None, None

    # ------------------------------------------------------------------ pruning

    def _claim(self, model: MaskedModel) -> None:
        """Claim the units that matter; what of them is new goes on to learn."""
        assert model.active is not None
        trainable = self.claims.free(model)
        self.reports[model.active], self.claims.claimed, active = self._prune(model)
        read = active if self.claims.reads == "active" else None
        model.learn_weights(trainable, mask=self.claims.kept(model, self.claims.claimed, read=read), restart=False)
        self._pruned = True

    @torch.no_grad()
    def _prune(self, model: MaskedModel) -> tuple[PruningReport, Tensor, Tensor]:
        """Find the largest threshold within the margin; the model's mask moves, its weights do not.

        Returns:
            As `prune`.
        """
        claims, was_training = self.claims, model.training
        model.eval()
        data = load_tensors(self._trained_on.eval(), self._held_out[-1].device)[0]
        activity = unit_activity(model, claims.units, nested.split(data, BATCH), statistic=self.activity).cpu()
        trainable = claims.free(model)

        def found(mask: dict[str, Tensor]) -> Found:
            model.learn_weights(trainable, mask=mask, restart=False)
            return found_on(model, self._held_out, self._criterion)

        whole = found(claims.seen(model))
        nothing = found(claims.kept(model, claims.claimed)) if whole.right is None else whole  # only a loss needs it
        result = prune(
            claims.units,
            claims.claimed,
            activity,
            place=len(model.task_keys),
            before=quality(whole, nothing),
            accuracy=lambda claimed: quality(found(claims.kept(model, claimed)), nothing),
            margin=self.margin,
            min_new=self.min_new,
            max_new=self._share,
        )
        model.train(was_training)
        return agreed(result)

    def _search_l1(self, strategy: Any, model: MaskedModel) -> float:
        """Train a copy at each strength; of those within the margin of the best, the one that claims least."""
        trials = {}
        for strength in self.l1_search:
            self.l1 = strength
            trial = copy.deepcopy(model)
            trial.learn_weights(self.claims.free(trial), mask=self.claims.seen(trial))
            train_copy(
                trial,
                strategy.dataloader,
                lr=self.phases(strategy.train_epochs)[0].lr or strategy.optimizer.param_groups[0]["lr"],
                epochs=self.search_epochs,
                criterion=strategy._criterion,
                after_backward=L1(strength).after_backward,
                device=strategy.device,
            )
            trials[strength] = self._prune(trial)[0]
        return strength_that_claims_least(trials, self.margin)

    # ------------------------------------------------------------------ questions

    def unit_capacity(self) -> UnitCapacity | None:
        """Units that the latest task used and left, and how many more tasks fit; None before the first."""
        return capacity_after(self.reports[next(reversed(self.reports))]) if self.reports else None

    def slim(self, model: MaskedModel, task: int) -> nn.Module:
        """A plain network with only the units that a task uses: equal outputs, fewer operations."""
        return self.claims.slim(model, task)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **_OF_THE_EXPERIENCE}

    def put_back(self, state: dict[str, Any]) -> None:
        """Take a saved state, and keep the data, which belong to the experience (see `CheckpointPlugin`)."""
        self.__dict__.update({k: v for k, v in state.items() if k not in _OF_THE_EXPERIENCE})


def share_of_free(experience: Any) -> float:
    """Share of the free units that a task claims at most, so that `LEFT` of all are free after the stream's tasks.

    Each of n tasks takes the share ``1 - LEFT ** (1 / n)`` of what the ones before left.

    Args:
        experience: whose stream tells n by its length; of a stream without a length, n is 10.
    """
    try:
        tasks = len(experience.origin_stream)
    except (AttributeError, TypeError):
        tasks = USUAL_TASKS
    return float(1 - LEFT ** (1 / max(1, tasks)))


def dense_rate(steps: int) -> float:
    """Adam's rate for weights that learn from scratch: 0.01, and less beyond a hundred steps, by their root.

    Args:
        steps: of the experience.

    Example:
        >>> dense_rate(50), dense_rate(400)
        (0.01, 0.005)
    """
    return 0.01 * min(1.0, math.sqrt(100 / max(1, steps)))


def _expect(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(map(repr, known))}; got {value!r}")


@register("clnp")
class CLNP(SubnetworkStrategy):
    """CLNP (Golkar et al. 2019): each task keeps its active neurons, and leaves the others to later tasks.

    Uses task identities. Forgets nothing after its own pruning step, which costs a task at most ``margin``.

    Args:
        model: Linear, convolution and BatchNorm layers with ReLU, residual sums included; or an Avalanche
            multi-head model of such layers.
        optimizer: None for Adam with a cosine schedule.
        head: ``"own"``: the output layer is each task's own; ``"gated"``: all tasks share it.
        output_layer: name of the output layer; None: the last module that holds a weight.
        task_key: ``"auto"``, ``"task_label"`` or ``"experience"``.
        schedule: ``"constant"`` or ``"cosine"``; by default cosine for our optimizer, constant for yours.
        frozen: ``"keep"``: layers that are brought frozen (``requires_grad=False``) stay as they are, and their neurons
            are no units; or ``"mask"``: they are pruned like the others.
        seed: of the re-initialisation and the held-out samples.
        arguments: of any Avalanche strategy.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> CLNP(net, train_epochs=2, evaluator=None).model.masked_names
        ['0.weight', '0.bias']
    """

    any_module = False
    method: CLNPPlugin

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        l1: float = 1e-4,
        l1_search: Sequence[float] = (),
        search_epochs: int = 1,
        l1_form: L1Form = "subgradient",
        margin: float = 0.005,
        min_new: float = 0.0,
        max_new: float | None = None,
        reads: Reads = "all",
        activity: Activity = "mean",
        validation_share: float = 0.1,
        finetune_epochs: int | None = None,
        head: Literal["own", "gated"] = "own",
        output_layer: str | None = None,
        on_exhausted: Literal["warn", "error"] = "warn",
        weight_lr: float | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule | None = None,
        frozen: Frozen = "keep",
        seed: int | None = None,
        **arguments: Unpack[StrategyArguments],
    ) -> None:
        given = {
            **taken_by(CLNPPlugin, locals()),
            "schedule": schedule or ("cosine" if optimizer is None else "constant"),
        }
        method = CLNPPlugin(**given)
        wrapping: dict[str, Any] = {"mask": "all", "seed": seed}
        if not isinstance(model, MaskedModel):
            wrapping |= {"init": "keep", "frozen": frozen}
            if head == "own":
                wrapping["own"] = [re.escape(f"{output_layer or last_layer(model)}.".lstrip(".")) + ".*"]
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=1e-3, **wrapping, **arguments)

    def export(self, task: int, *, slim: bool = False) -> nn.Module:
        """A plain network with one task's weights; ``slim``: without the units that it does not use."""
        return self.method.slim(self.model, task) if slim else self.model.export(task)

    def capacity(self) -> UnitCapacity | None:
        """Units that the latest task used and left, and how many more tasks fit; None before the first task."""
        return self.method.unit_capacity()

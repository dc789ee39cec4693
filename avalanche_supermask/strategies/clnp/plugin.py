"""CLNP: continual learning via neural pruning. A task keeps the neurons that were active on it, and frees the others.

Golkar, Kagan & Cho, "Continual Learning via Neural Pruning", 2019 (arXiv 1903.04476).

Idea. A unit (neuron or filter) is active if a task has claimed it, and free otherwise. A new task may read active
units, but never changes the weights that feed them. Let A_l be the active units of layer l. The entry (i, j) of W_l,
from unit j to unit i, is

    frozen         i ∈ A_l and j ∈ A_{l-1}      it never changes
    interference   i ∈ A_l and j ∉ A_{l-1}      it is zero, because a later task would otherwise disturb unit i
    free           i ∉ A_l                      it trains, with an L1 penalty α Σ|w|

After training, a unit is kept if its mean activity exceeds a threshold θ. This is the largest threshold at which the
accuracy on held-out training data stays within a margin. The accuracy lost here is called graceful forgetting; no other
forgetting happens. Kept units are claimed, and all other units are re-initialised for later tasks. So task t uses a
weight if and only if

    claimed(j) ≤ claimed(i) ≤ t        (the network's inputs are claimed from the start)

Heads. By default each task has its own output layer (the paper's multi-head). With ``head="gated"``, all tasks share
one output layer: task t uses the columns of the units that were claimed up to t, and trains the columns of free units.

BatchNorm. A claimed channel is normalised with the statistics that it had when it was claimed, also in training.

Deviations. The search for θ takes 40 geometric steps in ascending order, up to the first step that costs too much, and
then bisects the interval below that step. With ``min_new`` a task can claim more units than θ allows, and with
``max_new`` fewer. With ``reads="active"``, the units of a task first train alone, and then also read those claimed
units that are active on the task; in the paper they read all claimed units from the start. The outputs of old tasks do
not depend only on the zeros: each task stores the bit mask of its weights, as in all other methods.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avalanche_supermask import nested
from avalanche_supermask.checked_arguments import Count, Epochs, Fraction, LearningRate, NotNegative, Share, checked
from avalanche_supermask.class_outputs import check_output_layer
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.data.held_out import BATCH, hold_out
from avalanche_supermask.distributed import agreed
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.plugin import Phase, Schedule, SubnetworkPlugin, TaskKey
from avalanche_supermask.strategies.clnp.activity import Activity, unit_activity
from avalanche_supermask.strategies.clnp.l1 import L1, L1Form
from avalanche_supermask.strategies.clnp.pruning import (
    PruningReport,
    UnitCapacity,
    capacity_after,
    prune,
    strength_that_claims_least,
)
from avalanche_supermask.strategies.clnp.quality import Found, found_on, quality
from avalanche_supermask.strategies.clnp.rules import dense_rate, share_of_free
from avalanche_supermask.strategies.clnp.unit_owners import Reads, UnitOwners
from avalanche_supermask.strategies.short_training import train_copy

__all__ = ["CLNPPlugin"]

_OF_THE_EXPERIENCE: dict[str, Any] = {"_held_out": [], "_trained_on": None, "_criterion": None}


class CLNPPlugin(SubnetworkPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """CLNP as a plugin for any template whose model is a ``MaskedModel(net, mask="all", init="keep")``.

    Args:
        l1: strength α of the penalty Σ|w| on the trainable weights (default 1e-4; the paper does not give its value).
        l1_search: strengths to choose from for each task. A copy of the model is trained with each strength for
            ``search_epochs`` epochs, and pruned. Among the copies whose accuracy is within the margin of the best, the
            strength that claims the fewest units is used. By default, ``l1`` is used without a search.
        search_epochs: number of epochs for each of these copies (default 1), in addition to ``train_epochs``.
        l1_form: ``"subgradient"`` (default) adds α sign(w) to the gradient. ``"proximal"`` shrinks the weights by the
            learning rate times α after each step, which makes some weights exactly zero. With Adam, it needs an α that
            is a hundred to ten thousand times larger, because Adam scales the gradient but not this shrinking.
        margin: accuracy that pruning may cost (absolute; default 0.005, half a percentage point). If the targets are
            not class numbers, it is a share of the loss (see `quality`).
        min_new: smallest share of each layer's units that a task claims, if that many free units were active (default
            0, as in the paper). It is useful because the margin refers to the accuracy before fine-tuning, and only new
            units are fine-tuned.
        max_new: largest share of each layer's free units that a task claims (1 in the paper). None (default): a share
            with which about 15 % of the layer are free after all tasks of the stream (see `share_of_free`). Without a
            limit the first task may claim all units, because the penalty on weights does not always lower activities.
        reads: which claimed units the new units of a task read. ``"all"`` (default, as in the paper): all, from the
            start. ``"active"``: none before the pruning; after it, those that are at least as active on the task as the
            least active unit that the task claims in the same layer, with weights that start at zero. This helps tasks
            that have little in common, for which the other units are noise.
        activity: measure of a unit's activity. ``"mean"`` (default, as in the paper): the mean activation after the
            ReLU. ``"rate"``: the share of positive activations. ``"relative"``: the mean activation divided by the
            mean of the layer, for networks in which one threshold would empty one layer and keep all of another.
        validation_share: share of the experience's training data that is held out to choose the threshold (default
            0.1).
        finetune_epochs: length of the last part of ``train_epochs``, in which the kept weights of new units train
            without penalty; None (default): three quarters.
        head: ``"own"`` (default): each task has its own output layer; ``"gated"``: all tasks share one output layer.
        on_exhausted: what happens if a layer has no free unit. ``"warn"`` (default): a warning, and the remaining
            weights train. ``"error"``: an error is raised.
        weight_lr: learning rate of both phases; None (default): the optimizer's rate, or a rate that is computed from
            the number of steps if the strategy created the optimizer.

    Raises:
        ValueError: an unknown or impossible option.
    """

    @checked
    def __init__(
        self,
        *,
        l1: NotNegative = 1e-4,
        l1_search: Sequence[NotNegative] = (),
        search_epochs: Count = 1,
        l1_form: L1Form = "subgradient",
        margin: Fraction = 0.005,
        min_new: Fraction = 0.0,
        max_new: Share | None = None,
        reads: Reads = "all",
        activity: Activity = "mean",
        validation_share: float = 0.1,
        finetune_epochs: Epochs | None = None,
        head: Literal["own", "gated"] = "own",
        on_exhausted: Literal["warn", "error"] = "warn",
        weight_lr: LearningRate | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(task_key=task_key, schedule=schedule)
        if not 0 < validation_share < 1:
            raise ValueError(f"validation_share must be a fraction between 0 and 1; got {validation_share}")
        if reads == "active" and finetune_epochs == 0:
            raise ValueError(
                "reads='active' reads claimed units only while the task is fine-tuned: expected finetune_epochs of 1 "
                "or more, or None; got 0"
            )
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

    _claims_before: Tensor | None = None  # the claims when the task began that is not finished; None between tasks
    _kept: Mapping[str, Tensor] = MappingProxyType({})  # mask of the current task after its pruning
    _share = 1.0  # largest share of the free units that the current task claims
    _chosen_rate = 1e-3  # learning rate of the current task if none was given

    # ------------------------------------------------------------------ the lifecycle of a task

    def phases(self, epochs: int) -> list[Phase]:
        """Return a training phase, and a phase that fine-tunes the kept weights."""
        last = 3 * epochs // 4 if self.finetune_epochs is None else self.finetune_epochs
        if not 0 <= last < epochs:
            raise ValueError(
                f"finetune_epochs is part of train_epochs: expected 0 to {epochs - 1}, got {last}; choose it within "
                "this range, or raise train_epochs for more"
            )
        rate = self._chosen_rate if self.weight_lr is None and self.rule_applies else self.weight_lr
        return [Phase("train", epochs - last, rate, "weight_lr"), Phase("finetune", last, rate, "weight_lr")]

    def check_model(self, model: MaskedModel) -> None:
        """Refuse a model with ``outside="base"``.

        Raises:
            ValueError: the model uses ``outside="base"``.
        """
        if model.outside == "base":
            raise ValueError(
                "CLNP prunes units, so that what is outside a mask must be zero: expected outside='zero', got 'base'; "
                "for pretrained networks use SparseFineTuning"
            )

    def prepare(self, model: MaskedModel) -> None:
        """Do nothing, because the method has no scores to allocate."""

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Remove the held-out share from the training data, before a loader is made from them."""
        dataset = strategy.adapted_dataset
        seed = getattr(strategy.model, "seed", 0) + strategy.experience.current_experience
        self._held_out, self._trained_on = hold_out(
            dataset, share=self.validation_share, seed=seed, device=strategy.device, batch_size=strategy.train_mb_size
        )
        self._criterion = strategy._criterion
        batches = math.ceil(len(self._trained_on) / strategy.train_mb_size)
        self._chosen_rate = dense_rate(batches * strategy.train_epochs)
        strategy.adapted_dataset = self._trained_on

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Find the network's units at the first task; check that there are free units.

        Raises:
            ValueError: the model has learned tasks of which the plugin does not know the units.
        """
        if not self.claims.units.count:
            if model.task_keys:
                learned = len(model.task_keys)
                model.abandon()
                raise ValueError(
                    f"the model has learned {learned} tasks, and this CLNP does not know which units they claimed, "
                    "because only the strategy holds them, not the model or its files; continue a run with "
                    "save_checkpoint() and maybe_load_checkpoint()"
                )
            two = nested.rows(self._held_out[0], slice(2))
            self.claims.find(model, model.arguments(two, model.subnetworks.active_label)[0])
        if self._claims_before is not None:  # the task before was interrupted after its pruning
            self.claims.claimed = self._claims_before
        self._claims_before = self.claims.claimed
        full = self.claims.full()
        if full:
            found = f"task {model.active}: no free unit is left in {', '.join(map(repr, full))}"
            remedy = "start with a wider network, a larger l1, a larger margin or a smaller max_new"
            if self.on_exhausted == "error":
                model.abandon()
                raise RuntimeError(
                    f"{found}, and the task was not learned; {remedy}, or pass on_exhausted='warn' to train the rest"
                )
            warnings.warn(
                f"{found}; only other layers and the task's own weights train, and no earlier task changes; {remedy}",
                stacklevel=2,
            )
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
        """Train the free weights; or prune, and train the kept weights of new units."""
        if phase.name == "train":
            model.learn_weights(self.claims.free(model), mask=self.claims.seen(model))
        else:
            self._claim(model)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Apply the penalty as a sub-gradient, until the pruning; check the output layer at the first batch."""
        if self._iterations == 1:
            check_output_layer(strategy.model, remedy="name the layer of the logits with output_layer=")
        if not self._pruned:
            self._penalty.after_backward(strategy.model)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Apply the penalty as a proximal step, until the pruning."""
        if not self._pruned:
            self._penalty.after_step(strategy.model, strategy.optimizer.param_groups[0]["lr"])

    @property
    def _penalty(self) -> L1:
        return L1(self.l1, self.l1_form)

    def end_task(self, strategy: Any, model: MaskedModel) -> None:
        """Prune if there was no fine-tuning phase; store the statistics of the claimed BatchNorm channels.

        Prune again if a plugin has loaded a state from before the pruning, as early stopping does.
        """
        mask = model.current_mask()
        if self._pruned and any(not torch.equal(kept, mask[name].to(kept.device)) for name, kept in self._kept.items()):
            assert self._claims_before is not None
            self.claims.claimed, self._pruned = self._claims_before, False
        if not self._pruned:
            self._claim(model)
        self.claims.keep_statistics(model)

    def task_committed(self, strategy: Any, model: MaskedModel, key: int) -> None:
        """Re-initialise the free units."""
        self._claims_before, self._kept = None, {}
        self.claims.reinitialise(model)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """End the task, and drop the references to its data."""
        super().after_training_exp(strategy, **kwargs)
        self._held_out, self._trained_on, self._criterion = [], None, None

    # ------------------------------------------------------------------ pruning

    def _claim(self, model: MaskedModel) -> None:
        """Prune, claim the active units, and continue the training of the new units among them."""
        assert model.active is not None
        trainable = self.claims.free(model)
        self.reports[model.active], self.claims.claimed, active = self._prune(model)
        read = active if self.claims.reads == "active" else None
        self._kept = self.claims.kept(model, self.claims.claimed, read=read)
        model.learn_weights(trainable, mask=self._kept, restart=False)
        self._pruned = True

    @torch.no_grad()
    def _prune(self, model: MaskedModel) -> tuple[PruningReport, Tensor, Tensor]:
        """Find the largest threshold within the margin; the model's mask changes, but its weights do not.

        Returns:
            The values that `prune` returns.
        """
        claims, was_training = self.claims, model.training
        model.eval()
        device = next(nested.tensors(self._held_out)).device
        data = load_tensors(self._trained_on.eval(), device)[0]
        activity = unit_activity(model, claims.units, nested.split(data, BATCH), statistic=self.activity).cpu()
        trainable = claims.free(model)

        def found(mask: dict[str, Tensor]) -> Found:
            model.learn_weights(trainable, mask=mask, restart=False)
            return found_on(model, self._held_out, self._criterion)

        whole = found(claims.seen(model))
        nothing = (
            found(claims.kept(model, claims.claimed)) if whole.right is None else whole
        )  # used only without an accuracy
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
        """Train and prune a copy with each strength; return the strength that `strength_that_claims_least` chooses."""
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
                labelled=hasattr(strategy.experience, "task_labels"),
            )
            trials[strength] = self._prune(trial)[0]
        return strength_that_claims_least(trials, self.margin)

    # ------------------------------------------------------------------ results

    def unit_capacity(self) -> UnitCapacity | None:
        """Return the units that the latest task used and left free, and how many more tasks fit; None before a task."""
        return capacity_after(self.reports[next(reversed(self.reports))]) if self.reports else None

    def slim(self, model: MaskedModel, task: int) -> nn.Module:
        """Return a plain network with only the units that a task uses: the same outputs with fewer operations."""
        return self.claims.slim(model, task)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **_OF_THE_EXPERIENCE}

    def put_back(self, state: dict[str, Any]) -> None:
        """Restore a saved state, except the data of the current experience (see `CheckpointPlugin`)."""
        self.__dict__.update({k: v for k, v in state.items() if k not in _OF_THE_EXPERIENCE})

"""ImpressLearn: a new task for a handful of numbers, as a learned mixture of masks that are there already.

Bhardwaj et al., "ImpressLearn: Continual Learning via Combined Task Impressions", 2022 (arXiv 2210.01987).

Idea. Over random weights W that never change, find n masks M_1 … M_n, the basis ("impressions"). Every further task
trains only coefficients of them, one a mask and layer:

    W_eff,l = W_l ⊙ Σ_i a_{l,i} M_{l,i}        a_{l,i} starts at 1/n
    dL/da_{l,i} = <dL/dW_eff,l , W_l ⊙ M_{l,i}>

so it stores n L numbers where SupSup stores a bit per weight. Coefficients are any reals; the penalty
``λ Σ_l (|a_l|_1 - 1)²`` keeps them near a mean. The basis is, by ``basis``:

* ``"heterogeneous"``: SupSup's masks of the first n tasks, which keep their own;
* ``"homogeneous"``: n masks of the first task, from n seeds; that task keeps the first;
* ``"random"``: n masks of scores that never learned; every task is a mixture;
* ``"tasks"`` (ours): the masks of the first n tasks that the model has learned already, by whatever method. With
  ``outside="base"`` and tasks of `SparseFineTuning`, a mixture is a sum of their changes of a pretrained network,
  W_base,l + Σ_i a_{l,i} M_{l,i} ⊙ (V_l - W_base,l): task vectors, with a coefficient for each and layer.

Norm statistics are each task's own, as the published code has them.

Deviations. The paper's output layer is masked and mixed like the others; ``head="linear"`` gives each task a trained
one instead. Homogeneous masks after the first are trained on copies before the first task's own, ``basis_epochs``
each, in addition to ``train_epochs``. ``alpha_scope="global"`` mixes all layers alike, an ablation.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask.metrics import AccuracyOverSteps
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.mixtures import ALL_LAYERS
from avalanche_supermask.model.tensor_roles import output_layer
from avalanche_supermask.plugin import Phase, Schedule, SubnetworkPlugin, TaskKey
from avalanche_supermask.registry import register
from avalanche_supermask.selection import LayerDensities, Selection, selection
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.short_training import train_copy
from avalanche_supermask.strategy import AllArguments, SubnetworkStrategy

__all__ = ["Basis", "ImpressLearn", "ImpressLearnPlugin"]

Basis = Literal["heterogeneous", "homogeneous", "random", "tasks"]


class ImpressLearnPlugin(SubnetworkPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """ImpressLearn as a plugin of any template whose model is a `MaskedModel`.

    Args:
        n_basis: masks of the basis, n (default 10; the paper sweeps it).
        basis: where they come from: ``"heterogeneous"``, ``"homogeneous"``, ``"random"`` or ``"tasks"``.
        density: fraction of the weights that a mask of the basis keeps (default 0.25, the published notebook's).
        layer_densities: how the density is shared out among the layers, ``"balanced"`` (chosen where it is None),
            ``"uniform"`` or ``"erdos_renyi"`` (the published code's for convolutional networks).
        alpha_scope: ``"layer"``: n coefficients per layer; ``"global"``: n in all.
        own_last_mask: a mixture trains a mask of its own for the last masked layer (the published hybrid).
        penalty: λ (default 0; the published code's for convolutional networks is 0.005).
        basis_epochs: epochs of each homogeneous mask but the first; None: ``train_epochs``.
        mask_lr: learning rate of the scores; None: the optimizer's, or chosen for each layer where
            the strategy made the optimizer.
        coefficient_lr: learning rate of the coefficients; None: the optimizer's, or chosen for each layer where
            the strategy made the optimizer.

    Raises:
        ValueError: an unknown or impossible option.
    """

    def __init__(
        self,
        *,
        n_basis: int = 10,
        basis: Basis = "heterogeneous",
        density: float = 0.25,
        layer_densities: LayerDensities | None = None,
        alpha_scope: Literal["layer", "global"] = "layer",
        own_last_mask: bool = False,
        penalty: float = 0.0,
        basis_epochs: int | None = None,
        mask_lr: float | None = None,
        coefficient_lr: float | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(task_key=task_key, schedule=schedule)
        if n_basis < 1 or penalty < 0:
            raise ValueError(f"expected n_basis >= 1 and penalty >= 0; got {n_basis} and {penalty}")
        if basis not in ("heterogeneous", "homogeneous", "random", "tasks"):
            raise ValueError(f"basis must be 'heterogeneous', 'homogeneous', 'random' or 'tasks'; got {basis!r}")
        if alpha_scope not in ("layer", "global"):
            raise ValueError(f"alpha_scope must be 'layer' or 'global'; got {alpha_scope!r}")
        if own_last_mask and alpha_scope == "global":
            raise ValueError("own_last_mask needs alpha_scope='layer': the last layer has no coefficients then")
        selection({"check": (1,)}, density=density, layer_densities=layer_densities)
        self.n_basis, self.basis, self.alpha_scope = n_basis, basis, alpha_scope
        self.density, self.layer_densities = density, layer_densities or "uniform"
        self.own_last_mask, self.penalty, self.basis_epochs = own_last_mask, penalty, basis_epochs
        self.mask_lr, self.coefficient_lr = mask_lr, coefficient_lr
        self._mixing = False  # whether the task being learned is a mixture
        self._extra: list[dict[str, Tensor]] = []  # homogeneous masks of the first task, until it is committed

    # ------------------------------------------------------------------ the lifecycle of a task

    def phases(self, epochs: int) -> list[Phase]:
        """A task learns a mask of the basis, or coefficients."""
        if self._mixing:
            return [Phase("coefficients", epochs, self._rate(self.coefficient_lr), "coefficient_lr")]
        return [Phase("mask", epochs, self._rate(self.mask_lr))]

    def prepare(self, model: MaskedModel) -> None:
        """Allocate scores and coefficients; let learned tasks be the basis, if they are to be."""
        if self.basis == "tasks" and not model.subnetworks.mixtures.basis:
            if len(model.task_keys) < self.n_basis:
                raise ValueError(
                    f"basis='tasks' mixes tasks that the model has learned: expected {self.n_basis}, got "
                    f"{len(model.task_keys)}; pass a MaskedModel that has learned them, or lower n_basis"
                )
            for key in model.task_keys[: self.n_basis]:
                model.subnetworks.add_to_basis(key)
        super().prepare(model)
        names = [ALL_LAYERS] if self.alpha_scope == "global" else self._mixed(model)
        like = next(iter(model.subnetworks.frozen.values()))
        model.subnetworks.mixtures.allocate(names, like, self.n_basis)

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Fill the basis if it takes no task, or fresh scores for a task that adds a mask to it."""
        self.settings_used |= {"density": self.density, "layer_densities": self.densities(model)}
        basis = model.subnetworks.mixtures.basis
        if self.basis == "random" and not basis:
            for i in range(self.n_basis):
                model.set_scores(model.fresh_scores(-1 - i))
                model.subnetworks.add_to_basis(self._top_k(model))
        self._mixing = len(basis) >= self.n_basis
        self._extra = []
        if self.basis == "homogeneous" and not basis:
            self._extra = [self._seeded_mask(strategy, model, -1 - i) for i in range(self.n_basis - 1)]
        model.set_scores(model.fresh_scores(model.active or 0))

    def enter_phase(self, phase: Phase, model: MaskedModel) -> None:
        """The scores learn, or the coefficients."""
        if phase.name == "mask":
            model.learn_scores(self._select(model))
        else:
            own = set(model.masked_names) - set(self._mixed(model))
            model.learn_coefficients(own=own, select=self._select(model) if own else None)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Gradient of ``λ (|a|_1 - 1)²``, layer by layer."""
        if not (self.penalty and self._mixing):
            return
        for a in strategy.model.subnetworks.mixtures.coefficients.values():
            if a.grad is not None:
                value = a.detach()
                a.grad += 2 * self.penalty * (value.abs().sum() - 1) * value.sign()

    def task_committed(self, strategy: Any, model: MaskedModel, key: int) -> None:
        """A task that learned a mask adds it to the basis."""
        if not self._mixing:
            model.subnetworks.add_to_basis(key)
            for mask in self._extra:
                model.subnetworks.add_to_basis(mask)
        self._extra = []

    # ------------------------------------------------------------------ masks

    def _mixed(self, model: MaskedModel) -> list[str]:
        return model.masked_names[:-1] if self.own_last_mask else model.masked_names

    def _select(self, model: MaskedModel) -> Selection:
        return selection(model.masked_shapes, density=self.density, layer_densities=self.layer_densities)

    def densities(self, model: MaskedModel) -> dict[str, float]:
        """Share of each masked weight's entries that a mask of the basis keeps, by name."""
        select = self._select(model)
        return {name: select.density(name, shape) for name, shape in model.masked_shapes.items()}

    def _top_k(self, model: MaskedModel) -> dict[str, Tensor]:
        select = self._select(model)
        return {name: select.mask(name, scores) for name, scores in model.scores.items()}

    def _seeded_mask(self, strategy: Any, model: MaskedModel, key: int) -> dict[str, Tensor]:
        """One more mask for the first task, from a start of its own, trained on a copy."""
        trial = copy.deepcopy(model)
        trial.set_scores(trial.fresh_scores(key))
        trial.learn_scores(self._select(trial))
        train_copy(
            trial,
            strategy.dataloader,
            lr=self._rate(self.mask_lr) or strategy.optimizer.param_groups[0]["lr"],
            epochs=self.basis_epochs or strategy.train_epochs,
            criterion=strategy._criterion,
            device=strategy.device,
            schedule=self.schedule,
            seed=model.seed - key,
        )
        return trial.current_mask()


@register("impresslearn")
class ImpressLearn(SubnetworkStrategy):
    """ImpressLearn (Bhardwaj et al. 2022): after the first few, a task is a learned mix of their masks.

    Uses task identities, in training and (with ``task_inference="given"``) at test; without them, the paper's claim and
    our measurements favour ``task_inference="entropy"``.

    Args:
        model: any module; deep-copied and wrapped in a `MaskedModel`.
        optimizer: None for Adam with a cosine schedule.
        basis: ``"heterogeneous"``, ``"homogeneous"``, ``"random"`` or ``"tasks"``.
        density: fraction of the weights that a mask of the basis keeps.
        layer_densities: ``"uniform"`` (chosen where it is None), ``"balanced"`` or ``"erdos_renyi"``.
        alpha_scope: ``"layer"`` or ``"global"``.
        head: ``"masked"``: the output layer is mixed like the others; ``"linear"``: each task trains its own.
        mask_lr: learning rate of the scores; None: chosen for each layer by a rule (`learning_rates`); with an
            optimizer of yours, None keeps its own.
        coefficient_lr: learning rate of the coefficients; None: like ``mask_lr``.
        task_key: ``"auto"``, ``"task_label"`` or ``"experience"``.
        schedule: ``"constant"`` or ``"cosine"``; by default cosine for our optimizer, constant for yours.
        arguments: of `MaskedModel` and of any Avalanche strategy.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> ImpressLearn(net, n_basis=3, train_epochs=2, evaluator=None).model.masked_names
        ['0.weight', '2.weight']
    """

    method: ImpressLearnPlugin

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        n_basis: int = 10,
        basis: Basis = "heterogeneous",
        density: float = 0.25,
        layer_densities: LayerDensities | None = None,
        alpha_scope: Literal["layer", "global"] = "layer",
        head: Literal["masked", "linear"] = "masked",
        own_last_mask: bool = False,
        penalty: float = 0.0,
        basis_epochs: int | None = None,
        mask_lr: float | None = None,
        coefficient_lr: float | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule | None = None,
        **arguments: Unpack[AllArguments],
    ) -> None:
        if head not in ("masked", "linear"):
            raise ValueError(f"head must be 'masked' or 'linear'; got {head!r}")
        given = {
            **taken_by(ImpressLearnPlugin, locals()),
            "schedule": schedule or ("cosine" if optimizer is None else "constant"),
        }
        method = ImpressLearnPlugin(**given)
        if head == "linear" and not isinstance(model, MaskedModel):
            arguments["own"] = [*arguments.get("own", ()), re.escape(f"{output_layer(model)}.".lstrip(".")) + ".*"]
        if not isinstance(model, MaskedModel):
            arguments.setdefault("init", "signed_constant")  # coefficients learn the size of the weights by themselves
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=mask_lr or 1e-3, **arguments)

    def adapt(self, experience: Any, *, test: Any, every: int = 10) -> list[tuple[int, float]]:
        """Learn one more task from the basis as it is, watching the accuracy after every few steps.

        The curve goes to the evaluator's loggers as ``AccuracyOverSteps``; give another strategy's evaluator that
        metric for the same curve of its own.

        Args:
            experience: to learn from.
            test: experience on which the accuracy is measured.
            every: steps between two measurements.

        Returns:
            ``(steps, accuracy)`` from before the first step to after the last.

        Raises:
            ValueError: the basis is not complete.
        """
        have, n = len(self.model.subnetworks.mixtures.basis), self.method.n_basis
        if self.method.basis != "random" and have < n:
            raise ValueError(
                f"adapt() needs a complete basis: it holds {have} of {n} masks; train() on more tasks first"
            )
        curve = AccuracyOverSteps(test, every=every)
        self.evaluator.metrics.append(curve)
        try:
            self.train(experience)
        finally:
            self.evaluator.metrics.remove(curve)
        return curve.result()

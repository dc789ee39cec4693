"""ImpressLearn: a new task is a trained mixture of existing masks, and costs only a few numbers per layer.

Bhardwaj et al., "ImpressLearn: Continual Learning via Combined Task Impressions", 2022 (arXiv 2210.01987).

Idea. The random weights W never change. First a basis of n masks M_1 to M_n is made ("impressions"). Every further
task trains only coefficients of these masks, one per mask and layer:

    W_eff,l = W_l ⊙ Σ_i a_{l,i} M_{l,i}        a_{l,i} starts at 1/n
    dL/da_{l,i} = <dL/dW_eff,l , W_l ⊙ M_{l,i}>

With L layers, the task stores n L numbers; SupSup stores one bit per weight. The coefficients are real numbers of any
sign; the penalty ``λ Σ_l (|a_l|_1 - 1)²`` keeps the mixture close to a weighted mean. The argument ``basis`` sets
where the masks come from:

* ``"heterogeneous"``: SupSup's masks of the first n tasks; each of these tasks keeps its own mask.
* ``"homogeneous"``: n masks of the first task, from n different seeds; the task itself uses the first of them.
* ``"random"``: n masks from scores that were never trained; every task is a mixture.
* ``"tasks"`` (not in the paper): the masks of the first n tasks that the model has already learned, with any method.
  With ``outside="base"`` and tasks of `SparseFineTuning`, a mixture is a sum of the changes that these tasks made to a
  pretrained network: W_base,l + Σ_i a_{l,i} M_{l,i} ⊙ (V_l - W_base,l). These are task vectors, with a coefficient
  per task and layer.

Each task has its own norm statistics, as in the published code.

Deviations. In the paper, the output layer is masked and mixed like the other layers; ``head="linear"`` gives each task
a trained output layer instead. All homogeneous masks except the first are trained on copies of the model, before the
first task's own mask. Each takes ``basis_epochs`` epochs in addition to ``train_epochs``. ``alpha_scope="global"``
uses the same coefficients in all layers; it is an ablation.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask.checked_arguments import Count, LearningRate, NotNegative, Share, checked
from avalanche_supermask.class_outputs import NAME_OUTPUT_LAYER, check_output_layer
from avalanche_supermask.metrics import AccuracyOverSteps
from avalanche_supermask.model.heads import output_pattern
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.mixtures import ALL_LAYERS
from avalanche_supermask.model.wrappable import check_wrappable
from avalanche_supermask.plugin import Phase, Schedule, SubnetworkPlugin, TaskKey
from avalanche_supermask.registry import register
from avalanche_supermask.selection import LayerDensities, Selection, selection
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.short_training import train_copy
from avalanche_supermask.strategy import AllArguments, SubnetworkStrategy

__all__ = ["Basis", "ImpressLearn", "ImpressLearnPlugin"]

Basis = Literal["heterogeneous", "homogeneous", "random", "tasks"]


class ImpressLearnPlugin(SubnetworkPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """ImpressLearn as a plugin for any template whose model is a `MaskedModel`.

    Args:
        n_basis: number n of masks in the basis (default 10; the paper tries several values).
        basis: where the masks of the basis come from. ``"heterogeneous"`` (default): the first n tasks.
            ``"homogeneous"``: n seeds on the first task. ``"random"``: untrained scores. ``"tasks"``: n tasks that the
            model has already learned.
        density: fraction of the weights that a mask of the basis keeps (default 0.25, as in the published notebook).
        layer_densities: how the density is divided among the layers: ``"uniform"`` (used if the argument is None),
            ``"balanced"``, or ``"erdos_renyi"`` (in the published code for convolutional networks).
        alpha_scope: ``"layer"`` (default): n coefficients per layer; ``"global"``: n coefficients for all layers
            together.
        own_last_mask: whether a mixture trains its own mask for the last masked layer (default False; True is the
            published hybrid).
        penalty: strength λ of the penalty on the coefficients (default 0; 0.005 in the published code for
            convolutional networks).
        basis_epochs: number of epochs for each homogeneous mask except the first; None (default): ``train_epochs``.
        mask_lr: learning rate of the scores; None (default): the optimizer's rate, or a rate that a rule chooses for
            each layer if the strategy created the optimizer (see `learning_rates`).
        coefficient_lr: learning rate of the coefficients; None (default): as for ``mask_lr``.

    Raises:
        ValueError: an unknown or impossible option.
    """

    @checked
    def __init__(
        self,
        *,
        n_basis: Count = 10,
        basis: Basis = "heterogeneous",
        density: Share = 0.25,
        layer_densities: LayerDensities | None = None,
        alpha_scope: Literal["layer", "global"] = "layer",
        own_last_mask: bool = False,
        penalty: NotNegative = 0.0,
        basis_epochs: Count | None = None,
        mask_lr: LearningRate | None = None,
        coefficient_lr: LearningRate | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule = "constant",
    ) -> None:
        super().__init__(task_key=task_key, schedule=schedule)
        if own_last_mask and alpha_scope == "global":
            raise ValueError("own_last_mask needs alpha_scope='layer': the last layer has no coefficients then")
        self.n_basis, self.basis, self.alpha_scope = n_basis, basis, alpha_scope
        self.density, self.layer_densities = density, layer_densities or "uniform"
        self.own_last_mask, self.penalty, self.basis_epochs = own_last_mask, penalty, basis_epochs
        self.mask_lr, self.coefficient_lr = mask_lr, coefficient_lr
        self._mixing = False  # whether the current task is a mixture
        self._extra: list[dict[str, Tensor]] = []  # further homogeneous masks, until the first task is committed

    mixes = True

    # ------------------------------------------------------------------ the lifecycle of a task

    def phases(self, epochs: int) -> list[Phase]:
        """Return a single phase: the task trains scores for a mask of the basis, or it trains coefficients."""
        if self._mixing:
            return [Phase("coefficients", epochs, self._rate(self.coefficient_lr), "coefficient_lr")]
        return [Phase("mask", epochs, self._rate(self.mask_lr))]

    def prepare(self, model: MaskedModel) -> None:
        """Allocate scores and coefficients; with ``basis="tasks"``, put the masks of learned tasks into the basis."""
        if self.basis == "tasks" and not model.subnetworks.mixtures.basis:
            if len(model.task_keys) < self.n_basis:
                have = len(model.task_keys)
                remedy = (
                    f"learn more tasks first, or pass n_basis={have}" if have else "pass a MaskedModel that has learned"
                )
                raise ValueError(
                    f"basis='tasks' mixes tasks that the model has learned: expected {self.n_basis}, got {have}; "
                    f"{remedy}"
                )
            for key in model.task_keys[: self.n_basis]:
                model.subnetworks.add_to_basis(key)
        super().prepare(model)
        names = [ALL_LAYERS] if self.alpha_scope == "global" else self._mixed(model)
        like = next(iter(model.subnetworks.frozen.values()))
        model.subnetworks.mixtures.allocate(names, like, self.n_basis)

    def begin_task(self, strategy: Any, model: MaskedModel) -> None:
        """Make the masks of the basis that need no task, and set fresh scores."""
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
        """Train the scores, or the coefficients."""
        if phase.name == "mask":
            model.learn_scores(self._select(model))
        else:
            own = set(model.masked_names) - set(self._mixed(model))
            model.learn_coefficients(own=own, select=self._select(model) if own else None)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the gradient of the penalty ``λ (|a|_1 - 1)²`` of each layer."""
        if self._iterations == 1:
            check_output_layer(strategy.model, remedy=NAME_OUTPUT_LAYER)
        if not (self.penalty and self._mixing):
            return
        for a in strategy.model.subnetworks.mixtures.coefficients.values():
            if a.grad is not None:
                value = a.detach()
                a.grad += 2 * self.penalty * (value.abs().sum() - 1) * value.sign()

    def task_committed(self, strategy: Any, model: MaskedModel, key: int) -> None:
        """Add the mask that the task trained to the basis."""
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
        """Return the density of a mask of the basis in each masked weight, by name."""
        select = self._select(model)
        return {name: select.density(name, shape) for name, shape in model.masked_shapes.items()}

    def _top_k(self, model: MaskedModel) -> dict[str, Tensor]:
        select = self._select(model)
        return {name: select.mask(name, scores) for name, scores in model.scores.items()}

    def _seeded_mask(self, strategy: Any, model: MaskedModel, key: int) -> dict[str, Tensor]:
        """Train one more mask for the first task, from other initial scores, on a copy of the model."""
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
            labelled=hasattr(strategy.experience, "task_labels"),
            schedule=self.schedule,
            seed=model.seed - key,
        )
        return trial.current_mask()


@register("impresslearn")
class ImpressLearn(SubnetworkStrategy):
    """ImpressLearn (Bhardwaj et al. 2022): after the first tasks, each task is a trained mixture of their masks.

    It needs the identity of the task in training, and at test unless ``task_inference`` infers the task. For that, the
    paper's claim and our measurements favour ``task_inference="entropy"``.

    Args:
        model: any module; it is deep-copied and wrapped in a `MaskedModel`.
        optimizer: an optimizer with the parameters of ``model``; None (default): Adam.
        head: ``"masked"`` (default): the output layer is mixed like the other layers; ``"linear"``: each task trains
            its own output layer.
        mask_lr: learning rate of the scores; None (default): the rate of the optimizer that was passed, or a rate that
            a rule chooses for each layer if none was passed (see `learning_rates`).
        coefficient_lr: learning rate of the coefficients; None (default): as for ``mask_lr``.
        schedule: schedule of the learning rate, ``"constant"`` or ``"cosine"``; None (default): cosine if no optimizer
            was passed, else constant.
        arguments: arguments of `MaskedModel` and of any Avalanche strategy.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> ImpressLearn(net, n_basis=3, train_epochs=2, evaluator=None).model.masked_names
        ['0.weight', '2.weight']
    """

    method: ImpressLearnPlugin

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        n_basis: Count = 10,
        basis: Basis = "heterogeneous",
        density: Share = 0.25,
        layer_densities: LayerDensities | None = None,
        alpha_scope: Literal["layer", "global"] = "layer",
        head: Literal["masked", "linear"] = "masked",
        own_last_mask: bool = False,
        penalty: NotNegative = 0.0,
        basis_epochs: Count | None = None,
        mask_lr: LearningRate | None = None,
        coefficient_lr: LearningRate | None = None,
        task_key: TaskKey = "auto",
        schedule: Schedule | None = None,
        **arguments: Unpack[AllArguments],
    ) -> None:
        given = {
            **taken_by(ImpressLearnPlugin, locals()),
            "schedule": schedule or ("cosine" if optimizer is None else "constant"),
        }
        method = ImpressLearnPlugin(**given)
        if head == "linear" and not isinstance(model, MaskedModel):
            check_wrappable(model)
            arguments["own"] = [*arguments.get("own", ()), output_pattern(model)]
        if not isinstance(model, MaskedModel):
            # The coefficients adapt the size of the weights, so the constants need no scaling.
            arguments.setdefault("init", "signed_constant")
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=mask_lr or 1e-3, **arguments)

    def adapt(self, experience: Any, *, test: Any, every: int = 10) -> list[tuple[int, float]]:
        """Learn one more task as a mixture of the existing basis, and measure the accuracy every few steps.

        The evaluator's loggers record the curve as `AccuracyOverSteps`. Add this metric to the evaluator of another
        strategy to record a curve for comparison.

        Args:
            experience: the experience to learn.
            test: the experience on which the accuracy is measured.
            every: number of steps between two measurements (default 10).

        Returns:
            Pairs ``(steps, accuracy)``, the first before the first step and the last after the last step.

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

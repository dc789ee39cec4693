"""SupSup without any task identities (NNs): a new mask is opened when no existing mask fits the inputs.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020, section 3.5.

Idea. No label marks the end of a task. Every few batches, the method computes the output entropy H of the superposition
of all K masks, including the mask in training, and its gradient with respect to the coefficients a of the masks (see
`inference`):

    ν = softmax(-dH/da)      K max_i ν_i < 1 + ε:  no mask fits these inputs, and a new mask is opened
                             else:                 the batches belong to task argmax_i ν_i

As long as there are fewer than five masks, random masks are added to the superposition until it has five, because ν
carries no information about a single mask.

Deviations. This criterion (``detect="gradient"``) depends on ε, on K and on the confidence of the networks. While there
are few masks, the first trained mask has the largest ν on any inputs. With the default (``"entropy"``), ν only proposes
a mask, and the entropy H under this mask decides. A mask fits inputs if H is at most a little larger than H on the
inputs that the mask was trained on. With superfluous outputs, H on other inputs is an order of magnitude larger. A
finished mask never changes: if the stream returns to an earlier task, the model uses that task and trains nothing. The
published code continues to train the mask of that task. Two options are additions to the paper. When
there are ``max_tasks`` masks, the mask that fits best is used, and no new mask is opened. With ``merge_above``, a new
mask that is too similar to an earlier mask is dropped, and the earlier mask is used.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

from avalanche_supermask.checked_arguments import Count, Fraction, LearningRate, Positive, Share, checked
from avalanche_supermask.functional import jaccard
from avalanche_supermask.inference import OneShot, entropy
from avalanche_supermask.learning_rates import chosen_rates, group_by_rate
from avalanche_supermask.model.masked_model import MaskedModel
from avalanche_supermask.model.superposition import Superposition
from avalanche_supermask.plugin import masked_model
from avalanche_supermask.selection import LayerDensities, selection
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.supsup import SupSupPlugin
from avalanche_supermask.strategy import AllArguments, Scenario, SubnetworkStrategy

__all__ = ["Look", "SupSupNNs", "SupSupNNsPlugin"]

HORIZON = 10  # number of checks; the rule assumes that a mask trains for this long, because the real length is unknown
FILLED_UP_TO = 5  # smallest number of masks in the superposition, random masks included
Detect = Literal["entropy", "gradient"]


@dataclass(frozen=True)
class Look:
    """Result of one check of the stream.

    Attributes:
        batch: number of the training batch.
        entropy: mean H of the batch under the mask that was in use, divided by log(outputs).
        evidence: K max ν, which is 1 if no mask fits the inputs better than another; None if it was not computed.
        task: key of the task whose mask is in use from here on.
    """

    batch: int
    entropy: float
    evidence: float | None
    task: int


class SupSupNNsPlugin(SupSupPlugin):
    """SupSup without task identities as a plugin for any template whose model is a `MaskedModel`.

    Args:
        check_every: number of batches between two checks (default 100, as in the paper). A task should last for
            several checks, because a shorter one joins the mask of its neighbour.
        detect: criterion for a new mask. ``"entropy"`` (default): the output entropy under single masks.
            ``"gradient"`` (as in the paper): the gradient of the entropy of their superposition.
        tolerance: for ``"entropy"``: how much larger the entropy of a batch may be than the mask's entropy on its own
            data, as a share of the largest possible entropy, log(outputs) (default 0.1).
        epsilon: ε of ``"gradient"`` (default 1/8, as in the paper); with a larger ε, new masks are opened sooner.
        max_tasks: largest number of masks (default 2500, as in the paper).
        merge_above: a finished mask whose Jaccard overlap with an earlier mask is larger than this is dropped, and the
            earlier mask is used; None (default): no mask is dropped.
        density: fraction of weights that a mask keeps (default 0.1); None: masks that keep the weights whose score is
            at least 0.
        mask_lr: learning rate of the scores; None (default): the optimizer's rate, or a rate chosen for each layer if
            the strategy created the optimizer.

    Attributes:
        looks: one `Look` per check; the first one stands for the opening of the first mask. A `Look` without a check
            follows a mask that was abandoned because the loss was not a number.

    Raises:
        ValueError: an impossible option.
    """

    @checked
    def __init__(
        self,
        *,
        check_every: Count = 100,
        detect: Detect = "entropy",
        tolerance: Positive = 0.1,
        epsilon: Positive = 0.125,
        max_tasks: Count = 2500,
        merge_above: Fraction | None = None,
        density: Share | None = 0.1,
        layer_densities: LayerDensities | None = None,
        mask_lr: LearningRate | None = None,
    ) -> None:
        super().__init__(density=density, layer_densities=layer_densities, mask_lr=mask_lr)
        self.check_every, self.max_tasks, self.merge_above = check_every, max_tasks, merge_above
        self.detect, self.epsilon, self.tolerance = detect, epsilon, tolerance
        self.looks: list[Look] = []
        self._own: dict[int, float] = {}  # task -> entropy on its own training data, at the last check
        self._batches = self._experiences = 0
        self._told_of_checks = False
        self._evaluation = contextlib.ExitStack()

    continues = False  # the plugin itself detects where tasks begin and end

    # ------------------------------------------------------------------ Avalanche's callbacks

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check the strategy's settings; refuse a network with a head for each task label, which needs labels."""
        if isinstance(masked_model(strategy).net, MultiTaskModule):
            raise ValueError(
                f"{type(strategy.model.net).__name__} has a head for each task label, and SupSupNNs knows no labels: "
                "give the network one output layer for all classes"
            )
        super().before_training(strategy, **kwargs)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Open a mask at the very first experience; later experiences are no boundaries between tasks."""
        model = masked_model(strategy)
        self._iterations = 0
        if model.active is not None and any(bool(scores.isnan().any()) for scores in model.scores.values()):
            model.abandon()  # its training diverged, and ended with an error
        if not self.looks or self.looks[-1].task not in (model.active, *model.task_keys):
            self.looks.append(Look(self._batches, math.nan, None, self._open(strategy, model)))
        model.router.assigned = self.looks[-1].task

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Do nothing, because there is only one phase."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Check every ``check_every`` batches which task this batch belongs to."""
        model = masked_model(strategy)
        if self._batches and self._batches % self.check_every == 0:
            self._look(strategy, model)
        self._batches += 1
        self._iterations += 1

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Make the loss differentiable while an earlier task is in use, because Avalanche calls backward anyway."""
        if not strategy.loss.requires_grad:
            strategy.loss = strategy.loss + torch.zeros((), device=strategy.loss.device, requires_grad=True)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the current mask in training, because its task may continue in the next experience."""
        masked_model(strategy).router.assigned = None
        self._experiences += 1

    def tell_of_checks(self) -> None:
        """Warn once if several experiences have ended before the first check, so that one mask trained on all of them.

        The user sees this as too few tasks found, and otherwise would not know the cause.
        """
        if self._experiences > 1 and self._batches <= self.check_every and not self._told_of_checks:
            self._told_of_checks = True
            warnings.warn(
                f"{self._experiences} experiences had {self._batches} batches in all, and the first check for a new "
                f"task comes after check_every={self.check_every} batches, so one mask trains on all of them; pass a "
                "smaller check_every, so that each task has several checks",
                stacklevel=2,
            )

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Include the task in training among the finished tasks, so that it can be inferred as well."""
        self.tell_of_checks()
        self._evaluation.enter_context(self._answering(masked_model(strategy)))

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Return that task to training."""
        self._evaluation.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_evaluation": contextlib.ExitStack()}

    # ------------------------------------------------------------------ boundaries

    def _open(self, strategy: Any, model: MaskedModel) -> int:
        key = max(model.task_keys, default=-1) + 1
        self._own.pop(key, None)  # of a mask that was abandoned
        model.begin(key)
        self.begin_task(strategy, model)
        self.enter_phase(self.phases(1)[0], model)
        strategy.make_optimizer(reset_optimizer_state=True)
        if self._rate(self.mask_lr) == "rule":
            rates = chosen_rates(model, HORIZON * self.check_every)
            group_by_rate(strategy.optimizer, rates)
            self.settings_used["mask_lr"] = {name: rate for name, (_, rate) in rates.items()}
        else:
            for group in strategy.optimizer.param_groups if self.mask_lr is not None else ():
                group["lr"] = self.mask_lr
            self.settings_used["mask_lr"] = strategy.optimizer.param_groups[0]["lr"]
        return key

    def close(self, model: MaskedModel) -> int | None:
        """Finish the mask in training; return its task, or the earlier task that replaces it if they were merged."""
        key = model.active
        if key is None:
            return None
        model.commit()
        mine = model.task_mask(key)
        for other in model.task_keys[:-1] if self.merge_above is not None else []:
            if jaccard(mine, model.task_mask(other)) > (self.merge_above or 0.0):
                model.subnetworks.forget(key)
                return other
        return key

    def _look(self, strategy: Any, model: MaskedModel) -> None:
        x, current = strategy.mb_x, self.looks[-1].task
        now, evidence, task = self._entropy(model, current, x), None, current
        if self.detect == "gradient" or not self._knows(current, now):
            nu, keys = self.likelihood(model, x)
            evidence = len(nu) * float(nu.max())
            task = keys[int(nu[: len(keys)].argmax())]
            if self.detect == "gradient":
                is_new = evidence < 1 + self.epsilon or int(nu.argmax()) >= len(keys)
            else:
                is_new = task == current or not self._knows(task, self._entropy(model, task, x))
            if is_new and len(keys) < self.max_tasks:
                self.close(model)
                task = self._open(strategy, model)
            elif task != model.active:
                closed = self.close(model)
                task = task if task in model.task_keys or closed is None else closed
        if task == current == model.active:
            self._own[task] = now
        self.looks.append(Look(self._batches, now, evidence, task))
        model.router.assigned = task

    def _knows(self, task: int, found: float) -> bool:
        """Whether a mask fits inputs with this entropy; a mask that was just opened fits until its first check."""
        return found <= self._own.get(task, math.inf) + self.tolerance

    @torch.no_grad()
    def _entropy(self, model: MaskedModel, task: int, x: Tensor) -> float:
        was_training = model.training
        model.eval()
        logits = model.logits_of(model.forward_task(task, x))
        model.train(was_training)
        return float(entropy(logits).mean()) / math.log(logits.shape[1])

    @torch.no_grad()
    def likelihood(self, model: MaskedModel, x: Tensor) -> tuple[Tensor, list[int]]:
        """Return ν of a batch, and the keys of the tasks; the remaining entries of ν belong to random masks."""
        was_training = model.training
        model.eval()
        select = selection(model.masked_shapes, density=self.density, layer_densities=self.layer_densities)
        with self._answering(model):
            keys = model.task_keys
            device = next(iter(model.subnetworks.frozen.values())).device
            fill = [
                {name: select.mask(name, s).to(device) for name, s in model.fresh_scores(-1 - i).items()}
                for i in range(FILLED_UP_TO - len(keys))
            ]
            k = len(keys) + len(fill)
            superposition = Superposition(model, extra=fill)
            gradient = superposition.gradients([x], torch.full((k,), 1 / k), lambda p: entropy(p).mean())[0]
        model.train(was_training)
        return (-gradient).softmax(dim=0), keys

    @contextlib.contextmanager
    def _answering(self, model: MaskedModel) -> Iterator[None]:
        """While the context is open, the task in training counts as finished."""
        key, select = model.active, model.subnetworks.select
        if key is None:
            yield
            return
        assigned = model.router.assigned
        model.commit()
        model.router.assigned = None
        try:
            yield
        finally:
            model.reopen(select)
            model.router.assigned = assigned


class SupSupNNs(SubnetworkStrategy):
    """SupSup without task identities (Wortsman et al. 2020, NNs): it finds the tasks itself, in training and at test.

    It is made for online streams and streams without task boundaries; an experience may have any length, even a single
    batch. All tasks share the same class numbers. At test the task is inferred. The network should have more outputs
    than there are classes.

    Args:
        model: any module; it is deep-copied and wrapped in a `MaskedModel`.
        optimizer: an optimizer with the parameters of ``model``, whose rate is kept; None (default): Adam.
        mask_lr: learning rate of the scores; None (default): a rule chooses a rate for each layer (see
            `learning_rates`); if an optimizer was passed, None keeps its rate.
        arguments: arguments of `MaskedModel` and of any Avalanche strategy. The default of ``task_inference`` is
            one-shot inference for a whole batch.

    Example:
        >>> strategy = SupSupNNs(nn.Linear(4, 20), check_every=50, evaluator=None)
        >>> strategy.found_tasks
        []
    """

    scenario = Scenario(training=False, test=False)
    method: SupSupNNsPlugin

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        check_every: Count = 100,
        detect: Detect = "entropy",
        tolerance: Positive = 0.1,
        epsilon: Positive = 0.125,
        max_tasks: Count = 2500,
        merge_above: Fraction | None = None,
        density: Share | None = 0.1,
        layer_densities: LayerDensities | None = None,
        mask_lr: LearningRate | None = None,
        **arguments: Unpack[AllArguments],
    ) -> None:
        method = SupSupNNsPlugin(**taken_by(SupSupNNsPlugin, locals()))
        # With scaled constants, the entropy is low on any inputs, so it does not distinguish tasks.
        if not isinstance(model, MaskedModel):
            arguments.setdefault("init", "signed_constant")
        arguments.setdefault("task_inference", OneShot(per="batch"))
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=mask_lr or 1e-3, **arguments)

    @property
    def found_tasks(self) -> list[int]:
        """Keys of all tasks found so far, including the task in training."""
        active = self.model.active
        return [*self.model.task_keys, *([] if active is None else [active])]

    def finish(self) -> None:
        """Finish the task in training, so that the model can be saved or exported."""
        self.method.tell_of_checks()
        self.method.close(self.model)

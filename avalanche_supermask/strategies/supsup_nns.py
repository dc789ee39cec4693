"""SupSup without any task ids (NNs): a new mask where no mask so far knows the inputs.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020, section 3.5.

Idea. Nobody says where a task ends. Every few batches, take the gradient of the output entropy H of the superposition
of all K masks, the one being trained included, by its coefficients a (see `inference`), and

    ν = softmax(-dH/da)      K max_i ν_i < 1 + ε:  no mask knows these inputs: open a new one
                             else:                 the batches belong to task argmax_i ν_i

Until five masks exist, the superposition is filled up to five with random ones: with one mask, ν says nothing.

Deviations. That criterion (``detect="gradient"``) depends on ε, on K and on how sure the networks are, and while
masks are few the first one trained has the largest ν on any inputs. By default (``"entropy"``) ν only proposes a mask,
and its own entropy decides: a mask knows inputs on which H is at most a little above what it was where it learned. With
superfluous outputs the two are an order of magnitude apart. A finished mask never changes: where the stream goes back
to an earlier task, that task answers and nothing trains; the published code trains its mask on. Beyond the paper, as
its users asked: when ``max_tasks`` masks are there, the nearest one answers instead of nothing; and with
``merge_above`` a mask that is too much like an earlier one is dropped for it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import Unpack

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

HORIZON = 10  # looks, for which the rule chooses the rate: nobody knows how long a mask will learn
FILLED_UP_TO = 5
Detect = Literal["entropy", "gradient"]


@dataclass(frozen=True)
class Look:
    """What one look at the stream said.

    Attributes:
        batch: number of the training batch.
        entropy: mean H of the batch under the mask that was learning or answering, as a share of log(outputs).
        evidence: K max ν: 1 where no mask knows the inputs better than another; None where it was not asked for.
        task: that learns or answers from here on.
    """

    batch: int
    entropy: float
    evidence: float | None
    task: int


class SupSupNNsPlugin(SupSupPlugin):
    """SupSup without task ids as a plugin of any template whose model is a `MaskedModel`.

    Args:
        check_every: batches between two looks (default 100, the paper's).
        detect: ``"entropy"`` or ``"gradient"``, the paper's (see the module).
        tolerance: of the entropy criterion: up to how far above its own H a mask still knows inputs, as a share of the
            largest one, log(outputs) (default 0.1).
        epsilon: ε of the gradient criterion (default 1/8, the paper's); the larger, the sooner a new mask is opened.
        max_tasks: masks at most (default 2500, the paper's).
        merge_above: a new mask whose Jaccard overlap with an earlier one is above this is dropped; None: never.

    Attributes:
        looks: one entry a look, the opening of the first mask included.

    Raises:
        ValueError: an impossible option.
    """

    def __init__(
        self,
        *,
        check_every: int = 100,
        detect: Detect = "entropy",
        tolerance: float = 0.1,
        epsilon: float = 0.125,
        max_tasks: int = 2500,
        merge_above: float | None = None,
        density: float | None = 0.1,
        layer_densities: LayerDensities | None = None,
        mask_lr: float | None = None,
    ) -> None:
        super().__init__(density=density, layer_densities=layer_densities, mask_lr=mask_lr)
        if detect not in ("entropy", "gradient"):
            raise ValueError(f"detect must be 'entropy' or 'gradient'; got {detect!r}")
        if check_every < 1 or epsilon <= 0 or tolerance <= 0 or max_tasks < 1:
            raise ValueError(
                "expected check_every >= 1, epsilon > 0, tolerance > 0 and max_tasks >= 1; got "
                f"{check_every}, {epsilon}, {tolerance} and {max_tasks}"
            )
        self.check_every, self.max_tasks, self.merge_above = check_every, max_tasks, merge_above
        self.detect, self.epsilon, self.tolerance = detect, epsilon, tolerance
        self.looks: list[Look] = []
        self._own: dict[int, float] = {}  # entropy of a mask on what it learned from, at its last look
        self._batches = 0
        self._evaluation = contextlib.ExitStack()

    continues = False  # it looks itself where tasks begin and end

    # ------------------------------------------------------------------ Avalanche's callbacks

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check what was passed; a head for each task label would need labels."""
        if isinstance(masked_model(strategy).net, MultiTaskModule):
            raise ValueError(
                f"{type(strategy.model.net).__name__} has a head for each task label, and SupSupNNs knows no labels: "
                "give the network one output layer for all classes"
            )
        super().before_training(strategy, **kwargs)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """An experience is no boundary: only the very first one opens a mask."""
        model = masked_model(strategy)
        if not self.looks:
            self.looks.append(Look(0, math.nan, None, self._open(strategy, model)))
        model.router.assigned = self.looks[-1].task

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """There is one phase."""

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Look whose batch this is, if it is time to."""
        model = masked_model(strategy)
        if self._batches and self._batches % self.check_every == 0:
            self._look(strategy, model)
        self._batches += 1
        self._iterations += 1

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """While an earlier task answers nothing trains, but Avalanche calls backward all the same."""
        if not strategy.loss.requires_grad:
            strategy.loss = strategy.loss + torch.zeros((), device=strategy.loss.device, requires_grad=True)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The mask goes on learning in the next experience."""
        masked_model(strategy).router.assigned = None

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """The mask being learned answers with the others."""
        self._evaluation.enter_context(self._answering(masked_model(strategy)))

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """And goes on learning."""
        self._evaluation.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_evaluation": contextlib.ExitStack()}

    # ------------------------------------------------------------------ boundaries

    def _open(self, strategy: Any, model: MaskedModel) -> int:
        key = max(model.task_keys, default=-1) + 1
        model.begin(key)
        self.begin_task(strategy, model)
        self.enter_phase(self.phases(1)[0], model)
        strategy.make_optimizer(reset_optimizer_state=True)
        if self._rate(self.mask_lr) == "rule":
            rates = chosen_rates(model, HORIZON * self.check_every)
            group_by_rate(strategy.optimizer, rates)
            self.settings_used["mask_lr"] = {name: rate for name, (_, rate) in rates.items()}
        else:
            self.settings_used["mask_lr"] = self.mask_lr or strategy.optimizer.param_groups[0]["lr"]
        return key

    def close(self, model: MaskedModel) -> int | None:
        """Finish the mask being learned; returns the task that it is, an earlier one if they were merged."""
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
        """Whether a mask knows inputs of this entropy; one that has just been opened is given until the next look."""
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
        """ν of a batch, and the tasks that its first entries stand for; the others are random masks."""
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
        """The task being learned as a finished one, for a while."""
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
    """SupSup without task ids (Wortsman et al. 2020, NNs): finds the tasks by itself, in training and at test.

    For online and boundary-free streams: experiences may be of any length, one batch included. Labels are shared by
    all tasks. At test the task is inferred. Give the network more outputs than there are classes.

    Args:
        model: any module; deep-copied and wrapped in a `MaskedModel`.
        optimizer: None for Adam at ``mask_lr`` (default 1e-3).
        density: fraction of weights kept; None for threshold-at-zero masks.
        layer_densities: ``"uniform"`` or ``"erdos_renyi"``.
        mask_lr: learning rate of the scores; with an optimizer of yours, None keeps its own.
        arguments: of `MaskedModel` and of any Avalanche strategy; ``task_inference`` is one-shot if left out.

    Example:
        >>> strategy = SupSupNNs(nn.Linear(4, 20), check_every=50, evaluator=None)
        >>> strategy.found_tasks
        []
    """

    scenario = Scenario(training=False, test=False)
    method: SupSupNNsPlugin

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Optimizer | None = None,
        check_every: int = 100,
        detect: Detect = "entropy",
        tolerance: float = 0.1,
        epsilon: float = 0.125,
        max_tasks: int = 2500,
        merge_above: float | None = None,
        density: float | None = 0.1,
        layer_densities: LayerDensities | None = None,
        mask_lr: float | None = None,
        **arguments: Unpack[AllArguments],
    ) -> None:
        method = SupSupNNsPlugin(**taken_by(SupSupNNsPlugin, locals()))
        # Masks of scaled constants are so sure of any inputs that their entropy tells no task from another.
        if not isinstance(model, MaskedModel):
            arguments.setdefault("init", "signed_constant")
        arguments.setdefault("task_inference", OneShot(per="batch"))
        super().__init__(model=model, method=method, optimizer=optimizer, default_lr=mask_lr or 1e-3, **arguments)

    @property
    def found_tasks(self) -> list[int]:
        """Keys of all tasks found so far, the one being learned included."""
        active = self.model.active
        return [*self.model.task_keys, *([] if active is None else [active])]

    def finish(self) -> None:
        """End the task being learned, so that the model can be saved or exported."""
        self.method.close(self.model)

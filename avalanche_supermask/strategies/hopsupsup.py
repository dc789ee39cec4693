"""HopSupSup: each task has a mask of units; a Hopfield network of constant size stores all masks.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020, section 3.6.

Idea. The random weights never change. A task is a mask m of hidden units, with one bit per unit of every hidden layer:

    p = softmax(W2ᵀ (m ⊙ σ(W1ᵀ x)))        m = [S >= 0], S trained straight-through from zero

Finished masks are not stored one by one. They are stored as patterns ``z = 2 m - 1`` in one Hopfield network Ψ per
layer. At test no task identity is given. Gradient descent recovers the mask: m starts from the mean of all patterns,
and each step b of B steps over unlabelled batches reduces

    (1 - b/B) H(p) + γ (b/B) Σ_layers E(2 m - 1)

In the first steps the data determine the mask that is approached, and in the last steps the Hopfield network completes
the pattern.

Memory. Ψ takes 4 d² bytes per layer from the first task on. This is 33.6 MB for two layers of 2048 units, where plain
unit masks take 512 bytes per task. Plain masks take more memory only beyond 65,000 tasks, and so many patterns do not
fit into Ψ.

Deviations. The descent sometimes ends between two patterns. Therefore it is repeated with other orders of the batches,
and the mask with the lowest output entropy is used (``restarts``; 1 in the published code). The masks act where hidden
activations enter the next weighted layer. This works for any module, and equals the paper's gain of the norm layer
wherever σ(0) = 0.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.optim import SGD
from typing_extensions import Unpack

from avalanche_supermask import nested
from avalanche_supermask.checked_arguments import Count, LearningRate, NotNegative, checked
from avalanche_supermask.class_outputs import show_logits
from avalanche_supermask.distributed.plugin import refuse
from avalanche_supermask.experience_labels import refuse_unusable, why_not_trained
from avalanche_supermask.phases import cosine
from avalanche_supermask.plugin import refuse_no_grad
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.unit_masks import UnitMaskedModel
from avalanche_supermask.strategy import AvalancheArguments, ModelFirst
from avalanche_supermask.strategy_batch import minibatch

__all__ = ["HopSupSup", "HopSupSupPlugin"]


class HopSupSupPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    """HopSupSup as a plugin for any template whose model is a `UnitMaskedModel`.

    Each experience is a task. Before an experience is evaluated, its mask is recovered from its first inputs, without
    their labels.

    Args:
        steps: number B of batches that the recovery uses (default 32, about as in the published code).
        recovery_lr: learning rate of the recovery (default 500, as in the published code).
        gamma: weight γ of the energy (default 1.5e-3, as in the published code).
        recovery_batch: number of samples in a batch of the recovery (default 64, as in the published code).
        restarts: number of descents; the mask with the lowest entropy is used (default 5; 1 in the published code).
        cosine_schedule: whether the learning rate of the training follows a cosine within each experience (default
            True).
    """

    @checked
    def __init__(
        self,
        *,
        steps: Count = 32,
        recovery_lr: LearningRate = 500.0,
        gamma: NotNegative = 1.5e-3,
        recovery_batch: Count = 64,
        restarts: Count = 5,
        cosine_schedule: bool = True,
    ) -> None:
        super().__init__()
        self.steps, self.recovery_lr, self.gamma = steps, recovery_lr, gamma
        self.recovery_batch, self.restarts, self.cosine_schedule = recovery_batch, restarts, cosine_schedule
        self._lrs: list[float] = []
        self._iterations = 0
        self._learning = False
        self._stored: nn.ModuleList | None = None  # the memory without the mask in training, during an evaluation

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a training in several processes or without gradients."""
        refuse("HopSupSup")
        refuse_no_grad()

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse an experience that is empty or has text labels; use the masks of the scores again, for training."""
        refuse_unusable(strategy.experience)
        strategy.model.use([])

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin a task."""
        strategy.model.begin()
        strategy.make_optimizer(reset_optimizer_state=True)
        self._lrs = [group["lr"] for group in strategy.optimizer.param_groups]
        self._iterations, self._learning = 0, True

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Set the learning rate of this step."""
        self._iterations += 1
        done = strategy.clock.train_exp_iterations / (len(strategy.dataloader) * strategy.train_epochs)
        for group, lr in zip(strategy.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * (cosine(done) if self.cosine_schedule else 1.0)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Stop the training if the loss is not finite."""
        if self._iterations and not bool(torch.as_tensor(strategy.loss).isfinite().all()):
            self._learning = False
            raise FloatingPointError(
                f"the loss of experience {strategy.experience.current_experience} is NaN or infinite; its mask was not "
                "stored, and the earlier masks are intact; lower the learning rate or look at the inputs"
            )

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Store the mask of the task."""
        for group, lr in zip(strategy.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr
        self._learning = False
        if self._iterations:
            strategy.model.finish()
            return
        warnings.warn(
            f"experience {strategy.experience.current_experience} was trained for 0 iterations, and no mask is stored. "
            f"{why_not_trained(strategy)}",
            stacklevel=2,
        )

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Store the mask in training for the time of an evaluation, so that it can be recovered as well."""
        if self._learning:
            self._stored = strategy.model.stored()
            strategy.model.finish()

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Continue the training of that mask."""
        if self._stored is not None:
            strategy.model.restore(self._stored)
            strategy.model.use([])
            self._stored = None

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Recover the mask for the inputs of this experience."""
        if not int(strategy.model.memory[0].stored):
            return
        wanted, batches, samples = self.steps * self.recovery_batch, [], 0
        for batch in strategy.dataloader:
            with minibatch(strategy, batch):
                batches.append(strategy.mb_x)
            samples += nested.batch_size(batches[-1])
            if samples >= wanted:
                break
        if not samples:
            return
        inputs = nested.concatenated(batches)
        # If the data set is sorted (by class or difficulty), the descent could end at a wrong mask.
        used = min(samples, wanted)
        order = torch.randperm(used, generator=torch.Generator().manual_seed(0))
        shuffled = nested.rows(inputs, order.to(next(nested.tensors(inputs)).device), n=samples)
        # The batches are equally large up to one sample, because norms fail on a last batch of a single sample.
        sizes = [len(part) for part in torch.arange(used).tensor_split(-(-used // self.recovery_batch))]
        strategy.model.recover(
            nested.split(shuffled, sizes),
            steps=self.steps, lr=self.recovery_lr, gamma=self.gamma, restarts=self.restarts,
        )  # fmt: skip

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Show the logits of a structured output to the metrics."""
        show_logits(strategy, strategy.model)

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Show the logits of a structured output to the metrics."""
        show_logits(strategy, strategy.model)


class HopSupSup(ModelFirst):
    """HopSupSup (Wortsman et al. 2020): a Hopfield network stores masks of units; no task identity is used at test.

    The memory does not grow with the number of tasks, but it is large: 4 d² bytes for each layer of d units. The method
    is made for networks whose norm layers use batch statistics.

    Args:
        model: any module with hidden Linear or convolution layers; it is deep-copied.
        lr: learning rate of SGD with momentum 0.9 and weight decay 1e-4 (default 0.1, as in the published code).
        steps, recovery_lr, gamma, recovery_batch, restarts, cosine_schedule: arguments of `HopSupSupPlugin`.
        seed: seed of the weights; None (default): it is drawn from torch's global random state.
        arguments: arguments of any Avalanche strategy.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> strategy = HopSupSup(net, evaluator=None)
        >>> strategy.model.memory_bytes > 64 * strategy.model.mask_bytes
        True
    """

    method: HopSupSupPlugin

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        lr: LearningRate = 0.1,
        steps: Count = 32,
        recovery_lr: LearningRate = 500.0,
        gamma: NotNegative = 1.5e-3,
        recovery_batch: Count = 64,
        restarts: Count = 5,
        cosine_schedule: bool = True,
        seed: int | None = None,
        **arguments: Unpack[AvalancheArguments],
    ) -> None:
        self._check_arguments(arguments, AvalancheArguments)
        masked = model if isinstance(model, UnitMaskedModel) else UnitMaskedModel(model, seed=seed)
        method = HopSupSupPlugin(**taken_by(HopSupSupPlugin, locals()))
        given: dict[str, Any] = dict(arguments)
        masked.logits = given.pop("logits", masked.logits)
        given["plugins"] = [*(given.get("plugins") or []), method]
        optimizer = SGD(masked.scores.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
        super().__init__(model=masked, optimizer=optimizer, **given)

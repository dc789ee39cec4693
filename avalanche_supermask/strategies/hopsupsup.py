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

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from avalanche.models import DynamicModule
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.optim import SGD
from typing_extensions import Unpack

from avalanche_supermask.class_outputs import show_logits
from avalanche_supermask.distributed.plugin import refuse
from avalanche_supermask.functional import signed_constant, threshold_weight
from avalanche_supermask.inference import entropy
from avalanche_supermask.logits import Logits, find_logits
from avalanche_supermask.model.copied_functions import copy_of
from avalanche_supermask.phases import cosine
from avalanche_supermask.recurrent_gradients import differentiable
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.hopfield import Hopfield
from avalanche_supermask.strategy import AvalancheArguments, ModelFirst

__all__ = ["HopSupSup", "HopSupSupPlugin", "UnitMaskedModel"]

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class UnitMaskedModel(nn.Module):
    """A network whose hidden units can be switched off, and a memory of the masks of finished tasks.

    Args:
        net: the network; it is deep-copied, and the weights of the copy become signed constants. Its weighted layers
            must run in the order in which ``named_modules`` lists them.
        seed: seed of the weights; None (default): it is drawn from torch's global random state.

    Attributes:
        logits: which tensor of the network's output holds the logits (see `find_logits`); None (default): it is found.

    Raises:
        ValueError: a network with fewer than two weighted layers, which has no hidden units, or with a dynamic module
            of Avalanche.
    """

    logits: Logits = None

    def __init__(self, net: nn.Module, *, seed: int | None = None) -> None:
        super().__init__()
        growing = next((type(m).__name__ for m in net.modules() if isinstance(m, DynamicModule)), None)
        if growing is not None:
            raise ValueError(
                f"the network has a {growing}, which grows or needs task labels, and HopSupSup neither adds weights "
                "nor knows labels: give the network one output layer for all classes"
            )
        self.net = copy_of(net)
        layers = [(name, m) for name, m in self.net.named_modules() if isinstance(m, WEIGHTED)]
        if len(layers) < 2:
            raise ValueError(
                f"there are no hidden units to mask: expected at least two weighted layers, got {len(layers)}; add a "
                "hidden layer"
            )
        drawn = int(torch.randint(2**62, ())) if seed is None else seed
        generator = torch.Generator().manual_seed(drawn)
        with torch.no_grad():
            for _, layer in layers:
                layer.weight.copy_(signed_constant(layer.weight.shape, generator=generator))
        self.net.requires_grad_(False)
        self.scores = nn.ParameterList()
        self.memory = nn.ModuleList()
        self._gated = [name for name, _ in layers[1:]]
        for _, layer in layers[1:]:
            units = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            self.scores.append(nn.Parameter(torch.zeros(units)))
            self.memory.append(Hopfield(units))
        self._masks: list[Tensor] = []  # masks in use; if empty, the masks of the scores are used

    def forward(self, x: Any, task_labels: Any = None) -> Any:
        """Return the output under the mask in training, or under the mask that `use` or `recover` set last.

        Args:
            x: a batch of inputs.
            task_labels: not used, because the method finds the task without labels. The argument exists so that this
                model can be called like a `MaskedModel`.
        """
        masks = self._masks or [_binary(scores) for scores in self.scores]
        # The hooks are removed after the call, because a copy of the model would share the masks of remaining hooks.
        hooks = [
            self.net.get_submodule(name).register_forward_pre_hook(partial(_mask_inputs, mask))
            for name, mask in zip(self._gated, masks, strict=True)
        ]
        try:
            return self.net(x)
        finally:
            for hook in hooks:
                hook.remove()

    def logits_of(self, output: Any) -> Tensor:
        """Return the logits in an output of the network of any form.

        Raises:
            TypeError: no tensor of the output could be the logits (see ``logits``).
        """
        return find_logits(output, self.logits)

    @torch.no_grad()
    def begin(self) -> None:
        """Start a task with all units switched on."""
        self._masks = []
        for scores in self.scores:
            scores.zero_()

    @torch.no_grad()
    def finish(self) -> None:
        """Store the trained mask in the Hopfield networks."""
        for scores, memory in zip(self.scores, self._networks, strict=True):
            memory.store(2 * _binary(scores) - 1)

    @property
    def _networks(self) -> list[Hopfield]:
        return [memory for memory in self.memory if isinstance(memory, Hopfield)]

    def use(self, masks: Iterable[Tensor]) -> None:
        """Use these masks of 0 and 1, one per hidden layer, from now on; without any, those of the scores."""
        self._masks = [mask.detach().to(self.scores[i]) for i, mask in enumerate(masks)]

    def recover(self, batches: Sequence[Tensor], *, steps: int, lr: float, gamma: float, restarts: int = 1) -> float:
        """Recover the mask of the task that unlabelled batches belong to, and use it.

        Args:
            batches: batches of inputs; they are repeated or cut, so that there is one per step.
            steps: number B of steps.
            lr: learning rate of SGD with momentum 0.9 and weight decay 1e-4.
            gamma: weight γ of the energy.
            restarts: number of descents, each with another order of the batches; the mask with the lowest entropy is
                used.

        Returns:
            The mean entropy of all batches under this mask.
        """
        was_training = self.training
        self.eval()
        found: list[tuple[float, list[Tensor]]] = []
        for start in range(restarts):
            order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(start)).tolist()
            self._descend([batches[i] for i in order], steps, lr, gamma)
            with torch.no_grad():
                sure = torch.stack([entropy(self.logits_of(self(x))).mean() for x in batches]).mean()
            found.append((float(sure), self._masks))
        best, masks = min(found, key=lambda pair: pair[0])
        self.use(masks)
        self.train(was_training)
        return best

    def _descend(self, batches: Sequence[Tensor], steps: int, lr: float, gamma: float) -> None:
        real = [memory.mean.clone().requires_grad_(True) for memory in self._networks]
        optimizer = SGD(real, lr=lr, momentum=0.9, weight_decay=1e-4)
        for b, x in enumerate(itertools.islice(itertools.cycle(batches), steps), start=1):
            optimizer.zero_grad()
            with torch.enable_grad(), differentiable(self):
                self._masks = [_binary(m) for m in real]
                h = entropy(self.logits_of(self(x))).mean()
                e = torch.stack([n.energy(2 * m - 1) for n, m in zip(self._networks, self._masks, strict=True)]).sum()
                loss = (1 - b / steps) * h + gamma * (b / steps) * e
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.use([_binary(m) for m in real])

    @property
    def memory_bytes(self) -> int:
        """Bytes of the Hopfield networks; this number does not depend on the number of tasks."""
        return sum(b.numel() * b.element_size() for memory in self.memory for b in memory.buffers())

    @property
    def mask_bytes(self) -> int:
        """Bytes that a plain bit mask of one task would take."""
        return sum(-(-len(scores) // 8) for scores in self.scores)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_masks": []}


def _mask_inputs(mask: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not isinstance(layer, nn.Linear):
        mask = mask.reshape(-1, *[1] * (inputs[0].dim() - 2))
    return (inputs[0] * mask, *inputs[1:])


def _binary(scores: Tensor) -> Tensor:
    """Return the mask ``[S >= 0]`` with the straight-through gradient."""
    return threshold_weight(scores, torch.ones_like(scores))


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

    def __init__(
        self,
        *,
        steps: int = 32,
        recovery_lr: float = 500.0,
        gamma: float = 1.5e-3,
        recovery_batch: int = 64,
        restarts: int = 5,
        cosine_schedule: bool = True,
    ) -> None:
        super().__init__()
        self.steps, self.recovery_lr, self.gamma = steps, recovery_lr, gamma
        self.recovery_batch, self.restarts, self.cosine_schedule = recovery_batch, restarts, cosine_schedule
        self._lrs: list[float] = []

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse a training in several processes."""
        refuse("HopSupSup")

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin a task."""
        strategy.model.begin()
        strategy.make_optimizer(reset_optimizer_state=True)
        self._lrs = [group["lr"] for group in strategy.optimizer.param_groups]

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Set the learning rate of this step."""
        done = strategy.clock.train_exp_iterations / (len(strategy.dataloader) * strategy.train_epochs)
        for group, lr in zip(strategy.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * (cosine(done) if self.cosine_schedule else 1.0)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Store the mask of the task."""
        for group, lr in zip(strategy.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr
        strategy.model.finish()

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Recover the mask for the inputs of this experience."""
        if not int(strategy.model.memory[0].stored):
            return
        wanted, batches = self.steps * self.recovery_batch, []
        for batch in strategy.dataloader:
            batches.append(batch[0].to(strategy.device))
            if sum(len(x) for x in batches) >= wanted:
                break
        inputs = torch.cat(batches)[:wanted]
        # If the data set is sorted (by class or difficulty), the descent could end at a wrong mask.
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
        shuffled = inputs[order].split(self.recovery_batch)
        strategy.model.recover(
            shuffled, steps=self.steps, lr=self.recovery_lr, gamma=self.gamma, restarts=self.restarts
        )

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Use the masks of the scores again, for training."""
        strategy.model.use([])

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

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 0.1,
        steps: int = 32,
        recovery_lr: float = 500.0,
        gamma: float = 1.5e-3,
        recovery_batch: int = 64,
        restarts: int = 5,
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

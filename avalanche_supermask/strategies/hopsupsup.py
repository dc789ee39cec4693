"""HopSupSup: a mask of units a task, in a Hopfield network of constant size, found again by gradient descent.

Wortsman et al., "Supermasks in Superposition", NeurIPS 2020, section 3.6.

Idea. Over random weights that never change, a task is a mask m of hidden units: one bit per unit of every hidden layer,

    p = softmax(W2ᵀ (m ⊙ σ(W1ᵀ x)))        m = [S >= 0], S learned straight-through from zero

Finished masks are not kept one by one but stored as patterns ``z = 2 m - 1`` in one Hopfield network Ψ a layer. At test
nobody names the task: from the mean of all patterns, m descends over B unlabelled batches on

    (1 - b/B) H(p) + γ (b/B) Σ_layers E(2 m - 1)

so that first the data choose the neighbourhood and then the network completes the pattern.

What it saves. Ψ takes 4 d² bytes per layer from the first task on: 33.6 MB for two layers of 2048 units, where plain
unit masks take 512 bytes per task. It is smaller than plain masks only beyond 65,000 tasks, more than fit into it.

Deviations. A descent sometimes ends between patterns: it is repeated over other orders of the batches, and the surest
mask is used (``restarts``; the published code: 1). Masks act where hidden activations enter the next weighted layer,
which works for any module and equals the paper's gain of the norm layer wherever σ(0) = 0.
"""

from __future__ import annotations

import copy
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

from avalanche_supermask.distributed.plugin import refuse
from avalanche_supermask.functional import signed_constant, threshold_weight
from avalanche_supermask.inference import entropy
from avalanche_supermask.plugin import cosine
from avalanche_supermask.shared_arguments import taken_by
from avalanche_supermask.strategies.hopfield import Hopfield
from avalanche_supermask.strategy import ModelFirst, StrategyArguments

__all__ = ["HopSupSup", "HopSupSupPlugin", "UnitMaskedModel"]

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class UnitMaskedModel(nn.Module):
    """A network whose hidden units can be switched off, with a memory of the masks of finished tasks.

    Args:
        net: deep-copied; its weights become signed constants. Its weighted layers run in the order of their names.
        seed: of the weights; None: drawn from torch's global state.

    Raises:
        ValueError: fewer than two weighted layers: there are no hidden units; or a module of Avalanche that grows.
    """

    def __init__(self, net: nn.Module, *, seed: int | None = None) -> None:
        super().__init__()
        growing = next((type(m).__name__ for m in net.modules() if isinstance(m, DynamicModule)), None)
        if growing is not None:
            raise ValueError(
                f"a {growing} grows or needs task labels, and HopSupSup has neither new weights nor labels: give the "
                "network an output layer for all classes"
            )
        self.net = copy.deepcopy(net)
        layers = [(name, m) for name, m in self.net.named_modules() if isinstance(m, WEIGHTED)]
        if len(layers) < 2:
            raise ValueError(f"there are no hidden units to mask: expected two weighted layers, got {len(layers)}")
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
        self._masks: list[Tensor] = []  # in force; empty: those of the scores

    def forward(self, x: Tensor) -> Tensor:
        """Logits under the mask being learned, or the one that was found last."""
        masks = self._masks or [_binary(scores) for scores in self.scores]
        # For this call only: a hook that stayed would tie a copy of the model to the masks of the first.
        hooks = [
            self.net.get_submodule(name).register_forward_pre_hook(partial(_mask_inputs, mask))
            for name, mask in zip(self._gated, masks, strict=True)
        ]
        try:
            out: Tensor = self.net(x)
        finally:
            for hook in hooks:
                hook.remove()
        return out

    @torch.no_grad()
    def begin(self) -> None:
        """Start a task: all units on."""
        self._masks = []
        for scores in self.scores:
            scores.zero_()

    @torch.no_grad()
    def finish(self) -> None:
        """Store the mask that was learned."""
        for scores, memory in zip(self.scores, self._networks, strict=True):
            memory.store(2 * _binary(scores) - 1)

    @property
    def _networks(self) -> list[Hopfield]:
        return [memory for memory in self.memory if isinstance(memory, Hopfield)]

    def use(self, masks: Iterable[Tensor]) -> None:
        """Answer under these masks, one a hidden layer, of 0 and 1."""
        self._masks = [mask.detach().to(self.scores[i]) for i, mask in enumerate(masks)]

    def recover(self, batches: Sequence[Tensor], *, steps: int, lr: float, gamma: float, restarts: int = 1) -> float:
        """Find the mask of the task that unlabelled batches are from, and use it.

        Args:
            batches: inputs; repeated or cut to as many as there are steps.
            steps: B.
            lr: of SGD with momentum 0.9 and weight decay 1e-4.
            gamma: γ.
            restarts: descents, each over the batches in another order; the surest of the masks found is used.

        Returns:
            The mean entropy of all batches under the mask.
        """
        was_training = self.training
        self.eval()
        found: list[tuple[float, list[Tensor]]] = []
        for start in range(restarts):
            order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(start)).tolist()
            self._descend([batches[i] for i in order], steps, lr, gamma)
            with torch.no_grad():
                sure = torch.stack([entropy(self(x)).mean() for x in batches]).mean()
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
            with torch.enable_grad():
                self._masks = [_binary(m) for m in real]
                h = entropy(self(x)).mean()
                e = torch.stack([n.energy(2 * m - 1) for n, m in zip(self._networks, self._masks, strict=True)]).sum()
                loss = (1 - b / steps) * h + gamma * (b / steps) * e
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self.use([_binary(m) for m in real])

    @property
    def memory_bytes(self) -> int:
        """Bytes of the Hopfield networks, the same for any number of tasks."""
        return sum(b.numel() * b.element_size() for memory in self.memory for b in memory.buffers())

    @property
    def mask_bytes(self) -> int:
        """Bytes that one task's plain bit mask would take."""
        return sum(-(-len(scores) // 8) for scores in self.scores)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_masks": []}


def _mask_inputs(mask: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not isinstance(layer, nn.Linear):
        mask = mask.reshape(-1, *[1] * (inputs[0].dim() - 2))
    return (inputs[0] * mask, *inputs[1:])


def _binary(scores: Tensor) -> Tensor:
    """``[S >= 0]`` with the straight-through gradient."""
    return threshold_weight(scores, torch.ones_like(scores))


class HopSupSupPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]
    """HopSupSup as a plugin of any template whose model is a `UnitMaskedModel`.

    Each experience is a task. Before an experience is evaluated, its mask is recovered from the first of its inputs;
    the labels are not looked at.

    Args:
        steps: B, batches that recovery sees (default 32, about the published code's).
        recovery_lr: its learning rate (default 500, the published code's).
        gamma: γ, weight of the energy (default 1.5e-3, the published code's).
        recovery_batch: samples of a batch (default 64, the published code's).
        restarts: descents, of which the surest counts (default 5; the published code: 1).
        cosine_schedule: anneal the learning rate within each experience.
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
        """Learn in one process only."""
        refuse("HopSupSup")

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin a task."""
        strategy.model.begin()
        strategy.make_optimizer(reset_optimizer_state=True)
        self._lrs = [group["lr"] for group in strategy.optimizer.param_groups]

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Set the learning rate."""
        done = strategy.clock.train_exp_iterations / (len(strategy.dataloader) * strategy.train_epochs)
        for group, lr in zip(strategy.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr * (cosine(done) if self.cosine_schedule else 1.0)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Store the task's mask."""
        for group, lr in zip(strategy.optimizer.param_groups, self._lrs, strict=True):
            group["lr"] = lr
        strategy.model.finish()

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Recover the mask of this experience's inputs."""
        if not int(strategy.model.memory[0].stored):
            return
        wanted, batches = self.steps * self.recovery_batch, []
        for batch in strategy.dataloader:
            batches.append(batch[0].to(strategy.device))
            if sum(len(x) for x in batches) >= wanted:
                break
        inputs = torch.cat(batches)[:wanted]
        # An order of the data set's own (classes, difficulty) would lead the descent astray.
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
        shuffled = inputs[order].split(self.recovery_batch)
        strategy.model.recover(
            shuffled, steps=self.steps, lr=self.recovery_lr, gamma=self.gamma, restarts=self.restarts
        )

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Training is under the scores again."""
        strategy.model.use([])


class HopSupSup(ModelFirst):
    """HopSupSup (Wortsman et al. 2020): masks of units in a Hopfield network; no task id at test.

    Constant memory, but a large constant: see the module. For networks with norm layers that use batch statistics.

    Args:
        model: any module with hidden Linear or convolution layers; deep-copied.
        lr: of SGD with momentum 0.9 and weight decay 1e-4 (default 0.1, the published code's).
        seed: of the weights.
        arguments: of any Avalanche strategy.

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
        **arguments: Unpack[StrategyArguments],
    ) -> None:
        masked = model if isinstance(model, UnitMaskedModel) else UnitMaskedModel(model, seed=seed)
        method = HopSupSupPlugin(**taken_by(HopSupSupPlugin, locals()))
        given: dict[str, Any] = dict(arguments)
        given["plugins"] = [*(given.get("plugins") or []), method]
        optimizer = SGD(masked.scores.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
        super().__init__(model=masked, optimizer=optimizer, **given)

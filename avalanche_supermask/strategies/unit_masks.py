"""`UnitMaskedModel`: a network whose hidden units can be switched off, with a Hopfield network that stores the masks.

The weights never change, and the masks act where hidden activations enter the next weighted layer, so the network may
be any module. `HopSupSup` trains the masks and recovers them from inputs.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from avalanche.models import DynamicModule
from torch import Tensor, nn
from torch.optim import SGD

from avalanche_supermask.functional import signed_constant, threshold_weight
from avalanche_supermask.inference import entropy
from avalanche_supermask.logits import Logits, find_logits
from avalanche_supermask.model.copied_functions import copy_of
from avalanche_supermask.model.tensor_roles import running_norms
from avalanche_supermask.recurrent_gradients import differentiable
from avalanche_supermask.strategies.hopfield import Hopfield

__all__ = ["UnitMaskedModel"]

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
                "there are no hidden units to mask: expected at least two weighted layers (Linear or Conv), got "
                f"{len(layers)}; add a hidden layer"
            )
        if running_norms(self.net):
            warnings.warn(
                f"the network has a {type(running_norms(self.net)[0]).__name__} with running statistics, which all "
                "tasks share, so each task changes the outputs of earlier ones; make its norms with "
                "track_running_stats=False, as in the paper",
                stacklevel=2,
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

    def stored(self) -> nn.ModuleList:
        """Return a copy of the Hopfield networks, to be given back to `restore`."""
        return copy.deepcopy(self.memory)

    def restore(self, stored: nn.ModuleList) -> None:
        """Forget all masks that were stored after this copy was made."""
        self.memory.load_state_dict(stored.state_dict())

    def use(self, masks: Iterable[Tensor]) -> None:
        """Use these masks of 0 and 1, one per hidden layer, from now on; without any, those of the scores."""
        self._masks = [mask.detach().to(self.scores[i]) for i, mask in enumerate(masks)]

    def recover(self, batches: Sequence[Any], *, steps: int, lr: float, gamma: float, restarts: int = 1) -> float:
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

    def _descend(self, batches: Sequence[Any], steps: int, lr: float, gamma: float) -> None:
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


def _mask_inputs(mask: Tensor, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    mask = mask.to(inputs[0])  # scores are float32, also in a network of half precision
    if not isinstance(layer, nn.Linear):
        mask = mask.reshape(-1, *[1] * (inputs[0].dim() - 2))
    return (inputs[0] * mask, *inputs[1:])


def _binary(scores: Tensor) -> Tensor:
    """Return the mask ``[S >= 0]`` with the straight-through gradient."""
    return threshold_weight(scores, torch.ones_like(scores))

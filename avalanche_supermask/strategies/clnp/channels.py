"""Find the channel that each input of a layer comes from, by an experiment instead of an analysis of the code.

The network runs with stand-ins for its layers. Each stand-in returns fixed random numbers, whatever its input is. So if
the channels of one layer change, only the layers that read them directly receive changed inputs. The number of the
channel is determined bit by bit: some samples of the batch change all channels whose number has a certain bit, and
others change all channels without this bit. An input that changes in both cases comes from several channels, and is
assigned to none.

No assumption is made about the operations between two layers. Concatenations, flips, shuffles and flattenings are
traced, and a mean over channels is recognised as a mixture.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

__all__ = ["LAYERS", "MIXED", "NONE", "Sources", "channel_axis", "elementwise", "inputs_of", "outputs_of", "sources"]

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)
NONE = -1  # instead of a channel number: the input does not come from this layer
MIXED = -2  # instead of a channel number: the input comes from several channels of the layer

# Reading layer -> one dictionary per call: layer that is read -> for each input channel, the channel it comes from.
Sources = dict[str, list[dict[str, Tensor]]]


def channel_axis(module: nn.Module, x: Tensor) -> int:
    """Return the dimension of the channels in a layer's input or output."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return x.dim() - len(module.kernel_size) - 1
    return 1 if isinstance(module, nn.modules.batchnorm._BatchNorm) else x.dim() - 1


def elementwise(module: nn.Module) -> bool:
    """Whether each output channel of a layer depends only on the input channel with the same number."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    return (
        isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels == module.out_channels > 1
    )


def inputs_of(module: Any) -> int:
    """Return the number of channels that a layer reads."""
    return int(next(getattr(module, n) for n in ("in_features", "in_channels", "num_features") if hasattr(module, n)))


def outputs_of(module: Any) -> int:
    """Return the number of channels that a layer writes."""
    return int(next(getattr(module, n) for n in ("out_features", "out_channels", "num_features") if hasattr(module, n)))


def sources(net: nn.Module, example: Sequence[Any]) -> Sources:
    """Find the channels that the inputs of every layer come from.

    Args:
        net: any network; it is not changed. Its layers are the Linear, convolution and BatchNorm modules.
        example: arguments of one forward pass; the first dimension of their tensors is the batch.

    Returns:
        A dictionary of the form `Sources`. It omits layers that a call does not read, and layers that the network does
        not call.

    Raises:
        ValueError: the first dimension of a layer's output is not the batch.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        >>> sources(net, (torch.zeros(1, 1, 4, 4),))["3"]
        [{'0': tensor([0, 0, 0, 0, 1, 1, 1, 1])}]
    """
    stand = _Stand(net, example)
    found: Sources = {name: [{} for _ in answers] for name, answers in stand.answers.items()}
    for producer in stand.answers:
        bits, width = stand.digits(producer)
        number = torch.arange(width)
        hits = torch.stack([(number >> bit & 1) == side for bit in range(bits) for side in (0, 1)])
        for reader, calls in stand.run(producer, hits).items():
            for call, changed in enumerate(calls):
                pairs = changed.unflatten(0, (bits, 2))  # (bits, side, inputs)
                if bool(changed.any()):
                    place = (pairs[:, 1] << torch.arange(bits).unsqueeze(1)).sum(dim=0)
                    place[pairs.all(dim=1).any(dim=0)] = MIXED
                    place[~pairs.any(dim=1).any(dim=0)] = NONE
                    found[reader][call][producer] = place
    return found


class _Stand:
    """A copy of a network with stand-ins for its layers.

    Attributes:
        answers: by layer, one sample of the output that the stand-in returns at each call.
    """

    def __init__(self, net: nn.Module, example: Sequence[Any]) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.layers = {name: m for name, m in self.net.named_modules() if isinstance(m, LAYERS)}
        self.example = tree_map_only(Tensor, lambda t: t[:1], tuple(example))
        self.answers: dict[str, list[Tensor]] = {}
        self.generator = torch.Generator().manual_seed(0)
        hooks = [m.register_forward_hook(self._recorder(name)) for name, m in self.layers.items()]
        self._call(2)  # two samples, because a network may squeeze a batch of one
        for hook in hooks:
            hook.remove()

    def digits(self, layer: str) -> tuple[int, int]:
        """Return the number of binary digits of a layer's channel numbers (at least 1), and its number of channels."""
        answer = self.answers[layer][0]
        width = answer.shape[channel_axis(self.layers[layer], answer)]
        return max(1, (width - 1).bit_length()), width

    def run(self, changed: str, hits: Tensor) -> dict[str, list[Tensor]]:
        """Change channels of one layer, different ones in each sample, and find which inputs of which layers change.

        Args:
            changed: name of the layer.
            hits: bool of shape ``(samples, channels)``: the channels that change in each sample.

        Returns:
            For each reading layer, one tensor per call: bool of shape ``(samples, inputs)``.
        """
        seen: dict[str, list[Tensor]] = {}
        try:
            for name, module in self.layers.items():
                stand_in = self._stand_in(name, module, changed, hits, seen.setdefault(name, []))
                module.__dict__["forward"] = stand_in
            self._call(len(hits) + 1)  # the last sample is not changed
        finally:
            for module in self.layers.values():
                module.__dict__.pop("forward", None)
        return seen

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _call(self, samples: int) -> None:
        self.net(*tree_map_only(Tensor, lambda t: t.repeat(samples, *[1] * (t.dim() - 1)), self.example))

    def _recorder(self, name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.shape[0] % 2 or channel_axis(module, output) < 1:
                raise ValueError(
                    f"module {name!r} has an output of shape {tuple(output.shape)} for a batch of 2: expected the "
                    "batch as its first dimension"
                )
            shape = (output.shape[0] // 2, *output.shape[1:])
            # Values between 0.5 and 1.5, and a quarter to three quarters of them where changed: no usual activation
            # is flat there.
            answer = torch.rand(shape, generator=self.generator, dtype=torch.float64) + 0.5
            self.answers.setdefault(name, []).append(answer.to(output))

        return record

    def _stand_in(self, name: str, module: nn.Module, changed: str, hits: Tensor, seen: list[Tensor]) -> Any:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            answer = self.answers[name][len(seen)]
            seen.append(_differences(x, channel_axis(module, x), len(hits)))
            batch = answer.expand(len(hits) + 1, *answer.shape).clone()
            if name == changed:
                axis = channel_axis(module, answer) + 1
                place = hits.to(answer.device).reshape(len(hits), *[1] * (axis - 1), -1, *[1] * (answer.dim() - axis))
                # Each number has its own factor, because a norm over positions would cancel a common factor.
                factor = 0.25 + 0.5 * torch.rand(answer.shape, generator=self.generator).to(answer)
                batch[:-1] *= torch.where(place, factor, 1.0)
            return batch.flatten(0, 1)

        return forward


def _differences(x: Tensor, axis: int, samples: int) -> Tensor:
    """Return the channels in which samples differ from the last sample: bool of shape ``(samples, channels)``."""
    parts = x.unflatten(0, (samples + 1, -1)).movedim(axis + 1, 1).flatten(2)
    plain = parts[-1:]
    differ: Tensor = ((parts[:-1] - plain).abs() > 1e-5 * plain.abs()).any(dim=2)
    return differ.cpu()

"""Rows that train each task separately: the output layer, all weights, norms and biases, or LoRA.

The output layer is trained alone first, with as many epochs as in sparse fine-tuning, so that all rows start equally.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from avalanche_supermask.model.heads import output_layer
from avalanche_supermask.plugin import cosine
from benchmarks.practice.pretrained.tasks import BATCH, Data

__all__ = ["HEAD_EPOCHS", "apart", "features", "with_fitted_head"]

HEAD_EPOCHS = 5  # the default of `SparseFineTuning`
HEAD_RATE = 3e-3


def train(net: nn.Module, data: Data, *, lr: float, epochs: int, seed: int) -> nn.Module:
    """Train the parameters that require a gradient, in evaluation mode, so that norms keep their statistics."""
    x, y = data
    learns = [p for p in net.parameters() if p.requires_grad]
    optimizer = Adam(learns, lr=lr, fused=True)
    steps = epochs * -(-len(y) // BATCH)
    schedule = LambdaLR(optimizer, lambda step: cosine(step / steps))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return net


def prepared(row: str, net: nn.Module) -> nn.Module:
    """Return a copy of the network in which exactly the trained parameters of a row require a gradient."""
    net = copy.deepcopy(net).eval()
    head = output_layer(net)
    if row.startswith("lora"):
        from peft import LoraConfig, get_peft_model

        rank = int(row.partition(":")[2])
        _plain_pointwise(net)
        inside = ["query", "value"] if hasattr(net, "encoder") else [
            name for name, m in net.named_modules()
            if type(m) is nn.Conv2d and m.groups == 1 and name != head
        ]  # fmt: skip
        settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=inside, modules_to_save=[head])
        return get_peft_model(net, settings).eval()  # type: ignore[arg-type]
    for name, p in net.named_parameters():
        p.requires_grad_(row == "full" or name.startswith(f"{head}.") or (row == "norm" and p.dim() == 1))
    return net


def _plain_pointwise(net: nn.Module) -> None:
    """Replace 1×1 convolutions of custom classes by plain ones, because peft cannot copy custom classes."""
    for place, m in [*net.named_modules()]:
        if isinstance(m, nn.Conv2d) and type(m) is not nn.Conv2d and m.kernel_size == (1, 1) and m.groups == 1:
            plain = nn.Conv2d(m.in_channels, m.out_channels, 1, m.stride, bias=m.bias is not None)
            plain.load_state_dict(m.state_dict())
            holder, _, leaf = place.rpartition(".")
            setattr(net.get_submodule(holder), leaf, plain)


def apart(row: str, net: nn.Module, data: Data, *, lr: float, epochs: int, seed: int) -> tuple[nn.Module, int]:
    """Train one task separately; return the network and the bytes of the task."""
    tuned = train(prepared(row, net), data, lr=lr, epochs=epochs, seed=seed)
    return tuned, 4 * sum(p.numel() for p in tuned.parameters() if p.requires_grad)


def with_fitted_head(net: nn.Module, data: Data, *, seed: int) -> nn.Module:
    """Return a copy of the network whose output layer was trained on the features of the network."""
    net = copy.deepcopy(net).eval()
    train(net.get_submodule(output_layer(net)), features(net, data), lr=HEAD_RATE, epochs=HEAD_EPOCHS, seed=seed)
    return net


@torch.no_grad()
def features(net: nn.Module, data: Data) -> Data:
    """Return the inputs of the output layer instead of the samples."""
    caught: list[Tensor] = []
    layer = net.get_submodule(output_layer(net))
    handle = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    for part in data[0].split(100):
        net.eval()(part)
    handle.remove()
    return torch.cat(caught), data[1]

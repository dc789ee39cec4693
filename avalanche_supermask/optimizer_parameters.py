"""Puts the parameters of a `MaskedModel` into the parameter groups of an optimizer."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["adopt_parameters"]


def adopt_parameters(optimizer: Optimizer, model: MaskedModel, original: nn.Module | None = None) -> None:
    """Put the model's parameters into the existing groups of an optimizer; its class and settings do not change.

    Each parameter of ``original``, the network that was copied into the model, is replaced by its copy. The scores,
    the coefficients and the values of chosen entries of a weight join the group of that weight. A parameter that
    belongs to no group joins the first group.

    Args:
        optimizer: the optimizer, changed in place.
        model: the model whose parameters the optimizer shall train.
        original: the network whose parameters the optimizer was created with; None: it was created with those of
            the model.
    """
    copies = dict(model.net.named_parameters())
    if original is not None:
        renamed = {id(p): copies[name] for name, p in original.named_parameters() if name in copies}
        for group in optimizer.param_groups:
            # The list is changed in place because an optimizer may keep a reference to it, as LBFGS does.
            group["params"][:] = [renamed.get(id(p), p) for p in group["params"]]
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    tasks = model.subnetworks
    chosen_by = (*tasks.scores.items(), *tasks.mixtures.coefficients.items(), *tasks.values.items())
    weight_of = {id(p): copies[name] for name, p in chosen_by if name in copies}
    for p in model.parameters():
        if id(p) not in group_of:
            weight = weight_of.get(id(p), p)
            group_of.get(id(weight), optimizer.param_groups[0])["params"].append(p)

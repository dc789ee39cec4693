"""A network that holds many tasks. No other part of the package touches the user's ``nn.Module``.

`masked_model` is the interface, and lists the modules that it is built from, in the order of their imports;
`subnetworks` and `mixtures` store the tasks; `tensor_roles` determines the role of each tensor. Nothing in this package
depends on a method or a training loop.
"""

from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["MaskedModel"]

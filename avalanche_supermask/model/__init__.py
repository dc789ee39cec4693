"""A network that holds many tasks: the only place that touches the user's ``nn.Module``.

`masked_model` calls the network with the weights of one task; `subnetworks` and `mixtures` hold what the tasks own;
`tensor_roles` decides which tensor plays which part. Nothing here knows a method or a training loop.
"""

from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["MaskedModel"]

"""Present names of modules and classes that were moved since version 0.1.0, so that older checkpoints can be loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import dill

__all__ = ["old_names"]

_PACKAGE = "avalanche_supermask."
_MOVED = {
    "activity": "strategies.clnp.activity",
    "augment": "data.augment",
    "claims": "strategies.clnp.unit_owners",
    "data": "data.cached",
    "frozen_channels": "model.frozen_batchnorm",
    "hopfield": "strategies.hopfield",
    "l1": "strategies.clnp.l1",
    "layout": "model.tensor_roles",
    "masks": "bits.packed_masks",
    "mixtures": "model.mixtures",
    "model": "model.masked_model",
    "partition": "strategies.clnp.entries",
    "pruning": "strategies.clnp.pruning",
    "recent": "model.cache",
    "resume": "saving.checkpoint_plugin",
    "routing": "model.routing",
    "strategies.clnp": "strategies.clnp.strategy",
    "strategies.nns": "strategies.supsup_nns",
    "subnetworks": "model.subnetworks",
    "superposition": "model.superposition",
    "tensors": "named_tensors",
    "transfer": "strategies.kkt",
    "trials": "strategies.short_training",
    "units": "strategies.clnp.units",
}
# Classes that left a module or have another name: present module, old name -> module and name.
_CLASSES = {
    ("metrics", "_Probe"): ("metrics.output_drift", "_Probe"),
    ("model.masked_model", "_Finished"): ("model.task_lifecycle", "Finished"),
    ("model.masked_model", "_Host"): ("model.wrapped_network", "Host"),
    ("model.subnetworks", "Task"): ("model.finished_tasks", "Task"),
    ("strategies.clnp.entries", "Partition"): ("strategies.clnp.entries", "EntryKinds"),
    ("strategies.clnp.strategy", "CLNPPlugin"): ("strategies.clnp.plugin", "CLNPPlugin"),
    ("strategies.clnp.unit_owners", "Claims"): ("strategies.clnp.unit_owners", "UnitOwners"),
}


@contextlib.contextmanager
def old_names() -> Iterator[None]:
    """Context in which dill finds classes under their earlier names."""
    find_class = dill.Unpickler.find_class

    def find(self: dill.Unpickler, module: str, name: str) -> Any:
        if module.startswith(_PACKAGE):
            home = module[len(_PACKAGE) :]
            home = _MOVED.get(home, home)
            home, name = _CLASSES.get((home, name), (home, name))
            module = _PACKAGE + home
        return find_class(self, module, name)

    dill.Unpickler.find_class = find
    try:
        yield
    finally:
        dill.Unpickler.find_class = find_class

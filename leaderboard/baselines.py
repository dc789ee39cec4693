"""What upstream's baselines need before they run as they were meant to."""

from __future__ import annotations

from typing import Any

from avalanche.training.plugins import SynapticIntelligencePlugin

__all__ = ["CorrectedSI"]


class CorrectedSI(SynapticIntelligencePlugin):  # type: ignore[misc]
    """Synaptic Intelligence with its snapshots copied.

    Upstream stores ``param.detach().cpu().flatten()`` as "the weights before": on a CPU that is a view of the
    live weights, so old equals new, every importance is exactly zero, and the strategy is Naive under another
    name. Here each snapshot is cloned. The damping ``eps`` must also be larger than upstream's 1e-7, with
    which the corrected importances diverge.
    """

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take the anchors."""
        super().before_training_exp(strategy, **kwargs)
        _detach(self.ewc_data[0])

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Remember the weights before the step."""
        super().before_training_iteration(strategy, **kwargs)
        _detach(self.syn_data["old_theta"])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Turn the trajectory into importances, and anchor the weights."""
        super().after_training_exp(strategy, **kwargs)
        _detach(self.ewc_data[0])


def _detach(snapshot: dict[str, Any]) -> None:
    for entry in snapshot.values():
        entry.data = entry.data.clone()

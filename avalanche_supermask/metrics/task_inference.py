"""How often task inference finds the task of a sample."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name

from avalanche_supermask.logits import class_dimension
from avalanche_supermask.model.masked_model import MaskedModel

__all__ = ["TaskInference"]


class TaskInference(PluginMetric[dict[str, float]]):
    """How often the inferred task was correct, and how often both the task and the class were correct.

    ``TaskIdAccuracy`` counts the correct tasks. ``UnsharedAccuracy`` counts samples for which task and class are
    correct; it corresponds to SupSup's scenario GNu, and the ordinary accuracy to GNs. There is one value of each per
    evaluated experience. If the task is given, nothing is emitted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self._samples = self._tasks = 0
        self._both = 0.0
        self._classes = True

    def result(self) -> dict[str, float]:
        """Return the two accuracies since the last reset; without classes, only ``TaskIdAccuracy``."""
        n = max(1, self._samples)
        unshared = {"UnsharedAccuracy": self._both / n} if self._classes else {}
        return {"TaskIdAccuracy": self._tasks / n, **unshared}

    def __str__(self) -> str:
        return "TaskInference"

    def before_eval_exp(self, strategy: Any) -> None:
        """Start the counts of a new experience."""
        self.reset()

    def after_eval_forward(self, strategy: Any) -> None:
        """Count a minibatch."""
        model = strategy.model
        if not isinstance(model, MaskedModel) or model.inferred_task is None or not model.infers:
            return
        found = model.inferred_task
        label_of = {key: task.label for key, task in model.subnetworks.tasks.items()}
        labelled = len({*label_of.values()} - {None}) == len(label_of)  # SupSupNNs learns tasks without labels
        if model.router.assigned is None and labelled and not hasattr(strategy.experience, "task_labels"):
            return  # the tasks are known by labels, which these data do not have
        if model.router.assigned is None and labelled:
            right_task = torch.tensor([label_of[key] for key in found.tolist()]) == strategy.mb_task_id.cpu()
        else:  # no label, or several tasks share one: their keys are the indices of experiences
            right_task = found == strategy.experience.current_experience
        self._samples += len(found)
        self._tasks += int(right_task.sum())
        logits = model.logits_of(strategy.mb_output)
        if class_dimension(logits, strategy.mb_y) is None:
            self._classes = False  # the targets are not classes, so only the task can be counted
            return
        right_class = (logits.argmax(dim=1).cpu() == strategy.mb_y.cpu()).float().flatten(1 if logits.dim() > 2 else 0)
        right_class = right_class.mean(dim=1) if logits.dim() > 2 else right_class
        self._both += float((right_task * right_class).sum())

    def after_eval_exp(self, strategy: Any) -> Any:
        """Emit the accuracies of this experience."""
        if not self._samples:
            return None
        suffix = get_metric_name(self, strategy, add_experience=True, add_task=True).partition("/")[2]
        x = strategy.clock.train_iterations
        return [MetricValue(self, f"{name}/{suffix}", value, x) for name, value in self.result().items()]

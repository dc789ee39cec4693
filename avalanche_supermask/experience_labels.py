"""Read the task labels and classes of an experience from its data if the experience does not have them.

`benchmark_with_validation_stream` and `split_online_stream` create new experiences from the same data, without the
attributes ``task_labels`` and ``classes_in_this_experience``. Avalanche then calls models without task labels, and its
growing heads fail. The data still contain the task labels and the classes.
"""

from __future__ import annotations

import copy
from typing import Any

from avalanche.benchmarks.scenarios.generic_scenario import MaskedAttributeError

__all__ = ["labelled", "refuse_unusable"]


def labelled(experience: Any) -> Any:
    """Return the experience, or a copy with the task labels and classes of its data if it lacks them.

    Task labels are added only if minibatches contain them, because Avalanche reads them from minibatches. If the
    classes of the experience are a set, the copy has them as a sorted list.
    """
    found: dict[str, Any] = {}
    if _lacks(experience, "task_labels"):
        labels: Any = getattr(experience.dataset, "targets_task_labels", None)
        if getattr(labels, "use_in_getitem", False):
            found["task_labels"] = sorted(int(label) for label in labels.uniques)
            if len(found["task_labels"]) == 1:
                found["task_label"] = found["task_labels"][0]
    if _lacks(experience, "classes_in_this_experience"):
        targets = getattr(experience.dataset, "targets", None)
        if targets is not None and len(targets) and isinstance(targets[0], int) and hasattr(targets, "uniques"):
            found["classes_in_this_experience"] = sorted(targets.uniques)
    elif isinstance(_shown(experience, "classes_in_this_experience"), set):  # Avalanche's heads use it as an index
        found["classes_in_this_experience"] = sorted(experience.classes_in_this_experience)
    if not found:
        return experience
    made = copy.copy(experience)
    for name, value in found.items():
        setattr(made, name, value)
    return made


def refuse_unusable(experience: Any) -> None:
    """Refuse an experience without samples, and class labels that are text, before Avalanche or a criterion fails.

    Raises:
        ValueError: the experience is empty.
        TypeError: the class labels are text.
    """
    if len(experience.dataset) == 0:
        raise ValueError(
            f"experience {experience.current_experience} is empty: expected at least one sample to learn from; leave "
            "the experience out"
        )
    targets = getattr(experience.dataset, "targets", None)
    if targets is not None and len(targets) and isinstance(targets[0], str):
        raise TypeError(
            f"the labels of experience {experience.current_experience} are text, as {targets[0]!r}; expected class "
            "numbers: number them from 0, for example by sklearn.preprocessing.LabelEncoder"
        )


def _lacks(experience: Any, name: str) -> bool:
    try:
        return not hasattr(experience, name)
    except MaskedAttributeError:  # the attribute exists, but the stream hides it from training on purpose
        return False


def _shown(experience: Any, name: str) -> Any:
    try:
        return getattr(experience, name)
    except MaskedAttributeError:
        return None

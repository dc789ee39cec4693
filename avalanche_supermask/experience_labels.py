"""Refuse what is no experience or cannot be learned, and read labels that an experience lacks from its data.

`benchmark_with_validation_stream` and `split_online_stream` create new experiences from the same data, without the
attributes ``task_labels`` and ``classes_in_this_experience``. Avalanche then calls models without task labels, and its
growing heads fail. The data still contain the task labels and the classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from avalanche.benchmarks.scenarios.generic_scenario import MaskedAttributeError
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["experiences_of", "labelled", "refuse_unusable", "why_not_trained"]

_DATA = (Dataset, DataLoader, AvalancheDataset, Tensor, str, dict)


def experiences_of(given: Any, *, stream: str, twice: bool = False) -> Any:
    """Return an experience or a stream of experiences as it was given, and refuse everything else.

    Args:
        given: the argument of a strategy's ``train`` or ``eval``.
        stream: name of the benchmark's attribute that would be right, for the error message.
        twice: whether Avalanche iterates over the experiences twice, so that a generator must become a list.

    Raises:
        TypeError: it is neither an experience nor a stream, for example a benchmark, a data set or a data loader.
    """
    if _is_experience(given):
        return given
    if isinstance(given, Iterator):
        return [*given] if twice else given
    wrong = given
    if isinstance(given, (list, tuple)):
        wrong = next((item for item in given if not _is_experience(item)), None)
        if wrong is None:
            return given
    elif isinstance(given, Iterable) and not isinstance(given, _DATA):
        return given
    got = f"a {type(wrong).__name__}"
    if hasattr(wrong, stream):
        remedy = f"pass its {stream}"
    elif wrong is not given and isinstance(wrong, Iterable) and not isinstance(wrong, _DATA):
        got, remedy = f"a {type(given).__name__} with {got}", "pass its items in one list"
    else:
        remedy = f"make a benchmark of your data, as in dataset_benchmark([data], [test_data]), and pass its {stream}"
    raise TypeError(f"expected an experience or a stream of experiences; got {got}: {remedy}")


def _is_experience(given: Any) -> bool:
    return hasattr(given, "dataset") and not isinstance(given, _DATA)


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

    A data set may list names as its ``targets`` and return numbers with its samples. Such a data set is accepted.

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
    named = targets is not None and len(targets) and isinstance(targets[0], (str, bytes))
    label = experience.dataset[0][1] if named else None
    if isinstance(label, (str, bytes)):
        raise TypeError(
            f"the labels of experience {experience.current_experience} are text, as {label!r}; expected class "
            "numbers: number them from 0, for example by sklearn.preprocessing.LabelEncoder"
        )


def why_not_trained(strategy: Any) -> str:
    """Return the probable reason why an experience was trained for 0 iterations, and what to do, for a warning."""
    samples, size = len(strategy.adapted_dataset), strategy.train_mb_size
    if samples < size and len(strategy.dataloader) == 0:
        return (
            f"It has {samples} training samples, and drop_last=True leaves out a batch of fewer than "
            f"train_mb_size={size}: lower train_mb_size, or leave drop_last out"
        )
    return (
        "Probably stop_training() was called earlier, which makes Avalanche skip all further experiences of the same "
        "train() call: call strategy.train() once for each experience"
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

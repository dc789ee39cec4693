"""Choose the key of a task: the task label of its experience, or the index of the experience."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from avalanche.benchmarks.scenarios.online import OnlineCLExperience

from avalanche_supermask.model.finished_tasks import Task

__all__ = ["OnRevisit", "TaskKey", "check_revisit", "name_task"]

TaskKey = Literal["auto", "task_label", "experience"]
OnRevisit = Literal["error", "skip", "new", "continue"]


def check_revisit(on_revisit: str, *, continues: bool, method: str) -> None:
    """Check the value of the setting ``on_revisit``, which selects the treatment of a task that comes again.

    Args:
        on_revisit: ``"error"``, ``"skip"``, ``"new"`` or ``"continue"``.
        continues: whether the method supports ``"continue"``.
        method: name of the method, for the error message.

    Raises:
        ValueError: the value is unknown, or it is ``"continue"`` and the method does not support this.
    """
    if on_revisit not in ("error", "skip", "new", "continue"):
        raise ValueError(f"on_revisit must be 'error', 'skip', 'new' or 'continue'; got {on_revisit!r}")
    if on_revisit == "continue" and not continues:
        raise ValueError(
            f"on_revisit='continue' is for SupSup, ExSSNeT and SSNeT; a task of {method} cannot go on learning once it "
            "is stored: use 'error', 'skip' or 'new'"
        )


def name_task(
    experience: Any,
    learned: Mapping[int, Task],
    *,
    task_key: TaskKey,
    on_revisit: OnRevisit,
    learned_in: Mapping[int, int],
    continues: bool,
) -> tuple[int, int | None]:
    """Return the key and the label of an experience's task; the key may belong to a task that is already learned.

    Args:
        experience: the experience that is about to be trained.
        learned: finished tasks by key, in the order in which they were learned.
        task_key: source of the key, as in `SubnetworkPlugin`.
        on_revisit: treatment of learned tasks, as in `SubnetworkPlugin`. With ``"continue"``, all experiences with the
            same label belong to the same task.
        learned_in: index of the experience in which each task was learned, by key.
        continues: whether the method supports ``on_revisit="continue"``, so that the messages advise it.

    Raises:
        ValueError: the experience has several labels and ``task_key`` is not ``"experience"``; or it has no label and
            ``task_key`` is ``"task_label"``; or its label is already the key of a task with another label, which was
            learned under its index because its label came in several experiences.
    """
    index = int(experience.current_experience)
    labels = sorted({int(label) for label in getattr(experience, "task_labels", [])})
    if len(labels) > 1 and task_key != "experience":
        raise ValueError(
            f"experience {index} mixes the task labels {labels}: expected one task an experience; split it, "
            "or pass task_key='experience' to learn it as one task"
        )
    label = labels[0] if labels else None
    if task_key == "experience":
        return _by_index(index, label, learned, learned_in)
    if label is None:
        if task_key == "task_label":
            raise ValueError(f"task_key='task_label', but experience {index} has no task labels; pass 'experience'")
        return _by_index(index, label, learned, learned_in)
    if on_revisit == "continue":
        label_of = {key: task.label for key, task in learned.items()}
        # The key of a new label may belong to a task that was named by its index, and that must not go on.
        new = label if label_of.get(label) is None else max(learned) + 1
        return next((key for key in reversed(label_of) if label_of[key] == label), new), label
    tells_apart = label not in learned or {task.label for task in learned.values()} != {label}
    if task_key == "auto" and not tells_apart:
        _warn_of_parts(experience, label, learned, continues=continues)
        return _by_index(index, label, learned, learned_in)
    if label in learned and learned[label].label not in (label, None) and on_revisit != "new":
        going_on = "on_revisit='continue' to go on learning a task while its label comes again, or " * continues
        raise ValueError(
            f"experience {index} has the task label {label}, which was never learned, but its key is taken: the label "
            f"{learned[label].label} came in several experiences, and one of them was learned as task {label}, its "
            f"index. Pass {going_on}task_key='experience' to name every task by its index, in evaluation too"
        )
    return label, label


def _by_index(
    index: int, label: int | None, learned: Mapping[int, Task], learned_in: Mapping[int, int]
) -> tuple[int, int | None]:
    if index in learned and learned_in.get(index) != index:
        return max(learned) + 1, label
    return index, label


def _warn_of_parts(experience: Any, label: int, learned: Mapping[int, Task], *, continues: bool) -> None:
    """Warn at the second experience of an online stream that each of its experiences becomes a separate task."""
    if isinstance(experience, OnlineCLExperience) and len(learned) == 1:
        advice = (
            "Pass on_revisit='continue' to go on learning one task while its label comes again"
            if continues
            else "SupSup and ExSSNeT can go on learning one task while its label comes again; for this method, train "
            "on whole experiences"
        )
        warnings.warn(
            f"experience {experience.current_experience} of an online stream has the task label {label}, as the one "
            f"before: each is learned as a task of its own, under its index. {advice}",
            stacklevel=3,
        )

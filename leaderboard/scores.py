"""Scores of an accuracy matrix R, and a test over several seeds.

Row t of R is measured after task t, and column i is measured on task i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.stats import ttest_1samp

__all__ = ["forgetting_curve", "forward_transfer", "paired_p", "summarise"]


def summarise(matrix: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Return average accuracy, forgetting and backward transfer of a run.

    Args:
        matrix: accuracies R in [0, 1]; it has a single row for a method that learns all tasks at once.

    Returns:
        ``average_accuracy`` is the mean of the last row. The other two are means over every task except the last.
        ``forgetting`` (Chaudhry et al. 2018) is a task's best accuracy since it was learned and before the last task,
        minus its final accuracy. ``bwt`` (Lopez-Paz & Ranzato 2017) is the final accuracy minus that right after
        learning. Both are None if the matrix has only one row or one task.

    Example:
        >>> summarise([[0.9, 0.5], [0.8, 0.9]])
        {'average_accuracy': 0.8500000000000001, 'forgetting': 0.09999999999999998, 'bwt': -0.09999999999999998}
    """
    last = matrix[-1]
    result: dict[str, float | None] = {"average_accuracy": sum(last) / len(last), "forgetting": None, "bwt": None}
    old = range(len(matrix) - 1)
    if len(matrix) == len(last) > 1:
        best = [max(matrix[t][i] for t in range(i, len(matrix) - 1)) for i in old]
        result["forgetting"] = sum(best[i] - last[i] for i in old) / len(old)
        result["bwt"] = sum(last[i] - matrix[i][i] for i in old) / len(old)
    return result


def forward_transfer(matrix: Sequence[Sequence[float]], chance: float) -> float | None:
    """Return how much the accuracy on a task exceeds chance just before it is learned (Lopez-Paz & Ranzato 2017).

    The paper subtracts the accuracy of an untrained network; this function subtracts that of guessing.

    Args:
        matrix: accuracies R in [0, 1].
        chance: accuracy of guessing: one over the number of classes.

    Returns:
        Mean over all tasks except the first. None if the matrix has only one row or one task.

    Example:
        >>> forward_transfer([[0.9, 0.75], [0.8, 0.9]], chance=0.5)
        0.25
    """
    if len(matrix) != len(matrix[-1]) or len(matrix) < 2:
        return None
    return sum(matrix[i - 1][i] - chance for i in range(1, len(matrix))) / (len(matrix) - 1)


def forgetting_curve(matrix: Sequence[Sequence[float]]) -> list[float]:
    """Return the forgetting (Chaudhry et al. 2018) of the tasks learned so far, after each task; 0 after the first.

    Example:
        >>> forgetting_curve([[0.9, 0.5], [0.5, 0.9]])
        [0.0, 0.4]
    """
    found = [0.0]
    for t in range(1, len(matrix)):
        lost = [max(row[i] for row in matrix[i:t]) - matrix[t][i] for i in range(t)]
        found.append(sum(lost) / t)
    return found


def paired_p(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """Return the two-sided p-value of a paired t-test over the common seeds; None with fewer than three.

    If every seed has the same difference, p is 1 for a difference of zero, else 0.

    Args:
        first: accuracy of one method by seed.
        second: accuracy of the other method by seed.

    Example:
        >>> round(paired_p({0: 0.91, 1: 0.92, 2: 0.93}, {0: 0.90, 1: 0.90, 2: 0.92}), 3)
        0.057
    """
    common = sorted(first.keys() & second.keys())
    if len(common) < 3:
        return None
    differences = [first[seed] - second[seed] for seed in common]
    if max(differences) - min(differences) < 1e-9:  # without a spread the t statistic is undefined
        return 1.0 if abs(differences[0]) < 1e-9 else 0.0
    return float(ttest_1samp(differences, 0.0).pvalue)

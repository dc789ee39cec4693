"""Numbers from an accuracy matrix R (row t is measured after task t, column i on task i), and from several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scipy.stats import ttest_1samp

__all__ = ["forgetting_curve", "forward_transfer", "paired_p", "summarise"]


def summarise(matrix: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Average accuracy, forgetting and backward transfer of a run.

    Args:
        matrix: R, in [0, 1]; a single row for a method that learns all tasks at once.

    Returns:
        ``average_accuracy``: mean of the last row. ``forgetting`` (Chaudhry et al. 2018): for every task but the
        last, its best accuracy since it was learned and before the last task, minus its last one; the mean.
        ``bwt`` (Lopez-Paz & Ranzato 2017): last accuracy minus that right after learning; the mean. Both are
        None where a single row or task leaves nothing to compare.

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
    """How much better than chance a task is just before it is learned, on average (Lopez-Paz & Ranzato 2017).

    Their reference is an untrained network's accuracy; here it is what guessing would have.

    Args:
        matrix: R, in [0, 1].
        chance: one over the number of classes.

    Returns:
        Mean over all tasks but the first; None where a single row or task leaves nothing to transfer.

    Example:
        >>> forward_transfer([[0.9, 0.75], [0.8, 0.9]], chance=0.5)
        0.25
    """
    if len(matrix) != len(matrix[-1]) or len(matrix) < 2:
        return None
    return sum(matrix[i - 1][i] - chance for i in range(1, len(matrix))) / (len(matrix) - 1)


def forgetting_curve(matrix: Sequence[Sequence[float]]) -> list[float]:
    """Forgetting (Chaudhry et al. 2018) of the tasks learned so far, after each task; 0 after the first.

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
    """Two-sided p of a paired t-test over the seeds that both have; None with fewer than three.

    Where every seed has the same difference, p is 1 for a difference of zero, else 0.

    Args:
        first: accuracy by seed.
        second: the same of another method.

    Example:
        >>> round(paired_p({0: 0.91, 1: 0.92, 2: 0.93}, {0: 0.90, 1: 0.90, 2: 0.92}), 3)
        0.057
    """
    common = sorted(first.keys() & second.keys())
    if len(common) < 3:
        return None
    differences = [first[seed] - second[seed] for seed in common]
    if max(differences) - min(differences) < 1e-9:  # no spread to compare with: the test has no value
        return 1.0 if abs(differences[0]) < 1e-9 else 0.0
    return float(ttest_1samp(differences, 0.0).pvalue)

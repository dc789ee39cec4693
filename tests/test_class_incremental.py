"""The classes and functions of `benchmarks.practice.class_incremental`."""

import pytest
import torch

from benchmarks.practice.class_incremental.baselines import baseline
from benchmarks.practice.class_incremental.calibration import Calibrated
from benchmarks.practice.class_incremental.scoring import novelty
from benchmarks.practice.class_incremental.settings import SETTINGS


class Biased:
    """A witness whose costs come from the sample itself, with a constant in favour of the first task."""

    def costs(self, model, n_tasks, x):
        costs = 3 * (1 - torch.nn.functional.one_hot(x.long(), n_tasks).float())
        costs[:, 0] -= 5
        return costs.T + 0.5 * torch.randn(n_tasks, len(x), generator=torch.Generator().manual_seed(len(x)))


class Model:
    candidates = None


def test_calibration_takes_off_what_favours_a_task():
    x = torch.arange(4).repeat_interleave(50)
    stored = [(x[x == task], x[x == task]) for task in range(4)]
    witness = Biased()
    assert float((witness.costs(None, 4, x).argmin(dim=0) == x).float().mean()) < 0.4
    found = Calibrated.on(witness, Model, stored)
    assert float((found(None, 4, x) == x).float().mean()) > 0.9
    assert found.offsets.argmin() == 0


def test_novelty_is_the_area_under_the_curve_of_the_best_tasks_cost():
    class Distance:
        def costs(self, model, n_tasks, x):
            return torch.stack([(x - task).square().sum(dim=1) for task in range(n_tasks)])

    test = [(torch.full((5, 2), float(task)), torch.zeros(5)) for task in range(3)]
    assert novelty(Distance(), Model, test, torch.full((4, 2), 9.0)) == 1.0
    assert novelty(Distance(), Model, test, torch.zeros(4, 2)) == 0.5


def test_an_unknown_baseline_is_refused():
    setting = SETTINGS["split-mnist"]
    with pytest.raises(ValueError, match="unknown baseline 'gdumb'; expected one of joint"):
        baseline("gdumb", setting, [], [], lr=1e-3)

"""The quality that CLNP's margin limits, for targets of every kind."""

import math

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from sklearn.datasets import load_digits
from torch import nn

from avalanche_supermask import CLNP, MaskedModel
from avalanche_supermask.data.held_out import BATCH
from avalanche_supermask.strategies.clnp.quality import Found, found_on, quality

DIGITS = load_digits()
X, NUMBER = torch.tensor(DIGITS.data).float() / 16, torch.tensor(DIGITS.target)
TARGETS = {
    "regression": (nn.MSELoss(), (NUMBER.float()[:, None] - 4.5) / 3),
    "several labels": (nn.BCEWithLogitsLoss(), torch.stack([NUMBER % 2 == 0, NUMBER > 4], dim=1).float()),
}


def stream_of(y, tasks=2):
    def dataset(task):
        label = DataAttribute(ConstantSequence(task, len(X)), "targets_task_labels", use_in_getitem=True)
        return AvalancheDataset([torch.utils.data.TensorDataset(X, y)], data_attributes=[label])

    sets = [dataset(task) for task in range(tasks)]
    return with_task_labels(benchmark_from_datasets(train=sets, test=sets))


@pytest.mark.parametrize("kind", TARGETS)
def test_pruning_by_the_loss_keeps_what_the_targets_need_and_frees_the_rest(kind):
    criterion, y = TARGETS[kind]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, y.shape[1]))
    strategy = CLNP(
        net, criterion=criterion, l1=1e-3, margin=0.02, max_new=1.0, finetune_epochs=0, weight_lr=3e-3, train_epochs=8,
        train_mb_size=32, evaluator=None, seed=0,
    )  # fmt: skip
    kept = {}
    for experience in stream_of(y).train_stream:
        strategy.train(experience)
        with torch.no_grad():
            kept = {task: strategy.model.eval()(X, task) for task in strategy.model.task_keys} | kept
    for task, before in kept.items():
        assert torch.equal(strategy.model(X, task), before)
        nothing = criterion(y.mean(dim=0).expand_as(y), y)
        assert float(criterion(before, y)) < 0.6 * float(nothing), "it learned"
    report = strategy.method.reports[0]
    assert report.accuracy_before - 0.02 <= report.accuracy_after <= 1.0
    assert 0 < report.layers["0"].new < 100, "some units are kept, and some are free"


def test_with_negative_losses_more_of_the_loss_is_still_better():
    nothing = Found(None, -1.0)
    assert quality(Found(None, -3.0), nothing) > quality(Found(None, -2.0), nothing) > quality(nothing, nothing) == 0
    assert math.isfinite(quality(Found(None, 1.0), Found(None, 0.0)))
    assert quality(Found(0.75, 9.0), Found(0.5, 1.0)) == 0.75, "an accuracy is used as it is"


@pytest.mark.parametrize(
    ("targets", "outputs", "counted"),
    [
        (torch.arange(2000) % 3, 3, True),
        (torch.arange(2000) % 3, 1, False),  # Integers as regression targets: one output has no classes.
        ((torch.arange(2000) % 3).float(), 3, False),
        (torch.rand(2000, 3), 3, False),
    ],
)
def test_accuracy_and_loss_equal_those_of_one_large_batch(targets, outputs, counted):
    assert BATCH < len(targets) < 2 * BATCH, "the last batch is a smaller one"
    torch.manual_seed(0)
    x = torch.randn(2000, 4)
    model = MaskedModel(nn.Linear(4, outputs), seed=0)
    model.begin(0, 0)
    model.set_scores(model.fresh_scores(0))

    def criterion(output, y):
        if output.shape == y.shape:
            return nn.functional.mse_loss(output, y)
        return nn.functional.l1_loss(output[:, 0], y.float())

    with torch.no_grad():
        output = model.eval()(x, 0)
        found = found_on(model, [x, targets, torch.zeros(2000, dtype=torch.long)], criterion)
    assert found.loss == pytest.approx(float(criterion(output, targets)), rel=1e-5)
    if counted:
        assert found.right == pytest.approx(float((output.argmax(dim=1) == targets).float().mean()))
    else:
        assert found.right is None


def test_one_number_per_sample_without_a_dimension_of_classes_has_no_accuracy():
    model = MaskedModel(nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), seed=0)
    model.begin(0, 0)
    model.set_scores(model.fresh_scores(0))
    with torch.no_grad():
        assert found_on(model.eval(), [torch.randn(9, 4), torch.randn(9)], nn.MSELoss()).right is None


def test_dense_class_numbers_count_by_position():
    torch.manual_seed(0)
    x, y = torch.randn(30, 1, 4, 4), torch.randint(0, 2, (30, 4, 4))
    model = MaskedModel(nn.Conv2d(1, 2, 1), seed=0)
    model.begin(0, 0)
    model.set_scores(model.fresh_scores(0))
    with torch.no_grad():
        found = found_on(model.eval(), [x, y, torch.zeros(30, dtype=torch.long)], nn.CrossEntropyLoss())
        assert found.right == pytest.approx(float((model(x, 0).argmax(dim=1) == y).float().mean()))

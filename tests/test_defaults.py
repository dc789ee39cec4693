"""Settings that nobody gave: a deterministic, logged rule; given numbers are used; a bad weight phase is undone."""

import pytest
import torch
from torch.optim import SGD

from avalanche_supermask import ExSSNeT, ImpressLearn, MaskedModel, SupSup, SupSupNNs
from avalanche_supermask.functional import balanced_counts, erdos_renyi_counts, uniform_counts
from avalanche_supermask.learning_rates import score_rate, weight_rate
from tests.streams import class_stream, mlp, train_all

QUICK = {"train_mb_size": 16, "evaluator": None, "seed": 0}


def accuracy(strategy, stream):
    """Share of right answers over all tasks, of the training data."""
    right = n = 0
    for task, experience in enumerate(stream.train_stream):
        for x, y, _ in experience.dataset.eval():
            right += int(strategy.model.eval()(x[None], task).argmax()) == y
            n += 1
    return right / n


@pytest.mark.parametrize("method", [SupSup, ExSSNeT, ImpressLearn, SupSupNNs])
def test_settings_used_are_filled_and_the_same_in_a_second_run(method):
    def learn():
        torch.manual_seed(0)
        strategy = method(mlp(), train_epochs=2, **QUICK)
        return train_all(strategy, class_stream(2))

    one, two = learn(), learn()
    assert one.method in one.plugins
    used = one.method.settings_used
    rates = used["mask_lr"]
    assert set(rates) >= {"1.weight", "3.weight"}
    assert all(rate > 0 for rate in rates.values())
    assert used == two.method.settings_used


def test_rates_by_hand():
    strategy = train_all(ExSSNeT(mlp(width=100), density=0.5, train_epochs=4, **QUICK), class_stream(1))
    used = strategy.method.settings_used
    steps = 2 * 3  # two epochs a phase, 48 samples in batches of 16
    assert used["mask_lr"]["1.weight"] == pytest.approx(score_rate((100, 36), steps))
    assert used["mask_lr"]["1.weight"] / used["mask_lr"]["3.weight"] == pytest.approx((100 / 36) ** 0.5)
    constant = torch.full((2, 2), (2 / 50) ** 0.5)
    assert used["weight_lr"]["3.weight"] == pytest.approx(weight_rate(constant, steps), rel=0.05)
    assert used["weight_epochs"] == 2
    assert used["layer_densities"]["1.weight"] == pytest.approx(0.5, abs=0.01)


def test_given_numbers_and_a_given_optimizer_are_used_as_they_are():
    given = train_all(ExSSNeT(mlp(), mask_lr=0.02, weight_lr=0.01, train_epochs=2, **QUICK), class_stream(1))
    assert given.method.settings_used["mask_lr"] == 0.02
    assert given.method.settings_used["weight_lr"] == 0.01
    net = mlp()
    own = train_all(ExSSNeT(net, optimizer=SGD(net.parameters(), lr=0.3), train_epochs=2, **QUICK), class_stream(1))
    assert own.method.settings_used["mask_lr"] == own.method.settings_used["weight_lr"] == 0.3
    assert len(own.optimizer.param_groups) == 1
    uniform = train_all(SupSup(mlp(), layer_densities="uniform", init="signed_constant", **QUICK), class_stream(1))
    assert uniform.model.subnetworks.frozen["1.weight"].abs().unique().numel() == 1
    assert float(uniform.model.subnetworks.frozen["1.weight"].abs()[0, 0]) == pytest.approx((2 / 36) ** 0.5)


def test_the_optimizer_has_one_group_again_after_a_task():
    strategy = train_all(SupSup(mlp(), train_epochs=1, **QUICK), class_stream(2))
    (group,) = strategy.optimizer.param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in strategy.model.parameters()}
    assert group["lr"] == 1e-3


@pytest.mark.parametrize("weight_lr", [1e30, float("inf")])
def test_an_absurd_rate_of_the_weights_costs_nothing(weight_lr):
    """Negative control: without the safeguard these rates end in an error."""
    stream = class_stream(2)

    def learn(weight_lr, weight_epochs, mask_epochs=3):
        torch.manual_seed(0)
        strategy = ExSSNeT(
            mlp(),
            density=0.3,
            train_epochs=mask_epochs + weight_epochs,
            weight_epochs=weight_epochs,
            weight_lr=weight_lr,
            **QUICK,
        )
        return train_all(strategy, stream)

    with pytest.warns(UserWarning, match="raised the loss from .* lower weight_lr"):
        absurd = learn(weight_lr, 1)
    assert absurd.method.settings_used["weight_phase_kept"] is False
    assert accuracy(absurd, stream) >= accuracy(learn(0.01, 0), stream) - 0.05
    kept = learn(0.01, 1, mask_epochs=1)
    assert kept.method.settings_used["weight_phase_kept"] is True


def test_old_tasks_stay_bit_identical_under_rule_and_safeguard():
    stream = class_stream(3)
    strategy = ExSSNeT(mlp(), density=0.3, train_epochs=2, **QUICK)
    x = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    strategy.train(stream.train_stream[0])
    before = strategy.model.eval()(x, 0).clone()
    train_all_from(strategy, stream, 1)
    assert torch.equal(before, strategy.model.eval()(x, 0))


def train_all_from(strategy, stream, first):
    for experience in stream.train_stream[first:]:
        strategy.train(experience)


def test_where_few_weights_are_free_the_mask_gets_all_epochs():
    strategy = train_all(ExSSNeT(mlp(), density=0.95, train_epochs=2, **QUICK), class_stream(2))
    assert strategy.method.settings_used["weight_epochs"] == 0
    asked = train_all(ExSSNeT(mlp(), density=0.95, train_epochs=2, weight_epochs=1, **QUICK), class_stream(2))
    assert asked.method.settings_used["weight_epochs"] == 1


def test_scaled_constants_keep_the_variance_and_survive_forgetting():
    strategy = train_all(SupSup(mlp(width=64), density=0.1, train_epochs=1, **QUICK), class_stream(2))
    model = strategy.model
    for name, shape in model.masked_shapes.items():
        density = model.subnetworks.scaled_for[name]
        constant = float(model.subnetworks.frozen[name].abs().max())
        assert constant == pytest.approx((2 / (density * shape[1])) ** 0.5, rel=1e-5)
    model.forget(0)
    for name in model.masked_names:
        assert model.subnetworks.frozen[name].abs().std() < 1e-6 * model.subnetworks.frozen[name].abs().mean() + 1e-6
    state = model.state_dict()
    other = MaskedModel(mlp(width=64), init="scaled_constant", seed=1)
    other.load_state_dict(state)
    assert other.subnetworks.scaled_for == model.subnetworks.scaled_for


def test_balanced_counts():
    shapes = {"a": (256, 784), "b": (256, 256), "c": (2, 256)}
    counts = balanced_counts(shapes, 0.02)
    total = sum(int(torch.tensor(s).prod()) for s in shapes.values())
    assert sum(counts.values()) == pytest.approx(0.02 * total, abs=2)
    assert counts["c"] == 256  # half of it, where uniform keeps ten
    assert uniform_counts(shapes, 0.02)["c"] == 10
    tiny = {"a": (10, 10), "b": (2, 10)}
    assert balanced_counts(tiny, 0.05) == erdos_renyi_counts(tiny, 0.05)
    assert balanced_counts(shapes, 1.0) == uniform_counts(shapes, 1.0)

"""Defaults: a deterministic rule, which is logged; given numbers are used; a bad weight phase is undone."""

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.optim import SGD

from avalanche_supermask import ExSSNeT, ImpressLearn, MaskedModel, SupSup, SupSupNNs, first_logits
from avalanche_supermask.first_logits import LARGEST_SPREAD
from avalanche_supermask.functional import balanced_counts, connected_counts, uniform_counts
from avalanche_supermask.learning_rates import rise, score_rate, weight_rate
from avalanche_supermask.strategies.training_progress import TrainingProgress
from tests.streams import RMSNorm, class_stream, mlp, train_all

QUICK = {"train_mb_size": 16, "evaluator": None, "seed": 0}


def accuracy(strategy, stream):
    """Return the share of correct predictions on the training data of all tasks."""
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
    strategy = ExSSNeT(mlp(width=100), density=0.5, train_epochs=8, weight_epochs=2, **QUICK)
    train_all(strategy, class_stream(1))
    used = strategy.method.settings_used
    steps = 2 * 3  # The weight phase has two epochs of 48 samples, in batches of 16.
    assert used["mask_lr"]["1.weight"] == pytest.approx(score_rate((100, 36), 3 * steps))
    assert used["mask_lr"]["1.weight"] / used["mask_lr"]["3.weight"] == pytest.approx((100 / 36) ** 0.5)
    constant = torch.full((2, 2), (2 / 50) ** 0.5)
    assert used["weight_lr"]["3.weight"] == pytest.approx(weight_rate(constant, steps), rel=0.05)
    assert used["weight_epochs"] == 2
    assert used["layer_densities"]["1.weight"] == pytest.approx(0.5, abs=0.01)


def test_a_deep_network_has_smaller_rates():
    hidden = [layer for _ in range(10) for layer in (nn.Linear(36, 36), nn.ReLU())]
    net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(36, 36), nn.LayerNorm(36), nn.ReLU(), nn.Linear(36, 2))
    settings = {"density": 0.5, "per_task": "norm", "train_epochs": 2, **QUICK}
    used = train_all(ExSSNeT(net, weight_epochs=1, **settings), class_stream(1)).method.settings_used
    rates = [rate for name, rate in used["mask_lr"].items() if "22" not in name]  # without the norm
    assert rates == pytest.approx([score_rate((36, 36), 3) / 2] * 12)
    constant = torch.full((2, 2), (2 / 18) ** 0.5)
    assert used["weight_lr"]["1.weight"] == pytest.approx(weight_rate(constant, 3) / 2, rel=0.05)
    assert used["mask_lr"]["22.weight"] == pytest.approx(weight_rate(torch.ones(36), 3))  # A norm has the full rate.


def test_given_numbers_and_a_given_optimizer_are_used_as_they_are():
    given = train_all(
        ExSSNeT(mlp(), mask_lr=0.02, weight_lr=0.01, train_epochs=2, weight_epochs=1, **QUICK), class_stream(1)
    )
    assert given.method.settings_used["mask_lr"] == 0.02
    assert given.method.settings_used["weight_lr"] == 0.01
    net = mlp()
    own = train_all(
        ExSSNeT(net, optimizer=SGD(net.parameters(), lr=0.3), train_epochs=2, weight_epochs=1, **QUICK), class_stream(1)
    )
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
    """With such a rate the weight phase is undone; without the safeguard it would end in an error."""
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
    strategy = ExSSNeT(mlp(), density=0.3, train_epochs=2, weight_epochs=1, **QUICK)
    x = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    strategy.train(stream.train_stream[0])
    before = strategy.model.eval()(x, 0).clone()
    train_all_from(strategy, stream, 1)
    assert torch.equal(before, strategy.model.eval()(x, 0))


def train_all_from(strategy, stream, first):
    for experience in stream.train_stream[first:]:
        strategy.train(experience)


@pytest.mark.parametrize("labels", ["learnable", "random"])
def test_weights_train_only_if_something_is_left_to_learn(labels):
    """With little left, the task is learned as by SupSup; the loss of random labels stays high."""
    stream = class_stream(2, n=96)
    if labels == "random":
        generator = torch.Generator().manual_seed(0)
        tasks = [(torch.randn(96, 1, 6, 6, generator=generator), torch.arange(96) % 2) for _ in range(2)]
        stream = tensors_benchmark(train_tensors=tasks, test_tensors=tasks, task_labels=[0, 1])
    settings = {"density": 0.3, "train_epochs": 8, **QUICK}
    torch.manual_seed(0)
    exssnet = ExSSNeT(mlp(), **settings)
    found = []
    for experience in stream.train_stream:
        exssnet.train(experience)
        found.append(exssnet.method.settings_used["weight_epochs"])
    torch.manual_seed(0)
    supsup = train_all(SupSup(mlp(), **settings), stream)
    x = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    same = [torch.equal(exssnet.model.eval()(x, key), supsup.model.eval()(x, key)) for key in (0, 1)]
    assert found == ([0, 0] if labels == "learnable" else [2, 2])
    assert same == [labels == "learnable"] * 2
    assert ("weight_lr" in exssnet.method.settings_used) == (labels == "random")


def test_progress_that_tells_nothing_leaves_the_weight_phase_on():
    progress = TrainingProgress()
    assert progress.left() == float("inf")
    progress.see(torch.tensor(0.0), counted=True)  # A first loss of zero has no share.
    assert progress.left() == float("inf")
    progress.clear()
    for loss in (4.0, 1.0, 2.0):
        progress.see(torch.tensor(loss), counted=loss < 4)
    assert progress.left() == pytest.approx(1.5 / 4)
    progress.see(torch.tensor(float("nan")), counted=True)
    assert progress.left() == float("inf")


def test_where_few_weights_are_free_the_mask_gets_all_epochs():
    strategy = train_all(ExSSNeT(mlp(), density=0.95, train_epochs=4, **QUICK), class_stream(2))
    assert strategy.method.settings_used["weight_epochs"] == 0
    asked = train_all(ExSSNeT(mlp(), density=0.95, train_epochs=4, weight_epochs=1, **QUICK), class_stream(2))
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


class FirstLogits(SupervisedPlugin):
    """Keeps the logits that the first criterion of each task receives; it comes after the method's plugin."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_backward(self, strategy, **kwargs):
        if strategy.clock.train_exp_iterations == 0:
            self.seen.append(strategy.mb_output.detach().clone())


def spread(logits):
    return float((logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt())


@pytest.mark.parametrize("method", [SupSup, ExSSNeT])
def test_the_first_logits_of_a_wide_network_are_small(method):
    first = FirstLogits()
    strategy = method(mlp(width=256), density=0.25, layer_densities="uniform", train_epochs=1, plugins=[first], **QUICK)
    output = strategy.model.masked_names[-1]
    before = strategy.model.subnetworks.frozen[output].clone()
    stream = class_stream(3)
    strategy.train(stream.train_stream[0])
    model, factor = strategy.model, strategy.method.settings_used["output_factor"]
    assert 0 < factor < 1
    assert spread(first.seen[0]) == pytest.approx(LARGEST_SPREAD, rel=0.05)  # the factor has two digits
    torch.testing.assert_close(model.subnetworks.frozen[output], before * factor)
    assert float(model.subnetworks.frozen[output].abs().max()) == pytest.approx(factor * (2 / 64) ** 0.5)
    old = model.subnetworks.frozen[output].clone()
    for experience in stream.train_stream[1:]:
        strategy.train(experience)
    assert "output_factor" not in strategy.method.settings_used  # only the first task decides
    assert torch.equal(model.subnetworks.frozen[output], old) or method is ExSSNeT


@pytest.mark.parametrize("share", [1.001, 0.999])
def test_first_logits_just_above_and_below_the_limit_train(share, monkeypatch):
    """A factor that is rounded to 1 changes nothing, so the gradient of the first outputs is still right."""
    stream, seen = class_stream(1), FirstLogits()
    settings = {"density": 0.25, "train_epochs": 1, **QUICK}
    monkeypatch.setattr(first_logits, "LARGEST_SPREAD", 1e9)
    torch.manual_seed(0)
    SupSup(mlp(width=64), plugins=[seen], **settings).train(stream.train_stream[0])
    monkeypatch.setattr(first_logits, "LARGEST_SPREAD", spread(seen.seen[0]) / share)
    torch.manual_seed(0)
    strategy = SupSup(mlp(width=64), **settings)
    strategy.train(stream.train_stream[0])
    assert strategy.method.settings_used["output_factor"] == 1.0


def test_small_first_logits_stay_and_other_constants_too():
    net = mlp(width=256)
    inputs = [(1e-3 * torch.randn(40, 36), torch.arange(40) % 2)]
    stream = tensors_benchmark(train_tensors=inputs, test_tensors=inputs, task_labels=[0])
    strategy = SupSup(net, density=0.25, train_epochs=1, **QUICK)
    before = strategy.model.subnetworks.frozen[strategy.model.masked_names[-1]].clone()
    strategy.train(stream.train_stream[0])
    assert strategy.method.settings_used["output_factor"] == 1.0
    assert torch.equal(strategy.model.subnetworks.frozen[strategy.model.masked_names[-1]], before)
    unscaled = train_all(SupSup(mlp(), init="signed_constant", train_epochs=1, **QUICK), class_stream(1))
    assert "output_factor" not in unscaled.method.settings_used
    with pytest.raises(RuntimeError, match="only while the first task is learned"):
        unscaled.model.shrink_outputs(0.5)


def test_a_head_per_task_is_not_taken_for_the_output_layer():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 256), nn.ReLU(), nn.Linear(256, 2))
    model = train_all(SupSup(net, own=["3.*"], density=0.25, layer_densities="uniform", train_epochs=1, **QUICK),
                      class_stream(1)).model  # fmt: skip
    assert model.subnetworks.scaled_for == {"1.weight": 0.25}


def test_a_short_training_of_a_wide_output_layer_learns():
    generator = torch.Generator().manual_seed(0)
    prototypes, y = torch.randn(4, 3, 16, 16, generator=generator), torch.arange(400) % 4
    x = prototypes[y] + 2 * torch.randn(400, 3, 16, 16, generator=generator)
    stream = tensors_benchmark(train_tensors=[(x[:200], y[:200])], test_tensors=[(x[200:], y[200:])], task_labels=[0])
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 4),
    )  # fmt: skip
    torch.manual_seed(0)
    strategy = SupSup(net, train_epochs=8, train_mb_size=32, evaluator=None, seed=0)  # 56 steps
    strategy.train(stream.train_stream[0])
    with torch.no_grad():
        right = strategy.model.eval()(x[200:], 0).argmax(1) == y[200:]
    assert float(right.float().mean()) > 0.75  # 0.62 without the bound


def test_balanced_counts():
    shapes = {"a": (256, 784), "b": (256, 256), "c": (2, 256)}
    counts = balanced_counts(shapes, 0.02)
    total = sum(int(torch.tensor(s).prod()) for s in shapes.values())
    assert sum(counts.values()) == pytest.approx(0.02 * total, abs=2)
    assert counts["c"] == 256  # Half of the layer; uniform counts keep ten.
    assert uniform_counts(shapes, 0.02)["c"] == 10
    tiny = {"a": (10, 10), "b": (2, 10)}
    assert balanced_counts(tiny, 0.1) == {"a": 8, "b": 4}, "twelve weights for 20 and 12 rows and columns"
    filters = {"conv": (8, 4, 3, 3), "fc": (100, 400)}
    assert balanced_counts(filters, 0.15)["conv"] == 144, "its 36 places each count as an input: half of it"
    assert balanced_counts(shapes, 1.0) == uniform_counts(shapes, 1.0)


def test_where_nobody_gave_a_density_small_layers_keep_more():
    shapes = {"a": (1000, 1000), "b": (10, 1000), "c": (6, 1, 5, 5)}
    assert connected_counts(shapes, 0.1) == {"a": 100_000, "b": 5_000, "c": 75}
    strategy = train_all(SupSup(mlp(width=100), train_epochs=1, **QUICK), class_stream(1))
    used, weights = strategy.method.settings_used, strategy.model.subnetworks.frozen
    assert used["layer_densities"]["1.weight"] == pytest.approx(8 * 136 / 3600, abs=1e-3)
    kept = sum(int(mask.sum()) for mask in strategy.model.task_mask(0).values())
    assert used["density"] == pytest.approx(kept / sum(w.numel() for w in weights.values()))
    given = train_all(SupSup(mlp(), density=0.1, train_epochs=1, **QUICK), class_stream(1))
    assert given.method.settings_used["density"] == 0.1
    uniform = SupSup(mlp(), layer_densities="uniform", train_epochs=1, **QUICK)
    assert uniform.method.densities(uniform.model)["1.weight"] == pytest.approx(0.1, abs=0.01)
    with pytest.raises(ValueError, match=r"density must be a fraction in .*got 'tenth'"):
        SupSup(mlp(), density="tenth", **QUICK)


def test_a_chosen_rate_rises_and_a_given_one_does_not():
    assert [rise(step, 20) for step in (0, 1, 3, 4, 19)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert rise(0, 1) == 1.0

    def rates(**given):
        seen = []

        class Watch(SupervisedPlugin, supports_distributed=True):
            def before_update(self, strategy, **kwargs):
                seen.append(strategy.optimizer.param_groups[-1]["lr"])

        train_all(SupSup(mlp(), train_epochs=5, plugins=[Watch()], **QUICK, **given), class_stream(1))
        return seen

    chosen, given = rates(), rates(mask_lr=0.01)
    assert chosen.index(max(chosen)) == 2, "three steps, a fifth of fifteen"
    assert given[0] == max(given) == 0.01


@pytest.mark.parametrize("batch", [10, 64])
@pytest.mark.parametrize("method", [SupSup, ExSSNeT])
def test_a_small_network_learns_an_easy_task_at_defaults(method, batch):
    """A linear task with 16 inputs is learned in 10 epochs; at a density of 0.1 the accuracy was 0.8."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 16, generator=generator)
    y = (x @ torch.randn(16, 2, generator=generator)).argmax(dim=1)
    stream = tensors_benchmark(train_tensors=[(x, y)], test_tensors=[(x, y)], task_labels=[0])
    net = nn.Sequential(nn.Linear(16, 32), RMSNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    torch.manual_seed(0)
    strategy = train_all(method(net, train_epochs=10, **QUICK | {"train_mb_size": batch}), stream)
    assert float((strategy.model.eval()(x, 0).argmax(dim=1) == y).float().mean()) > 0.95


def test_constants_are_not_scaled_where_the_outputs_name_the_task():
    for inference, init in (("given", "scaled"), ("gaussian", "scaled"), ("oneshot", "signed"), ("entropy", "signed")):
        assert SupSup(mlp(), task_inference=inference, **QUICK).model.init == f"{init}_constant"
    assert SupSup(mlp(), task_inference="oneshot", init="scaled_constant", **QUICK).model.init == "scaled_constant"

"""RestoreBest keeps the epoch of each phase with the lowest loss on held-out training data."""

import pytest
import torch
from torch import nn

from avalanche_supermask import CachedTensors, HopSupSup, RestoreBest, SupSup, SupSupNNs
from tests.building import METHODS, build
from tests.streams import class_stream, inputs, mlp, outputs, train_all

PER_TASK = [name for name, cls in METHODS.items() if cls.scenario.training and name != "hopsupsup"]


class Watched(RestoreBest):
    """A plugin that stores the outputs after every epoch, and the share of the data that is used for training."""

    def after_train_dataset_adaptation(self, strategy, **kwargs):
        super().after_train_dataset_adaptation(strategy, **kwargs)
        self.trained_on, self.outputs = len(strategy.adapted_dataset), []

    def after_training_epoch(self, strategy, **kwargs):
        super().after_training_epoch(strategy, **kwargs)
        self.outputs.append(outputs(strategy.model, inputs(), torch.full((16,), strategy.model.active)))


def losses(plugin, values):
    """Replace the held-out losses by these numbers, whatever the network computes."""
    remaining = iter(values)
    plugin._loss = lambda strategy: next(remaining)
    return plugin


@pytest.mark.parametrize("method", ["supsup", "ssnet", "impresslearn"])
@pytest.mark.parametrize("best", [0, 1, 3])
def test_the_best_epoch_is_the_one_that_is_committed(method, best):
    plugin = losses(Watched(share=0.25), [0.1 if epoch == best else 1.0 for epoch in range(4)])
    options = {"weight_epochs": 0} if method == "ssnet" else {}
    strategy = build(method, mlp(), plugins=[plugin], train_epochs=4, **options)
    strategy.train(class_stream(1).train_stream[0])
    assert torch.equal(outputs(strategy.model, inputs(), torch.zeros(16, dtype=torch.long)), plugin.outputs[best])
    assert [*plugin.kept.values()] == [best]
    assert strategy.method.settings_used["best_epochs"] == plugin.kept
    assert any(not torch.equal(plugin.outputs[best], other) for other in plugin.outputs), "the epochs differ"


def test_each_phase_has_a_best_epoch_of_its_own():
    plugin = losses(Watched(), [1.0, 0.2, 0.9, 0.5, 0.6, 0.7])
    strategy = build("exssnet", mlp(), plugins=[plugin], train_epochs=6, weight_epochs=3, density=0.5)
    strategy.train(class_stream(1).train_stream[0])
    assert plugin.kept == {"mask": 1, "weight": 3}
    assert strategy.method.settings_used["weight_phase_kept"], "or the mask phase alone is committed"
    assert torch.equal(outputs(strategy.model, inputs(), torch.zeros(16, dtype=torch.long)), plugin.outputs[3])
    assert not torch.equal(plugin.outputs[3], plugin.outputs[5]), "or this shows nothing"


def test_a_later_phase_begins_from_the_best_epoch_of_the_earlier_one():
    plugin = losses(RestoreBest(), [0.1, 1.0, 1.0, 1.0])
    masks = []

    class Masks(RestoreBest.__mro__[1]):
        def after_training_epoch(self, strategy, **kwargs):
            masks.append({name: mask.clone() for name, mask in strategy.model.current_mask().items()})

    strategy = build("exssnet", mlp(), plugins=[plugin, Masks()], train_epochs=4, weight_epochs=1, mask_lr=0.5)
    strategy.train(class_stream(1).train_stream[0])
    same = [all(torch.equal(mask[name], masks[-1][name]) for name in mask) for mask in masks]
    assert same == [True, False, False, True], "the weights of the first epoch's mask were trained"


@pytest.mark.parametrize("method", PER_TASK)
@pytest.mark.parametrize("cached", [True, False])
def test_old_tasks_stay_bit_identical_beside_it(method, cached):
    plugin = Watched(share=0.25)
    plugins = [plugin, CachedTensors()] if cached else [plugin]
    strategy = build(method, mlp(), plugins=plugins, train_epochs=4, finetune_epochs=1)
    recorded = {}

    def record(key):
        recorded[key] = outputs(strategy.model, inputs(), torch.full((16,), key))

    train_all(strategy, class_stream(3), record)
    assert plugin.trained_on <= 36, "a quarter of the 48 samples is held out"
    assert len(plugin.losses) == 4
    if not METHODS[method].forgets:
        for key, before in recorded.items():
            assert torch.equal(outputs(strategy.model, inputs(), torch.full((16,), key)), before)


def test_running_statistics_return_too():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    plugin = losses(Watched(), [0.1, 1.0, 1.0])
    strategy = SupSup(net, density=0.5, plugins=[plugin], train_epochs=3, train_mb_size=8, evaluator=None, seed=0)
    strategy.train(class_stream(1).train_stream[0])
    assert torch.equal(outputs(strategy.model, inputs(), torch.zeros(16, dtype=torch.long)), plugin.outputs[0])


def test_a_network_that_overfits_has_a_lower_held_out_loss():
    held_out = []

    class Held(RestoreBest):
        def before_training_exp(self, strategy, **kwargs):
            held_out.extend(self._held_out)

    plugin = Held(share=0.5, seed=3)
    strategy = build("supsup", mlp(), plugins=[plugin], train_epochs=12, mask_lr=1.0)
    strategy.train(class_stream(1, n=24, n_classes=2).train_stream[0])
    assert min(plugin.losses) < plugin.losses[-1], "the last epoch is not the best one"
    x, y, _ = held_out
    loss = nn.functional.cross_entropy(outputs(strategy.model, x, 0), y)
    assert float(loss) == pytest.approx(min(plugin.losses), rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2])
def test_impossible_shares(share):
    with pytest.raises(ValueError, match="share must be between 0 and 1"):
        RestoreBest(share=share)


def test_too_few_samples_to_hold_one_out():
    strategy = build("supsup", mlp(), plugins=[RestoreBest(share=0.001)])
    with pytest.raises(ValueError, match=r"share=0.001 of 48 training samples is 0: expected at least one"):
        strategy.train(class_stream(1).train_stream[0])


@pytest.mark.parametrize("strategy", [SupSupNNs, HopSupSup])
def test_methods_without_phases_are_refused(strategy):
    made = strategy(mlp(), plugins=[RestoreBest()], evaluator=None, seed=0)
    with pytest.raises(ValueError, match=f"RestoreBest needs a method.*{strategy.__name__} has none"):
        made.train(class_stream(1).train_stream[0])

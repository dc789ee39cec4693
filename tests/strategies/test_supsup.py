import hashlib

import pytest
import torch

from avalanche_supermask import SupSup
from avalanche_supermask.functional import reordered
from avalanche_supermask.selection import selection
from tests.building import OPTIMIZERS
from tests.streams import class_stream, mlp, train_all

QUICK = {"train_mb_size": 16, "evaluator": None, "seed": 0, "train_epochs": 2}


def digest(model):
    return hashlib.sha256(b"".join(w.numpy().tobytes() for w in model.subnetworks.frozen.values())).hexdigest()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_weights_never_change_after_the_first_mini_batch(optimizer):
    net = mlp()
    strategy = SupSup(net, optimizer=OPTIMIZERS[optimizer](net.parameters()), **QUICK)
    stream = class_stream(3)
    strategy.train(stream.train_stream[0])  # its first mini-batch decides the scale of the output layer
    before = digest(strategy.model)
    for experience in stream.train_stream[1:]:
        strategy.train(experience)
    assert digest(strategy.model) == before


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_unscaled_weights_never_change(optimizer):
    net = mlp()
    strategy = SupSup(net, optimizer=OPTIMIZERS[optimizer](net.parameters()), init="signed_constant", **QUICK)
    before = digest(strategy.model)
    train_all(strategy, class_stream(3))
    assert digest(strategy.model) == before


@pytest.mark.parametrize("layer_densities", ["uniform", "erdos_renyi"])
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 1.0])
def test_every_layer_keeps_its_exact_count(density, layer_densities):
    strategy = SupSup(mlp(), density=density, layer_densities=layer_densities, **QUICK)
    train_all(strategy, class_stream(2))
    chosen = selection(strategy.model.masked_shapes, density=density, layer_densities=layer_densities)
    for key in (0, 1):
        assert {n: int(m.sum()) for n, m in strategy.model.subnetworks.task_mask(key).items()} == chosen.counts


def test_threshold_masks_follow_the_sign_of_the_scores():
    strategy = SupSup(mlp(), density=None, mask_lr=0.05, **QUICK)
    strategy.train(class_stream(1).train_stream[0])
    scores, mask = strategy.model.subnetworks.scores, strategy.model.subnetworks.task_mask(0)
    assert all(torch.equal(mask[n], scores[n] >= 0) for n in mask)
    kept = sum(int(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())
    assert 0.3 < kept < 0.7


def test_the_order_of_tasks_does_not_matter():
    stream = class_stream(2)

    def masks(order):
        # With scaled constants, the first task decides the scale of the output layer.
        strategy = SupSup(mlp(), init="signed_constant", **QUICK)
        for index in order:
            torch.manual_seed(index)  # A task has the same batches in both orders.
            strategy.train(stream.train_stream[index])
        return {key: strategy.model.subnetworks.task_mask(key) for key in (0, 1)}

    a, b = masks([0, 1]), masks([1, 0])
    for key in (0, 1):
        assert all(torch.equal(a[key][n], b[key][n]) for n in a[key])


def test_transfer_of_scores_starts_from_their_running_mean():
    strategy = SupSup(mlp(), transfer="scores", mask_lr=0.05, **QUICK)
    seen, initial = [], []
    plugin = strategy.plugins[0]
    begin = plugin.begin_task

    def spy(strategy, model):
        begin(strategy, model)
        initial.append({n: s.detach().clone() for n, s in model.subnetworks.scores.items()})

    plugin.begin_task = spy
    for experience in class_stream(3).train_stream:
        strategy.train(experience)
        seen.append({n: s.detach().clone() for n, s in strategy.model.subnetworks.scores.items()})
    for name in seen[0]:
        assert torch.equal(initial[1][name], seen[0][name])
        assert torch.allclose(initial[2][name], (seen[0][name] + seen[1][name]) / 2, atol=1e-7)
        assert plugin._mean[name].data_ptr() != strategy.model.subnetworks.scores[name].data_ptr()


def test_transfer_of_masks_starts_from_the_mask_with_fresh_values():
    strategy = SupSup(mlp(), transfer="masks", mask_lr=0.0, **QUICK)
    train_all(strategy, class_stream(2))
    model = strategy.model
    assert model.overlap()[1] == 1.0, "with learning rate 0, the second mask is the first one"
    fresh = model.fresh_scores(1)
    for name, scores in model.subnetworks.scores.items():
        assert torch.equal(scores.detach().flatten().sort().values, fresh[name].flatten().sort().values)


def test_reordered_against_a_naive_oracle():
    values, order = torch.randn(40), torch.rand(40).round(decimals=1)
    result = reordered(values, order)
    assert torch.equal(result.sort().values, values.sort().values)
    for i in range(40):
        for j in range(40):
            if order[i] > order[j]:
                assert result[i].abs() >= result[j].abs()

"""HopSupSup stores unit masks together and retrieves them from inputs alone."""

import copy
import itertools

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from avalanche_supermask import HopSupSup, UnitMaskedModel
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.inference import entropy
from tests.streams import class_stream, inputs, lenet


def network(width=256, outputs=2):
    norm = {"affine": False, "track_running_stats": False}
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, width, bias=False), nn.BatchNorm1d(width, **norm), nn.SiLU(),
        nn.Linear(width, width, bias=False), nn.BatchNorm1d(width, **norm), nn.SiLU(),
        nn.Linear(width, outputs, bias=False),
    )  # fmt: skip


def learned(n_tasks=3, **options):
    torch.manual_seed(0)
    stream = class_stream(n_tasks, n=256, task_labels=[0] * n_tasks)
    found = HopSupSup(network(), train_mb_size=32, train_epochs=4, evaluator=None, seed=0, eval_mb_size=64, **options)
    for experience in stream.train_stream:
        found.train(experience)
    return found, stream


def test_masks_are_recovered_from_unlabelled_inputs():
    found, stream = learned()
    for experience in stream.test_stream:
        found.eval([experience])
        x, y, _ = load_tensors(experience.dataset, torch.device("cpu"))
        with torch.no_grad():
            assert (found.model(x).argmax(1) == y).float().mean() > 0.9


def test_a_task_label_is_accepted_and_has_no_effect():
    model = HopSupSup(network(), evaluator=None, seed=0).model.eval()
    x = inputs(4)
    for labels in (0, 7, torch.zeros(4, dtype=torch.long), None):
        assert torch.equal(model(x, labels), model(x))
        assert torch.equal(model(x, task_labels=labels), model(x))


def test_weights_never_change_and_one_score_vector_a_layer_learns():
    found, _ = learned(1)
    before = copy.deepcopy(found.model.net.state_dict())
    found.train(class_stream(2, n=64, task_labels=[0, 0]).train_stream[1])
    assert all(torch.equal(before[k], v) for k, v in found.model.net.state_dict().items())
    assert [tuple(p.shape) for p in found.model.parameters() if p.requires_grad] == [(256,), (256,)]


def test_memory_is_constant_and_honest():
    found, _ = learned(1)
    size = found.model.memory_bytes
    more, _ = learned(3)
    assert more.model.memory_bytes == size > 2 * 4 * 256**2
    assert more.model.mask_bytes == 2 * 256 // 8


def test_the_surest_of_several_descents_counts(monkeypatch):
    found, stream = learned()
    model = found.model.eval()
    x, _, _ = load_tensors(stream.test_stream[0].dataset, torch.device("cpu"))
    batches, settings = x.split(64), {"steps": 32, "lr": 500.0, "gamma": 1.5e-3}
    once = model.recover(batches, **settings)
    assert once < 0.3
    wandering = model.recover(batches, steps=2, lr=0.0, gamma=0.0)
    assert once < wandering, "a mask that nothing was done for is less sure"

    def sure(masks):
        model.use(masks)
        with torch.no_grad():
            return float(torch.stack([entropy(model(part)).mean() for part in batches]).mean())

    draw = torch.Generator().manual_seed(0)
    drawn = sorted(([torch.rand(256, generator=draw).round() for _ in range(2)] for _ in range(3)), key=sure)
    descents = [drawn[1], drawn[0], drawn[2]]  # The surest one is neither the first nor the last.
    remaining = iter(descents)
    monkeypatch.setattr(model, "_descend", lambda *arguments: model.use(next(remaining)))
    assert model.recover(batches, restarts=3, **settings) == pytest.approx(sure(drawn[0]))
    remaining = iter(descents)
    model.recover(batches, restarts=3, **settings)
    assert all(torch.equal(mask, best) for mask, best in zip(model._masks, drawn[0], strict=True))


@pytest.mark.parametrize("falls", [True, False])
def test_the_rate_follows_a_cosine_on_request(falls):
    rates = []

    class Watch(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    options = {"train_mb_size": 16, "train_epochs": 2, "evaluator": None, "seed": 0, "plugins": [Watch()]}
    HopSupSup(network(16), cosine_schedule=falls, **options).train(class_stream(1).train_stream[0])
    assert len(rates) == 6
    if falls:
        assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    else:
        assert len(set(rates)) == 1


def test_convolutions_are_masked_by_channel():
    model = UnitMaskedModel(lenet(), seed=0)
    assert [len(s) for s in model.scores] == [54, 16]
    two = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    model = UnitMaskedModel(two, seed=0)
    assert [len(s) for s in model.scores] == [6, 16]
    assert model(torch.randn(2, 1, 6, 6)).shape == (2, 2)


def test_a_network_without_hidden_units_is_refused():
    with pytest.raises(ValueError, match="no hidden units to mask: expected at least two weighted layers, got 1; add"):
        UnitMaskedModel(nn.Linear(3, 2))


def test_a_copy_has_masks_of_its_own():
    model, x = UnitMaskedModel(network(64), seed=0).eval(), torch.randn(8, 1, 6, 6)
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = model(x)
        assert torch.equal(other(x), before)
        other.use([torch.zeros(64), torch.zeros(64)])
        assert torch.equal(model(x), before)
        assert not torch.equal(other(x), before)


def test_without_a_seed_the_weights_follow_torchs_and_its_state_is_not_reseeded():
    def drawn():
        torch.manual_seed(3)
        return UnitMaskedModel(network(16)).net[1].weight, torch.rand(1)

    (first, after), (second, again) = drawn(), drawn()
    assert torch.equal(first, second)
    assert torch.equal(after, again)

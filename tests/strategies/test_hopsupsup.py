"""HopSupSup stores unit masks together and retrieves them from inputs alone."""

import copy
import itertools
import pickle

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, tensors_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
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
    with pytest.raises(ValueError, match=r"at least two weighted layers \(Linear or Conv\), got 1; add"):
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


# ---------------------------------------------------------------------- evaluation, and experiences that fail


def quick(net=None, **options):
    fixed = {"train_epochs": 2, "evaluator": None, "seed": 0, "steps": 4, "restarts": 1}
    options = {"train_mb_size": 16, "eval_mb_size": 16} | fixed | options
    return HopSupSup(network(32) if net is None else net, **options)


def state(strategy):
    return copy.deepcopy(strategy.model.state_dict())


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_an_evaluation_during_training_changes_nothing_and_knows_the_mask_in_training():
    class Evaluate(SupervisedPlugin):
        stored = ()

        def after_training_epoch(self, strategy, **kwargs):
            random_state, before = torch.get_rng_state(), state(strategy)
            strategy.eval(stream.test_stream)
            assert same(before, state(strategy))
            torch.set_rng_state(random_state)

        def before_eval_exp(self, strategy, **kwargs):
            self.stored = (*self.stored, int(strategy.model.memory[0].stored))

    stream, evaluates = class_stream(2, task_labels=[0, 0]), Evaluate()
    plain, watched = quick(), quick(plugins=[evaluates])
    for strategy in (plain, watched):
        torch.manual_seed(0)
        for experience in stream.train_stream:
            strategy.train(experience)
    assert same(state(plain), state(watched))
    assert evaluates.stored == (1, 1, 1, 1, 2, 2, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_networks_of_any_precision(dtype):
    strategy = quick(nn.Sequential(nn.Flatten(), nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 2)).to(dtype))
    x = inputs(32).to(dtype)
    data = [(x, torch.arange(32) % 2)]
    stream = tensors_benchmark(train_tensors=data, test_tensors=data, task_labels=[0])
    strategy.train(stream.train_stream[0])
    strategy.eval(stream.test_stream)
    assert strategy.model.eval()(x).dtype == dtype


def test_a_copy_keeps_the_recovered_masks():
    strategy, stream = quick(), class_stream(2, task_labels=[0, 0])
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.eval(stream.test_stream[:1])
    model, x = strategy.model.eval(), inputs(8)
    model.use([torch.ones(32), torch.zeros(32)])  # as a recovery does, whatever it finds
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


def test_an_experience_without_samples_is_refused_in_training_and_skipped_in_evaluation():
    strategy = quick()
    strategy.train(class_stream(1).train_stream[0])
    nothing = (torch.zeros(0, 1, 6, 6), torch.zeros(0, dtype=torch.long))
    empty = tensors_benchmark(train_tensors=[nothing], test_tensors=[nothing], task_labels=[0])
    with pytest.raises(ValueError, match="experience 0 is empty: expected at least one sample to learn from"):
        strategy.train(empty.train_stream[0])
    strategy.eval(empty.test_stream)
    assert int(strategy.model.memory[0].stored) == 1


def test_a_loss_that_is_not_a_number_stores_no_mask():
    strategy = quick(criterion=lambda output, target: output.sum() * float("nan"))
    with pytest.raises(
        FloatingPointError, match="the loss of experience 0 is NaN or infinite; its mask was not stored"
    ):
        strategy.train(class_stream(1).train_stream[0])
    assert int(strategy.model.memory[0].stored) == 0


def test_an_experience_that_avalanche_skips_stores_no_mask():
    class Stop(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            strategy.stop_training()

    strategy = quick(train_epochs=1, plugins=[Stop()])
    with pytest.warns(UserWarning, match="experience 1 was trained for 0 iterations, and no mask is stored"):
        strategy.train(class_stream(2, task_labels=[0, 0]).train_stream)
    assert int(strategy.model.memory[0].stored) == 1


def test_training_without_gradients_is_refused():
    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients are switched off here"):
        quick().train(class_stream(1).train_stream[0])


def test_running_statistics_are_told_of():
    with pytest.warns(UserWarning, match="has a BatchNorm1d with running statistics, which all tasks share"):
        UnitMaskedModel(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)))


def test_recovery_has_no_batch_of_a_single_sample():
    strategy, stream, sizes = quick(recovery_batch=16, train_mb_size=11), class_stream(1, n=33), []
    strategy.train(stream.train_stream[0])
    strategy.model.register_forward_pre_hook(lambda model, inputs: sizes.append(len(inputs[0])))
    strategy.eval_mb_size = 33
    strategy.eval(stream.test_stream)
    assert set(sizes[:-1]) == {11}
    assert sizes[-1] == 33


def test_inputs_may_be_dictionaries():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network(32)

        def forward(self, batch):
            return self.layers(batch["pixels"])

    class Pixels(torch.utils.data.Dataset):
        def __len__(self):
            return 32

        def __getitem__(self, index):
            return {"pixels": x[index]}, index % 2

    x, targets = inputs(32), DataAttribute([index % 2 for index in range(32)], "targets")
    data = [AvalancheDataset([Pixels()], data_attributes=[targets])]
    stream, strategy = benchmark_from_datasets(train=data, test=data), quick(Net())
    strategy.train(stream.train_stream[0])
    strategy.eval(stream.test_stream)
    assert strategy.model.eval()({"pixels": x}).shape == (32, 2)

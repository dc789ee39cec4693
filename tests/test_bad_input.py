"""Wrong inputs give a clear error or a defined result, and earlier tasks do not change."""

import copy

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark

from avalanche_supermask import CachedTensors, ExSSNeT, MaskedModel, SupSup
from tests.building import METHODS, build, same_state
from tests.streams import ResNet, class_stream, inputs, mlp, outputs, train_all

pytestmark = pytest.mark.filterwarnings("ignore:task .. no free unit is left")
KEPT = [m for m in METHODS if not METHODS[m].forgets]


def benchmark(x, y, label=0):
    return tensors_benchmark(train_tensors=[(x, y)], test_tensors=[(x, y)], task_labels=[label]).train_stream[0]


def learned(method, net=mlp, **options):
    """Return a strategy with one task, and the outputs of that task."""
    strategy = train_all(build(method, net(), **options), class_stream(1))
    return strategy, outputs(strategy.model, inputs(), 0)


@pytest.mark.parametrize("plugins", [list, lambda: [CachedTensors()]], ids=["avalanche's loader", "cached"])
@pytest.mark.parametrize("method", KEPT)
def test_an_empty_experience(method, plugins):
    strategy, before = learned(method, plugins=plugins())
    experience = class_stream(2).train_stream[1]
    experience.dataset = experience.dataset.subset([])
    with pytest.raises(ValueError, match="experience 1 is empty: expected at least one sample"):
        strategy.train(experience)
    assert strategy.model.task_keys == [0]
    assert torch.equal(outputs(strategy.model, inputs(), 0), before)
    strategy.train(class_stream(2).train_stream[1])
    assert strategy.model.task_keys == [0, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", KEPT)
def test_a_loss_that_is_no_number_ends_the_experience(method, value):
    strategy, before = learned(method, train_epochs=4)
    x = inputs(48)
    x[0] = value
    steps = strategy.clock.train_iterations
    with pytest.raises(FloatingPointError, match=r"task 1 .*the 1 earlier task"):
        strategy.train(benchmark(x, torch.arange(48) % 2, label=1))
    assert strategy.model.task_keys == [0]
    assert torch.equal(outputs(strategy.model, inputs(), 0), before)
    assert strategy.clock.train_iterations - steps <= 3, "it did not wait for the second epoch"
    strategy.train(class_stream(2).train_stream[1])
    assert strategy.model.task_keys == [0, 1]


@pytest.mark.parametrize("method", METHODS)
def test_a_task_of_one_class(method):
    strategy, _ = learned(method)
    strategy.train(benchmark(inputs(48), torch.ones(48, dtype=torch.long), label=1))
    assert (outputs(strategy.model, inputs(48), 1).argmax(dim=1) == 1).float().mean() > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_last_batch_of_one_sample(method):
    strategy = build(method, ResNet(), train_mb_size=16, plugins=[CachedTensors()])
    n = 33 if method != "clnp" else 36  # CLNP holds out a tenth of the samples.
    strategy.train(benchmark(inputs(n), torch.arange(n) % 2))
    assert strategy.model.task_keys == [0]


@pytest.mark.parametrize("method", KEPT)
def test_inputs_of_another_shape(method):
    strategy, before = learned(method)
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied \(16x49 and 36x24\)"):
        strategy.train(benchmark(torch.randn(48, 1, 7, 7), torch.arange(48) % 2, label=1))
    assert torch.equal(outputs(strategy.model, inputs(), 0), before)
    strategy.train(class_stream(2).train_stream[1])
    assert strategy.model.task_keys == [0, 1]


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_before_training_answers_with_the_whole_network(method):
    strategy = build(method, mlp())
    before = copy.deepcopy(strategy.model.state_dict())
    strategy.eval(class_stream(1).test_stream)
    assert same_state(strategy.model.state_dict(), before)
    weights = dict(strategy.model.net.named_parameters())
    weights |= {name: strategy.model.subnetworks.frozen[name] for name in strategy.model.masked_names}
    with torch.no_grad():
        whole = torch.func.functional_call(strategy.model.net, weights, (inputs(),))
    assert torch.equal(outputs(strategy.model, inputs(), 0), whole)


def test_two_strategies_on_one_model_take_turns():
    model = MaskedModel(mlp(), seed=0)
    options = {"density": 0.3, "train_mb_size": 16, "evaluator": None}
    first, second = SupSup(model, **options), ExSSNeT(model, train_epochs=2, **options)
    stream = class_stream(4)
    recorded = {}
    for index, strategy in enumerate([first, second, first, second]):
        strategy.train(stream.train_stream[index])
        recorded[index] = outputs(model, inputs(), index)
        for key, before in recorded.items():
            assert torch.equal(outputs(model, inputs(), key), before)
    assert model.task_keys == [0, 1, 2, 3]


@pytest.mark.parametrize("label", [-3, 7, 10**6])
def test_any_whole_number_is_a_task_key(label):
    strategy = build("exssnet", mlp())
    strategy.train(benchmark(inputs(48), torch.arange(48) % 2, label=label))
    assert strategy.model.task_keys == [label]
    assert outputs(strategy.model, inputs(4), label).shape == (4, 2)


@pytest.mark.parametrize("method", [m for m in KEPT if METHODS[m].scenario.training])
def test_one_output_per_sample_and_targets_that_are_no_classes(method):
    """A network with the shape ``(batch,)`` as output, trained by a binary cross-entropy."""

    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = torch.nn.Linear(36, 24), torch.nn.Linear(24, 1)

        def forward(self, x):
            return self.out(self.hidden(x.flatten(1)).relu()).squeeze(1)

    x = inputs(48)
    strategy = build(method, One(), criterion=torch.nn.BCEWithLogitsLoss())
    recorded = []
    for label in (0, 1):
        strategy.train(benchmark(x, (x.flatten(1)[:, label] > 0).float(), label=label))
        recorded.append(outputs(strategy.model, x, label))
    assert torch.equal(outputs(strategy.model, x, 0), recorded[0])


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_training_without_gradients_says_so(off):
    strategy, before = learned("supsup")
    with off(), pytest.raises(RuntimeError, match=r"gradients are switched off .*call train\(\) outside of it"):
        strategy.train(class_stream(2).train_stream[1])
    strategy.train(class_stream(2).train_stream[1])
    assert strategy.model.task_keys == [0, 1]
    assert torch.equal(outputs(strategy.model, inputs(), 0), before)

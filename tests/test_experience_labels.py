"""What is given to ``train`` and ``eval``: experiences and streams of any form; everything else is refused."""

import pytest
import torch
from avalanche.benchmarks import dataset_benchmark
from avalanche.training import Naive
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from avalanche_supermask import CachedTensors, methods
from avalanche_supermask.experience_labels import experiences_of
from tests.building import METHODS, build
from tests.streams import class_stream, inputs, mlp, outputs

pytestmark = pytest.mark.filterwarnings("ignore:task .. no free unit is left")


@pytest.mark.parametrize("method", METHODS)
def test_a_generator_is_learned_like_a_stream(method):
    stream = class_stream(2)
    learned = []
    for given in (stream.train_stream, (experience for experience in stream.train_stream)):
        torch.manual_seed(0)
        strategy = build(method, mlp())
        strategy.train(given)
        strategy.eval(experience for experience in stream.test_stream)
        learned.append(strategy.model)
    assert learned[1].task_keys == learned[0].task_keys != []
    for key in learned[0].task_keys:
        assert torch.equal(outputs(learned[1], inputs(), key), outputs(learned[0], inputs(), key))


def test_avalanche_itself_trains_nothing_on_a_generator():
    net = mlp()
    strategy = Naive(model=net, optimizer=SGD(net.parameters(), lr=0.1), evaluator=None)
    strategy.train(experience for experience in class_stream(2).train_stream)
    assert strategy.clock.train_iterations == 0


def test_a_generator_stays_one_if_avalanche_reads_it_only_once():
    stream = class_stream(2)
    made = []
    strategy = build("supsup", mlp())

    def experiences():
        for experience in stream.train_stream:
            made.append(len(strategy.model.task_keys))
            yield experience

    strategy.train(experiences(), eval_streams=[])
    assert made == [0, 1], "the second experience was made after the first was learned"


def test_experiences_and_streams_are_passed_on():
    stream = class_stream(2).train_stream
    for given in (stream, stream[:1], stream[0], [stream[1], stream[0]], []):
        assert experiences_of(given, stream="train_stream") is given


DATA = TensorDataset(torch.randn(4, 36), torch.arange(4) % 2)
WRONG = {
    "benchmark": (lambda: class_stream(1), "got a .*Scenario: pass its train_stream"),
    "data set": (lambda: DATA, "got a TensorDataset: make a benchmark of your data.*pass its train_stream"),
    "part of a data set": (lambda: Subset(DATA, [0]), "got a Subset: make a benchmark"),
    "loader": (lambda: DataLoader(DATA), "got a DataLoader: make a benchmark"),
    "data of an experience": (lambda: class_stream(1).train_stream[0].dataset, "got a .*Dataset: make a benchmark"),
    "tensor": (lambda: torch.zeros(3, 36), "got a Tensor: make a benchmark"),
    "list of data sets": (lambda: [DATA], "got a TensorDataset: make a benchmark"),
    "list of streams": (lambda: [class_stream(1).train_stream], "got a list with a .*Stream: pass its items"),
    "nothing": (lambda: None, "got a NoneType: make a benchmark"),
}


@pytest.mark.parametrize("name", WRONG)
def test_everything_else_is_refused_in_one_line(name):
    make, words = WRONG[name]
    strategy = build("supsup", mlp())
    with pytest.raises(TypeError, match=f"expected an experience or a stream of experiences; {words}"):
        strategy.train(make())
    with pytest.raises(TypeError, match=r"expected an experience or a stream of experiences; .*: (pass|make)"):
        strategy.eval(make())


class Numbered(Dataset):
    """A data set that lists names of its classes and returns their numbers."""

    names = ("cat", "dog")

    def __init__(self):
        self.targets = [self.names[i % 2] for i in range(24)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return torch.full((4,), float(i % 2)), self.names.index(self.targets[i])


class Encoded(Numbered):
    names = (b"cat", b"dog")

    def __getitem__(self, i):
        return torch.full((4,), float(i % 2)), self.targets[i]


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("method", methods())
def test_names_of_classes_do_no_harm_if_the_samples_have_numbers(method):
    stream = dataset_benchmark([Numbered()], [Numbered()])
    strategy = build(method, net())
    strategy.train(stream.train_stream)
    strategy.eval(stream.test_stream)
    assert strategy.model.task_keys == [0]


def test_labels_of_bytes_are_text():
    experience = dataset_benchmark([Encoded()], [Encoded()]).train_stream[0]
    with pytest.raises(TypeError, match="labels of experience 0 are text, as b'cat'; expected class numbers"):
        build("supsup", net()).train(experience)


@pytest.mark.parametrize("plugins", [list, lambda: [CachedTensors()]], ids=["avalanche's loader", "cached"])
@pytest.mark.parametrize("method", METHODS)
def test_no_batch_because_of_drop_last_is_named_as_the_cause(method, plugins):
    strategy = build(method, mlp(), train_mb_size=64, plugins=plugins())
    said = r"trained for 0 iterations.*has 4. training samples, and drop_last=True leaves out.*lower train_mb_size"
    with pytest.warns(UserWarning, match=said):
        strategy.train(class_stream(1).train_stream[0], drop_last=True)
    assert strategy.model.task_keys == []

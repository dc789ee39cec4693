import pytest
import torch
from avalanche.benchmarks.utils import TransformGroups, make_avalanche_dataset
from avalanche.training.supervised import Naive, Replay
from torch.nn import CrossEntropyLoss
from torch.optim import SGD

from avalanche_supermask import CachedTensors
from avalanche_supermask.data import TensorBatches, _gathered, load_tensors
from tests.streams import class_stream, inputs, mlp, train_all


def test_every_sample_comes_once_a_pass():
    batches = TensorBatches([torch.arange(10), torch.arange(10) * 2], 4, shuffle=True)
    assert len(batches) == 3
    first, second = ([torch.cat(column) for column in zip(*batches, strict=True)] for _ in range(2))
    for x, y in (first, second):
        assert torch.equal(x.sort().values, torch.arange(10))
        assert torch.equal(y, 2 * x)
    assert not torch.equal(first[0], second[0])


def test_without_shuffling_it_is_the_dataset_in_order():
    experience = class_stream(1).train_stream[0]
    x, y, t = load_tensors(experience.dataset, torch.device("cpu"))
    assert torch.equal(x[5], experience.dataset[5][0])
    assert y.tolist() == [int(sample[1]) for sample in experience.dataset]
    assert t.tolist() == [0] * len(y)


@pytest.mark.parametrize("strategy_class", [Naive, Replay])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_serves_every_strategy_the_same_data(strategy_class):
    def learned(plugins):
        torch.manual_seed(0)
        net = mlp()
        strategy = strategy_class(
            model=net,
            criterion=CrossEntropyLoss(),
            optimizer=SGD(net.parameters(), lr=0.1),
            train_mb_size=48,
            eval_mb_size=16,
            plugins=plugins,
            evaluator=None,
            train_epochs=3,
        )
        stream = class_stream(1)
        train_all(strategy, stream)  # one batch an epoch: the order within it does not matter
        strategy.eval(stream.test_stream)
        return net(inputs()).detach()

    assert torch.allclose(learned([CachedTensors()]), learned([]), atol=1e-5)


def test_evaluation_data_are_kept_up_to_the_bound_and_never_in_a_checkpoint():
    import pickle

    for bound, expected in ((4 * 2**30, 2), (0, 0)):
        cache = CachedTensors(max_bytes=bound)
        net = mlp()
        strategy = Naive(model=net, optimizer=SGD(net.parameters(), lr=0.1), plugins=[cache], evaluator=None)
        strategy.eval(class_stream(2).test_stream)
        assert len(cache._evaluation) == expected
        assert len(pickle.loads(pickle.dumps(cache))._evaluation) == 0


def slow_tensors(dataset):
    """Oracle: sample by sample."""
    samples = [dataset[i] for i in range(len(dataset))]
    return [torch.stack([torch.as_tensor(sample[k]) for sample in samples]) for k in range(3)]


def test_data_that_lie_in_tensors_are_gathered_without_a_call_a_sample():
    a, b = (experience.dataset for experience in class_stream(2).train_stream)
    for dataset in (a, b.eval(), a.subset([5, 3, 9]), a.concat(b), a.concat(b).subset(range(40, 60)).train()):
        gathered = _gathered(dataset)
        assert gathered is not None
        for x, y in zip(gathered, slow_tensors(dataset), strict=True):
            assert torch.equal(x, y)


def test_transforms_are_never_skipped():
    dataset = class_stream(1).train_stream[0].dataset
    doubled = make_avalanche_dataset(
        dataset, transform_groups=TransformGroups({"train": (double, None), "eval": (None, None)})
    )
    frozen = doubled.freeze_transforms()
    for changed in (doubled, frozen, doubled.subset([1, 2]), frozen.subset([3])):
        assert _gathered(changed) is None
        x, _, _ = load_tensors(changed, torch.device("cpu"))
        assert torch.equal(x, slow_tensors(changed)[0])
    assert torch.equal(load_tensors(doubled, torch.device("cpu"))[0][0], 2 * dataset[0][0])


def double(x):
    return 2 * x

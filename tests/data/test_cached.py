import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.benchmarks.utils import TransformGroups, make_avalanche_dataset
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader, ReplayDataLoader
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive, Replay
from torch import nn
from torch.nn import CrossEntropyLoss
from torch.optim import SGD

from avalanche_supermask import CachedTensors, SupSup
from avalanche_supermask.data.batches import JoinedBatches
from avalanche_supermask.data.cached import _gathered, load_tensors
from tests.streams import class_stream, inputs, mlp, train_all


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
        train_all(strategy, stream)  # There is one batch per epoch, so the order within it does not matter.
        strategy.eval(stream.test_stream)
        return net(inputs()).detach()

    assert torch.allclose(learned([CachedTensors()]), learned([]), atol=1e-5)


class Watch(SupervisedPlugin):
    """Record the type of the loader and the inputs of every batch."""

    def __init__(self):
        super().__init__()
        self.loaders, self.seen = [], []

    def before_forward(self, strategy, **kwargs):
        self.loaders.append(type(strategy.dataloader))
        self.seen.append(strategy.mb_x)

    before_eval_forward = before_forward


def naive(*plugins, **options):
    net = mlp()
    return Naive(
        model=net, criterion=CrossEntropyLoss(), optimizer=SGD(net.parameters(), lr=0.1), plugins=list(plugins),
        evaluator=None, train_mb_size=16, **options,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_replay_reads_from_memory_as_well_and_learns_as_much():
    def learned(plugins, seed):
        torch.manual_seed(seed)
        net, watch, expected = mlp(), Watch(), JoinedBatches if plugins else ReplayDataLoader
        strategy = Replay(
            model=net, criterion=CrossEntropyLoss(), optimizer=SGD(net.parameters(), lr=0.1), train_mb_size=8,
            plugins=[*plugins, watch], evaluator=None, train_epochs=4, mem_size=20,
        )  # fmt: skip
        stream = class_stream(3)
        train_all(strategy, stream)
        assert watch.loaders[-1] is expected
        net.eval()
        tests = [load_tensors(e.dataset, torch.device("cpu")) for e in stream.test_stream]
        return sum(float((net(x).argmax(1) == y).float().mean()) for x, y, _ in tests) / 3

    ours, theirs = ([learned(make(), seed) for seed in range(4)] for make in (lambda: [CachedTensors()], list))
    difference = abs(sum(ours) - sum(theirs)) / 4
    assert difference <= max(max(theirs) - min(theirs), 0.05), (ours, theirs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_experience_is_loaded_once_beside_a_replay_memory(monkeypatch):
    loaded = []

    def counted(dataset, device):
        loaded.append(len(dataset))
        return load_tensors(dataset, device)

    monkeypatch.setattr("avalanche_supermask.data.cached.load_tensors", counted)
    cache, stream = CachedTensors(), class_stream(2)
    train_all(naive(cache, ReplayPlugin(mem_size=20), train_epochs=3), stream)
    assert loaded == [*(len(experience.dataset) for experience in stream.train_stream), 20]
    assert cache._training is None


def test_training_batches_are_augmented_and_evaluation_is_not():
    watch, stream = Watch(), class_stream(1)
    strategy = naive(CachedTensors(augment=torch.zeros_like), watch, eval_mb_size=1000)
    train_all(strategy, stream)
    assert all((x == 0).all() for x in watch.seen)
    strategy.eval(stream.test_stream)
    assert torch.equal(watch.seen[-1], load_tensors(stream.test_stream[0].dataset, torch.device("cpu"))[0])


def test_pixels_stay_uint8():
    pixels = [(torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8), torch.arange(32) % 2)]
    stream = tensors_benchmark(train_tensors=pixels, test_tensors=pixels, task_labels=[0])
    net = nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(64, 2))
    watch = Watch()
    strategy = SupSup(net, density=0.5, plugins=[CachedTensors(), watch], evaluator=None, train_mb_size=16)
    strategy.train(stream.train_stream[0])
    strategy.eval(stream.test_stream)
    assert {x.dtype for x in watch.seen} == {torch.uint8}
    assert len(watch.seen) == 2 + 32, "training and evaluation are both looked at"


class Scaled(nn.Module):
    def forward(self, x):
        return x.float() / 255


def test_beyond_the_bound_training_is_left_to_avalanche_with_one_warning():
    watch = Watch()
    strategy = naive(CachedTensors(max_bytes=100), watch, train_epochs=3)
    with pytest.warns(UserWarning, match=r"has 6,912 bytes .*, more than max_bytes=100: Avalanche's loader") as said:
        strategy.train(class_stream(1).train_stream[0])
    assert all(issubclass(loader, MultiDatasetDataLoader) for loader in watch.loaders)
    assert len(said) == 1
    with pytest.raises(ValueError, match="augment needs them in memory; raise max_bytes, or leave augment out"):
        naive(CachedTensors(max_bytes=100, augment=torch.zeros_like)).train(class_stream(1).train_stream[0])


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
    """Return the tensors of a data set, read sample by sample."""
    samples = [dataset[i] for i in range(len(dataset))]
    return [torch.stack([torch.as_tensor(sample[k]) for sample in samples]) for k in range(3)]


def test_data_that_lie_in_tensors_are_gathered_without_a_call_a_sample():
    a, b = (experience.dataset for experience in class_stream(2).train_stream)
    for dataset in (a, b.eval(), a.subset([5, 3, 9]), a.concat(b), a.concat(b).subset(range(40, 60)).train()):
        gathered = _gathered(dataset)
        assert gathered is not None
        for x, y in zip(gathered, slow_tensors(dataset), strict=True):
            assert torch.equal(x, y)


def test_an_experience_without_samples_is_evaluated_as_without_the_plugin():
    experience, found = class_stream(1).test_stream[0], []
    experience.dataset = experience.dataset.subset([])
    for plugins in ([], [CachedTensors()]):
        evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
        strategy = SupSup(mlp(), plugins=plugins, evaluator=evaluator, train_mb_size=48, seed=0)
        found.append(strategy.eval(experience))
    assert [*found[1].values()] == [*found[0].values()] == [0.0]
    with pytest.raises(ValueError, match="expected a data set with samples; got one without any"):
        load_tensors(experience.dataset, torch.device("cpu"))


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

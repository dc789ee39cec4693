import copy

import pytest
import torch
from avalanche.benchmarks.scenarios import split_online_stream
from torch import nn

from avalanche_supermask import (
    CLNP,
    ExSSNeT,
    ImpressLearn,
    MaskedModel,
    SupSup,
    load,
    load_task,
    save,
    save_task,
)
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.inference import Combined, Entropy, Gaussian, MaxLogit, by_name
from avalanche_supermask.inference.gathering import gather_statistics
from tests.building import learn_nothing
from tests.streams import NETWORKS, class_stream, inputs, mlp, train_all


def strategy(kind=SupSup, net=None, way="gaussian", **settings):
    return kind(net or mlp(), train_epochs=2, train_mb_size=16, evaluator=None, seed=0, task_inference=way, **settings)


def right(model, stream):
    """Return the share of the test samples whose task is found."""
    model.eval()
    found = []
    for experience in stream.test_stream:
        x = torch.stack([sample[0] for sample in experience.dataset])
        model(x)
        found.append((model.inferred_task == experience.current_experience).float())
    return float(torch.cat(found).mean())


@pytest.mark.parametrize("kind", [SupSup, ExSSNeT, CLNP, ImpressLearn])
def test_every_method_finds_the_task_of_separable_samples(kind):
    stream = class_stream(3)
    settings = {"n_basis": 2} if kind is ImpressLearn else {}
    trained = train_all(strategy(kind, way=Gaussian(rank=2), **settings), stream)
    assert right(trained.model, stream) > 0.95
    trained.model.task_inference = Gaussian(rank=2, per="batch")
    assert right(trained.model, stream) == 1.0


@pytest.mark.parametrize(
    "settings", [{}, {"covariance": "task"}, {"shared": True}, {"layers": ("1", "5"), "rank": (3, 4)}]
)
def test_settings_find_tasks_too(settings):
    stream = class_stream(3)
    assert right(train_all(strategy(way=Gaussian(**{"rank": 3, **settings})), stream).model, stream) > 0.8


def test_a_task_costs_the_bytes_of_its_numbers():
    model = train_all(strategy(way=Gaussian(rank=3)), class_stream(2)).model
    means, basis, variances, labels = 2 * 36 * 4, 2 * 36 * 3 * 2, 2 * 4 * 4, 2 * 2 * 4
    model_without = train_all(strategy(way="given"), class_stream(2)).model
    added = model.bytes_per_task()[0] - model_without.bytes_per_task()[0]
    assert added == means + basis + variances + labels
    assert model.bytes_per_task(private=False) == model_without.bytes_per_task(private=False)


def test_nothing_is_gathered_for_other_ways():
    model = train_all(strategy(way="entropy"), class_stream(1)).model
    assert model.subnetworks.task_statistics(0) == {}
    model.task_inference = "gaussian"
    with pytest.raises(
        RuntimeError, match=r"has no statistics: set task_inference to this Gaussian.*gather_statistics"
    ):
        model.eval()(torch.zeros(2, 1, 6, 6))


def test_statistics_can_be_gathered_later():
    stream = class_stream(3)
    first, later = (train_all(strategy(way=way), stream).model for way in ("gaussian", "given"))
    later.task_inference = "gaussian"
    for experience in stream.train_stream:
        x, y, _ = load_tensors(experience.dataset.eval(), torch.device("cpu"))
        gather_statistics(later, experience.current_experience, zip(x.split(5), y.split(5), strict=True))
    for key in first.task_keys:
        a, b = first.subnetworks.task_statistics(key), later.subnetworks.task_statistics(key)
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[name].float(), b[name].float(), atol=2e-3) for name in a if "basis" not in name)
    x = torch.cat([torch.stack([sample[0] for sample in e.dataset]) for e in stream.test_stream])
    first.eval()(x), later.eval()(x)
    assert torch.equal(first.inferred_task, later.inferred_task)
    with pytest.raises(KeyError, match="task 9 is not learned"):
        gather_statistics(later, 9, [])


@pytest.mark.parametrize("way", ["gaussian", "combined"])
def test_statistics_can_be_gathered_from_a_dataset(way):
    stream = class_stream(2)
    first, later = (train_all(strategy(way=way), stream).model for way in (way, "given"))
    later.task_inference = way
    for experience in stream.train_stream:
        gather_statistics(later, experience.current_experience, experience.dataset)
    x = torch.cat([torch.stack([sample[0] for sample in e.dataset]) for e in stream.test_stream])
    first.eval()(x), later.eval()(x)
    assert torch.equal(first.inferred_task, later.inferred_task)


def test_statistics_travel_with_the_task(tmp_path):
    stream = class_stream(3)
    model = train_all(strategy(), stream).model.eval()
    x = torch.cat([torch.stack([sample[0] for sample in e.dataset]) for e in stream.test_stream])
    expected = model(x)
    tasks = model.inferred_task
    save(model, tmp_path / "tasks")
    fresh = MaskedModel(mlp(), seed=0, task_inference="gaussian")
    fresh.load_state_dict(model.state_dict())
    for copied in (copy.deepcopy(model), load(tmp_path / "tasks", mlp()), fresh):
        assert torch.equal(copied.eval()(x), expected)
        assert torch.equal(copied.inferred_task, tasks)
        assert copied.bytes_per_task() == model.bytes_per_task()


def test_a_forgotten_task_takes_its_statistics_along():
    stream = class_stream(3)
    model = train_all(strategy(), stream).model.eval()
    before = {key: model.subnetworks.task_statistics(key) for key in (0, 2)}
    model.forget(1)
    assert len(model.subnetworks.statistics) == 2
    x = torch.stack([sample[0] for sample in stream.test_stream[1].dataset])
    model(x)
    assert 1 not in model.inferred_task
    for key, statistics in before.items():
        assert all(torch.equal(t, statistics[name]) for name, t in model.subnetworks.task_statistics(key).items())


def test_gathering_changes_no_output_and_no_random_state():
    stream = class_stream(2)
    with_it, without = strategy(), strategy(way="given")
    for each in (with_it, without):
        torch.manual_seed(3)
        train_all(each, stream)
    x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    for key in (0, 1):
        assert torch.equal(with_it.model.eval().forward_task(key, x), without.model.eval().forward_task(key, x))


@pytest.mark.parametrize("way", [Gaussian(rank=2, names="class"), Gaussian(rank=2, names="class", shared=True)])
def test_the_gaussians_name_the_class_too(way):
    stream = class_stream(3)
    trained = train_all(strategy(net=mlp(outputs=6), way=way), stream)
    model, hits = trained.model.eval(), []
    for experience in stream.test_stream:
        x = torch.stack([sample[0] for sample in experience.dataset])
        y = torch.tensor([sample[1] for sample in experience.dataset])
        out = model(x)
        assert out.shape == (len(x), 6)
        assert bool(out.isfinite().all())
        hits.append((out.argmax(dim=1) == y) & (model.inferred_task == experience.current_experience))
    assert float(torch.cat(hits).float().mean()) > 0.9


@pytest.mark.parametrize("weight", [0.0, 16.0, 1e6])
def test_both_adds_the_subnetwork_to_the_likelihoods(weight):
    """An independent formula: Gaussian log-likelihoods of the task's classes plus the weighted log-probabilities."""
    stream = class_stream(3)
    trained = train_all(strategy(net=mlp(outputs=6), way=Gaussian(rank=2)), stream)
    model = trained.model.eval()
    x = torch.cat([torch.stack([sample[0] for sample in experience.dataset]) for experience in stream.test_stream])
    with torch.no_grad():
        model.task_inference = Gaussian(rank=2, names="class")
        likelihoods = model(x)
        tasks = model.inferred_task.clone()
        model.task_inference = Gaussian(rank=2, names="both", network_weight=weight)
        out = model(x)
        assert torch.equal(model.inferred_task, tasks)
        for row, task in enumerate(tasks.tolist()):
            own = [0, 1]  # the labels of every task
            network = model.forward_task(task, x[row : row + 1])[0, own].log_softmax(dim=0)
            expected = (likelihoods[row, own] + weight * network).clamp_min(-1000.0)
            torch.testing.assert_close(out[row, own], expected, rtol=1e-4, atol=1e-3)
            assert bool((out[row, 2:] == -1000.0).all())


def test_both_refuses_outputs_without_one_logit_per_class():
    model = MaskedModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), seed=0, task_inference=Gaussian(rank=1))
    learn_nothing(model, 0)
    gather_statistics(model, 0, [(torch.randn(20, 4), torch.arange(20) % 5)])
    model.task_inference = Gaussian(rank=1, names="both")
    with pytest.raises(ValueError, match=r"labels go up to 4 and its logits are \(3, 2\): use names='task'"):
        model.eval()(torch.randn(3, 4))


class Pair(nn.Module):
    """A network that takes a dictionary with an image and numbers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 + 3, 2)

    def forward(self, x):
        return self.fc(torch.cat([self.conv(x["image"]).relu().mean(dim=(2, 3)), x["numbers"]], dim=1))


class TuplePair(Pair):
    """The same network, which takes a tuple."""

    def forward(self, x):
        return super().forward({"image": x[0], "numbers": x[1]})


@pytest.mark.parametrize(("kind", "wrap"), [(Pair, dict), (TuplePair, lambda d: (d["image"], d["numbers"]))])
def test_dictionaries_and_tuples_are_inputs_too(kind, wrap):
    model = MaskedModel(kind(), seed=0, task_inference=Gaussian(rank=1))
    for key in range(2):
        learn_nothing(model, key)
        draw = torch.Generator().manual_seed(key)
        image, numbers = torch.randn(20, 1, 6, 6, generator=draw) + 3 * key, torch.randn(20, 3, generator=draw)
        data = {"image": image, "numbers": numbers}
        gather_statistics(model, key, [(wrap(data), torch.arange(20) % 2)])
        kept = wrap(data)
    assert model.subnetworks.task_statistics(0)["input.means"].shape == (2, 39)
    model.eval()(kept)
    assert model.inferred_task.tolist() == [1] * 20


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_kind_of_network_has_features(name):
    net = NETWORKS[name]()
    stream = class_stream(2)
    layer = [n for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.LSTM))][-1]
    trained = train_all(strategy(net=net, way=Gaussian(layers=("input", layer), rank=2)), stream)
    assert right(trained.model, stream) > 0.6


class OnFrozenFront(nn.Module):
    """A network with a frozen front part that counts its calls."""

    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU()).requires_grad_(False)
        self.first, self.last, self.calls = nn.Linear(20, 16), nn.Linear(16, 2), 0

    def forward(self, x):
        self.calls += 1
        return self.last(self.first(self.front(x)).relu())


@pytest.mark.filterwarnings("ignore:.*requires_grad=False")
def test_features_that_all_tasks_share_are_computed_once():
    model = MaskedModel(OnFrozenFront(), seed=0, task_inference=Gaussian(layers=("first",), rank=2))
    for key in range(4):
        learn_nothing(model, key)
        x = inputs(16) + 3 * key
        gather_statistics(model, key, [(x, torch.arange(16) % 2)])
    model.eval()(x)
    before = model.net.calls
    model(x)
    assert model.net.calls - before == 2, "once for the features, once under the task that they name"
    assert model.inferred_task.tolist() == [3] * 16
    assert model.candidates.common(x, ("input", "first", "last")) == {"input", "first"}
    by_hand = [model.candidates.features(task, x, ("first",))["first"] for task in range(4)]
    assert all(torch.equal(each, by_hand[0]) for each in by_hand)


def test_a_norm_of_each_tasks_own_makes_features_its_own():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 2))
    model = train_all(strategy(net=net, way=Gaussian(layers=("2",), rank=2)), class_stream(2)).model.eval()
    assert model.candidates.common(inputs(4), ("input", "1", "2")) == {"input", "1"}


def test_large_images_are_averaged_to_an_input_that_is_not_too_wide():
    net = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 2))
    model = MaskedModel(net, seed=0, task_inference=Gaussian(rank=2))
    draw = torch.Generator().manual_seed(0)
    for key in range(2):
        learn_nothing(model, key)
        x = torch.randn(12, 3, 64, 64, generator=draw)
        x[:, :, :32] += key  # Tasks differ in the mean of the upper half.
        gather_statistics(model, key, [(x, torch.zeros(12, dtype=torch.long))])
    assert model.subnetworks.task_statistics(0)["input.means"].shape == (1, 3 * 36 * 36)
    model.eval()(x)
    assert model.inferred_task.tolist() == [1] * 12


@pytest.mark.parametrize(
    "way", [Gaussian(rank=3), Gaussian(rank=3, shared=True), Combined((Gaussian(rank=3), Entropy()))]
)
def test_a_task_that_goes_on_in_later_experiences_counts_all_its_samples(way):
    stream = split_online_stream(class_stream(2).train_stream, experience_size=16)
    trained = strategy(way=way, on_revisit="continue")
    for experience in stream:
        trained.train(experience)
    name = "0:input.counts" if isinstance(way, Combined) else "input.counts"
    for key in (0, 1):
        assert trained.model.subnetworks.task_statistics(key)[name].tolist() == [24, 24]
    assert right(trained.model, class_stream(2)) > 0.9


def test_a_task_that_is_not_gone_on_with_after_all_is_what_it_was():
    model = train_all(strategy(), class_stream(2)).model.eval()
    x = inputs(8)
    expected, statistics = model(x), model.subnetworks.task_statistics(1)
    model.resume()
    model.abandon()
    assert torch.equal(model.eval()(x), expected)
    assert all(torch.equal(t, statistics[name]) for name, t in model.subnetworks.task_statistics(1).items())


@pytest.mark.parametrize("way", ["gaussian", Combined((Gaussian(rank=3), Entropy()))])
def test_statistics_are_in_the_file_of_a_task(tmp_path, way):
    net = mlp()
    fresh = MaskedModel(copy.deepcopy(net), seed=0, task_inference=way)
    model = train_all(strategy(net=net, way=way), class_stream(2)).model.eval()
    for key in (0, 1):
        save_task(model, key, tmp_path / f"{key}")
        load_task(fresh, tmp_path / f"{key}")
    x = inputs(12)
    assert torch.equal(fresh.eval()(x), model(x))
    assert torch.equal(fresh.inferred_task, model.inferred_task)


def test_batches_without_a_second_sample_and_features_that_do_not_vary():
    model = MaskedModel(mlp(), seed=0, task_inference=Gaussian())
    for key in range(2):
        learn_nothing(model, key)
        x = torch.full((3, 1, 6, 6), float(key))
        x[1, 0, 0, 0] += 0.5
        gather_statistics(model, key, [(x, torch.tensor([0, 0, 1]))])
    out = model.eval()(torch.ones(2, 1, 6, 6))
    assert bool(out.isfinite().all())
    assert model.inferred_task.tolist() == [1, 1]
    learn_nothing(model, 2)
    gather_statistics(model, 2, [(torch.zeros(4, 1, 6, 6), torch.zeros(4, dtype=torch.long))])  # all samples are equal
    assert bool(model.eval()(torch.ones(2, 1, 6, 6)).isfinite().all())


def test_targets_that_are_no_classes_make_one_class():
    model = MaskedModel(mlp(), seed=0, task_inference="gaussian")
    learn_nothing(model, 0)
    gather_statistics(model, 0, [(inputs(8), torch.randn(8, 2))])
    assert model.subnetworks.task_statistics(0)["input.classes"].tolist() == [0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.fc = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.cells(x)[0].mean(dim=1))


def test_sequences_of_different_lengths_need_a_layer_with_one_vector_per_sample():
    batches = [(torch.randn(8, length, 6), torch.arange(8) % 2) for length in (5, 7)]
    model = learn_nothing(MaskedModel(Recurrent(), seed=0, task_inference="gaussian"), 0)
    with pytest.raises(ValueError, match=r"samples have 42 features.*have 30;.*length varies.*layers=\('fc',\)"):
        gather_statistics(model, 0, batches)
    gather_statistics(model, 0, batches[:1])
    with pytest.raises(ValueError, match=r"samples have 42 features.*have 30"):
        model.eval()(batches[1][0], 0)
    model.task_inference = Gaussian(layers=("fc",))
    gather_statistics(model, 0, batches)
    assert model.eval()(batches[1][0], 0).shape == (8, 2)


@pytest.mark.parametrize("names", ["class", "both"])
def test_targets_that_are_no_classes_are_refused_where_the_gaussians_name_the_class(names):
    model = learn_nothing(MaskedModel(mlp(), seed=0, task_inference=Gaussian(names=names)), 0)
    with pytest.raises(ValueError, match=rf"names='{names}' needs one class number.*shape \(8, 2\).*names='task'"):
        gather_statistics(model, 0, [(inputs(8), torch.eye(2).repeat(4, 1))])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": "input"}, "layers takes names"),
        ({"layers": ()}, "layers is empty"),
        ({"rank": -1}, "rank >= 0"),
        ({"rank": (1, 2)}, "rank has 2 numbers"),
        ({"covariance": "all"}, "covariance must be"),
        ({"names": "neither"}, "names must be"),
        ({"network_weight": -1.0}, "finite network_weight >= 0; got -1.0"),
        ({"ridge": -1.0}, "ridge and shrinkage >= 0"),
        ({"per": "task"}, "per must be"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Gaussian(**settings)


def test_layers_that_are_not_there_are_refused():
    refused = pytest.raises(ValueError, match=r"Sequential has no layer 'body'; expected 'input' or names of modules")
    for settings in ({"layers": ("input", "body")}, {"shared": ("body",)}):
        with refused:
            SupSup(mlp(), task_inference=Gaussian(**settings))
    model = MaskedModel(mlp(), seed=0)
    with refused:
        model.task_inference = Combined(witnesses=(Gaussian(layers=("body",)), MaxLogit()))
    assert model.task_inference == "given"
    with pytest.raises(ValueError, match=r"shared names '3', which is not among layers=\['input'\]"):
        model.task_inference = Gaussian(layers=("input",), shared=("3",))
    learn_nothing(model, 0)
    assert by_name("gaussian") == Gaussian()
    model.task_inference = Gaussian(layers=("input",))
    gather_statistics(model, 0, [(inputs(8), torch.zeros(8, dtype=torch.long))])
    model.task_inference = Gaussian(layers=("input", "3"))
    with pytest.raises(RuntimeError, match="has statistics of 'input', not of '3'"):
        model.eval()(inputs(2))

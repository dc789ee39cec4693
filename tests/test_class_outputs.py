"""Samples of classes for which the task has no output count as wrong, with a finite loss and one warning."""

import copy

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets, nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import IncrementalClassifier, MTSimpleMLP, MultiHeadClassifier, MultiTaskModule, as_multitask
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_supermask import CLNP, HopSupSup, ImpressLearn, SparseFineTuning, SupSup, SupSupNNs, methods
from avalanche_supermask.class_outputs import check_classes, complete_classes
from tests.streams import class_stream, outputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:task .. no free unit is left"),
    pytest.mark.filterwarnings("ignore:task label .* (was never trained|stands for several)"),
]


METHODS = methods()


class Growing(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 16), IncrementalClassifier(16, **options)

    def forward(self, x):
        return self.out(self.hidden(x).relu())


class Heads(MultiTaskModule):
    def __init__(self, **options):
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 16), MultiHeadClassifier(16, **options)

    def forward(self, x, task_labels):
        return self.out(self.hidden(x).relu(), task_labels)


def plain():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


NETS = {
    "growing": Growing,
    "growing, unmasked": lambda: Growing(masking=False, initial_out_features=1),
    "heads": Heads,
    "heads, unmasked": lambda: Heads(masking=False),
    "MTSimpleMLP": lambda: MTSimpleMLP(input_size=6, hidden_size=16),
    "as_multitask": lambda: as_multitask(plain(), "2"),
}


def benchmark(task_labels):
    y = torch.arange(18) % 6
    data = TensorDataset(torch.randn(6, 6, generator=torch.Generator().manual_seed(0))[y], y)
    return nc_benchmark(data, data, 3, task_labels=task_labels, shuffle=False)  # classes 0 and 1, 2 and 3, 4 and 5


def learner(method, net, **options):
    taken = {"n_basis": 2} if method == "impresslearn" else {}
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loss_metrics(experience=True), loggers=[])
    return methods()[method](net, train_epochs=1, train_mb_size=16, seed=0, evaluator=evaluator, **taken, **options)


@pytest.mark.parametrize(
    ("method", "net", "labels"),
    [(method, net, labels) for method in methods() for net in ("growing", "MTSimpleMLP") for labels in (True, False)]
    + [("exssnet", net, True) for net in NETS if net not in ("growing", "MTSimpleMLP")],
)
def test_the_loop_of_the_readme_with_classes_that_grow(method, net, labels):
    bench = benchmark(labels)
    strategy = learner(method, NETS[net](), eval_every=1)
    x = torch.randn(5, 6)

    def loop():
        for experience in bench.train_stream:
            strategy.train(experience, eval_streams=[bench.test_stream])
            key = strategy.model.task_keys[-1]
            before = outputs(strategy.model, x, key) if labels else None
            found = strategy.eval(bench.test_stream)
            assert all(torch.tensor(v).isfinite() for v in found.values())
            if labels:
                assert torch.equal(outputs(strategy.model, x, key), before), "evaluation allocates nothing"
            if experience.current_experience == 0:
                accuracies = [v for name, v in found.items() if "Acc_Exp" in name]
                assert accuracies[1:] == [0.0, 0.0]

    with pytest.warns(UserWarning, match="is evaluated on class .*count as wrong") as said:
        loop()
    assert len([w for w in said if "count as wrong" in str(w.message)]) == 1
    assert strategy.model.task_keys == [0, 1, 2]


class Segments(nn.Module):
    def __init__(self, last=False):
        super().__init__()
        self.last = last
        self.a, self.out = nn.Linear(6, 16), nn.Linear(16, 2 * 3)

    def forward(self, x):
        out = self.out(self.a(x).relu()).view(len(x), 2, 3)  # two classes at three positions
        return {"logits": out.movedim(1, -1) if self.last else out}


@pytest.mark.parametrize("last", [False, True])
def test_dense_outputs_in_a_dictionary_and_a_class_that_is_ignored(last):
    y = torch.tensor([[0, 1, 255], [1, 1, 0]])

    class Criterion(nn.CrossEntropyLoss):
        def forward(self, output, target):
            return super().forward(output["logits"].movedim(-1, 1) if last else output["logits"], target)

    strategy = SupSup(Segments(last), criterion=Criterion(ignore_index=255), evaluator=None, seed=0)
    strategy.experience = benchmark(True).train_stream[0]
    model = strategy.model.eval()
    for targets, missing in ((y, False), (torch.where(y == 1, 4, y), True)):
        strategy.mbatch = [torch.randn(2, 6), targets, torch.zeros(2)]
        strategy.mb_output = model(strategy.mb_x)
        before = copy.deepcopy(strategy.mb_output["logits"])
        if not missing:
            check_classes(strategy, model)
            assert model.class_dimension == (2 if last else 1)
        assert complete_classes(strategy, model, warn=False) == missing
        assert bool(strategy.criterion().isfinite())
        logits = model.logits_of(strategy.mb_output)
        assert logits.shape == (2, 5 if missing else 2, 3)
        assert torch.equal(logits[:, :2], model.logits_of({"logits": before}))
        assert int(logits.argmax(dim=1).max()) < 2


def test_targets_that_are_no_classes_are_left_alone():
    strategy = SupSup(plain(), criterion=nn.MSELoss(), evaluator=None, seed=0)
    for targets in (torch.randn(4, 2), torch.randint(0, 9, (4, 2))):
        strategy.mbatch = [torch.randn(4, 6), targets, torch.zeros(4)]
        strategy.mb_output = out = strategy.model(strategy.mb_x)
        assert not complete_classes(strategy, strategy.model, warn=True)
        assert strategy.mb_output is out


def test_methods_without_labels_refuse_heads_that_need_them():
    strategy = SupSupNNs(Heads(), evaluator=None, seed=0)
    with pytest.raises(ValueError, match="Heads has a head for each task label, and SupSupNNs knows no labels"):
        strategy.train(benchmark(True).train_stream[0])
    for net, named in ((Heads(), "Heads"), (Growing(), "IncrementalClassifier")):
        with pytest.raises(
            ValueError, match=f"the network has a {named}, which grows or needs task labels, and HopSupSup"
        ):
            HopSupSup(net, evaluator=None)


class Named(torch.utils.data.Dataset):
    """A data set whose labels are words."""

    targets = ["cat", "dog"] * 8

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return torch.full((4,), float(i % 2)), self.targets[i]


@pytest.mark.parametrize("method", methods())
def test_labels_that_are_text_are_refused_with_what_to_do(method):
    data = AvalancheDataset([Named()], data_attributes=[DataAttribute(Named.targets, "targets")])
    experience = benchmark_from_datasets(train=[data], test=[data]).train_stream[0]
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    strategy = methods()[method](net, evaluator=None, train_epochs=2)
    with pytest.raises(TypeError, match=r"labels of experience 0 are text, as '(cat|dog)'; expected class numbers"):
        strategy.train(experience)
    assert strategy.model.active is None
    assert strategy.model.task_keys == []


class TwoOutputs(nn.Module):
    """The layer of the logits is not the last one."""

    def __init__(self):
        super().__init__()
        self.hidden, self.classifier, self.extra = nn.Linear(36, 16), nn.Linear(16, 2), nn.Linear(16, 5)

    def forward(self, x):
        hidden = self.hidden(x.flatten(1)).relu()
        return self.classifier(hidden), self.extra(hidden)


@pytest.mark.parametrize(
    ("cls", "options", "named"),
    [
        (SparseFineTuning, {}, {"head": "masked", "own": [r"classifier\..*"]}),
        (ImpressLearn, {"head": "linear"}, {"head": "masked", "own": [r"classifier\..*"]}),
        (CLNP, {}, {"output_layer": "classifier"}),
    ],
)
def test_a_layer_that_the_loss_does_not_use_is_not_taken_for_the_output_layer(cls, options, named):
    experience = class_stream(1).train_stream[0]
    strategy = cls(TwoOutputs(), train_mb_size=16, evaluator=None, **options)
    with pytest.raises(ValueError, match=r"'extra.weight' was taken for the output layer.*; name the layer of the log"):
        strategy.train(experience)
    assert strategy.model.active is None
    learned = cls(TwoOutputs(), train_mb_size=16, evaluator=None, **named)
    learned.train(experience)
    assert learned.model.task_keys == [0]


@pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("net", [None, nn.Linear, nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))])
def test_what_cannot_be_wrapped_is_refused_by_every_method_in_the_same_words(cls, net):
    with pytest.raises(
        (TypeError, ValueError), match=r"expected a torch.nn.Module to wrap; got|has a weight without a shape"
    ):
        cls(net, evaluator=None)

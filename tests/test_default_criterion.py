"""Without ``criterion=``, every strategy trains a network whose output has any form, on its logits."""

import copy
from dataclasses import dataclass

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, class_accuracy_metrics, loss_metrics
from avalanche.training import Naive
from avalanche.training.plugins import (
    AGEMPlugin,
    EvaluationPlugin,
    EWCPlugin,
    GEMPlugin,
    MIRPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from torch import nn
from torch.optim import SGD
from transformers.modeling_outputs import SequenceClassifierOutput

from avalanche_supermask import (
    CLNP,
    ExSSNeT,
    HopSupSup,
    ImpressLearn,
    RestoreBest,
    SparseFineTuning,
    SupSup,
    SupSupNNs,
    supermask_metrics,
)
from avalanche_supermask.default_criterion import LogitsCrossEntropy
from tests.building import METHODS, build
from tests.streams import class_stream, train_all


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor


FORMS = {
    "tensor": lambda h, out: out,
    "dictionary": lambda h, out: {"hidden": h, "logits": out},
    "data class": Output,
    "ModelOutput": lambda h, out: SequenceClassifierOutput(logits=out, hidden_states=(h,)),
    "tuple": lambda h, out: (out, h),
}


class Net(nn.Module):
    """A network with its output in one of several forms."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.form = FORMS[form]
        self.body, self.out = nn.Linear(36, 24), nn.Linear(24, 2)

    def forward(self, x):
        h = self.body(x.flatten(1)).relu()
        return self.form(h, self.out(h))


def metrics():
    return EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, experience=True), class_accuracy_metrics(experience=True),
        loss_metrics(epoch=True, experience=True), *supermask_metrics(), loggers=[],
    )  # fmt: skip


def results(make, form, n_tasks=2, **arguments):
    """Return the metrics after training and evaluation, without those of time and memory."""
    stream = class_stream(n_tasks)
    strategy = make(Net(form), evaluator=metrics(), **arguments)
    train_all(strategy, stream)
    return strategy, strategy.eval(stream.test_stream)


@pytest.mark.filterwarnings("ignore:task .. no free unit is left")
@pytest.mark.filterwarnings("ignore:3 experiences had 18 batches in all")
@pytest.mark.parametrize("method", METHODS)
def test_every_form_of_output_trains_and_is_measured_like_a_tensor(method):
    def make(net, **more):
        return build(method, net, **more)

    _, expected = results(make, "tensor")
    assert any(name.startswith("Top1_Acc_Exp") for name in expected)
    for form in ("dictionary", "data class", "ModelOutput", "tuple"):
        assert results(make, form)[1] == expected


def test_a_passed_criterion_receives_the_raw_output():
    seen = []

    def criterion(output, y):
        seen.append(type(output))
        return nn.functional.cross_entropy(output.logits, y)

    strategy, found = results(SupSup, "data class", criterion=criterion, train_mb_size=16, eval_mb_size=16, seed=0)
    assert {*seen} == {Output}
    assert strategy._criterion is criterion
    assert found["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"] > 0.4


def test_user_plugins_see_the_raw_output_through_the_whole_iteration():
    seen = []

    class Watch(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            seen.append(type(strategy.mb_output))

    results(SupSup, "data class", plugins=[Watch()], train_mb_size=16, seed=0)
    assert {*seen} == {Output}


def test_outputs_for_targets_that_are_no_classes_stay_raw_for_the_metrics():
    seen = []

    class Watch(EvaluationPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            seen.append(type(strategy.mb_output))

    strategy = SupSup(
        Net("data class"), criterion=lambda output, y: output.logits.square().mean(), evaluator=Watch(loggers=[]),
        train_mb_size=16,
    )  # fmt: skip
    strategy._unpack_minibatch = lambda: strategy.mbatch.__setitem__(1, strategy.mbatch[0].flatten(1))
    strategy.train(class_stream(1).train_stream[0])
    assert {*seen} == {Output}


def test_logits_names_the_tensor_for_the_criterion_too():
    class Two(Net):
        def forward(self, x):
            h = self.body(x.flatten(1)).relu()
            return {"first": self.out(h) * 0, "second": self.out(h)}

    strategy = SupSup(
        Two("tensor"), logits="second", evaluator=metrics(), train_mb_size=16, train_epochs=20, eval_mb_size=16, seed=0
    )
    stream = class_stream(1)
    train_all(strategy, stream)
    assert strategy.eval(stream.test_stream)["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"] > 0.9
    strategy.model.logits = "first"
    found = strategy.eval(stream.test_stream)
    assert found["Loss_Exp/eval_phase/test_stream/Task000/Exp000"] == pytest.approx(0.6931, abs=1e-4)


def test_outputs_per_position_have_their_classes_last():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x):
            return {"logits": self.out(self.layer(x.squeeze(1)).relu())}

    strategy = SupSup(Tagger(), evaluator=None, train_mb_size=16, seed=0)
    strategy._unpack_minibatch = lambda: strategy.mbatch.__setitem__(1, torch.zeros(16, 6, dtype=torch.long))
    strategy.train(class_stream(1).train_stream[0])
    assert strategy.model.class_dimension == 2


def test_task_inference_and_its_metric_take_a_function_for_the_logits():
    _, found = results(
        SupSup, "dictionary", task_inference="entropy", logits=lambda output: output["logits"], train_mb_size=16,
        eval_mb_size=16, seed=0,
    )  # fmt: skip
    assert any("TaskIdAccuracy" in name for name in found)


PLUGINS = {
    "A-GEM": lambda: AGEMPlugin(8, 8),
    "EWC": lambda: EWCPlugin(0.1),
    "GEM": lambda: GEMPlugin(8, 0.5),
    "MIR": lambda: MIRPlugin(8, mem_size=8, subsample=8),
    "replay": lambda: ReplayPlugin(8),
    "best epoch": lambda: RestoreBest(),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_that_call_the_criterion_take_any_form(name):
    shared = {"train_mb_size": 16, "eval_mb_size": 16, "train_epochs": 2, "seed": 0}
    expected, found = (
        results(SupSup, form, plugins=[PLUGINS[name]()], **shared)[1] for form in ("tensor", "dictionary")
    )
    assert found == expected


OTHERS = {
    "KKT": (ExSSNeT, {"kkt": "knn_always", "train_epochs": 4}),
    "CLNP's search": (CLNP, {"l1_search": [1e-4, 1e-3], "train_epochs": 4}),
    "CLNP's gated head": (CLNP, {"head": "gated", "l1": 1e-3, "train_epochs": 4}),
    "ImpressLearn's basis": (ImpressLearn, {"n_basis": 1, "train_epochs": 4}),
    "a base": (SparseFineTuning, {"density": 0.05, "train_epochs": 2}),
    "new tasks": (SupSupNNs, {"train_epochs": 2}),
    "Hopfield": (HopSupSup, {"train_epochs": 2, "steps": 4}),
    "Hopfield, named": (HopSupSup, {"train_epochs": 2, "steps": 4, "logits": "logits"}),
}


@pytest.mark.filterwarnings("ignore:task .. no free unit is left")
@pytest.mark.filterwarnings("ignore:3 experiences had 18 batches in all")
@pytest.mark.parametrize("name", OTHERS)
def test_methods_that_use_outputs_themselves_take_any_form(name):
    make, settings = OTHERS[name]
    settings = {"train_mb_size": 16, "eval_mb_size": 16, "seed": 0, **settings}
    expected, found = (results(make, form, n_tasks=3, **settings)[1] for form in ("tensor", "dictionary"))
    assert found == expected


def test_none_stands_for_the_default_and_a_copy_has_its_own_model():
    strategy = SupSup(Net("dictionary"), criterion=None, evaluator=None)
    copied = copy.deepcopy(strategy)
    assert isinstance(copied._criterion, LogitsCrossEntropy)
    assert copied._criterion.logits_of.__self__ is copied.model
    assert not [*strategy._criterion.parameters()], "the criterion does not own the model"


def test_an_output_without_logits_is_refused_in_one_line():
    class Empty(Net):
        def forward(self, x):
            return {"classes": self.out(self.body(x.flatten(1))).argmax(1)}

    strategy = SupSup(Empty("tensor"), evaluator=None, train_mb_size=16)
    with pytest.raises(TypeError, match=r"returns a dict with \['classes'\] and no tensor that could be the logits"):
        strategy.train(class_stream(1).train_stream[0])


@pytest.mark.parametrize("name", ["task_inference", "on_revisit"])
def test_hopsupsup_refuses_what_its_model_does_not_have(name):
    with pytest.raises(TypeError, match=rf"HopSupSup got an unexpected argument '{name}'"):
        HopSupSup(Net("tensor"), **{name: "given"})


def test_avalanche_s_own_strategies_are_as_before():
    net = Net("dictionary")
    strategy = Naive(model=net, optimizer=SGD(net.parameters(), lr=0.1), evaluator=None)
    with pytest.raises(TypeError, match="cross_entropy"):
        strategy.train(class_stream(1).train_stream[0])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.bool])
def test_class_numbers_of_every_integer_type(dtype):
    logits, y = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    assert LogitsCrossEntropy(lambda x: x)(logits, y.to(dtype)) == nn.functional.cross_entropy(logits, y)


@pytest.mark.parametrize(("outputs", "target"), [(2, torch.tensor([0.0, 1.0])), (1, torch.tensor([[0.3], [7.0]]))])
def test_targets_that_have_no_cross_entropy_are_refused(outputs, target):
    with pytest.raises(ValueError, match=r"got targets of torch.float32 and shape .*criterion=torch.nn.MSELoss"):
        LogitsCrossEntropy(lambda x: x)(torch.randn(2, outputs), target)


@pytest.mark.parametrize(
    ("shape", "target"),
    [((2, 2), torch.tensor([[0], [1]])), ((2, 2), torch.tensor([[0, 1], [1, 0]])), ((2,), torch.tensor([0, 1]))],
    ids=["a column", "a one-hot code", "outputs without a dimension for the classes"],
)
def test_class_numbers_of_another_shape_are_refused_in_one_line(shape, target):
    with pytest.raises(ValueError, match=r"class numbers of shape .* for logits of shape .*no column and no one-hot"):
        LogitsCrossEntropy(lambda x: x)(torch.randn(shape), target)


@pytest.mark.parametrize("target", [("cat", "dog"), [torch.tensor([0, 1]), torch.tensor([1, 0])], {"label": 1}])
def test_targets_that_are_no_tensor_are_refused_in_one_line(target):
    with pytest.raises(TypeError, match=r"got targets in a (tuple|list|dict).*must return each label as an integer"):
        LogitsCrossEntropy(lambda x: x)(torch.randn(2, 2), target)


def test_probabilities_are_targets_too():
    logits, y = torch.randn(3, 2), torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.0, 1.0]])
    assert LogitsCrossEntropy(lambda x: x)(logits, y) == nn.functional.cross_entropy(logits, y)


@pytest.mark.parametrize("labels", [[-1, 1], [1, 2]])
@pytest.mark.parametrize("cls", [SupSup, SparseFineTuning])
def test_labels_without_an_output_are_refused_in_one_line(cls, labels):
    x, y = torch.randn(16, 4), torch.tensor(labels * 8)
    stream = tensors_benchmark(train_tensors=[(x, y)], test_tensors=[(x, y)], task_labels=[0])
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"number them from 0|number the classes of an experience from 0"):
        cls(net, train_mb_size=16, evaluator=None).train(stream.train_stream[0])

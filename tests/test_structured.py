"""Every method works on networks with named inputs and with outputs of several forms."""

import copy
from collections import namedtuple

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.flat_data import ConstantSequence
from avalanche.training.plugins import EvaluationPlugin
from torch import nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from avalanche_supermask import CachedTensors, SupSup, methods, supermask_metrics

METHODS = methods()
TASKS = 4
Auxiliary = namedtuple("Auxiliary", "logits second")
pytestmark = pytest.mark.filterwarnings("ignore:task .. no free unit is left")


class Structured(nn.Module):
    """A network with two named inputs and outputs in one of several forms; its middle may be checkpointed."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.body, self.middle = nn.Linear(8, 40), nn.Linear(40, 40)
        self.second, self.out = nn.Linear(40, 2), nn.Linear(40, 2)

    def forward(self, x):
        h = (self.body(x["values"]) * x["weight"]).relu()
        h = checkpoint(lambda h: self.middle(h).relu(), h, use_reentrant=False) if self.form == "checkpointed" else h
        logits = self.out(h)
        if self.form == "auxiliary":  # torchvision's GoogLeNet and Inception do the same
            return Auxiliary(logits, self.second(h)) if self.training else logits
        return {"dictionary": {"hidden": h, "logits": logits}, "tuple": (logits, h)}.get(self.form, logits)


class Criterion:
    """Cross-entropy of the logits in any form of output, and of the second output with a weight."""

    def __call__(self, output, y):
        if isinstance(output, Auxiliary):
            return sum(nn.functional.cross_entropy(o, y) * w for o, w in zip(output, (1.0, 0.3), strict=True))
        if isinstance(output, dict):
            output = output["logits"]
        return nn.functional.cross_entropy(output[0] if isinstance(output, tuple) else output, y)


class Samples(torch.utils.data.Dataset):
    def __init__(self, x, targets):
        self.x, self.targets = x, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return {name: column[i] for name, column in self.x.items()}, int(self.targets[i])


def samples(task, n=48):
    generator = torch.Generator().manual_seed(task)
    y = torch.arange(n) % 2
    prototypes = torch.randn(2, 8, generator=generator)
    x = {
        "values": prototypes[y] + 0.3 * torch.randn(n, 8, generator=generator),
        "weight": torch.full((n, 1), 1.0 + 0.1 * task),
    }
    return x, y


def stream(tasks=TASKS):
    def dataset(task):
        x, y = samples(task)
        label = DataAttribute(ConstantSequence(task, len(y)), "targets_task_labels", use_in_getitem=True)
        targets = DataAttribute(y.tolist(), "targets")
        return AvalancheDataset([Samples(x, y)], data_attributes=[label, targets])

    sets = [dataset(task) for task in range(tasks)]
    return with_task_labels(benchmark_from_datasets(train=sets, test=sets))


def logits_of(output):
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def answers(model, task):
    return logits_of(model.eval()(samples(0)[0], task)).clone()


def build(method, form, **more):
    torch.manual_seed(0)
    net = Structured(form)
    groups = [{"params": [*net.body.parameters()], "lr": 0.02}, {"params": [*net.middle.parameters()]}]
    groups += [{"params": [*net.second.parameters(), *net.out.parameters()], "weight_decay": 0.0}]
    extra = {"n_basis": 2} if method == "impresslearn" else {}
    return METHODS[method](
        net, optimizer=SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-2), criterion=Criterion(),
        train_mb_size=16, eval_mb_size=16, seed=0, **{"train_epochs": 2, "evaluator": None, **extra, **more},
    )  # fmt: skip


FORMS = ["dictionary", "tuple", "auxiliary", "checkpointed"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_finished_tasks_stay_and_copies_answer_alike(method, form):
    strategy, kept, drift = build(method, form), {}, 0.0
    for experience in stream().train_stream:
        strategy.train(experience)
        kept = {task: answers(strategy.model, task) for task in strategy.model.task_keys} | kept
        drift = max(drift, *(float((answers(strategy.model, t) - out).abs().max()) for t, out in kept.items()))
    assert strategy.model.task_keys == list(range(TASKS))
    if METHODS[method].forgets:
        assert drift > 0
        return
    assert drift == 0
    reloaded = build(method, form).model
    reloaded.load_state_dict(strategy.model.state_dict())
    for task, out in kept.items():
        assert torch.equal(answers(reloaded, task), out)
        assert torch.equal(answers(copy.deepcopy(strategy.model), task), out)
        with torch.no_grad():
            assert torch.equal(logits_of(strategy.model.export(task)(samples(0)[0])), out)


@pytest.mark.parametrize("form", FORMS)
def test_metrics_cached_data_inference_and_mixed_batches(form):
    evaluator = EvaluationPlugin(*supermask_metrics(), loggers=[])
    strategy = build(
        "supsup", form, evaluator=evaluator, plugins=[CachedTensors()], task_inference="entropy", train_epochs=8
    )
    for experience in stream(2).train_stream:
        strategy.train(experience)
        found = strategy.eval(stream(2).test_stream)
    drifts = [value for name, value in found.items() if "Drift" in name]
    assert drifts
    assert max(drifts) == 0
    model = strategy.model
    model.task_inference = "given"
    labels = torch.arange(48) % 2
    with torch.no_grad():
        mixed = logits_of(model(samples(0)[0], labels))
    for task in (0, 1):
        assert torch.allclose(mixed[labels == task], answers(model, task)[labels == task], atol=1e-6)


def test_a_whole_minibatch_in_a_dictionary_is_refused_by_what_needs_columns():
    class Whole(torch.utils.data.Dataset):
        targets = [0, 1] * 8

        def __len__(self):
            return 16

        def __getitem__(self, i):
            return {"x": torch.randn(8), "labels": i % 2, "task_labels": 0}

    data = AvalancheDataset([Whole()], data_attributes=[DataAttribute(Whole.targets, "targets")])
    experience = benchmark_from_datasets(train=[data], test=[data]).train_stream[0]
    strategy = METHODS["clnp"](nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 2)), evaluator=None)
    with pytest.raises(TypeError, match=r"expected minibatches \[inputs, targets, ...\], got a dict"):
        strategy.train(experience)


def test_the_second_output_learns_and_is_each_task_s_own():
    strategy = build("supsup", "auxiliary", own=["second.*"])
    for experience in stream(2).train_stream:
        strategy.train(experience)
    first, second = (strategy.model.tensors_of(task)["second.weight"] for task in (0, 1))
    assert not torch.equal(first, second)
    assert isinstance(strategy, SupSup)

"""Streams of Avalanche's newer interface, whose experiences and batches have no task labels."""

import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import EvaluationPlugin

from avalanche_supermask import RestoreBest, SupSup
from avalanche_supermask.metrics import AccuracyOverSteps, TaskInference
from tests.building import METHODS, build
from tests.streams import class_stream, inputs, mlp, train_all

QUICK = {"train_epochs": 2, "train_mb_size": 16, "evaluator": None, "seed": 0, "density": 0.3}
VARIANTS = {
    **{name: {} for name in METHODS},
    "supsup, best epoch": {"plugins": [RestoreBest()]},
    "exssnet, kkt": {"kkt": "knn_best"},
    "supsup, gaussian": {"task_inference": "gaussian"},
    "clnp, search": {"l1_search": (1e-4, 1e-3), "search_epochs": 1},
    "impresslearn, masks of one task": {"basis": "homogeneous"},
}


def without_labels(stream):
    """Return a benchmark with the same data, but without task labels."""

    def datasets(experiences):
        found = []
        for experience in experiences:
            samples = [experience.dataset[i] for i in range(len(experience.dataset))]
            data = torch.utils.data.TensorDataset(
                torch.stack([x for x, *_ in samples]), torch.tensor([y for _, y, *_ in samples])
            )
            data.targets = data.tensors[1].tolist()
            found.append(as_classification_dataset(data))
        return found

    return benchmark_from_datasets(train=datasets(stream.train_stream), test=datasets(stream.test_stream))


@pytest.mark.parametrize("variant", VARIANTS)
def test_tasks_are_learned_as_on_the_same_stream_with_labels(variant):
    learned = {}
    for labels in (True, False):
        torch.manual_seed(0)
        stream = class_stream(2) if labels else without_labels(class_stream(2))
        strategy = build(variant.partition(",")[0], mlp(), **VARIANTS[variant])
        learned[labels] = train_all(strategy, stream).model
    assert learned[False].task_keys == [0, 1]
    for key in (0, 1):
        assert torch.equal(learned[True].forward_task(key, inputs()), learned[False].forward_task(key, inputs()))


def test_evaluation_by_the_latest_task_warns_once():
    stream = without_labels(class_stream(2))
    strategy = SupSup(mlp(), **QUICK)
    strategy.train(stream.train_stream[0])
    strategy.eval(stream.test_stream)  # a single task cannot be the wrong one
    strategy.train(stream.train_stream[1])
    with pytest.warns(UserWarning, match=r"no task labels \(learned: \[0, 1\]\); the latest task answers.*inference="):
        strategy.eval(stream.test_stream)
    strategy.eval(stream.test_stream)


@pytest.mark.parametrize("arguments", [{"task_inference": "entropy"}, {"task_key": "experience"}])
def test_where_the_task_is_found_nothing_is_warned_of(arguments):
    stream = without_labels(class_stream(2))
    train_all(SupSup(mlp(), **QUICK, **arguments), stream).eval(stream.test_stream)


def test_metrics_do_not_take_classes_for_task_labels():
    stream = without_labels(class_stream(2, task_labels=[5, 7]))
    metric = AccuracyOverSteps(stream.test_stream[0], every=2)
    train_all(SupSup(mlp(), **{**QUICK, "evaluator": EvaluationPlugin(metric, loggers=[])}), stream)
    assert len(metric.result()) > 1


def test_tasks_that_are_known_by_labels_are_not_compared_with_data_without_labels():
    stream = class_stream(2, task_labels=[5, 7])
    metric = TaskInference()
    evaluator = EvaluationPlugin(metric, loggers=[])
    strategy = train_all(SupSup(mlp(), task_inference="gaussian", **{**QUICK, "evaluator": evaluator}), stream)
    assert "TaskIdAccuracy" not in "".join(strategy.eval(without_labels(stream).test_stream))
    assert "TaskIdAccuracy" in "".join(strategy.eval(stream.test_stream))


def test_a_task_without_a_label_is_called_by_its_key():
    model = train_all(SupSup(mlp(), **QUICK), without_labels(class_stream(2))).model.eval()
    for key in (0, 1):
        assert torch.equal(model(inputs(), key), model.forward_task(key, inputs()))
    mixed = torch.arange(16) % 2
    outputs = torch.where((mixed == 0)[:, None], model.forward_task(0, inputs()), model.forward_task(1, inputs()))
    assert torch.allclose(model(inputs(), mixed), outputs, atol=1e-6)
    with pytest.warns(UserWarning, match=r"task label 7 was never trained \(learned: \[0, 1\]\); the latest task"):
        model(inputs(), 7)


def test_the_warning_names_labels_that_are_not_the_keys():
    model = train_all(SupSup(mlp(), **QUICK), class_stream(2, task_labels=[0, 0])).model.eval()
    with pytest.warns(UserWarning, match=r"label 1 was never trained \(learned: \[0, 1\], under the labels \[0, 0\]\)"):
        model(inputs(), 1)

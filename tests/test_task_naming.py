"""Keys of tasks, and labels that only the data have."""

from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.online import OnlineCLExperience, split_online_stream
from avalanche.benchmarks.scenarios.validation_scenario import benchmark_with_validation_stream
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import MTSimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from torch.utils.data import TensorDataset

from avalanche_supermask import SupSup
from avalanche_supermask.experience_labels import labelled
from avalanche_supermask.model.finished_tasks import Task
from avalanche_supermask.task_naming import check_revisit, name_task
from tests.streams import class_stream, mlp

pytestmark = pytest.mark.filterwarnings("ignore:stream generator will be converted")


def named(
    index, label, learned, *, task_key="auto", on_revisit="error", kind=SimpleNamespace, learned_in=None, continues=True
):
    """Return the key and label of an experience; ``learned`` has the label of each learned key, in order."""
    experience = SimpleNamespace(current_experience=index, task_labels=[] if label is None else [label])
    if kind is not SimpleNamespace:
        experience = OnlineCLExperience(dataset=[0], origin_experience=None)
        experience.current_experience, experience.task_labels = index, [label]
    tasks = {key: Task(slot, of) for slot, (key, of) in enumerate(learned.items())}
    known = {key: key for key in tasks} if learned_in is None else learned_in
    options = {"task_key": task_key, "on_revisit": on_revisit, "continues": continues}
    return name_task(experience, tasks, learned_in=known, **options)


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ((2, 7, {}), {}, (7, 7)),
        ((1, 0, {0: 0}), {}, (1, 0)),  # All labels are 0, so the index is the key.
        ((1, None, {0: None}), {}, (1, None)),
        ((0, 0, {0: 0}), {"task_key": "task_label"}, (0, 0)),  # a revisit
        ((2, 0, {0: 0, 1: 1}), {}, (0, 0)),
        ((3, 5, {0: 0}), {"task_key": "experience"}, (3, 5)),
        ((0, 0, {0: 0}), {"learned_in": {}}, (1, 0)),
        ((1, 0, {0: 0}), {"on_revisit": "continue"}, (0, 0)),
        ((5, 1, {0: 0, 3: 1}), {"on_revisit": "continue"}, (3, 1)),
        ((2, 1, {0: 0, 1: 0}), {"on_revisit": "new"}, (1, 1)),
        ((2, 1, {0: 0, 1: 0}), {"on_revisit": "continue"}, (2, 1)),  # Task 1 is of label 0, which does not go on.
        ((3, 1, {0: 0, 1: 0, 2: 1}), {"on_revisit": "continue"}, (2, 1)),
    ],
)
def test_names(given, options, expected):
    assert named(*given, **options) == expected


@pytest.mark.parametrize("on_revisit", ["error", "skip"])
@pytest.mark.parametrize("task_key", ["auto", "task_label"])
def test_a_label_whose_key_an_index_took_is_not_called_a_revisit(on_revisit, task_key):
    with pytest.raises(ValueError, match=r"task label 1, which was never learned.*label 0 came in several.*'continue'"):
        named(2, 1, {0: 0, 1: 0}, on_revisit=on_revisit, task_key=task_key)


def test_parts_of_an_online_stream_that_become_tasks_are_announced_once():
    with pytest.warns(UserWarning, match="experience 1 of an online stream has the task label 0.*'continue'"):
        assert named(1, 0, {0: 0}, kind=OnlineCLExperience) == (1, 0)
    assert named(2, 0, {0: 0, 1: 0}, kind=OnlineCLExperience) == (2, 0)  # Another warning would be an error.


def test_messages_advise_to_continue_only_where_the_method_can():
    with pytest.raises(ValueError, match=r"its index. Pass task_key='experience' to name every task by its index"):
        named(2, 1, {0: 0, 1: 0}, continues=False)
    with pytest.warns(UserWarning, match="SupSup and ExSSNeT can go on learning one task .*train on whole experiences"):
        named(1, 0, {0: 0}, kind=OnlineCLExperience, continues=False)


def test_who_can_continue():
    check_revisit("continue", continues=True, method="SupSup")
    with pytest.raises(ValueError, match="'continue' is for SupSup, ExSSNeT and SSNeT; a task of CLNP cannot"):
        check_revisit("continue", continues=False, method="CLNP")


def benchmark():
    y = torch.arange(120) % 6
    data = TensorDataset(3 * torch.randn(6, 36, generator=torch.Generator().manual_seed(0))[y], y)
    return nc_benchmark(data, data, 3, task_labels=True, class_ids_from_zero_in_each_exp=True, shuffle=False)


@pytest.mark.parametrize("net", ["mlp", "MTSimpleMLP"])
def test_a_validation_stream_keeps_the_labels_of_its_data(net):
    bench = benchmark_with_validation_stream(benchmark(), 0.3)
    assert not hasattr(bench.train_stream[0], "task_labels")
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    model = mlp() if net == "mlp" else MTSimpleMLP(input_size=36, hidden_size=32)
    strategy = SupSup(model, density=0.5, mask_lr=0.02, train_epochs=20, train_mb_size=8, evaluator=evaluator, seed=0)
    for experience in bench.train_stream:
        strategy.train(experience)
    assert {key: task.label for key, task in strategy.model.subnetworks.tasks.items()} == {0: 0, 1: 1, 2: 2}
    for stream in (bench.test_stream, bench.valid_stream, bench.train_stream):
        found = strategy.eval(stream)
        assert min(v for name, v in found.items() if f"{stream.name}_stream/" in name) > 0.9


def test_labels_that_are_there_stay_and_the_experience_of_the_stream_is_not_touched():
    whole = class_stream(1).train_stream[0]
    assert labelled(whole) is whole
    part = next(iter(split_online_stream(class_stream(1, task_labels=[4]).train_stream, experience_size=8)))
    found = labelled(part)
    assert (found.task_labels, found.task_label, found.classes_in_this_experience) == ([4], 4, [0, 1])
    assert not hasattr(part, "task_labels")


def test_targets_that_are_no_classes_have_none():
    experience = SimpleNamespace(dataset=SimpleNamespace(targets=[0.5, 1.5]))
    assert labelled(experience) is experience

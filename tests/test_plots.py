"""Every picture shows the numbers of its inputs."""

import json

import numpy as np
import pytest
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_supermask import SupSup, plots
from tests.streams import class_stream, mlp

MATRIX = [[0.9, 0.5, 0.4], [0.8, 0.9, 0.5], [0.6, 0.8, 1.0]]


@pytest.fixture(scope="module")
def strategy():
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    made = SupSup(mlp(), density=0.3, train_epochs=2, train_mb_size=16, evaluator=evaluator, seed=0)
    stream = class_stream(2)
    for task in range(2):
        made.train(stream.train_stream[task])
        made.eval(stream.test_stream[: task + 1])
    return made


def lines(figure):
    return {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].get_lines()}


def test_accuracies_of_a_file_a_result_and_a_matrix(tmp_path):
    file = tmp_path / "seed0.json"
    file.write_text(json.dumps({"accuracy_matrix": MATRIX}))
    assert plots.accuracies(file) == plots.accuracies({"accuracy_matrix": MATRIX}) == plots.accuracies(MATRIX) == MATRIX


def test_accuracies_of_a_strategy(strategy):
    found = np.array(plots.accuracies(strategy))
    assert found.shape == (2, 2)
    assert np.isnan(found[0, 1]), "the second task was not tested after the first"
    assert found[0, 0] == found[1, 0], "nothing is forgotten"
    last = strategy.evaluator.get_last_metrics()
    recorded = [value for name, value in sorted(last.items()) if name.startswith("Top1_Acc_Exp/eval_phase/")]
    assert list(found[1]) == recorded


def test_what_has_no_accuracies():
    with pytest.raises(TypeError, match="expected a strategy, a result, a JSON file or an accuracy matrix; got int"):
        plots.accuracies(3)
    quiet = SupSup(mlp(), evaluator=EvaluationPlugin(loggers=[]))
    with pytest.raises(ValueError, match=r"give it accuracy_metrics\(experience=True\)"):
        plots.accuracies(quiet)


def test_the_matrix_is_shown_with_its_numbers():
    figure = plots.accuracy_matrix(MATRIX)
    assert [text.get_text() for text in figure.axes[0].texts][:3] == ["0.90", "0.50", "0.40"]
    assert np.allclose(figure.axes[0].images[0].get_array(), MATRIX)


def test_curves_begin_where_a_task_was_learned():
    assert lines(plots.accuracy_curves(MATRIX)) == {"task 0": [0.9, 0.8, 0.6], "task 1": [0.9, 0.8], "task 2": [1.0]}


def test_forgetting_is_the_change_since_a_task_was_learned():
    steady = [[0.7, 0.5], [0.7, 0.9]]
    found = lines(plots.forgetting({"a": MATRIX, "b": steady, "both": [steady, steady]}))
    assert np.allclose(found["a"], [0, -5, -40 / 3])
    assert found["b"] == found["both"] == [0, 0]


def test_overlap_and_capacity_show_what_the_model_says(strategy):
    shown = plots.overlap(strategy).axes[0].images[0].get_array()
    assert np.allclose(np.diag(shown), 1)
    assert shown[1, 0] == pytest.approx(strategy.model.overlap()[1])
    bars = plots.capacity(strategy.model).axes[0].patches
    use = list(strategy.model.capacity().values())
    widths = [bar.get_width() for bar in bars]
    assert np.allclose(widths[: len(use)], [layer.reused / layer.total for layer in use])
    assert np.allclose(widths[-len(use) :], [layer.free / layer.total for layer in use])


def test_a_picture_of_a_model_without_a_task():
    with pytest.raises(ValueError, match="no task is learned yet"):
        plots.overlap(SupSup(mlp(), evaluator=None))
    with pytest.raises(TypeError, match="expected a MaskedModel or a strategy of this package; got Sequential"):
        plots.capacity(mlp())


def test_accuracy_over_bytes():
    results = [{"method": "a", "bytes_per_task": 100, "average_accuracy": 0.9}]
    axes = plots.accuracy_over_bytes(results).axes[0]
    assert axes.texts[0].get_text() == "a"
    assert axes.collections[0].get_offsets().tolist() == [[100, 0.9]]

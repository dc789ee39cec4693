import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import TensorboardLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim import SGD

from avalanche_supermask import ExSSNeT, SSNeT, supermask_metrics
from tests.streams import class_stream, mlp, train_all

NAMES = ["MaskDensity", "MaskOverlap", "FreeCapacity", "BytesPerTask", "OutputDrift"]


def curves(strategy):
    found = strategy.evaluator.get_all_metrics()
    return {name: found.get(f"{name}/train_phase/train_stream", (None, None))[1] for name in NAMES}


def run(method, **arguments):
    evaluator = EvaluationPlugin(supermask_metrics(), loggers=[])
    strategy = method(
        mlp(), density=0.3, train_epochs=2, train_mb_size=16, evaluator=evaluator, seed=0, mask_lr=0.02,
        weight_lr=0.05, **arguments,
    )  # fmt: skip
    return train_all(strategy, class_stream(3))


def test_the_numbers_are_the_models():
    strategy = run(ExSSNeT)
    model, found = strategy.model, curves(strategy)
    assert found["OutputDrift"] == [0.0, 0.0, 0.0]
    assert found["MaskDensity"] == pytest.approx([0.3] * 3, abs=0.01)
    assert found["MaskOverlap"] == list(model.overlap().values())
    assert found["BytesPerTask"] == list(model.bytes_per_task().values())
    layers = model.capacity().values()
    assert found["FreeCapacity"][-1] == sum(x.free for x in layers) / sum(x.total for x in layers)
    assert found["FreeCapacity"] == sorted(found["FreeCapacity"], reverse=True)


def test_drift_sees_a_method_that_forgets():
    found = curves(run(SSNeT))["OutputDrift"]
    assert found[0] == 0.0
    assert min(found[1:]) > 1e-3


def test_other_strategies_only_have_drift():
    net = mlp()
    evaluator = EvaluationPlugin(supermask_metrics(), loggers=[])
    strategy = Naive(model=net, optimizer=SGD(net.parameters(), lr=0.1), evaluator=evaluator, train_mb_size=16)
    found = curves(train_all(strategy, class_stream(2)))
    assert [name for name in NAMES if found[name]] == ["OutputDrift"]
    assert found["OutputDrift"][1] > 0


def test_measuring_leaves_the_random_state_and_the_mode():
    def state(metrics):
        torch.manual_seed(1)
        evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), metrics, loggers=[])
        strategy = ExSSNeT(mlp(), train_epochs=2, weight_epochs=1, train_mb_size=16, evaluator=evaluator, seed=0)
        train_all(strategy, class_stream(2))
        assert strategy.model.training
        return torch.get_rng_state()

    assert torch.equal(state([]), state(supermask_metrics()))


def test_one_may_choose():
    assert [str(m) for m in supermask_metrics() if str(m) not in ("UnitUse", "TaskInference")] == NAMES
    assert [str(m) for m in supermask_metrics(overlap=True, capacity=True)] == ["MaskOverlap", "FreeCapacity"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_they_appear_in_tensorboard(tmp_path):
    logger = TensorboardLogger(tb_log_dir=str(tmp_path))
    evaluator = EvaluationPlugin(supermask_metrics(), loggers=[logger])
    strategy = ExSSNeT(mlp(), train_epochs=2, weight_epochs=1, train_mb_size=16, evaluator=evaluator, seed=0)
    train_all(strategy, class_stream(2))
    logger.writer.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    assert {tag.split("/")[0] for tag in tags} >= set(NAMES)
    assert [e.value for e in events.Scalars("OutputDrift/train_phase/train_stream")] == [0.0, 0.0]


def test_task_inference_is_counted_apart_from_classes():
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), supermask_metrics(inference=True), loggers=[])
    strategy = ExSSNeT(
        mlp(width=48), density=0.3, train_epochs=20, train_mb_size=16, eval_mb_size=16, evaluator=evaluator, seed=0,
        mask_lr=0.02, weight_lr=0.02, task_inference="entropy",
    )  # fmt: skip
    stream = class_stream(3, n=96)
    train_all(strategy, stream)
    found = strategy.eval(stream.test_stream)

    def of(name, task):
        return next(v for k, v in found.items() if k.startswith(f"{name}/eval_phase") and k.endswith(f"Exp00{task}"))

    for task in range(3):
        shared, unshared, ids = (of(n, task) for n in ("Top1_Acc_Exp", "UnsharedAccuracy", "TaskIdAccuracy"))
        # Samples of which both the class and the task are right: bounds of Boole and Fréchet.
        assert shared + ids - 1 - 1e-9 <= unshared <= min(shared, ids) + 1e-9
        assert shared + ids > 1, "or the lower bound shows nothing"
        assert ids > 1 / 3, "better than chance"
    strategy.model.task_inference = "given"
    evaluator.reset_last_metrics()
    assert not any("TaskIdAccuracy" in name for name in strategy.eval(stream.test_stream))

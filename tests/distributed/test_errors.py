"""Differences between processes raise clear errors early; methods that do not support groups are refused."""

import pytest
import torch

from avalanche_supermask import CachedTensors, HopSupSup, SupSup, SupSupNNs
from avalanche_supermask.distributed import require_equal_tensors, told
from tests.distributed.learning import evaluator, observe, strategy_of
from tests.distributed.processes import group_of
from tests.streams import class_stream, mlp


def error_of(function):
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def seeds(rank):
    torch.manual_seed(rank)
    strategy = SupSup(mlp(), train_mb_size=8, evaluator=None)
    return error_of(lambda: strategy.train(class_stream(1).train_stream[0]))


def test_different_seeds():
    for said in group_of(2).run(seeds):
        assert said.startswith("RuntimeError: the processes start from different networks; give all of them the same")
        assert "'model.seed' of rank 1 differs from rank 0's" in said


def numbers_of_batches(rank, cached):
    plugins = [CachedTensors()] if cached else []

    class OtherLoader:
        supports_distributed = True

        def before_training_exp(self, strategy, **kwargs):
            if rank == 1:
                strategy.dataloader = [*strategy.dataloader, next(iter(strategy.dataloader))]

    strategy = SupSup(mlp(), seed=0, train_mb_size=8, plugins=[*plugins, OtherLoader()], evaluator=None)
    return error_of(lambda: strategy.train(class_stream(1, n=48).train_stream[0], shuffle=False))


@pytest.mark.parametrize("cached", [True, False])
def test_different_numbers_of_batches(cached):
    said = "the processes differ in their numbers of batches: 3 in rank 0, 4 in rank 1; pass the same data"
    assert all(said in found for found in group_of(2).run(numbers_of_batches, cached))


def sizes(rank):
    strategy = SupSup(mlp(), seed=0, train_mb_size=8 + rank, evaluator=None)
    return error_of(lambda: strategy.train(class_stream(1).train_stream[0]))


def test_different_sizes_of_batches():
    said = "the processes differ in train_mb_size: 8 in rank 0, 9 in rank 1; run the same script"
    assert all(said in found for found in group_of(2).run(sizes))


def amounts(rank):
    strategy = SupSup(mlp(), seed=0, train_mb_size=8, evaluator=None)
    return error_of(lambda: strategy.train(class_stream(1, n=48 + 2 * rank).train_stream[0]))


def test_different_amounts_of_data():
    said = (
        "the processes differ in their numbers of training samples: 48 in rank 0, 50 in rank 1; build the same stream"
    )
    assert all(said in found for found in group_of(2).run(amounts))


def labels(rank):
    strategy = SupSup(mlp(outputs=3), seed=0, train_mb_size=8, evaluator=None)
    return error_of(lambda: strategy.train(class_stream(1, n_classes=2 + rank).train_stream[0]))


def test_different_labels():
    said = "the processes differ in the labels of their training data"
    assert all(said in found for found in group_of(2).run(labels))


def diverging(rank):
    """Train with a plugin that changes scores in one process only; return the error."""

    class Nudge:
        supports_distributed = True

        def after_training_epoch(self, strategy, **kwargs):
            # The scores change in the last epoch: they are not trained any more, so only they differ.
            if rank == 1 and strategy.clock.train_exp_epochs == strategy.train_epochs - 1:
                with torch.no_grad():
                    strategy.model.subnetworks.scores["3.weight"].mul_(-2.0)

    strategy = strategy_of("supsup", "mlp", plugins=[CachedTensors(), Nudge()])
    return error_of(lambda: strategy.train(class_stream(1).train_stream[0]))


def test_a_model_that_diverged_is_told_by_the_name_of_its_tensor():
    for said in group_of(2).run(diverging):
        assert said.startswith("RuntimeError: the processes do not hold the same model any more")
        assert "'subnetworks.scores.3/weight' of rank 1 differs from rank 0's" in said


def compared(rank, size):
    state = {"a": torch.zeros(2), "b": torch.ones(3) + (rank == size - 1), "c": {"numbers": [rank]}}
    return error_of(lambda: require_equal_tensors(state, when="now"))


def test_the_first_tensor_that_differs_is_named():
    assert (
        group_of(2).run(compared, 2)
        == ["RuntimeError: now: 'b' of rank 1 differs from rank 0's (2 tensors differ)"] * 2
    )


def not_a_number(rank):
    class Poison:
        supports_distributed = True

        def after_training_iteration(self, strategy, **kwargs):
            if rank == 1:
                strategy.loss = torch.tensor(float("nan"))

    strategy = SupSup(mlp(), seed=0, train_mb_size=8, plugins=[CachedTensors(), Poison()], evaluator=None)
    stream = class_stream(2)
    said = error_of(lambda: strategy.train(stream.train_stream[0]))
    strategy.plugins = [plugin for plugin in strategy.plugins if not isinstance(plugin, Poison)]
    strategy.train(stream.train_stream[1])
    return said, strategy.model.task_keys, told(strategy.model.task_keys)


def test_not_a_number_in_one_process_ends_the_task_in_all():
    for said, keys, everyones in group_of(2).run(not_a_number):
        assert said.startswith("FloatingPointError: the loss of task 0 is NaN or infinite")
        assert keys == [1]
        assert everyones == [[1], [1]]


def refused(rank):
    stream = class_stream(1)
    found = []
    for kind in (SupSupNNs, HopSupSup):
        strategy = kind(mlp(), seed=0, train_mb_size=8, evaluator=None)
        found.append(error_of(lambda strategy=strategy: strategy.train(stream.train_stream[0])))
    return found


def test_methods_that_cannot_say_so_in_one_line():
    for nns, hopfield in group_of(2).run(refused):
        assert nns.startswith(
            "RuntimeError: SupSupNNs does not run in several processes, and this is one of 2: start it"
        )
        assert hopfield.startswith("RuntimeError: HopSupSup does not run in several processes")
        assert "\n" not in nns + hopfield


def supported(rank):
    import io
    from contextlib import redirect_stderr

    strategy = strategy_of("exssnet", "mlp", evaluator=evaluator())
    with redirect_stderr(io.StringIO()) as said:
        observe(strategy, class_stream(1))
    return said.getvalue()


def test_avalanche_finds_nothing_that_is_not_supported():
    assert group_of(2).run(supported) == ["", ""]

"""Two processes with half of each batch learn the same as one process with whole batches."""

import copy

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import SimpleMLP, as_multitask
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, ReplayPlugin
from torch import nn
from torch.optim import SGD

from avalanche_supermask import CachedTensors, SupSup
from tests.building import build
from tests.distributed.learning import evaluator, observe
from tests.distributed.processes import group_of
from tests.streams import NETWORKS, class_stream, mlp

BATCH = 16


def supsup(size, *, net=None, plugins=(), density=0.3, batch=BATCH, **options):
    torch.manual_seed(0)
    net = mlp() if net is None else net
    settings = {"evaluator": evaluator(), "train_epochs": 2, "eval_mb_size": 12 // size, **options}
    return SupSup(
        net, optimizer=SGD(net.parameters(), lr=0.05), density=density, train_mb_size=batch // size,
        plugins=[CachedTensors(), *plugins], seed=0, **settings,
    )  # fmt: skip


def plain(rank, size, shuffle, n):
    return observe(supsup(size), class_stream(3, n=n), shuffle=shuffle)


@pytest.mark.parametrize(("n", "shuffle"), [(48, False), (50, False), (49, True)])
def test_plain_sgd_gives_the_masks_of_one_process(n, shuffle):
    alone = plain(0, 1, shuffle, n)
    for found in group_of(2).run(plain, 2, shuffle, n):
        for mine, whole in zip(found["weights"], alone["weights"], strict=True):
            for name, weight in mine.items():
                assert torch.equal(weight, whole[name]), "the mask, as SupSup's weights never change"
        assert found["entropies"] == pytest.approx(alone["entropies"], abs=1e-4 if n % 2 == 0 else 1e-2)
        for mine, whole in zip(found["metrics"], alone["metrics"], strict=True):
            assert mine.keys() == whole.keys()
            assert mine == pytest.approx(whole, abs=1e-4)


class InDoublePrecision(nn.Module):
    """A network in which rounding is so small that it does not change the choice of a weight on any processor."""

    def __init__(self, net):
        super().__init__()
        self.net = net.double()

    def forward(self, x):
        return self.net(x.double())


def learned_weights(rank, size):
    torch.manual_seed(0)
    strategy = build(
        "exssnet", InDoublePrecision(NETWORKS["lenet"]()), seed=None, plugins=[CachedTensors()], evaluator=None,
        train_mb_size=BATCH // size,
    )  # fmt: skip
    return observe(strategy, class_stream(2, n=48), shuffle=False)["weights"]


def test_trained_weights_are_those_of_one_process_up_to_rounding():
    alone = learned_weights(0, 1)
    for found in group_of(2).run(learned_weights, 2):
        for mine, whole in zip(found, alone, strict=True):
            for name, weight in mine.items():
                assert torch.allclose(weight, whole[name], atol=1e-7)


def without_cache(rank, size):
    strategy = supsup(size)
    strategy.plugins = [p for p in strategy.plugins if not isinstance(p, CachedTensors)]
    return observe(strategy, class_stream(2, n=48), shuffle=False)


def test_avalanches_own_loaders_give_the_same():
    alone = without_cache(0, 1)
    for found in group_of(2).run(without_cache, 2):
        for mine, whole in zip(found["metrics"], alone["metrics"], strict=True):
            assert mine == pytest.approx(whole, abs=1e-4)


def orders(rank):
    strategy = supsup(2)
    strategy.plugins = [p for p in strategy.plugins if not isinstance(p, CachedTensors)]
    seen = []

    class Spy:
        supports_distributed = True

        def before_training_epoch(self, strategy, **kwargs):
            seen.append([])

        def before_forward(self, strategy, **kwargs):
            seen[-1] += [round(float(x.sum()), 4) for x in strategy.mb_x]

    strategy.plugins.insert(0, Spy())
    for experience in class_stream(2, n=48).train_stream:
        strategy.train(experience)
    return seen


def test_avalanches_own_loader_shuffles_each_epoch_anew_and_shows_every_sample_once():
    first, second = group_of(2).run(orders)
    for a, b in zip(first, second, strict=True):
        assert len(set(a + b)) == 48
    assert first[0] != first[1]
    assert first[2] != first[3]


def multi_head(rank, size):
    net = as_multitask(SimpleMLP(num_classes=2, input_size=36, hidden_size=16), "classifier")
    if size > 1:
        torch.rand(3 + rank)  # The random states differ now; the second head must be equal nevertheless.
    return observe(supsup(size, net=net), class_stream(3, n=48))


def test_heads_that_are_made_for_a_task_are_alike():
    first, second = group_of(2).run(multi_head, 2)
    assert first["digests"] == second["digests"]
    assert first["drift"] == [0.0] * 3


def with_dropout(rank):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 2))
    drawn = []
    net[3].register_forward_hook(lambda module, inputs, output: drawn.append((output == 0).float().mean().item()))
    strategy = supsup(2, net=net)
    return observe(strategy, class_stream(2, n=50)), [
        h for h in strategy.model.net[3]._forward_hooks.values()
    ] and drawn


def test_dropout_differs_and_the_model_does_not():
    (first, a), (second, b) = group_of(2).run(with_dropout)
    assert first["digests"] == second["digests"]
    assert a != b


def replayed(rank, size):
    batches = []

    class Spy:
        supports_distributed = True

        def before_forward(self, strategy, **kwargs):
            batches.append(sorted(strategy.mb_task_id.tolist()))

    replay = ReplayPlugin(mem_size=20, batch_size=8, batch_size_mem=4)
    return observe(supsup(size, plugins=[replay, Spy()]), class_stream(2, n=48)), batches


def test_replay_is_shared_out_too():
    (first, batches), (second, _) = group_of(2).run(replayed, 2)
    assert first["digests"] == second["digests"]
    assert [0] * 4 + [1] * 8 in batches


def stopped_early(rank, one_only):
    class Stop:
        supports_distributed = True

        def after_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 1 and (rank == 1 or not one_only):
                strategy.stop_training()

    strategy = supsup(2, plugins=[Stop()], train_epochs=3)
    found = observe(strategy, class_stream(2, n=48))
    return found, strategy.clock.train_iterations


@pytest.mark.parametrize("one_only", [True, False])
def test_one_process_that_stops_stops_all(one_only):
    (first, steps), (second, others) = group_of(2).run(stopped_early, one_only)
    assert first["digests"] == second["digests"]
    assert steps == others == 2 * 3  # The vote of the second batch takes effect at the third.


def early_stopping(rank, size):
    stopping = EarlyStoppingPlugin(patience=1, val_stream_name="test_stream", metric_name="Top1_Acc_Stream")
    metrics = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    strategy = supsup(size, plugins=[stopping], evaluator=metrics, train_epochs=8, eval_every=1)
    stream = class_stream(2, n=48)
    for experience, test in zip(stream.train_stream, stream.test_stream, strict=True):
        strategy.train(experience, eval_streams=[[test]], shuffle=False)
    return strategy.clock.train_iterations, copy.deepcopy(strategy.model.state_dict())


@pytest.mark.filterwarnings("ignore:Metric Top1_Acc_Stream used by the EarlyStopping", "ignore:task label 1 was never")
def test_early_stopping_ends_where_it_ends_in_one_process():
    steps, _ = early_stopping(0, 1)
    (first, a), (second, b) = group_of(2).run(early_stopping, 2)
    assert first == second == steps < 2 * 8 * 3
    assert all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))


def inferred(rank, size):
    strategy = supsup(size, task_inference="entropy", density=0.5)
    return observe(strategy, class_stream(2, n=49), shuffle=False)["metrics"]


def test_metrics_of_inferred_tasks_are_of_all_data():
    alone = inferred(0, 1)
    for found in group_of(2).run(inferred, 2):
        assert any(name.startswith("TaskIdAccuracy") for name in found[-1])
        for mine, whole in zip(found, alone, strict=True):
            assert mine == pytest.approx(whole, abs=1e-4)


def batch_norm(rank, size):
    """Return the statistics of two batches, of three and of two samples, before and after averaging."""
    from avalanche_supermask.distributed import average_statistics

    norm = nn.BatchNorm1d(2)
    norm(torch.arange(6.0).reshape(3, 2) + 10 * rank)
    norm(torch.arange(4.0).reshape(2, 2) * (rank + 1))
    mine = norm.running_mean.clone()
    average_statistics(norm.buffers())
    return mine, norm.running_mean, norm.running_var, norm.num_batches_tracked


def test_statistics_are_the_mean_of_all():
    found = group_of(3).run(batch_norm, 3)
    expected = torch.stack([mine for mine, *_ in found]).mean(dim=0)
    for _, mean, var, count in found:
        assert torch.allclose(mean, expected)
        assert torch.equal(mean, found[0][1])
        assert torch.equal(var, found[0][2])
        assert count == 2

"""Executions agree up to rounding; each is bit-identical over time and bounded in memory."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from avalanche_supermask import ExSSNeT, ImpressLearn, MaskedModel, SupSup, load, save, supermask_metrics
from avalanche_supermask.model import execution, sparse_kernels
from avalanche_supermask.model.execution import batch_class
from avalanche_supermask.model.sparse_weight import SparseWeight
from tests.building import learn_nothing
from tests.streams import NETWORKS, TiedEmbedding, class_stream, inputs, mlp, outputs


def learned(net=None, keys=range(3), **options):
    model = MaskedModel(mlp() if net is None else net, seed=0, **options)
    for key in keys:
        learn_nothing(model, key)
    return model.eval()


@pytest.fixture
def sparse_wins(monkeypatch):
    """Make every measurement find sparse layers twice as fast; return a list with one entry per measurement."""
    measured = []

    def timed(ours, dense):
        ours()
        dense()
        measured.append(1)
        return 1.0, 2.0

    monkeypatch.setattr(execution, "timed", timed)
    return measured


@pytest.fixture
def dense_wins(monkeypatch):
    monkeypatch.setattr(execution, "timed", lambda ours, dense: (2.0, 1.0))


def held(model):
    """Return the number of sparse weights in the cache, by task."""
    return {
        key[0]: sum(isinstance(t, SparseWeight) for t in kept.tensors.values())
        for key, kept in model._recent._kept.items()
    }


@pytest.mark.parametrize("network", [*NETWORKS, "tied"])
@pytest.mark.parametrize("wanted", ["sparse", "auto"])
def test_other_executions_agree_with_the_dense_one_to_rounding(network, wanted, sparse_wins):
    model = learned(TiedEmbedding() if network == "tied" else NETWORKS[network]())
    x = inputs(40)
    dense = [outputs(model, x, key) for key in range(3)]
    model.execution = wanted
    for key in range(3):
        torch.testing.assert_close(outputs(model, x, key), dense[key])
        assert torch.equal(outputs(model, x, key), outputs(model, x, key))
    assert any(held(model).values()) == (network != "tied")
    model.execution = "dense"
    assert all(torch.equal(outputs(model, x, key), dense[key]) for key in range(3))


@pytest.mark.parametrize("wanted", ["dense", "sparse", "auto"])
@pytest.mark.parametrize("method", [SupSup, ExSSNeT, ImpressLearn])
def test_old_tasks_stay_bit_identical_within_an_execution(method, wanted, sparse_wins):
    options = {"n_basis": 2} if method is ImpressLearn else {}
    strategy = method(
        NETWORKS["lenet"](), density=0.2, train_epochs=2, train_mb_size=16, evaluator=None, seed=0, **options
    )
    strategy.model.execution = wanted
    recorded, x = {}, inputs(40)
    for experience in class_stream(3).train_stream:
        strategy.train(experience)
        recorded[experience.current_experience] = outputs(strategy.model, x, experience.current_experience)
        for key, before in recorded.items():
            assert torch.equal(outputs(strategy.model, x, key), before)


@pytest.mark.parametrize("wanted", ["sparse", "auto"])
def test_the_drift_that_the_metric_measures_is_zero(wanted, sparse_wins):
    from avalanche.training.plugins import EvaluationPlugin

    evaluator = EvaluationPlugin(*supermask_metrics(drift=True), loggers=[])
    strategy = SupSup(mlp(), density=0.2, train_epochs=1, train_mb_size=16, evaluator=evaluator, seed=0)
    strategy.model.execution = wanted
    stream = class_stream(3)
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(stream.test_stream[: experience.current_experience + 1])
    drifts = [
        value
        for name, (_, values) in evaluator.get_all_metrics().items()
        if name.startswith("OutputDrift")
        for value in values
    ]
    assert len(drifts) > 1
    assert set(drifts) == {0.0}


def test_auto_measures_once_and_never_changes_what_it_chose(sparse_wins, monkeypatch):
    model = learned(keys=[0])
    model.execution = "auto"
    x = inputs(40)
    before = outputs(model, x, 0)
    measured = len(sparse_wins)
    assert measured == 4  # three layers and then the network
    choices = copy.deepcopy(model.subnetworks.choices)
    monkeypatch.setattr(execution, "timed", lambda ours, dense: (2.0, 1.0))  # Now dense layers are faster.
    assert torch.equal(outputs(model, x, 0), before)
    model.to("cpu")  # clears the cache
    assert torch.equal(outputs(model, x, 0), before)
    assert torch.equal(outputs(copy.deepcopy(model), x, 0), before)
    assert torch.equal(outputs(pickle.loads(pickle.dumps(model)), x, 0), before)
    outputs(model, inputs(64), 0)  # a batch of the same class
    assert model.subnetworks.choices == choices
    assert held(model) == {0: 3}
    outputs(model, inputs(2), 0)  # a batch of another class, in which dense layers are faster
    assert len(model.subnetworks.choices[0]) == 2
    assert torch.equal(outputs(model, x, 0), before)


def test_auto_stays_dense_to_the_bit_where_that_is_faster(dense_wins):
    model = learned()
    x = inputs(40)
    dense = outputs(model, x, 1)
    model.execution = "auto"
    assert torch.equal(outputs(model, x, 1), dense)
    assert sum(held(model).values()) == 0


def test_layers_that_gain_nothing_stay_dense(monkeypatch):
    model = learned(keys=[0])
    model.execution = "auto"
    answers = iter([(1.0, 2.0), (1.0, 1.05), (1.0, 2.0), (1.0, 2.0)])
    monkeypatch.setattr(execution, "timed", lambda ours, dense: next(answers))
    outputs(model, inputs(40), 0)
    (choice,) = model.subnetworks.choices[0].values()
    assert choice == [sparse_kernels.kernels(), "1.weight", "5.weight"]


def test_a_network_that_gains_nothing_stays_dense(monkeypatch):
    model = learned(keys=[0])
    model.execution = "auto"
    answers = iter([(1.0, 2.0)] * 3 + [(1.0, 1.0)])
    monkeypatch.setattr(execution, "timed", lambda ours, dense: next(answers))
    outputs(model, inputs(40), 0)
    assert list(model.subnetworks.choices[0].values()) == [[sparse_kernels.kernels()]]


def test_measuring_draws_no_random_numbers_and_moves_no_buffer(sparse_wins):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(36, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.fc(nn.functional.dropout(x.flatten(1), 0.5, training=True))

    model = learned(Noisy(), keys=[0])
    model.execution = "auto"
    torch.manual_seed(5)
    outputs(model, inputs(), 0)
    first = torch.rand(3)
    torch.manual_seed(5)
    outputs(model, inputs(), 0)
    assert torch.equal(torch.rand(3), first)
    assert model.fresh["calls"] == 0


def test_choices_go_with_the_task(sparse_wins, tmp_path, monkeypatch):
    model = learned()
    model.execution = "auto"
    x = inputs(40)
    before = [outputs(model, x, key) for key in range(3)]
    save(model, tmp_path / "model")
    monkeypatch.setattr(execution, "timed", lambda ours, dense: (2.0, 1.0))
    loaded = load(tmp_path / "model", mlp())
    assert loaded.execution == "auto"
    other = MaskedModel(mlp(), seed=3)
    other.load_state_dict(model.state_dict())
    other.execution = "auto"
    for found in (loaded, other):
        assert found.subnetworks.choices == model.subnetworks.choices
        assert all(torch.equal(outputs(found, x, key), before[key]) for key in range(3))
    model.forget(1)
    assert set(model.subnetworks.choices) == {0, 2}


def test_a_state_without_choices_loads():
    model = learned()
    state = model.state_dict()
    del state["subnetworks._extra_state"]["choices"]
    other = MaskedModel(mlp(), seed=3)
    other.load_state_dict(state)
    assert torch.equal(outputs(other, inputs(), 0), outputs(model, inputs(), 0))


def test_choices_of_other_kernels_hold_with_a_warning(sparse_wins, monkeypatch):
    model = learned()
    model.execution = "auto"
    outputs(model, inputs(40), 0)
    choices = copy.deepcopy(model.subnetworks.choices)
    model.to("cpu")
    monkeypatch.setattr(execution, "kernels", lambda: "mkl")
    with pytest.warns(UserWarning, match=r"chosen with numba.mkl kernels, here are mkl: .* not to the bit"):
        outputs(model, inputs(40), 0)
    outputs(model, inputs(40), 0)
    assert model.subnetworks.choices == choices


def test_only_tasks_that_answer_are_held_and_within_the_bound():
    model = learned(keys=range(6))
    model.execution = "sparse"
    x = inputs(40)
    for key in range(6):
        outputs(model, x, key)
    assert held(model) == dict.fromkeys(range(6), 3)
    one = next(iter(model._recent._kept.values())).nbytes
    model.execution = "sparse"
    model._recent.max_bytes = 2 * one + 100
    for key in (0, 1, 2, 3, 4, 5, 2):
        outputs(model, x, key)
    assert held(model) == {5: 3, 2: 3}
    kept = sum(int(w.count_nonzero()) for w in model.effective_weights(2).values())
    sparse = [t for t in next(reversed(model._recent._kept.values())).tensors.values() if isinstance(t, SparseWeight)]
    assert sum(t.nbytes for t in sparse) <= 8 * kept + 4 * sum(len(t) + 1 for t in sparse)


def test_threads_that_ask_at_once_agree(sparse_wins):
    model = learned()
    model.execution = "auto"
    xs = [inputs(40, seed=seed) for seed in range(4)]
    found = {}

    def ask(i):
        with torch.no_grad():
            found[i] = [model(xs[i], i % 3) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for i, outs in found.items():
        assert all(torch.equal(out, outputs(model, xs[i], i % 3)) for out in outs)


def test_mixed_batches_and_inference_use_it():
    model = learned()
    x, labels = inputs(60), torch.arange(60) % 3
    with torch.no_grad():
        dense = model(x, labels)
        model.task_inference = "entropy"
        inferred = model(x)
        model.execution = "sparse"
        torch.testing.assert_close(model(x), inferred)
        model.task_inference = "given"
        torch.testing.assert_close(model(x, labels), dense)
    assert held(model) == {0: 3, 1: 3, 2: 3}


def test_training_mode_and_the_task_being_learned_are_dense():
    model = learned()
    model.execution = "sparse"
    model.train()
    model(inputs(), 0)
    model.begin(7, 7)
    model.subnetworks.set_scores(model.fresh_scores(7))
    assert sum(held(model).values()) == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_by_the_input_after_any_mode(mode, sparse_wins):
    model = learned()
    model.execution = "auto"
    x = inputs(40)
    with mode():
        model(x, 0)
    x.requires_grad_()
    model(x, 0).square().sum().backward()
    found, x.grad = x.grad, None
    model.execution = "dense"
    model(x, 0).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_an_export_is_plain_smaller_and_alike():
    model = learned(nn.Sequential(nn.Flatten(), nn.Linear(36, 200), nn.ReLU(), nn.Linear(200, 2)))
    x = inputs(40)
    net = model.export(1, sparse=True)
    model.execution = "sparse"
    with torch.no_grad():
        assert torch.equal(net(x), outputs(model, x, 1))
        assert torch.equal(copy.deepcopy(net)(x), net(x))
        torch.testing.assert_close(net(x), model.export(1)(x))
    assert sum(p.nbytes for p in net.parameters()) < 0.8 * sum(p.nbytes for p in model.export(1).parameters())


def test_settings_and_devices_that_do_not_work_say_so():
    model = learned()
    with pytest.raises(ValueError, match="execution must be 'dense', 'sparse' or 'auto'; got 'fast'"):
        model.execution = "fast"
    model.bfloat16()
    model.execution = "sparse"
    with pytest.raises(NotImplementedError, match=r"no sparse kernel for torch.bfloat16 on cpu.*execution = 'auto'"):
        outputs(model, inputs().bfloat16(), 0)
    with pytest.raises(NotImplementedError, match=r"no sparse kernel for torch.bfloat16 on cpu.*'auto'"):
        model.export(0, sparse=True)
    model.execution = "auto"
    out = outputs(model, inputs().bfloat16(), 0)
    model.execution = "dense"
    assert torch.equal(out, outputs(model, inputs().bfloat16(), 0))


def test_autocast(sparse_wins):
    model = learned()
    x = inputs(40)
    with torch.autocast("cpu", torch.bfloat16):
        dense = outputs(model, x, 0)
        model.execution = "sparse"
        with pytest.raises(NotImplementedError, match=r"autocast.*'auto'"):
            outputs(model, x, 0)
        model.execution = "auto"
        assert torch.equal(outputs(model, x, 0), dense)
        assert model.subnetworks.choices == {0: {}}
    outputs(model, x, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(outputs(model, x, 0), dense)


def test_classes_of_batches():
    threads = torch.get_num_threads()
    one = batch_class((({"ids": torch.zeros(30, 57, dtype=torch.long)},), {"mask": torch.zeros(30, 57), "n": 3}))
    assert one == f"32x64 int64, 32x64 float32, {threads} threads"
    assert batch_class(((torch.zeros(0, 3),), {})) == f"0x4 float32, {threads} threads"


def test_measured_times_alternate_and_are_medians():
    calls = []
    ours, dense = execution.timed(lambda: calls.append("s"), lambda: calls.append("d"))
    assert calls == ["s", "d"] * (len(calls) // 2)
    assert 5 < len(calls) // 2 <= 32
    assert 0 < ours < 1
    assert 0 < dense < 1

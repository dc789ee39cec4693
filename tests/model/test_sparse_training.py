"""The weight phase in sparse form: equal gradients, the usual guarantee, and dense where no loop serves it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from avalanche_supermask import CachedTensors, ExSSNeT, MaskedModel
from avalanche_supermask.functional import entries_weight
from avalanche_supermask.model import sparse_training
from avalanche_supermask.model.sparse_places import linear_places
from avalanche_supermask.model.sparse_training import TrainedCSR, worth_training
from avalanche_supermask.model.sparse_weight import SparseWeight
from tests.building import NETWORKS, build
from tests.streams import class_stream, inputs, outputs, train_all

pytest.importorskip("numba")


@pytest.fixture
def always(monkeypatch):
    """Train every linear layer in sparse form, whatever its size and its density."""
    monkeypatch.setattr(sparse_training, "SMALLEST", 1)
    monkeypatch.setattr(sparse_training, "DENSEST", 1.0)


def layer(*, rows=24, columns=40, seed=0, dtype=torch.float32, spare=3):
    """Return a mask, the places of its trained entries, their values, and the weight around them."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < 0.3
    mask[5] = False  # an output without any kept weight
    trained = mask & (torch.rand(rows, columns, generator=generator) < 0.6)
    around = torch.randn(rows, columns, generator=generator, dtype=dtype) * mask
    around[mask.nonzero()[0][0], mask.nonzero()[0][1]] = 0.0  # a kept weight may be zero
    places = trained.reshape(-1).nonzero().squeeze(1)
    values = torch.randn(len(places) + spare, generator=generator, dtype=dtype).requires_grad_()
    return mask, places, values, around


@pytest.mark.parametrize("batch", [1, 3, 31, 32, 130])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_those_of_the_dense_layer(batch, bias, dtype):
    mask, places, values, around = layer(dtype=dtype)
    x, shift = torch.randn(batch, 40, dtype=dtype), torch.randn(24, dtype=dtype)
    weight = SparseWeight(TrainedCSR(around, mask, places, values))

    def gradients(w):
        tensors = [x.clone().requires_grad_(), shift.clone().requires_grad_()]
        out = F.linear(tensors[0], w, tensors[1] if bias else None)
        wanted = [tensors[0], values, *tensors[1 : 1 + bias]]
        return [out, *torch.autograd.grad(out.square().sum(), wanted)]

    for found, expected in zip(gradients(weight), gradients(entries_weight(values, places, around)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(gradients(weight)[2], torch.zeros_like(values))


def test_sequences_keep_their_shape():
    mask, places, values, around = layer()
    x = torch.randn(4, 9, 40, requires_grad=True)
    out = F.linear(x, SparseWeight(TrainedCSR(around, mask, places, values)))
    dense = F.linear(x, entries_weight(values, places, around))
    torch.testing.assert_close(out, dense)
    (found,) = torch.autograd.grad(out.sum(), x)
    (expected,) = torch.autograd.grad(dense.sum(), x)
    torch.testing.assert_close(found, expected)


def test_values_that_change_before_the_backward_pass_are_an_error():
    mask, places, values, around = layer()
    out = F.linear(torch.randn(3, 40), SparseWeight(TrainedCSR(around, mask, places, values)))
    with torch.no_grad():
        values.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_other_functions_and_autocast_train_the_dense_weight():
    mask, places, values, around = layer()
    weight = SparseWeight(TrainedCSR(around, mask, places, values), strict=False)
    x = torch.randn(4, 40)
    (found,) = torch.autograd.grad((x @ weight.t()).sum(), values)
    (expected,) = torch.autograd.grad((x @ entries_weight(values, places, around).t()).sum(), values)
    torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", torch.bfloat16):
        out = F.linear(x, weight)
    assert out.dtype == torch.bfloat16
    assert torch.autograd.grad(out.float().sum(), values)[0].abs().sum() > 0


@pytest.mark.parametrize("batch", [40, 300])
def test_threads_do_not_change_the_bits(batch, monkeypatch):
    monkeypatch.setattr("avalanche_supermask.model.sparse_loops.SMALL", 1)
    mask, places, values, around = layer(rows=64)
    x = torch.randn(batch, 40)

    def found(threads):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        out = F.linear(leaf, SparseWeight(TrainedCSR(around, mask, places, values)))
        return out, *torch.autograd.grad(out.square().sum(), [leaf, values])

    before = torch.get_num_threads()
    try:
        for one, two in zip(found(1), found(2), strict=True):
            assert torch.equal(one, two)
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------- ExSSNeT


def strategy(net, execution, *, density=0.2, epochs=4, **options):
    settings = {"layer_densities": "uniform", "weight_epochs": 2, "train_mb_size": 16, "mask_lr": 0.05, "seed": 0}
    made = ExSSNeT(net, density=density, train_epochs=epochs, evaluator=None, **{**settings, **options})
    made.model.execution = execution
    return made


class Sparse:
    """Counts calls of sparse layers that train."""

    def __init__(self, monkeypatch):
        self.calls, self.shapes = 0, set()
        original = TrainedCSR.layer

        def counted(csr, x, bias):
            self.calls += 1
            self.shapes.add(tuple(csr.shape))
            return original(csr, x, bias)

        monkeypatch.setattr(TrainedCSR, "layer", counted)


def wide():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 2))


def test_the_first_task_is_that_of_the_dense_phase_up_to_rounding(always, monkeypatch):
    counted, found = Sparse(monkeypatch), {}
    for execution in ("dense", "auto"):
        learned = strategy(wide(), execution, weight_lr=0.01)
        learned.train(class_stream(1, n=64).train_stream[0])
        assert learned.method.settings_used["weight_phase_kept"]
        assert (counted.calls > 0) == (execution == "auto")
        learned.model.execution = "dense"
        found[execution] = learned.model
    assert counted.shapes == {(64, 36), (48, 64), (2, 48)}
    dense, sparse = found["dense"], found["auto"]
    assert all(torch.equal(m, sparse.task_mask(0)[name]) for name, m in dense.task_mask(0).items())
    torch.testing.assert_close(outputs(sparse, inputs(), 0), outputs(dense, inputs(), 0), rtol=1e-3, atol=1e-3)
    start = MaskedModel(wide(), seed=0, init="scaled_constant")
    assert any(not torch.equal(w, start.subnetworks.frozen[name]) for name, w in sparse.subnetworks.frozen.items())


@pytest.mark.filterwarnings("ignore:2 parameters of Stranger are frozen")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("execution", ["auto", "sparse"])
def test_old_tasks_stay_bit_identical(always, network, execution, monkeypatch):
    counted = Sparse(monkeypatch)
    learned = strategy(NETWORKS[network](), execution, plugins=[CachedTensors()])
    recorded = {}

    def record(key):
        recorded[key] = outputs(learned.model, inputs(), key)

    train_all(learned, class_stream(3), record)
    for key, before in recorded.items():
        assert torch.equal(outputs(learned.model, inputs(), key), before)
    assert counted.calls > 0
    copied = copy.deepcopy(learned.model)
    assert torch.equal(outputs(copied, inputs(), 2), recorded[2])


def test_only_exclusive_weights_change(always):
    learned = strategy(wide(), "auto")
    first, second = class_stream(2).train_stream
    learned.train(first)
    before = {name: w.clone() for name, w in learned.model.subnetworks.frozen.items()}
    learned.train(second)
    owned, mine = learned.model.task_mask(0), learned.model.task_mask(1)
    changed = 0
    for name, w in learned.model.subnetworks.frozen.items():
        moved = w != before[name]
        assert not (moved & (owned[name] | ~mine[name])).any()
        changed += int(moved.sum())
    assert changed > 0


def test_the_optimizer_holds_a_state_for_the_kept_entries_only(always):
    learned = strategy(wide(), "auto", density=0.1)
    sizes = []
    phases = learned.method.enter_phase
    learned.method.enter_phase = lambda phase, model: (phases(phase, model), sizes.append(phase.name))[0]
    after = learned.method.end_task
    states = []
    learned.method.end_task = lambda s, m: (
        states.append(sum(v.numel() for state in s.optimizer.state.values() for v in state.values() if v.dim())),
        after(s, m),
    )[1]
    learned.train(class_stream(1).train_stream[0])
    weights = sum(w.numel() for w in learned.model.subnetworks.frozen.values())
    biases = 64 + 48 + 2
    assert states[0] <= 2 * (0.11 * weights + biases)


def test_a_weight_phase_that_diverges_is_undone(always):
    learned = strategy(wide(), "auto", weight_lr=1e18, epochs=8)
    with pytest.warns(UserWarning, match="lower weight_lr"):
        learned.train(class_stream(1).train_stream[0])
    assert learned.method.settings_used["weight_phase_kept"] is False
    start = MaskedModel(wide(), seed=0, init="scaled_constant")
    start.scale_constants(learned.method.densities(start))
    start.shrink_outputs(learned.method.settings_used["output_factor"])
    assert all(torch.equal(w, start.subnetworks.frozen[n]) for n, w in learned.model.subnetworks.frozen.items())


def test_a_model_is_copied_in_the_middle_of_the_phase(always):
    learned = strategy(wide(), "auto")

    class Copier(CachedTensors):
        def after_training_iteration(self, strategy, **kwargs):
            if strategy.model.subnetworks.phase == "entries":
                self.copied = copy.deepcopy(strategy.model)
                self.expected = outputs(strategy.model, inputs(), 0)

    copier = Copier()
    learned.plugins.insert(0, copier)
    learned.train(class_stream(1).train_stream[0])
    assert torch.equal(outputs(copier.copied, inputs(), 0), copier.expected)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_other_optimizers_learn_too(always, optimizer, monkeypatch):
    counted = Sparse(monkeypatch)
    learned = build("exssnet", wide(), optimizer=optimizer, density=0.2, train_epochs=4, weight_epochs=2)
    learned.model.execution = "auto"
    learned.train(class_stream(1).train_stream[0])
    assert counted.calls > 0


def test_what_is_not_served_trains_in_dense_form(always, monkeypatch):
    counted = Sparse(monkeypatch)
    stream = class_stream(1)
    strategy(wide(), "dense").train(stream.train_stream[0])
    strategy(wide(), "auto", density=None).train(stream.train_stream[0])
    build("ssnet", wide(), train_epochs=2).train(stream.train_stream[0])
    monkeypatch.setattr("avalanche_supermask.model.sparse_loops.installed", lambda: False)
    strategy(wide(), "auto").train(stream.train_stream[0])
    assert counted.calls == 0


def test_the_rule_depends_on_size_and_density_only():
    thin, thick = torch.zeros(400, 400, dtype=torch.bool), torch.zeros(400, 400, dtype=torch.bool)
    thin[:, :40], thick[:, :41] = True, True
    assert worth_training(thin)
    assert not worth_training(thick)
    assert not worth_training(thin[:80, :400])
    assert not worth_training(thin.reshape(400, 4, 10, 10))


def test_places_are_weights_of_linear_layers_only():
    net = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2), "conv": nn.Conv2d(1, 2, 3), "linear": nn.Linear(4, 4),
            "embedding": nn.Embedding(5, 4), "tied": nn.Linear(4, 5, bias=False),
        }
    )  # fmt: skip
    net["tied"].weight = net["embedding"].weight
    assert linear_places(net) == {"linear.weight", "attention.out_proj.weight"}


def test_a_step_of_plain_sgd_is_the_dense_one(always):
    """One step on the same batch gives the same values, entry by entry."""
    models = {}
    for execution in ("dense", "sparse"):
        model = MaskedModel(wide(), seed=0)
        model.execution = execution
        model.begin(0, 0)
        model.set_scores(model.fresh_scores(0))
        mask = {name: s.abs() > s.abs().median() for name, s in model.scores.items()}
        if execution == "dense":
            model.learn_weights(mask, mask=mask)
        else:
            model.subnetworks.allocate_values({name: int(m.sum()) for name, m in mask.items()})
            model.learn_entries(mask, mask=mask)
            assert model.trains_sparsely(mask)
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        loss = F.cross_entropy(model(inputs(40), torch.zeros(40, dtype=torch.long)), torch.arange(40) % 2)
        loss.backward()
        optimizer.step()
        model.commit()
        models[execution] = model
    for name, weight in models["dense"].subnetworks.frozen.items():
        torch.testing.assert_close(models["sparse"].subnetworks.frozen[name], weight, rtol=1e-5, atol=1e-6)

"""The guarantees on a GPU: bit-identical old tasks, steps without synchronisation, the same outputs after a move.

The tests are skipped if there is no GPU.
"""

import copy
import warnings

import pytest
import torch

from avalanche_supermask import CachedTensors, ExSSNeT, MaskedModel, SupSup, methods
from avalanche_supermask import load as load_compact
from avalanche_supermask import save as save_compact
from avalanche_supermask.functional import top_k_mask
from avalanche_supermask.replay import Replay
from avalanche_supermask.selection import selection
from tests.building import METHODS, NETWORKS, PAIRS, build
from tests.streams import class_stream, inputs, lenet, mlp, outputs, train_all

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:task .. no free unit is left"),
    pytest.mark.filterwarnings("ignore:2 parameters of Stranger are frozen"),
]
GPU = "cuda"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", None])
@pytest.mark.parametrize(("method", "network"), [p for p in PAIRS if not METHODS[p[0]].forgets])
def test_finished_tasks_stay_bit_identical(method, network, optimizer):
    strategy = build(method, NETWORKS[network](), optimizer=optimizer, device=GPU, plugins=[CachedTensors()])
    x, recorded = inputs().to(GPU), {}

    def after_task(index):
        recorded[index] = outputs(strategy.model, x, index)
        for key, before in recorded.items():
            assert torch.equal(outputs(strategy.model, x, key), before)

    train_all(strategy, class_stream(3), after_task)
    assert all(t.is_cuda for t in strategy.model.state_dict().values() if isinstance(t, torch.Tensor))


@pytest.mark.parametrize("method", METHODS)
def test_with_the_stock_loader_and_evaluation(method):
    strategy = train_all(build(method, mlp(), device=GPU), class_stream(2))
    strategy.eval(class_stream(2).test_stream)


@pytest.mark.parametrize("inference", ["oneshot", "binary", "entropy", "expected_entropy", "max_logit"])
@pytest.mark.parametrize("method", METHODS)
def test_task_inference(method, inference):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gated = {"head": "gated"} if method == "clnp" else {}
        strategy = train_all(build(method, lenet(), device=GPU, **gated), class_stream(3))
    model = strategy.model.eval()
    model.task_inference = inference
    with torch.no_grad():
        out = model(inputs().to(GPU))
    assert out.is_cuda
    assert set(model.inferred_task.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("method", methods())
def test_a_move_and_a_file_change_no_bit(method, tmp_path):
    strategy = train_all(build(method, NETWORKS["resnet"](), device=GPU), class_stream(3))
    model = strategy.model
    save_compact(model, tmp_path / "model.safetensors")
    loaded = load_compact(tmp_path / "model.safetensors", NETWORKS["resnet"](), device=GPU)
    moved = copy.deepcopy(model).cpu().to(GPU)
    x = inputs().to(GPU)
    for key in model.task_keys:
        assert torch.equal(outputs(moved, x, key), outputs(model, x, key))
        assert torch.equal(outputs(loaded, x, key), outputs(model, x, key))


@pytest.mark.parametrize("kkt", ["knn_best", "knn_always", "knn_all"])
def test_kkt(kkt):
    train_all(ExSSNeT(mlp(), kkt=kkt, train_epochs=2, device=GPU, evaluator=None, seed=0), class_stream(3))


def test_the_mask_is_the_same_as_on_a_cpu():
    scores = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).mul(8).round().div(8)  # many ties
    for keep in (1, 100, 1000, 1999, 2000):
        assert torch.equal(top_k_mask(scores.to(GPU), keep).cpu(), top_k_mask(scores, keep))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("phase", ["scores", "weights", "coefficients"])
def test_a_step_waits_for_nothing(phase):
    x, y = inputs().to(GPU), torch.zeros(16, dtype=torch.long, device=GPU)
    model = MaskedModel(NETWORKS["resnet"](), seed=0).to(GPU)
    model.subnetworks.set_scores(model.fresh_scores(0))
    select = selection(model.masked_shapes, density=0.3)
    model.begin(0, 0)
    if phase == "coefficients":
        model.subnetworks.add_to_basis({n: select.mask(n, s) for n, s in model.subnetworks.scores.items()})
        model.subnetworks.mixtures.allocate(model.masked_names, next(iter(model.subnetworks.frozen.values())), 1)
        model.learn_coefficients()
    else:
        model.learn_scores(select)
    if phase == "weights":
        model.learn_weights(model.subnetworks.current_mask())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x, 0), y).backward()
        optimizer.step()

    step()  # The first step creates tensors that are kept, and may synchronise.
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_half_precision_and_channels_last():
    strategy = SupSup(NETWORKS["resnet"](), density=0.3, device=GPU, evaluator=None, seed=0)
    strategy.train(class_stream(1).train_stream[0])
    model = strategy.model.to(memory_format=torch.channels_last).eval()
    x = inputs().to(GPU).to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(GPU, dtype=torch.bfloat16):
        half = model(x, 0)
    assert torch.allclose(half.float(), outputs(model, x, 0), atol=0.1)


@pytest.mark.parametrize("phase", ["scores", "weights", "coefficients"])
def test_a_captured_step_goes_on_as_an_ordinary_one(phase):
    def ready():
        torch.manual_seed(0)
        model = MaskedModel(mlp(), seed=0).to(GPU)
        select = selection(model.masked_shapes, density=0.3)
        model.subnetworks.set_scores(model.fresh_scores(0))
        for key in range(3):
            masks = {n: select.mask(n, s.to(GPU)) for n, s in model.fresh_scores(key).items()}
            model.subnetworks.add_to_basis(masks)
        weight = next(iter(model.subnetworks.frozen.values()))
        model.subnetworks.mixtures.allocate(model.masked_names, weight, 3)
        model.begin(1, 0)
        if phase == "coefficients":
            model.learn_coefficients()
        else:
            model.learn_scores(select)
        if phase == "weights":
            model.learn_weights(model.current_mask())
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=0.1)
        x, y = inputs().to(GPU), torch.zeros(len(inputs()), dtype=torch.long, device=GPU)

        def step():
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(x, 0), y).backward()
            optimizer.step()

        return learning, step

    ordinary, step = ready()
    captured, recorded = ready()
    for _ in range(3):
        step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            recorded()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded()
    for _ in range(5):
        step()
        graph.replay()
    for a, b in zip(ordinary, captured, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inference", ["oneshot", "entropy_descent"])
def test_recurrent_layers_can_be_differentiated_in_evaluation_mode(inference):
    method = "impresslearn" if inference == "entropy_descent" else "supsup"
    model = train_all(build(method, NETWORKS["lstm"](), device=GPU), class_stream(3)).model.eval()
    model.task_inference = inference
    with torch.no_grad():
        assert model(inputs().to(GPU)).isfinite().all()


class TestReplay:
    def test_a_recording_gives_what_the_function_gives(self):
        total = torch.zeros(3, device=GPU)
        calls = []

        def add(tensor):
            calls.append(tensor)
            total.add_(tensor)

        replay, one, two = Replay(entries=3), torch.ones(3, device=GPU), torch.full((3,), 2.0, device=GPU)
        for _ in range(5):
            replay(add, one)
        assert total.tolist() == [5, 5, 5]
        assert len(calls) == 3  # Two calls, and the recording.
        one.fill_(10)
        replay(add, one)
        assert total.tolist() == [15, 15, 15]
        replay(add, two)  # other addresses
        replay(add, one)
        assert total.tolist() == [27, 27, 27]

    def test_arguments_that_move_again_and_again_are_recorded_a_few_times_at_most(self):
        total = torch.zeros(3, device=GPU)
        replay = Replay(entries=3)
        for value in range(1, 21):
            moved = torch.full((3,), float(value), device=GPU)
            for _ in range(3):
                replay(total.add_, moved)
        assert total.tolist() == [3 * sum(range(1, 21))] * 3
        assert replay.recordings_left == 0

    def test_a_function_that_reads_from_the_device_runs_as_usual(self):
        total = torch.zeros(3, device=GPU)
        replay = Replay(entries=3)

        def add(tensor):
            total.add_(float(tensor.sum()))

        for _ in range(4):
            replay(add, torch.ones(3, device=GPU).add_(0))
            torch.cuda.synchronize()
        one = torch.ones(3, device=GPU)
        for _ in range(4):
            replay(add, one)
        assert total.tolist() == [24, 24, 24]
        assert replay.recordings_left == 0


def test_recorded_and_usual_steps_learn_the_same(monkeypatch):
    def learned(entries):
        monkeypatch.setattr("avalanche_supermask.replay.MOST_ENTRIES", entries)
        torch.manual_seed(0)
        strategy = SupSup(mlp(), density=0.3, train_epochs=3, device=GPU, evaluator=None, seed=0)
        train_all(strategy, class_stream(2))
        return [strategy.model.subnetworks.task_mask(task) for task in (0, 1)]

    for usual, recorded in zip(learned(0), learned(2**23), strict=True):
        same = sum(int((usual[n] == recorded[n]).sum()) for n in usual)
        assert same > 0.99 * sum(m.numel() for m in usual.values())  # sums on a GPU may differ in their last bits

"""Computing all layers at once gives the bits of single layers: with lists, compiled loops and numpy."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet18

from avalanche_supermask import MaskedModel, selection
from avalanche_supermask.bits import weighted_sums
from avalanche_supermask.effective import all_layers, fused_passes, one_sort, step_memory
from avalanche_supermask.effective.all_layers import Chooser, partly_trained_weights, top_k_weights
from avalanche_supermask.effective.step_memory import StepMemory
from avalanche_supermask.functional import partly_trained_weight, top_k_mask, top_k_weight
from avalanche_supermask.model.mixtures import ALL_LAYERS
from benchmarks.lib.networks import SlimResNet18
from tests.building import learn_nothing
from tests.memory import is_freed_without_collection
from tests.streams import mlp

WAYS = ["lists", "compiled", "loops"]
SHAPES = {"a": (40, 30), "b": (7,), "c": (5, 3, 3, 3), "d": (64, 50)}


@pytest.fixture
def way(request, monkeypatch):
    """Select how layers are computed: on lists as on a GPU, with compiled loops, or with numpy."""
    monkeypatch.setattr(all_layers, "_by_lists", lambda tensors: request.param == "lists")
    if request.param == "compiled":
        pytest.importorskip("numba")
        monkeypatch.setattr(all_layers, "WORTH_COMPILING", 0)
    else:
        monkeypatch.setattr(all_layers, "compiled", lambda: None)
    return request.param


def drawn(kind, shape, generator):
    scores = torch.randn(shape, generator=generator)
    if kind == "ties":
        scores = scores.mul(4).round().div(4)  # Both +0.0 and -0.0 occur.
    if kind == "equal":
        scores = torch.full(shape, -0.5)
    return scores


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("kind", ["normal", "ties", "equal"])
@pytest.mark.parametrize("learns", ["scores", "both"])
def test_the_bits_of_one_layer_at_a_time(way, kind, learns):
    generator = torch.Generator().manual_seed(0)
    chooser = Chooser()
    for step in range(8):
        scale = 1.0 + 0.01 * step if step < 6 else 100.0  # The thresholds move slowly, and then jump.
        scores = {n: (scale * drawn(kind, s, generator)).requires_grad_() for n, s in SHAPES.items()}
        weights = {n: torch.randn(s, generator=generator).requires_grad_(learns == "both") for n, s in SHAPES.items()}
        keeps = {n: [1, max(1, s.numel() // 10), s.numel()][step % 3] for n, s in scores.items()}
        found = top_k_weights(scores, weights, keeps, chooser)
        want = {n: top_k_weight(scores[n], weights[n], keeps[n]) for n in SHAPES}
        grads = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
        learning = [*scores.values(), *(weights.values() if learns == "both" else ())]
        ours, theirs = (
            torch.autograd.grad([out[n] for n in SHAPES], learning, [grads[n] for n in SHAPES]) for out in (found, want)
        )
        for name in SHAPES:
            assert torch.equal(found[name], want[name])
            assert torch.equal(found[name].signbit(), want[name].signbit()), "also of the zeros"
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_a_layer_without_a_gradient_gets_none(way):
    scores = {n: torch.randn(s, requires_grad=True) for n, s in SHAPES.items()}
    weights = {n: torch.randn(s) for n, s in SHAPES.items()}
    found = top_k_weights(scores, weights, dict.fromkeys(SHAPES, 3), Chooser())
    found["a"].sum().backward()
    assert {n for n, s in scores.items() if s.grad is not None} == {"a"}
    live = {n: torch.randn(s, requires_grad=True) for n, s in SHAPES.items()}
    standing = {n: (torch.randn(s), torch.ones(s)) for n, s in SHAPES.items()}
    partly_trained_weights(live, standing, StepMemory())["d"].sum().backward()
    assert {n for n, s in live.items() if s.grad is not None} == {"d"}


@pytest.mark.parametrize("way", ["compiled", "loops"], indirect=True)
def test_scores_that_are_not_numbers_are_refused(way):
    scores = {"a": torch.full((40, 30), float("nan"), requires_grad=True)}
    with pytest.raises(ValueError, match=r"scores contain NaN.*lower mask_lr"):
        top_k_weights(scores, {"a": torch.ones(40, 30)}, {"a": 5}, Chooser())


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_a_count_that_no_layer_can_keep_is_refused(way):
    with pytest.raises(ValueError, match=r"a layer of 7 weights cannot keep 8; expected 1 to 7"):
        top_k_weights({"b": torch.randn(7)}, {"b": torch.ones(7)}, {"b": 8}, Chooser())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_sort_of_many_layers_is_exact_in_any_type(dtype, monkeypatch):
    monkeypatch.setattr(one_sort, "AT_ONCE", 1500)  # forces several sorts
    scores = [torch.randn(shape).to(dtype) for shape in (*SHAPES.values(), (30, 40), (3,))]
    keeps = [100, 7, 60, 1, 1199, 2]
    choose = one_sort.TopKAtOnce([s.shape for s in scores], keeps, torch.device("cpu"), dtype)
    assert len(choose._groups) > 1
    weights = [torch.randn(s.shape).to(dtype) for s in scores]
    for mask, s, keep in zip(choose(scores, weights), scores, keeps, strict=True):
        assert mask.dtype == dtype
        assert torch.equal(mask.bool(), top_k_mask(s, keep))
    for signed, s, w in zip(choose.signed, scores, weights, strict=True):
        assert torch.equal(signed, w * s.sign())


@pytest.mark.parametrize("way", ["lists", "compiled"], indirect=True)
def test_a_second_forward_pass_leaves_the_first_ones_gradients(way):
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.randn(s, generator=generator).requires_grad_() for n, s in SHAPES.items()}
    weights = {n: torch.randn(s, generator=generator).requires_grad_() for n, s in SHAPES.items()}
    keeps, chooser = dict.fromkeys(SHAPES, 4), Chooser()
    first = top_k_weights(scores, weights, keeps, chooser)
    before = {n: w.detach().clone() for n, w in first.items()}
    top_k_weights({n: -s.detach().flip(0) for n, s in scores.items()}, weights, keeps, chooser)
    assert all(torch.equal(first[n], before[n]) for n in SHAPES)
    sum(w.sum() for w in first.values()).backward()
    for name, weight in weights.items():
        assert torch.equal(weight.grad.bool(), top_k_mask(scores[name], 4))
        assert torch.equal(scores[name].grad, weight * scores[name].sign())


@pytest.mark.parametrize("way", ["lists", "compiled"], indirect=True)
def test_the_gradient_of_scores_can_be_differentiated(way):
    scores = {n: torch.randn(s, requires_grad=True) for n, s in SHAPES.items()}
    weights = {n: torch.randn(s, requires_grad=True) for n, s in SHAPES.items()}
    found = top_k_weights(scores, weights, dict.fromkeys(SHAPES, 4), Chooser())
    first = torch.autograd.grad(sum(w.sum() for w in found.values()), list(scores.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), list(weights.values()))
    assert all(torch.equal(g, s.sign()) for g, s in zip(second, scores.values(), strict=True))


@pytest.mark.parametrize("way", ["lists", "compiled"], indirect=True)
def test_a_first_call_in_inference_mode_serves_later_calls(way):
    scores, weights = ({n: torch.randn(s) for n, s in SHAPES.items()} for _ in range(2))
    chooser, keeps = Chooser(), dict.fromkeys(SHAPES, 4)
    with torch.inference_mode():
        want = top_k_weights(scores, weights, keeps, chooser)
    found = top_k_weights({n: s.requires_grad_() for n, s in scores.items()}, weights, keeps, chooser)
    assert all(torch.equal(found[n], want[n]) for n in SHAPES)
    found["a"].sum().backward()
    assert torch.equal(scores["a"].grad, weights["a"] * scores["a"].sign())


def test_the_memory_of_a_sort_is_freed_without_a_garbage_collection():
    def used():
        choose = one_sort.TopKAtOnce([(5,)], [2], torch.device("cpu"), torch.float32)
        choose([torch.randn(5)], [torch.ones(5)])
        return choose

    assert is_freed_without_collection(used)


def test_the_partly_trained_weights_of_one_layer_at_a_time():
    live = {n: torch.randn(s, requires_grad=True) for n, s in SHAPES.items()}
    standing = {n: (torch.randn(s), (torch.rand(s) < 0.5).float()) for n, s in SHAPES.items()}
    found = partly_trained_weights(live, standing, StepMemory())
    want = {n: partly_trained_weight(live[n], *standing[n]) for n in SHAPES}
    assert all(torch.equal(found[n], want[n]) for n in SHAPES)
    ours, theirs = (
        torch.autograd.grad(sum(w.square().sum() for w in out.values()), list(live.values())) for out in (found, want)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_copies_and_pickles_of_a_selection_choose_alike():
    select = selection({"a": (40, 30)}, density=0.1)
    scores, weights = {"a": torch.randn(40, 30)}, {"a": torch.ones(40, 30)}
    want = select.weights(scores, weights)["a"]
    for other in (copy.deepcopy(select), pickle.loads(pickle.dumps(select))):
        assert other == select
        assert torch.equal(other.weights(scores, weights)["a"], want)


def test_compiled_loops_are_absent_without_numba(monkeypatch):
    fused_passes.compiled.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "numba", None)
    assert fused_passes.compiled() is None
    fused_passes.compiled.cache_clear()


class Count(TorchDispatchMode):
    """Count the dispatched operators; on a GPU, each starts at least one kernel."""

    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


def operators(call, *args):
    call(*args)  # The first call creates tensors that are kept.
    with Count() as count:
        out = call(*args)
        if out.requires_grad:
            out.sum().backward()
    return len(count.operators)


NETWORKS = {
    "3 layers": (lambda: mlp(), torch.randn(4, 1, 6, 6)),
    "21 layers": (lambda: SlimResNet18(10), torch.randn(2, 3, 32, 32)),
}


@pytest.mark.parametrize("way", ["lists"], indirect=True)
@pytest.mark.parametrize("phase", ["scores", "weights"])
def test_a_step_adds_few_operators_whatever_the_number_of_layers(way, phase):
    extra = {}
    for name, (make, x) in NETWORKS.items():
        model, dense = MaskedModel(make(), seed=0), make()
        learned = {n for n in model.masked_names}
        for n, p in dense.named_parameters():
            p.requires_grad_(n in learned)
        model.begin(0, 0)
        model.subnetworks.set_scores(model.fresh_scores(0))
        model.learn_scores(selection(model.masked_shapes, density=0.3))
        if phase == "weights":
            model.learn_weights(model.subnetworks.current_mask())
        for p in (*model.parameters(), *dense.parameters()):
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        extra[name] = operators(model, x, torch.zeros(len(x), dtype=torch.long)) - operators(dense, x)
    assert extra["3 layers"] == extra["21 layers"]
    assert 0 < extra["3 layers"] <= (13 if phase == "scores" else 2)


def test_a_coefficient_step_takes_as_many_operators_for_any_number_of_layers(monkeypatch):
    monkeypatch.setattr(weighted_sums, "_by_lists", lambda tensors: True)
    extra = {}
    for name, (make, x) in NETWORKS.items():
        model, dense = MaskedModel(make(), seed=0), make()
        for n, p in dense.named_parameters():
            p.requires_grad_(n in model.masked_names)
        select = selection(model.masked_shapes, density=0.3)
        for key in range(3):
            masks = {n: select.mask(n, scores) for n, scores in model.fresh_scores(key).items()}
            model.subnetworks.add_to_basis(masks)
        like = next(iter(model.subnetworks.frozen.values()))
        model.subnetworks.mixtures.allocate([ALL_LAYERS], like, 3)
        model.begin(1, 0)
        model.learn_coefficients()
        for p in (*model.parameters(), *dense.parameters()):
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        extra[name] = operators(model, x, torch.zeros(len(x), dtype=torch.long)) - operators(dense, x)
    # The dense network accumulates one gradient per layer, and the mixture only those of its coefficients.
    layers = {"3 layers": 3, "21 layers": 21}
    assert extra["3 layers"] + layers["3 layers"] == extra["21 layers"] + layers["21 layers"] <= 40


@pytest.mark.parametrize("make", [lambda: mlp(36), lambda: resnet18(num_classes=2)])
@torch.no_grad()
def test_evaluation_of_a_finished_task_adds_no_operator(make):
    x = torch.randn(4, 1, 6, 6) if isinstance(make(), nn.Sequential) else torch.randn(2, 3, 32, 32)
    model = learn_nothing(MaskedModel(make(), seed=0), 0).eval()
    labels = torch.zeros(len(x), dtype=torch.long)
    assert operators(model, x, labels) == operators(make().eval(), x)
    assert operators(model, x, 0) == operators(make().eval(), x)


@pytest.mark.parametrize("known", [True, False])
def test_the_memory_of_effective_weights_is_reused_only_if_nothing_refers_to_it(monkeypatch, known):
    pytest.importorskip("numba")
    monkeypatch.setattr(step_memory, "LARGE", 0)
    monkeypatch.setattr(all_layers, "WORTH_COMPILING", 0)
    if not known:
        monkeypatch.delattr(torch._C, "_storage_Use_Count")
    chooser, weights = Chooser(), {"w": torch.randn(40, 50)}

    def step():
        scores = {"w": torch.randn(40, 50, requires_grad=True)}
        return top_k_weights(scores, weights, {"w": 100}, chooser)["w"]

    first = step()
    place = first.data_ptr()
    view, before = first.detach()[3:], first.detach()[3:].clone()
    del first
    second = step()
    assert second.data_ptr() != place  # The view still refers to the memory of the first step.
    assert torch.equal(view, before)
    kept = second.square().sum()  # The graph of a later backward pass refers to the memory of the second step.
    place = second.data_ptr()
    del second, view
    third = step()
    assert third.data_ptr() != place
    kept.backward()
    place = third.data_ptr()
    del third, kept
    fourth = step()
    assert (fourth.data_ptr() == place) == known
    with torch.inference_mode():
        step()
    (step() * 2).sum().backward()  # Memory of inference mode is not used in a step that needs gradients.


def test_the_memory_of_a_gradient_is_reused_only_after_the_gradient_is_gone(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setattr(step_memory, "LARGE", 0)
    monkeypatch.setattr(all_layers, "WORTH_COMPILING", 0)
    chooser, weights = Chooser(), {"w": torch.randn(40, 50)}
    scores = {"w": torch.randn(40, 50, requires_grad=True)}

    def step():
        top_k_weights(scores, weights, {"w": 100}, chooser)["w"].square().sum().backward()

    step()
    once, place = scores["w"].grad.clone(), scores["w"].grad.data_ptr()
    step()  # Gradients of two backward passes are added up.
    assert torch.equal(scores["w"].grad, 2 * once)
    assert scores["w"].grad.data_ptr() == place
    kept = scores["w"].grad
    scores["w"].grad = None
    step()
    assert torch.equal(kept, 2 * once)
    assert torch.equal(scores["w"].grad, once)
    del kept
    place, scores["w"].grad = scores["w"].grad.data_ptr(), None
    step()
    assert scores["w"].grad.data_ptr() == place


def test_partly_trained_weights_reuse_memory_and_keep_their_gradients(monkeypatch):
    monkeypatch.setattr(step_memory, "LARGE", 0)
    memory, live = StepMemory(), {"w": torch.randn(40, 50, requires_grad=True)}
    learns = (torch.rand(40, 50) < 0.5).float()
    standing = {"w": (torch.randn(40, 50) * (1 - learns), learns)}
    places = set()
    for factor in (1.0, 2.0, 3.0):
        weight = partly_trained_weights(live, standing, memory)["w"]
        assert torch.equal(weight, standing["w"][0] + learns * live["w"])
        (factor * weight).sum().backward()
        places.add((weight.data_ptr(), live["w"].grad.data_ptr()))
        assert torch.equal(live["w"].grad, factor * learns)
        live["w"].grad = weight = None
    assert len(places) == 1


def test_the_memory_of_steps_is_not_copied(monkeypatch):
    monkeypatch.setattr(step_memory, "LARGE", 0)
    chooser = Chooser()
    chooser.memory.like(torch.zeros(3), "effective weight", "w")
    assert len(pickle.dumps(chooser)) == len(pickle.dumps(Chooser()))
    assert copy.deepcopy(chooser).memory is not chooser.memory

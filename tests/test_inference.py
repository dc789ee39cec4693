import copy

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from sklearn.datasets import load_digits
from torch import nn

from avalanche_supermask import CLNP, ExSSNeT, MaskedModel, SupSup
from avalanche_supermask.bits import packed_masks as masks_module
from avalanche_supermask.inference import Binary, Entropy, ExpectedEntropy, MaxLogit, OneShot
from avalanche_supermask.model import superposition as superposition_module
from avalanche_supermask.model.superposition import Superposition
from avalanche_supermask.selection import Threshold, selection
from tests.building import learn_nothing
from tests.streams import NETWORKS, ResNet, class_stream, inputs, mlp, outputs, train_all

METHODS = [
    "oneshot", "binary", "entropy", "expected_entropy", "max_logit", OneShot(objective="G", classes=2),
    Binary(per="batch"), ExpectedEntropy(per="batch"),
]  # fmt: skip


def dense_gradient(model, x, coefficients, objective):
    """Compute the gradient by autograd through a dense stack of all masks, in double precision."""
    keys = model.task_keys
    a = coefficients.double().requires_grad_(True)
    frozen = model.subnetworks.frozen
    stack = {n: torch.stack([model.subnetworks.task_mask(k)[n].double() for k in keys]) for n in frozen}
    weights = {n: frozen[n].double() * torch.einsum("k,k...->...", a, m) for n, m in stack.items()}
    own = [model.subnetworks.task_private(k) for k in keys]
    mixed = {}
    for name in own[0]:
        values = torch.stack([task[name] for task in own])
        values = values.double() if values.is_floating_point() else values
        mixed[name] = torch.einsum("k,k...->...", a.detach(), values) if values.is_floating_point() else values[0]
    shared = {n: t.double() for n, t in model.shared.items()}
    net = copy.deepcopy(model.net).double().eval()
    objective(torch.func.functional_call(net, {**shared, **weights, **mixed}, (x.double(),))).backward()
    return a.grad


def learned(n_tasks, make=lambda: mlp(outputs=4), trained=False):
    model = MaskedModel(make(), seed=0)
    for key in range(n_tasks):
        if not trained:
            learn_nothing(model, key)
            continue
        model.begin(key, key)
        model.subnetworks.set_scores(model.fresh_scores(key))
        model.learn_scores(selection(model.masked_shapes, density=0.3))
        model.train()
        model(inputs(8, seed=key), key)  # changes the running statistics
        model.commit()
    return model.eval()


@pytest.mark.parametrize("coefficients", [[0.4, 0.0, 0.1, 0.2, 0.3], [0.2] * 5, [0.5, 0.0, 0.0, 0.5, 0.0]])
@pytest.mark.parametrize("chunk_bytes", [1, 64 * 2**20])
@pytest.mark.parametrize("make", [lambda: mlp(outputs=4), ResNet])
def test_the_gradient_from_packed_bits_equals_autograd_through_a_dense_stack(
    make, chunk_bytes, coefficients, monkeypatch
):
    monkeypatch.setattr(masks_module, "CHUNK_BYTES", chunk_bytes)
    model = learned(5, make, trained=True)
    x, a = inputs(6), torch.tensor(coefficients)
    objective = OneShot()._loss
    groups = [x, *inputs(40).split(1)]  # more groups than are processed at a time
    found = Superposition(model).gradients(groups, a, objective)
    assert found.shape == (41, 5)
    for row, group in zip(found, groups, strict=True):
        assert torch.allclose(row.double(), dense_gradient(model, group, a, objective), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("names", [(0,), (1,), (0, 2)])
def test_the_gradient_of_some_layers_is_their_share_of_it(names):
    model = learned(5, trained=True)
    masked = model.masked_names
    layers = [masked[i] for i in names]
    x, a = inputs(6), torch.tensor([0.4, 0.0, 0.1, 0.2, 0.3])
    found = Superposition(model).gradients([x], a, OneShot()._loss, layers=layers)
    shares = [Superposition(model).gradients([x], a, OneShot()._loss, layers=[name]) for name in masked]
    assert torch.allclose(found, sum(shares[i] for i in names), atol=1e-6)
    whole = Superposition(model).gradients([x], a, OneShot()._loss)
    assert torch.allclose(whole, sum(shares), atol=1e-6)
    assert not torch.allclose(whole, found, atol=1e-6)


def test_the_layers_asked_decide_who_answers():
    """Different layers select different tasks, and ``layers`` uses only the gradients of the named layers."""
    model = learned(5, trained=True)
    x = inputs(12)
    for find in (OneShot, Binary):
        per_layer = [find(layers=(name,))(Superposition(model), 5, x).tolist() for name in model.masked_names]
        assert per_layer[0] != per_layer[-1]
    equal = torch.full((5,), 0.2)
    first = model.masked_names[:1]
    oracle = Superposition(model).gradients(list(x.split(1)), equal, OneShot()._loss, layers=first).argmin(dim=1)
    assert torch.equal(OneShot(layers=first)(Superposition(model), 5, x), oracle)


@pytest.mark.parametrize("layers", [("nowhere.weight",), ()])
def test_layers_that_are_not_masked_are_refused(layers):
    with pytest.raises(ValueError, match=r"layers: expected names of masked weights, some of \['1.weight'"):
        OneShot(layers=layers)(Superposition(learned(2)), 2, inputs(3))
    for find in (OneShot, Binary):
        with pytest.raises(ValueError, match=r"layers: expected names of masked weights, some of \['1.weight'"):
            SupSup(mlp(), task_inference=find(layers=layers))
    with pytest.raises(ValueError, match=r"layers takes names, as in layers=\('1.weight',\)"):
        OneShot(layers="1.weight")


@pytest.mark.parametrize("find", [OneShot(per="batch"), Binary(per="batch")])
@pytest.mark.parametrize("make", [lambda: mlp(outputs=4), ResNet])
def test_what_is_kept_from_batch_to_batch_changes_no_answer(find, make):
    model = learned(5, make, trained=True)
    kept = Superposition(model)
    for seed in range(6):
        x = inputs(6, seed=seed)
        assert torch.equal(find(kept, 5, x), find(Superposition(model), 5, x))
    a, b = torch.full((5,), 0.2), torch.tensor([0.5, 0.0, 0.0, 0.5, 0.0])
    for coefficients in (b, a, b):
        anew = Superposition(model).gradients([x], coefficients, find._loss)
        assert torch.equal(kept.gradients([x], coefficients, find._loss), anew)


def _learn_another(model):
    learn_nothing(model, 7)
    model.eval()


def _load(model):
    other = learned(4)
    for weight in other.subnetworks.frozen.values():
        weight.neg_()
    model.load_state_dict(other.state_dict())


@pytest.mark.parametrize("change", [_learn_another, _load, lambda model: model.forget(1), lambda model: model.double()])
def test_what_is_kept_is_dropped_when_the_tasks_change(change):
    model = learned(4)
    model.task_inference = OneShot(per="batch")
    x = inputs(5)
    with torch.no_grad():
        model(x)
        kept = model._superposition
        model(x)
        assert model._superposition is kept  # Otherwise this test would show nothing.
        change(model)
        x = x.to(next(iter(model.subnetworks.frozen.values())).dtype)
        model(x)
    assert model._superposition is not kept
    anew = Superposition(model)
    equal = torch.full((len(anew.keys),), 1 / len(anew.keys))
    loss = OneShot()._loss
    assert torch.equal(model._superposition.gradients([x], equal, loss), anew.gradients([x], equal, loss))
    assert copy.deepcopy(model)._superposition is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_tasks", [1, 2, 3, 5])
def test_the_answer_is_a_learned_task_and_nothing_changes(method, n_tasks):
    model = learned(n_tasks)
    state = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    rng = torch.get_rng_state()
    model.task_inference = method
    with torch.no_grad():
        out = model(inputs(7), torch.full((7,), 99))
    keys = model.inferred_task
    assert keys.shape == (7,)
    assert set(keys.tolist()) <= set(model.task_keys)
    assert torch.equal(torch.get_rng_state(), rng)
    assert not model.training
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    model.task_inference = "given"
    for key in keys.unique().tolist():
        rows = keys == key
        assert torch.allclose(out[rows], outputs(model, inputs(7)[rows], key), atol=1e-6)


@pytest.mark.parametrize("method", ["entropy", "max_logit"])
def test_trying_each_task_against_an_oracle(method):
    model, x = learned(4), inputs(9)
    logits = torch.stack([outputs(model, x, key) for key in model.task_keys])
    p = logits.softmax(-1)
    cost = -(p * p.log()).sum(-1) if method == "entropy" else -logits.amax(-1)
    model.task_inference = method
    with torch.no_grad():
        model(x)
    assert torch.equal(model.inferred_task, cost.argmin(0))
    model.task_inference = {"entropy": Entropy, "max_logit": MaxLogit}[method](per="batch")
    with torch.no_grad():
        model(x)
    assert set(model.inferred_task.tolist()) == {int(cost.mean(1).argmin())}


class Sure:
    """A model of three tasks with given logits for two samples, and given expected entropies."""

    def __init__(self, expected):
        self.expected = torch.tensor(expected)

    def outputs(self, x):
        yield torch.tensor([[[1.0, 0], [1, 0]], [[2, 0], [0.5, 0]]])
        yield torch.tensor([[[0.0, 0], [0, 0]]])


def test_a_task_that_is_less_sure_than_of_its_own_data_is_doubted():
    # The entropies of the tasks are 0.582 and 0.582, 0.365 and 0.664, 0.693 and 0.693.
    def found(expected, **options):
        return ExpectedEntropy(**options)(Sure(expected), 3, torch.zeros(2, 1)).tolist()

    unknown = float("inf")
    assert found([unknown] * 3) == Entropy()(Sure([unknown] * 3), 3, torch.zeros(2, 1)).tolist() == [1, 0]
    assert found([0.6, 0.1, unknown]) == [0, 0], "0.365 + 2 * 0.265 > 0.582"
    assert found([0.1, 0.1, 0.7]) == [2, 2], "the least sure task is the only one that is no less sure than ever"
    assert found([0.1, 0.1, 0.7], surprise=0.0) == [1, 0]
    assert found([unknown] * 3, per="batch") == [1, 1]
    assert found([0.6, 0.1, unknown], per="batch") == [0, 0]


@pytest.mark.parametrize("method", [SupSup, ExSSNeT, CLNP])
def test_how_sure_a_task_is_of_its_own_data_is_stored_with_it(method):
    torch.manual_seed(0)
    strategy = method(mlp(), train_mb_size=16, train_epochs=2, evaluator=None)
    bare = strategy.model.bytes_per_task(private=False)
    assert bare == {}
    seen = []

    class Watch(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            p = strategy.mb_output.detach().softmax(1)
            seen.extend((-(p * p.log()).sum(1)).tolist())

    strategy.plugins.append(Watch())
    stream = class_stream(2)
    for experience in stream.train_stream:
        strategy.train(experience)
        assert 0 < len(seen) <= 8 * 16, "all mini-batches count here"
        expected = sum(seen) / len(seen)
        seen.clear()
        key = strategy.model.task_keys[-1]
        assert Superposition(strategy.model).expected[key] == pytest.approx(expected, rel=1e-4)
        assert strategy.model.bytes_per_task()[key] - strategy.model.bytes_per_task(private=False)[key] >= 4
    again = MaskedModel(mlp())
    again.load_state_dict(strategy.model.state_dict(), strict=method is not CLNP)
    assert torch.equal(Superposition(again).expected, Superposition(strategy.model).expected)


def test_a_state_from_before_expectations_were_stored_loads():
    model = learned(2)
    state = model.state_dict()
    old = state["subnetworks._extra_state"]
    old["tasks"] = [task[:3] for task in old["tasks"]]
    again = MaskedModel(mlp(outputs=4), seed=1)
    again.load_state_dict(state)
    assert again.task_keys == [0, 1]
    assert Superposition(again).expected.isinf().all()


def test_one_image_may_decide_for_the_batch():
    model, x = learned(4), inputs(9)
    model.task_inference = OneShot(per="batch", images=1)
    with torch.no_grad():
        model(x)
        whole = model.inferred_task
        model.task_inference = OneShot()
        model(x[:1])
    assert set(whole.tolist()) == set(model.inferred_task.tolist())


class Ties:
    """A model for which all tasks have the same gradient."""

    calls = 0

    def gradients(self, groups, coefficients, objective, *, layers=None):
        self.calls += 1
        return torch.zeros(len(groups), len(coefficients))


@pytest.mark.parametrize("n_tasks", [1, 2, 3, 5, 2500])
def test_binary_ends_even_with_ties(n_tasks):
    model = Ties()
    assert Binary(per="batch")(model, n_tasks, inputs(2)).tolist() == [0, 0]
    assert model.calls <= max(0, (n_tasks - 1).bit_length())


def test_superfluous_neurons_get_the_cross_entropys_gradient_without_a_label():
    logits = torch.randn(5, 10, requires_grad=True)
    g = torch.autograd.grad(OneShot(objective="G", classes=6)._loss(logits), logits)[0]
    ce = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3, 5])), logits)[0]
    assert torch.allclose(g[:, 6:], ce[:, 6:], atol=1e-7)
    assert (g[:, :6] == 0).all()


def test_g_without_superfluous_neurons_says_so():
    model = learned(2)
    model.task_inference = OneShot(objective="G", classes=4)
    with (
        pytest.raises(ValueError, match="'G' has no gradient: the network has 4 outputs for 4 classes"),
        torch.no_grad(),
    ):
        model(inputs(2))
    with pytest.raises(ValueError, match="needs classes"):
        OneShot(objective="G")


@pytest.mark.parametrize(
    ("inference", "said"),
    [
        (None, "got None: pass 'given'"),
        (3, "got 3: pass 'given'"),
        (Entropy, r"got the class Entropy: pass Entropy\(\)"),
    ],
)
def test_a_task_inference_that_cannot_be_called_is_refused_at_once(inference, said):
    model = MaskedModel(mlp(), seed=0)
    with pytest.raises(TypeError, match=f"a name or an object of an inference class; {said}"):
        model.task_inference = inference
    assert model.task_inference == "given"


def test_unknown_inference():
    with pytest.raises(
        ValueError, match="task_inference must be one of given, oneshot, binary, entropy, expected_entropy, max_logit"
    ):
        MaskedModel(mlp(), task_inference="guess")
    for inference in (Binary, Entropy, MaxLogit, ExpectedEntropy):
        with pytest.raises(ValueError, match="per must be"):
            inference(per="image")
    with pytest.raises(ValueError, match="expected surprise >= 0, the weight of the excess; got -1"):
        ExpectedEntropy(surprise=-1)


@pytest.mark.filterwarnings("ignore:task .. no free unit is left")
@pytest.mark.parametrize("inference", ["entropy", "max_logit", "oneshot"])
@pytest.mark.parametrize("method", [SupSup, ExSSNeT, CLNP])
def test_it_runs_inside_avalanches_evaluation_of_every_method(method, inference):
    strategy = method(
        mlp(), train_epochs=2, train_mb_size=16, eval_mb_size=16, evaluator=None, seed=0, task_inference=inference
    )
    stream = class_stream(3)
    train_all(strategy, stream)
    strategy.eval(stream.test_stream)
    assert set(strategy.model.inferred_task.tolist()) <= {0, 1, 2}


def test_heads_of_their_own_cannot_be_superposed():
    from benchmarks.lib.networks import MultiHead
    from benchmarks.lib.networks import mlp as plain_mlp

    strategy = SupSup(MultiHead(plain_mlp(36, (16,), 2)), train_epochs=1, evaluator=None, task_inference="oneshot")
    stream = class_stream(2)
    train_all(strategy, stream)
    with pytest.raises(ValueError, match="heads of their own, which cannot be superposed"):
        strategy.eval(stream.test_stream)
    strategy.model.task_inference = "entropy"
    strategy.eval(stream.test_stream)


# ---------------------------------------------------------------------- permuted digits


def permuted_digits(n_tasks, outputs):
    """Learn permuted digits with threshold masks and 300 RMSprop steps per task, like the paper on a small scale."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y)
    x = (x - x.mean()) / x.std()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    net = nn.Sequential(
        nn.Linear(64, 256, bias=False), nn.ReLU(), nn.Linear(256, 256, bias=False), nn.ReLU(),
        nn.Linear(256, outputs, bias=False),
    )  # fmt: skip
    model = MaskedModel(net, seed=0)
    permutations = [torch.randperm(64, generator=torch.Generator().manual_seed(100 + t)) for t in range(n_tasks)]
    model.subnetworks.set_scores(model.fresh_scores(0))
    torch.manual_seed(0)
    for task, permutation in enumerate(permutations):
        model.begin(task, task)
        model.subnetworks.set_scores(model.fresh_scores(task))
        model.learn_scores(Threshold())
        model.train()
        optimizer = torch.optim.RMSprop([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(300):
            rows = torch.randint(0, 1500, (128,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows][:, permutation], task), y[rows]).backward()
            optimizer.step()
        model.commit()
    return model.eval(), [x[1500:][:, p] for p in permutations]


def accuracy(model, tests, inference, queries=20):
    model.task_inference = inference
    right = 0
    with torch.no_grad():
        for task, x in enumerate(tests):
            model(x[:queries])
            right += int((model.inferred_task == task).sum())
    return right / (queries * len(tests))


@pytest.mark.parametrize(("outputs", "least"), [(25, 0.95), (100, 0.98)])
def test_one_image_finds_one_of_ten_tasks(outputs, least):
    model, tests = permuted_digits(10, outputs)
    assert accuracy(model, tests, OneShot(objective="G", classes=10)) >= least


def test_without_superfluous_neurons_entropy_is_lost():
    """Negative control: with ten outputs, one-shot H finds few tasks (0.28 was measured)."""
    model, tests = permuted_digits(10, 10)
    assert accuracy(model, tests, OneShot(objective="H")) < 0.6


@pytest.mark.parametrize("chunk_bytes", [None, 1, 64 * 2**20])
@pytest.mark.parametrize("network", NETWORKS)
def test_trying_each_task_in_chunks_equals_trying_one_by_one(network, chunk_bytes, monkeypatch):
    monkeypatch.setattr(superposition_module, "CHUNK_BYTES", chunk_bytes)
    if chunk_bytes:
        monkeypatch.setattr(Superposition, "_batches", True)  # on a GPU, tasks are computed in one call
    model = train_all(SupSup(NETWORKS[network](), density=0.3, evaluator=None, seed=0), class_stream(5)).model.eval()
    x = inputs(6)
    with torch.no_grad():
        found = torch.cat(list(Superposition(model).outputs(x)))
        expected = torch.stack([model.forward_task(key, x) for key in model.task_keys])
    assert torch.allclose(found, expected, atol=1e-5)
    if not chunk_bytes:
        assert torch.equal(found, expected)

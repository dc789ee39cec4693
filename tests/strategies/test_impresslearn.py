"""The eleven invariants of ImpressLearn, and its options."""

import copy

import pytest
import torch
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.templates import SupervisedTemplate
from torch.optim import Adam, AdamW

from avalanche_supermask import ImpressLearn, ImpressLearnPlugin, MaskedModel, SupSup
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.inference import Entropy, EntropyDescent, OneShot, entropy
from avalanche_supermask.metrics import AccuracyOverSteps
from avalanche_supermask.model.superposition import Superposition
from avalanche_supermask.selection import selection
from tests.streams import NETWORKS, class_stream, inputs, mlp, outputs, train_all

BASES = ["heterogeneous", "homogeneous", "random"]


def build(net=None, **arguments):
    settings = {"n_basis": 2, "density": 0.3, "train_epochs": 2, "train_mb_size": 16, "evaluator": None, "seed": 0}
    return ImpressLearn(mlp() if net is None else net, **{**settings, **arguments})


def learned(n_tasks=4, net=None, **arguments):
    return train_all(build(net, **arguments), class_stream(n_tasks)).model


def mixtures(model):
    return [key for key, task in model.subnetworks.tasks.items() if task.slot in model.subnetworks.mixtures]


# ---------------------------------------------------------------- 1, 2: what a new task is


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_1_a_new_task_changes_and_stores_its_coefficients_only(scope):
    strategy = build(alpha_scope=scope)
    stream = class_stream(4)
    strategy.train(stream.train_stream[:3])
    before = copy.deepcopy(strategy.model.state_dict())
    learning = []

    class Count(Adam):
        def step(self, *arguments, **keywords):
            learning.append(sum(p.numel() for p in strategy.model.parameters() if p.requires_grad))
            return super().step(*arguments, **keywords)

    strategy.optimizer = Count(strategy.model.parameters(), lr=0.02)
    strategy.train(stream.train_stream[3])
    count = 2 if scope == "global" else 2 * 3
    assert set(learning) == {count}
    after = strategy.model.state_dict()
    scratch = ("subnetworks.scores", "subnetworks.mixtures.coefficients", "host.net")
    changed = [k for k in before if isinstance(before[k], torch.Tensor) and not torch.equal(before[k], after[k])]
    assert all(k.startswith(scratch) for k in changed)
    new = [k for k in after if k not in before]
    assert sum(after[k].numel() for k in new) == count, new
    assert strategy.model.bytes_per_task(private=False)[3] == 4 * count
    assert strategy.model.bytes_per_task()[3] == 4 * count + 4, "and how sure the task is of its data"


def test_2_coefficients_start_at_one_over_n():
    model = learned(3, n_basis=3)
    model.begin(3, 3)
    model.learn_coefficients()
    mean = [sum(model.subnetworks.task_mask(t)[n].float() for t in range(3)) / 3 for n in model.masked_names]
    x = inputs()
    weights = model.subnetworks.current_weights({})
    for name, m in zip(model.masked_names, mean, strict=True):
        assert torch.allclose(weights[name], model.subnetworks.frozen[name] * m)
    assert model(x, 3).shape == (len(x), 2)


# ---------------------------------------------------------------- 3, 4, 7: one-hot, linear, n = 1


def test_3_one_hot_is_the_basis_mask_exactly():
    model = learned(3, n_basis=2)
    store, x = model.subnetworks, inputs()
    for i in range(2):
        expected = outputs(model, x, i)
        one_hot = {name: torch.eye(2)[i] for name in model.masked_names}
        weights = store.mixtures.weights(one_hot, store.frozen, store.masks)
        assert all(torch.equal(weights[n], model.effective_weights(i)[n]) for n in weights)
        with torch.no_grad():
            model.eval()
            assert torch.equal(Superposition(model).mixed(x, one_hot), expected)


def test_7_with_one_mask_it_is_that_mask_rescaled():
    model = learned(2, n_basis=1)
    for name, weight in model.effective_weights(1).items():
        ratio = weight[weight != 0] / model.effective_weights(0)[name][weight != 0]
        assert torch.allclose(ratio, ratio[0])


# ---------------------------------------------------------------- 5, 8: the basis


@pytest.mark.parametrize("basis", BASES)
def test_5_masks_have_the_asked_density_and_weights_never_change(basis):
    strategy = build(basis=basis, n_basis=3)
    before = copy.deepcopy(dict(strategy.model.subnetworks.frozen))
    model = train_all(strategy, class_stream(4)).model
    counts = selection(model.masked_shapes, density=0.3).counts
    slots = model.subnetworks.mixtures.basis
    assert len(slots) == 3
    masks = [model.subnetworks.masks.read(slot) for slot in slots]
    assert all({n: int(m.sum()) for n, m in mask.items()} == counts for mask in masks)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert any(not torch.equal(masks[i][n], masks[j][n]) for n in masks[i])
    assert all(torch.equal(before[n], w) for n, w in model.subnetworks.frozen.items())


def test_the_basis_decides_which_tasks_are_mixtures():
    assert mixtures(learned(4, basis="heterogeneous")) == [2, 3]
    assert mixtures(learned(4, basis="homogeneous")) == [1, 2, 3]
    assert mixtures(learned(4, basis="random")) == [0, 1, 2, 3]


def test_further_homogeneous_masks_take_the_epochs_that_are_given(monkeypatch):
    def epochs(given):
        seen = []
        module = "avalanche_supermask.strategies.impresslearn"
        monkeypatch.setattr(f"{module}.train_copy", lambda *arguments, epochs, **keywords: seen.append(epochs))
        learned(1, basis="homogeneous", n_basis=3, basis_epochs=given)
        return seen

    assert epochs(5) == [5, 5]
    assert epochs(None) == [2, 2], "as many as a task"


def test_homogeneous_masks_are_trained_on_the_first_task():
    """A random mask is near chance on the first task; each homogeneous mask alone is far above chance."""
    stream = class_stream(1, n=96)
    x, y, _ = load_tensors(stream.test_stream[0].dataset, torch.device("cpu"))

    def accuracies(basis):
        strategy = build(mlp(64), basis=basis, n_basis=3, train_epochs=20, mask_lr=0.02)
        model = train_all(strategy, stream).model.eval()
        eye = torch.eye(3)
        with torch.no_grad():
            answers = [Superposition(model).mixed(x, dict.fromkeys(model.masked_names, eye[i])) for i in range(3)]
        return [(a.argmax(1) == y).float().mean().item() for a in answers]

    assert min(accuracies("homogeneous")) > 0.9
    assert min(accuracies("random")) < 0.8


def test_8_a_random_basis_needs_no_training_and_follows_the_seed():
    def rows(seed, epochs):
        model = learned(1, basis="random", seed=seed, train_epochs=epochs)
        return [model.subnetworks.masks.read(slot) for slot in model.subnetworks.mixtures.basis]

    def same(a, b):
        return all(torch.equal(x[n], y[n]) for x, y in zip(a, b, strict=True) for n in x)

    assert same(rows(0, 1), rows(0, 3))
    assert not same(rows(0, 1), rows(1, 1))


# ---------------------------------------------------------------- 6: nothing is forgotten


@pytest.mark.parametrize("options", [{}, {"own_last_mask": True}, {"alpha_scope": "global"}, {"head": "linear"}])
@pytest.mark.parametrize("basis", BASES)
def test_6_old_tasks_are_bit_identical(basis, options):
    net = NETWORKS["resnet"]()
    strategy = build(
        net, basis=basis, optimizer=AdamW(net.parameters(), lr=0.05, weight_decay=0.1), penalty=0.005, **options
    )
    x, seen = inputs(), {}
    for experience in class_stream(5).train_stream:
        strategy.train(experience)
        seen[experience.current_experience] = outputs(strategy.model, x, experience.current_experience)
        for key, before in seen.items():
            assert torch.equal(outputs(strategy.model, x, key), before), key
    reloaded = build(NETWORKS["resnet"](), basis=basis, **options, seed=5).model
    reloaded.load_state_dict(strategy.model.state_dict())
    for key, before in seen.items():
        assert torch.equal(outputs(reloaded, x, key), before)
        with torch.no_grad():
            assert torch.equal(strategy.model.export(key)(x), before)


# ---------------------------------------------------------------- 9: accounting


def test_9_bytes_are_counted_with_and_without_statistics():
    model = learned(4, net=NETWORKS["resnet"]())
    bits = model.subnetworks.masks.row_bytes
    assert model.bytes_per_task(private=False) == {0: bits, 1: bits, 2: 2 * 3 * 4, 3: 2 * 3 * 4}
    statistics = sum(b.numel() * b.element_size() for _, b in model.net.named_buffers())
    assert model.bytes_per_task()[3] == 2 * 3 * 4 + statistics + 4, "4: how sure the task is of its data"
    assert model.basis_bytes == 0
    drawn = learned(2, basis="random", n_basis=5)
    assert drawn.basis_bytes == 5 * drawn.subnetworks.masks.row_bytes


def test_an_own_last_mask_costs_its_bits():
    model = learned(3, own_last_mask=True)
    last = model.masked_names[-1]
    assert model.bytes_per_task(private=False)[2] == 2 * 2 * 4 + -(-model.subnetworks.frozen[last].numel() // 8)
    kept = (model.effective_weights(2)[last] != 0).sum()
    assert kept == selection(model.masked_shapes, density=0.3).counts[last]


# ---------------------------------------------------------------- 10: unknown tasks


@pytest.mark.parametrize("how", ["entropy", "expected_entropy", "max_logit", "oneshot", "binary"])
def test_10_one_known_task_is_always_the_answer(how):
    model = learned(1, basis="random", task_inference=how).eval()
    model(inputs())
    assert model.inferred_task.unique().tolist() == [0]


def test_10_oneshot_over_combinations_equals_autograd_over_dense_weights():
    model = learned(5, n_basis=3).eval()
    store, x = model.subnetworks, inputs()
    a = torch.rand(5)
    found = Superposition(model).gradients([x], a, lambda logits: entropy(logits).mean())[0]
    a.requires_grad_()
    dense = [model.effective_weights(key) for key in range(5)]
    weights = {n: sum(a[k] * dense[k][n] for k in range(5)) for n in store.frozen}
    logits = torch.func.functional_call(model.net, {**model.shared, **weights}, (x,))
    (expected,) = torch.autograd.grad(entropy(logits).mean(), a)
    assert torch.allclose(found, expected, atol=1e-5)


def test_10_oneshot_over_the_basis_names_basis_tasks_only():
    model = learned(5, n_basis=2, task_inference=OneShot(first=2)).eval()
    model(inputs())
    assert set(model.inferred_task.tolist()) <= {0, 1}
    model.task_inference = OneShot()
    model(inputs())
    assert not set(model.inferred_task.tolist()) <= {0, 1}, "or this shows nothing"


def test_10_entropy_finds_tasks():
    strategy = build(mlp(64), n_basis=4, train_epochs=20, mask_lr=0.02, coefficient_lr=0.05)
    stream = class_stream(6, n=96)
    model = train_all(strategy, stream).model.eval()
    model.task_inference = Entropy(per="batch")
    found = []
    for experience in stream.test_stream:
        model(load_tensors(experience.dataset, torch.device("cpu"))[0])
        found.append(model.inferred_task[0].item())
    assert sum(f == k for k, f in enumerate(found)) >= 4, found


def test_10_entropy_descent_holds_the_norm_and_touches_nothing(monkeypatch):
    model = learned(4, task_inference=EntropyDescent(steps=5)).eval()
    x, seen = inputs(), []
    before = copy.deepcopy(model.state_dict())
    mixed = Superposition.mixed
    monkeypatch.setattr(
        Superposition, "mixed", lambda self, x, a: (seen.append({n: v.detach().clone() for n, v in a.items()}),
                                                    mixed(self, x, a))[1]
    )  # fmt: skip
    answer = model(x)
    assert answer.shape == (len(x), 2)
    assert model.inferred_task is None
    assert len(seen) == 6
    assert all(torch.allclose(v.abs().sum(), torch.tensor(1.0)) for a in seen for v in a.values())
    first, last = seen[0], seen[-1]
    assert any(not torch.allclose(first[n], last[n]) for n in first)
    state = model.state_dict()
    assert all(torch.equal(before[k], state[k]) for k in before if isinstance(before[k], torch.Tensor))
    with torch.no_grad():
        assert entropy(answer).mean() < entropy(mixed(Superposition(model), x, first)).mean()


def test_10_scaling_logits_lowers_entropy_so_the_norm_must_be_held():
    logits = torch.randn(8, 5)
    assert (entropy(3 * logits) < entropy(logits)).all()


def test_a_layer_with_a_mask_of_its_own_cannot_be_superposed():
    model = learned(3, own_last_mask=True, task_inference="oneshot").eval()
    with pytest.raises(ValueError, match=r"a mask of its own.*use task_inference='entropy'"):
        model(inputs())
    model.task_inference = "entropy"
    assert model(inputs()).shape[1] == 2


def test_entropy_descent_needs_a_basis():
    arguments = {"train_epochs": 1, "evaluator": None, "seed": 0}
    with pytest.raises(ValueError, match="fits a mixture of masks, and SupSup learns none"):
        SupSup(mlp(), task_inference="entropy_descent", **arguments)
    model = train_all(SupSup(mlp(), **arguments), class_stream(2)).model.eval()
    model.task_inference = "entropy_descent"
    with pytest.raises(ValueError, match="no basis of masks to mix"):
        model(inputs())


# ---------------------------------------------------------------- 11, and adaptation


def test_11_learned_coefficients_beat_the_uniform_mixture_and_foreign_masks():
    stream = class_stream(9, n=96)
    strategy = build(mlp(128), n_basis=8, train_epochs=20, mask_lr=0.02, coefficient_lr=0.05)
    model = train_all(strategy, stream).model.eval()
    x, y, _ = load_tensors(stream.test_stream[8].dataset, torch.device("cpu"))

    def accuracy(logits):
        return (logits.argmax(1) == y).float().mean().item()

    with torch.no_grad():
        mine = accuracy(model(x, 8))
        uniform = accuracy(Superposition(model).mixed(x, Superposition(model).mean_mixture()))
        foreign = sum(accuracy(model(x, key)) for key in range(8)) / 8
    assert mine > max(uniform, foreign) + 0.15, (mine, uniform, foreign)


def test_adapt_gives_the_curve_to_the_loggers():
    class Log(BaseLogger):
        def __init__(self):
            super().__init__()
            self.values = []

        def log_single_metric(self, name, value, x_plot):
            self.values.append((name, x_plot, value))

    stream = class_stream(3, n=96)
    evaluator = EvaluationPlugin(loggers=[log := Log()])
    strategy = build(evaluator=evaluator)
    with pytest.raises(ValueError, match="holds 0 of 2 masks"):
        strategy.adapt(stream.train_stream[0], test=stream.test_stream[0])
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    curve = strategy.adapt(stream.train_stream[2], test=stream.test_stream[2], every=5)
    steps = [step for step, _ in curve]
    assert steps == [0, 5, 6, 10, 12], "every 5 steps, and at the end of an epoch of 6"
    assert strategy.model.task_keys == [0, 1, 2]
    assert [(x, v) for n, x, v in log.values if n.startswith("AccuracyOverSteps/train_phase")] == curve
    assert len(evaluator.metrics) == 0
    x, y, _ = load_tensors(stream.test_stream[2].dataset, torch.device("cpu"))
    assert curve[-1][1] == int((outputs(strategy.model, x, 2).argmax(1) == y).sum()) / len(y)


def test_the_same_curve_for_another_strategy():
    stream = class_stream(1)
    curve = AccuracyOverSteps(stream.test_stream[0], every=100)
    SupSup(mlp(), train_epochs=2, train_mb_size=16, evaluator=EvaluationPlugin(curve, loggers=[])).train(
        stream.train_stream[0]
    )
    assert [step for step, _ in curve.result()] == [0, 3, 6]
    with pytest.raises(ValueError, match="every must be at least 1 step; got 0"):
        AccuracyOverSteps(stream.test_stream[0], every=0)


# ---------------------------------------------------------------- the rest


def test_the_penalty_pulls_the_norm_to_one():
    def distance(penalty):
        model = learned(4, penalty=penalty, coefficient_lr=0.1, train_epochs=20)
        norms = [a.abs().sum() for a in model.subnetworks.mixtures.of(model.subnetworks.tasks[3].slot).values()]
        return float(sum((norm - 1).abs() for norm in norms))

    assert distance(1.0) < 0.5 * distance(0.0)


def test_forgetting_a_basis_task_keeps_the_mixtures():
    model = learned(4)
    x = inputs()
    before = {key: outputs(model, x, key) for key in (1, 2, 3)}
    assert model.forget(0) == 0, "its mask serves the mixtures"
    assert model.task_keys == [1, 2, 3]
    assert model.basis_bytes == model.subnetworks.masks.row_bytes
    assert model.forget(3) == 0
    assert all(torch.equal(outputs(model, x, key), before[key]) for key in (1, 2))


def test_forgetting_before_there_are_mixtures_frees_the_place():
    strategy = build()
    stream = class_stream(3)
    strategy.train(stream.train_stream[0])
    assert strategy.model.forget(0) > 0
    for experience in stream.train_stream[1:]:
        strategy.train(experience)
    assert mixtures(strategy.model) == []
    assert len(strategy.model.subnetworks.mixtures.basis) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_basis": 0}, "n_basis must be a whole number of at least 1; got 0"),
        ({"basis": "mixed"}, "got 'mixed'"),
        ({"alpha_scope": "row"}, "got 'row'"),
        ({"head": "shared"}, "got 'shared'"),
        ({"density": 1.5}, r"in \(0, 1\]; got 1.5"),
        ({"own_last_mask": True, "alpha_scope": "global"}, "needs alpha_scope='layer'"),
        ({"penalty": -1.0}, "penalty must be a number of at least 0; got -1.0"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_it_is_a_plugin_of_any_template():
    model = MaskedModel(mlp(), seed=0)
    strategy = SupervisedTemplate(
        model=model,
        optimizer=Adam(model.parameters(), lr=0.01),
        plugins=[ImpressLearnPlugin(n_basis=2, density=0.3, coefficient_lr=0.05)],
        train_mb_size=16,
        evaluator=None,
    )
    train_all(strategy, class_stream(3))
    assert mixtures(model) == [2]
    assert strategy.optimizer.param_groups[0]["lr"] == 0.01


def test_a_mixture_starts_in_the_phase_of_its_coefficients():
    """A method may choose the phases when the task begins; a phase of scores before the first epoch would be undone."""

    class Phases(SupervisedPlugin):
        seen = ()

        def before_training_epoch(self, strategy, **kwargs):
            if strategy.clock.train_exp_epochs == 0:
                self.seen = (*self.seen, strategy.model.subnetworks.phase)

    phases = Phases()
    strategy = ImpressLearn(mlp(), n_basis=2, train_mb_size=16, plugins=[phases], evaluator=None)
    train_all(strategy, class_stream(3))
    assert phases.seen == ("scores", "scores", "coefficients")

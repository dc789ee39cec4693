import pytest
import torch
from torch.optim import SGD, AdamW

from avalanche_supermask import ExSSNeT, SSNeT, SupSup
from tests.streams import ResNet, class_stream, inputs, mlp, outputs, train_all

QUICK = {"train_mb_size": 16, "evaluator": None, "seed": 0, "density": 0.3, "train_epochs": 4, "mask_lr": 0.02,
         "weight_lr": 0.02}  # fmt: skip


def watch(strategy, stream):
    """Train on the stream; return the frozen weights before and after every task, and the masks."""
    weights = [{n: w.clone() for n, w in strategy.model.subnetworks.frozen.items()}]

    def after_task(_):
        weights.append({n: w.clone() for n, w in strategy.model.subnetworks.frozen.items()})

    train_all(strategy, stream, after_task)
    masks = [strategy.model.subnetworks.task_mask(key) for key in strategy.model.task_keys]
    return weights, masks


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_weights_change_only_where_this_tasks_mask_is_the_first(optimizer):
    net = mlp()
    made = optimizer(net.parameters(), lr=0.05, weight_decay=0.1)
    # With these constants the first mini-batch does not change the output layer.
    weights, masks = watch(
        ExSSNeT(net, optimizer=made, init="signed_constant", weight_epochs=1, **QUICK), class_stream(4)
    )
    for name in masks[0]:
        earlier = torch.zeros_like(masks[0][name])
        for t, mask in enumerate(masks):
            exclusive = mask[name] & ~earlier  # F_t
            changed = weights[t + 1][name] != weights[t][name]
            assert not (changed & ~exclusive).any()
            earlier |= mask[name]
        untouched = weights[-1][name] == weights[0][name]
        assert untouched[~earlier].all()
        assert (~untouched).any(), "something must have been trained"


def test_the_control_trains_what_earlier_tasks_use():
    weights, masks = watch(SSNeT(mlp(), **QUICK), class_stream(2))
    changed = {n: weights[2][n] != weights[1][n] for n in masks[0]}
    assert any((changed[n] & masks[0][n]).any() for n in masks[0])


def test_without_a_weight_phase_it_is_supsup():
    def masks(method, **arguments):
        torch.manual_seed(0)
        settings = {k: v for k, v in QUICK.items() if k != "weight_lr"}
        strategy = train_all(method(ResNet(), **settings, **arguments), class_stream(2))
        return [strategy.model.subnetworks.task_mask(key) for key in (0, 1)], strategy.model

    a, model_a = masks(SupSup)
    b, model_b = masks(ExSSNeT, weight_epochs=0)
    for x, y in zip(a, b, strict=True):
        assert all(torch.equal(x[n], y[n]) for n in x)
    assert torch.equal(outputs(model_a, inputs(), 1), outputs(model_b, inputs(), 1))


def test_each_phase_leaves_the_other_alone():
    from avalanche.training.plugins import SupervisedPlugin

    class Watch(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            store = strategy.model.subnetworks
            if store.phase == "scores":
                assert all(torch.equal(store.frozen[n], start[n]) for n in start)
            else:
                masks.append({n: m.clone() for n, m in store.current_mask().items()})
                scores.append({n: s.detach().clone() for n, s in store.scores.items()})

    masks, scores = [], []
    strategy = ExSSNeT(mlp(), plugins=[Watch()], init="signed_constant", weight_epochs=1, **QUICK)
    start = {n: w.clone() for n, w in strategy.model.subnetworks.frozen.items()}
    strategy.train(class_stream(1).train_stream[0])
    stored = strategy.model.subnetworks.task_mask(0)
    assert len(masks) == 3, "one epoch of the weight phase"
    for kept, score in zip(masks, scores, strict=True):
        assert all(torch.equal(kept[n], stored[n]) for n in stored)
        assert all(torch.equal(score[n], scores[0][n]) for n in score)


def test_no_weight_left_to_train():
    strategy = ExSSNeT(mlp(), **(QUICK | {"density": 1.0}))
    weights, _ = watch(strategy, class_stream(3))
    for name in weights[0]:
        assert torch.equal(weights[3][name], weights[1][name]), "the first task owns everything"
        assert weights[3][name].isfinite().all()
    assert all(layer.free == 0 for layer in strategy.model.capacity().values())


def test_random_masks_overlap_as_chance_says():
    """The share of a mask that is in no earlier mask is (1 - k)^(t - 1), within three standard deviations."""
    strategy = ExSSNeT(
        mlp(width=96), **(QUICK | {"density": 0.2, "train_epochs": 1, "mask_lr": 0.0}), layer_densities="uniform"
    )
    model = train_all(strategy, class_stream(4)).model
    kept = 0.2 * sum(w.numel() for w in model.subnetworks.frozen.values())
    for t, key in enumerate(model.task_keys):
        expected = 0.8**t
        sigma = (expected * (1 - expected) / kept) ** 0.5
        assert 1 - model.overlap()[key] == pytest.approx(expected, abs=3 * sigma + 1e-9)


# ---------------------------------------------------------------------- KKT


@pytest.mark.parametrize("keep_scores", [False, True])
@pytest.mark.parametrize("kkt", ["knn_best", "knn_always", "knn_all"])
def test_kkt_reads_old_tasks_and_changes_nothing_of_them(kkt, keep_scores):
    strategy = ExSSNeT(ResNet(), kkt=kkt, keep_scores=keep_scores, **QUICK)
    x, recorded, kept = inputs(), {}, {}
    plugin = strategy.plugins[0]

    def after_task(index):
        recorded[index] = outputs(strategy.model, x, index)
        for key, before in recorded.items():
            assert torch.equal(outputs(strategy.model, x, key), before)
        if keep_scores:
            kept[index] = {n: s.clone() for n, s in plugin._scores_of[index].items()}
            for key, scores in kept.items():
                assert all(torch.equal(plugin._scores_of[key][n], s) for n, s in scores.items())

    train_all(strategy, class_stream(4), after_task)
    assert list(plugin.knn_accuracies) == [1, 2, 3]
    assert list(plugin.knn_accuracies[3]) == [0, 1, 2]


def test_kkt_copies_the_mask_and_strength_softens_it():
    def first_overlap(strength, keep_scores):
        settings = QUICK | {"mask_lr": 0.0, "weight_lr": 0.0, "train_epochs": 2}
        strategy = ExSSNeT(mlp(), kkt="knn_always", kkt_strength=strength, keep_scores=keep_scores, **settings)
        return train_all(strategy, class_stream(2)).model.overlap()[1]

    assert first_overlap(1.0, False) == first_overlap(1.0, True) == 1.0
    assert first_overlap(0.0, False) < first_overlap(0.5, False) < 1.0


def test_kkt_finds_the_task_that_is_the_same():
    """Task 2 has the data of task 0 and another label; the inputs of task 1 are noise."""
    from avalanche.benchmarks import tensors_benchmark

    from avalanche_supermask.data.cached import load_tensors

    stream = class_stream(2, n=160)
    a, b = (load_tensors(e.dataset, torch.device("cpu"))[:2] for e in stream.train_stream)
    noise = (torch.randn_like(b[0]), b[1])
    stream = tensors_benchmark([a, noise, a], [a, noise, a], task_labels=[0, 1, 2])
    strategy = ExSSNeT(mlp(width=48), kkt="knn_best", kkt_neighbours=5, kkt_share=1.0, **QUICK)
    train_all(strategy, stream)
    assert strategy.plugins[0].sources[2] == [0]


@pytest.mark.parametrize(("share", "samples"), [(0.25, 12), (1.0, 48), (0.001, 1)])
def test_kkt_compares_on_a_share_of_the_training_data(share, samples, monkeypatch):
    compared = []

    def knn_accuracy(found, labels, *, k):
        compared.append((len(found), len(labels)))
        return 0.0

    monkeypatch.setattr("avalanche_supermask.strategies.kkt_plugin.knn_accuracy", knn_accuracy)
    train_all(ExSSNeT(mlp(), kkt="knn_best", kkt_share=share, **QUICK), class_stream(2))
    assert compared == [(samples, samples)]


def test_kkt_is_deterministic_and_leaves_the_random_state():
    def run():
        torch.manual_seed(3)
        strategy = train_all(ExSSNeT(mlp(), kkt="knn_best", **QUICK), class_stream(3))
        return strategy.plugins[0].knn_accuracies, torch.get_rng_state()

    (a, state_a), (b, state_b) = run(), run()
    assert a == b
    assert torch.equal(state_a, state_b)
    torch.manual_seed(3)
    train_all(ExSSNeT(mlp(), **QUICK), class_stream(3))
    assert torch.equal(torch.get_rng_state(), state_a)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"kkt": "best"}, "kkt must be 'knn_best', 'knn_always', 'knn_all' or None; got 'best'"),
        ({"kkt_strength": 1.5}, r"kkt_strength must be a fraction in \[0, 1\]; got 1.5"),
        ({"kkt_neighbours": 0}, "kkt_neighbours must be a whole number of at least 1; got 0"),
    ],
)
def test_unknown_kkt_options(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        ExSSNeT(mlp(), evaluator=None, **arguments)

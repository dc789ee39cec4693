"""Sparse fine-tuning: the chosen entries, the unchanged tensors, and the errors when no entries are free."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from avalanche_supermask import CLNP, ImpressLearn, MaskedModel, SparseFineTuning, SparseFineTuningPlugin, SupSup
from avalanche_supermask.data.cached import load_tensors
from avalanche_supermask.functional import top_k_free
from tests.building import build
from tests.streams import NETWORKS, ResNet, class_stream, inputs, mlp, outputs, train_all

SETTINGS = {"train_epochs": 2, "train_mb_size": 16, "eval_mb_size": 16, "evaluator": None, "seed": 0}


def tune(net=None, **arguments):
    return SparseFineTuning(mlp() if net is None else net, **{**SETTINGS, "density": 0.1, **arguments})


def base_of(strategy):
    return {name: w.clone() for name, w in strategy.model.subnetworks.base.items()}


@pytest.mark.parametrize("choose", ["gradient", "magnitude", "change", "random"])
@pytest.mark.parametrize("network", ["mlp", "resnet", "transformer"])
def test_a_task_changes_so_many_entries_that_no_other_task_owns(network, choose):
    strategy = train_all(tune(NETWORKS[network](), choose=choose), class_stream(4))
    model, base = strategy.model, base_of(strategy)
    for key in range(4):
        weights, mask = model.effective_weights(key), model.subnetworks.task_mask(key)
        for name, entries in mask.items():
            assert int(entries.sum()) == max(1, round(0.1 * entries.numel()))
            assert torch.equal(weights[name][~entries], base[name][~entries])
            assert (weights[name][entries] != base[name][entries]).float().mean() > 0.5  # some may have no gradient
            for earlier in range(key):
                assert not (entries & model.subnetworks.task_mask(earlier)[name]).any()


def test_the_base_answers_before_anything_is_learned_and_is_never_changed():
    net, x = ResNet().eval(), inputs()
    strategy = tune(net)
    before = net(x)
    assert torch.equal(strategy.model.eval().forward_task(None, x), before)
    train_all(strategy, class_stream(2))
    assert torch.equal(strategy.model.eval().forward_task(None, x), before)


def test_the_largest_gradients_are_chosen():
    net, stream = mlp(), class_stream(1)
    strategy = tune(net, choose_samples=10**6, head_epochs=0)
    strategy.train(stream.train_stream[0])
    x, y, _ = load_tensors(stream.train_stream[0].dataset, torch.device("cpu"))
    net.zero_grad()
    nn.functional.cross_entropy(net(x), y, reduction="sum").backward()
    for name, mask in strategy.model.subnetworks.task_mask(0).items():
        gradient = net.get_parameter(name).grad.abs()
        assert gradient[mask].min() >= gradient[~mask].max() * (1 - 1e-4)


def test_the_largest_weights_are_chosen():
    net = mlp()
    strategy = train_all(tune(net, choose="magnitude"), class_stream(1))
    for name, mask in strategy.model.subnetworks.task_mask(0).items():
        weight = net.get_parameter(name).detach().abs()
        assert weight[mask].min() >= weight[~mask].max()


def test_what_moves_the_most_is_chosen_and_starts_again():
    seen = {}

    class Watching(SparseFineTuningPlugin):
        def _moved(self, model):
            seen.update({n: m.abs() for n, m in super()._moved(model).items()})
            return super()._moved(model)

        def enter_phase(self, phase, model):
            super().enter_phase(phase, model)
            if phase.name == "entries":
                weights = model.subnetworks.current_weights({})
                seen["restarted"] = all(torch.equal(w, model.subnetworks.base[n]) for n, w in weights.items())

    strategy = tune(choose="change", train_epochs=4)
    watching = Watching(density=0.1, choose="change", schedule="cosine")
    strategy.plugins[strategy.plugins.index(strategy.method)] = watching
    strategy.train(class_stream(1).train_stream[0])
    assert seen.pop("restarted")
    assert any(moved.any() for moved in seen.values())
    for name, mask in strategy.model.subnetworks.task_mask(0).items():
        assert seen[name][mask].min() >= seen[name][~mask].max()


@pytest.mark.parametrize("choose", ["gradient", "random"])
def test_the_seed_decides_alone(choose):
    def masks(seed, torch_seed):
        torch.manual_seed(3)
        net = mlp()
        torch.manual_seed(torch_seed)
        model = train_all(tune(net, choose=choose, seed=seed, choose_samples=20), class_stream(2)).model
        return [torch.cat([m.flatten() for m in model.subnetworks.task_mask(key).values()]) for key in range(2)]

    for one, two in zip(masks(0, 1), masks(0, 1), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(masks(0, 1)[0], masks(0, 2)[0])  # Only later tasks may depend on the training.
    assert not torch.equal(masks(0, 1)[0], masks(7, 1)[0])


def test_what_earlier_tasks_changed_is_read_on_request():
    strategy = train_all(tune(reads="earlier"), class_stream(3))
    model = strategy.model
    last, owned = model.effective_weights(2), model.subnetworks.owned([0, 1])
    for key in range(2):
        for name, weight in model.effective_weights(key).items():
            mine = model.subnetworks.task_mask(key)[name]
            assert torch.equal(last[name][mine], weight[mine])
    fresh = {name: mask & ~owned[name] for name, mask in model.subnetworks.task_mask(2).items()}
    counts = strategy.method.counts(model)
    assert {name: int(mask.sum()) for name, mask in fresh.items()} == counts


def test_an_optimizer_holds_state_for_the_chosen_entries_alone():
    strategy = train_all(tune(density=0.02), class_stream(1))
    held = sum(s["exp_avg"].numel() for s in strategy.optimizer.state.values() if "exp_avg" in s)
    counts = sum(strategy.method.counts(strategy.model).values())
    assert held == counts + sum(p.numel() for n, p in strategy.model.net.named_parameters() if n.startswith("5."))


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_parameter_groups_of_the_caller_hold_the_values_of_their_weights(optimizer):
    net = mlp()
    groups = [
        {"params": [net[1].weight], "lr": 0.0, "weight_decay": 0.0},
        {"params": [*net[3:].parameters()], "lr": 0.1},
    ]
    strategy = tune(net, optimizer=optimizer(groups, lr=0.1))
    train_all(strategy, class_stream(1))
    weights, base = strategy.model.effective_weights(0), base_of(strategy)
    assert torch.equal(weights["1.weight"], base["1.weight"])
    assert not torch.equal(weights["3.weight"], base["3.weight"])


# ---------------------------------------------------------------------- norms


def test_frozen_norms_stay_as_they_were_brought():
    net = ResNet()
    net.bn1.running_mean.add_(0.3)
    strategy = train_all(tune(net, norm="frozen"), class_stream(2))
    for key in range(2):
        assert not [n for n in strategy.model.subnetworks.task_private(key) if n.startswith("bn")]
        assert torch.equal(strategy.model.export(key).bn1.running_mean, net.bn1.running_mean)
        assert torch.equal(strategy.model.export(key).bn1.weight, net.bn1.weight)


def test_own_norms_are_each_tasks():
    strategy = train_all(tune(ResNet(), norm="own"), class_stream(2))
    one, two = (strategy.model.subnetworks.task_private(key) for key in range(2))
    for name in ("bn1.weight", "bn1.running_mean"):
        assert not torch.equal(one[name], two[name])


def test_dropout_still_drops_while_norms_are_frozen():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    model = tune(net).model.train()
    assert (net[2].training, model.net[2].training, model.net[3].training) == (True, False, True)
    assert not model.eval().net[3].training


# ---------------------------------------------------------------------- capacity


def test_how_many_more_tasks_fit():
    strategy = tune()
    left = [strategy.tasks_left]
    for experience in class_stream(3).train_stream:
        strategy.train(experience)
        left.append(strategy.tasks_left)
    assert left == [9, 8, 7, 6]  # 58 of 576 entries per task
    strategy.model.forget(1)
    assert strategy.tasks_left == 7


@pytest.mark.filterwarnings("ignore:task label")
def test_when_entries_run_out_it_is_said_and_earlier_tasks_stay():
    strategy, stream, x = tune(density=0.4), class_stream(4), inputs()
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    assert strategy.tasks_left == 0
    before = [outputs(strategy.model, x, key) for key in range(2)]
    said = (
        r"task 2 learns only 288: 288 of the 576 entries .* are free \(172 of 346 in '1.weight', the first of 2 layers"
    )
    with pytest.warns(UserWarning, match=said):
        strategy.train(stream.train_stream[2])
    with pytest.warns(UserWarning, match=r"task 3 learns only tensors of its own: 0 of the 576 entries"):
        strategy.train(stream.train_stream[3])
    assert strategy.model.task_keys == [0, 1, 2, 3]
    assert all(torch.equal(outputs(strategy.model, x, key), old) for key, old in enumerate(before))
    assert not any(mask.any() for mask in strategy.model.subnetworks.task_mask(3).values())


def test_a_task_that_would_learn_nothing_at_all_is_refused():
    strategy, stream = tune(density=1.0, head="masked"), class_stream(2)
    strategy.train(stream.train_stream[0])
    with pytest.raises(ValueError, match=r"task 1 cannot be learned: the 1 finished tasks own every entry; forget one"):
        strategy.train(stream.train_stream[1])
    assert strategy.model.active is None
    strategy.model.forget(0)
    strategy.train(stream.train_stream[1])


def test_forgotten_entries_go_back_to_the_base():
    strategy = train_all(tune(), class_stream(2))
    model, x = strategy.model, inputs()
    kept = outputs(model, x, 1)
    freed = model.subnetworks.task_mask(0)
    model.forget(0)
    for name, mask in freed.items():
        assert torch.equal(model.subnetworks.frozen[name][mask], model.subnetworks.base[name][mask])
    assert torch.equal(outputs(model, x, 1), kept)


@pytest.mark.parametrize("keep", [1, 3, 5, 8])
def test_top_k_among_what_is_free_against_a_sort(keep):
    scores, taken = torch.randn(3, 4), torch.rand(3, 4) < 0.4
    chosen = top_k_free(scores, taken, keep)
    free = [
        (-abs(s), i) for i, (s, t) in enumerate(zip(scores.flatten().tolist(), taken.flatten(), strict=True)) if not t
    ]
    assert chosen.flatten().nonzero().flatten().tolist() == sorted(i for _, i in sorted(free)[:keep])


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"choose": "best"}, "choose must be 'gradient', 'magnitude', 'change' or 'random'; got 'best'"),
        ({"reads": "all"}, "reads must be 'base' or 'earlier'; got 'all'"),
        ({"density": 0}, r"in \(0, 1\]; got 0"),
        ({"choose_samples": 0}, "choose_samples must be a whole number of at least 1; got 0"),
        ({"choose": "change", "choose_epochs": 2}, "choose_epochs .*expected 1 to 1, got 2; choose it within"),
        ({"choose": "change", "train_epochs": 1}, "expected train_epochs of 2 or more, got 1"),
        ({"norm": "mine"}, "norm must be 'frozen' or 'own'; got 'mine'"),
        ({"head": "none"}, "head must be 'linear' or 'masked'; got 'none'"),
    ],
)
def test_options_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        tune(**arguments)


def test_a_model_that_keeps_no_base_is_refused():
    with pytest.raises(ValueError, match="outside='base' and init='keep', got 'zero' and 'signed_constant'; leave"):
        SparseFineTuning(MaskedModel(mlp(), seed=0), evaluator=None)
    for wrong in ({"outside": "zero"}, {"init": "signed_constant"}):
        with pytest.raises(ValueError, match="expected outside='base' and init='keep', got"):
            SparseFineTuning(mlp(), evaluator=None, **wrong)
    as_told = SparseFineTuning(MaskedModel(mlp(), outside="base", init="keep", seed=0), evaluator=None)
    assert train_all(as_told, class_stream(1)).model.task_keys == [0]


def test_integer_weights_are_refused():
    net = mlp()
    net[1].weight = nn.Parameter(torch.ones(24, 36, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"'1.weight' \(Linear\) has quantised or integer weights"):
        tune(net)


def test_quantised_layers_are_refused():
    class Packed(nn.Module):
        def forward(self, x):
            return x

    Packed.__module__ = "torch.ao.nn.quantized.modules.linear"
    with pytest.raises(ValueError, match=r"'6' \(Packed\) is quantised"):
        tune(mlp().append(Packed()))


def test_a_network_of_quantised_layers_alone_is_refused_by_its_cause():
    class Packed(nn.Module):
        def forward(self, x):
            return x

    Packed.__module__ = "torch.ao.nn.quantized.modules.linear"
    net = nn.Sequential(nn.Flatten(), Packed())
    for head in ("linear", "masked"):
        with pytest.raises(ValueError, match=r"'1' \(Packed\) is quantised"):
            tune(net, head=head)
    for method in (SupSup, CLNP):
        with pytest.raises(ValueError, match=r"Packed\).*is quantised|quantised or integer weights"):
            method(net.append(nn.Linear(36, 2)), evaluator=None)


def test_a_gradient_that_is_not_finite_is_refused():
    strategy = tune(criterion=lambda out, y: out.sum() * math.nan)
    with pytest.raises(
        FloatingPointError, match=r"the gradient of task 0 at the base .*the inputs, the labels and the criterion"
    ):
        strategy.train(class_stream(1).train_stream[0])
    assert strategy.model.active is None


def test_entries_of_finished_tasks_cannot_be_learned_again():
    model = train_all(tune(), class_stream(1)).model
    model.begin(1)
    taken = model.subnetworks.task_mask(0)
    with pytest.raises(ValueError, match=r"86 entries of '1\.weight' that shall learn belong to finished tasks"):
        model.learn_entries(taken, mask=taken)


def test_what_was_left_out_by_default_is_printed_once(capsys):
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(144, 4), nn.Linear(4, 2))
    tune(net)
    said = "SparseFineTuning: a task changes 58 of 576 weights in 1 tensor; left out: 0.weight (36 weights); its own: "
    assert capsys.readouterr().out == said + "3.weight, 3.bias\n"
    tune(net, exclude=[])
    assert capsys.readouterr().out == ""


# ---------------------------------------------------------------------- other methods around a base


def finetuned(net):
    """Return a copy in which every weight is slightly different."""
    tuned = copy.deepcopy(net)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return tuned


def test_supsup_selects_from_a_given_change():
    net = mlp()
    tuned = finetuned(net)
    strategy = SupSup(
        net, outside="base", init="keep", values=tuned, density=0.3, layer_densities="uniform", **SETTINGS
    )
    train_all(strategy, class_stream(2))
    for key in range(2):
        for name, weight in strategy.model.effective_weights(key).items():
            mask = strategy.model.subnetworks.task_mask(key)[name]
            expected = torch.where(mask, tuned.get_parameter(name), net.get_parameter(name))
            assert torch.equal(weight, expected)
            assert int(mask.sum()) == round(0.3 * mask.numel())


def test_a_mask_learns_by_the_change_it_makes():
    net = mlp()
    strategy = SupSup(net, outside="base", init="keep", values=finetuned(net), density=0.3, **SETTINGS)
    strategy.train(class_stream(1).train_stream[0])
    model = strategy.model
    model.begin(1)
    model.subnetworks.set_scores(model.fresh_scores(1))
    strategy.method.enter_phase(None, model)
    model.forward_task(1, inputs()).sum().backward()
    change = model.subnetworks.change()["5.weight"]
    gradient = model.subnetworks.scores["5.weight"].grad
    hidden = []
    handle = model.net[5].register_forward_pre_hook(lambda _, x: hidden.append(x[0]))
    model.forward_task(1, inputs())
    handle.remove()
    expected = hidden[0].sum(dim=0).expand_as(change) * change * model.subnetworks.scores["5.weight"].sign()
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_a_mask_over_no_change_is_refused():
    strategy = SupSup(mlp(), outside="base", init="keep", **SETTINGS)
    with pytest.raises(ValueError, match="a mask would choose between equal weights"):
        strategy.train(class_stream(1).train_stream[0])


def test_clnp_refuses_a_base():
    with pytest.raises(ValueError, match="expected outside='zero', got 'base'; for pretrained networks use Sparse"):
        CLNP(mlp(), outside="base", **SETTINGS)


def test_impresslearn_mixes_the_changes_of_learned_tasks():
    stream, x = class_stream(4), inputs()
    strategy = tune(density=0.2)
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    model = strategy.model
    before = [outputs(model, x, key) for key in range(2)]
    mixing = ImpressLearn(model, basis="tasks", n_basis=2, **{k: v for k, v in SETTINGS.items() if k != "seed"})
    for experience in stream.train_stream[2:]:
        mixing.train(experience)
    assert model.task_keys == [0, 1, 2, 3]
    assert all(torch.equal(outputs(model, x, key), old) for key, old in enumerate(before))
    changes = [model.subnetworks.task_mask(key) for key in range(2)]
    for key in (2, 3):
        a = model.subnetworks.mixtures.of(model.subnetworks.tasks[key].slot)
        for name, weight in model.effective_weights(key).items():
            base, change = model.subnetworks.base[name], model.subnetworks.change()[name]
            expected = base + change * (a[name][0] * changes[0][name] + a[name][1] * changes[1][name])
            assert torch.allclose(weight, expected, atol=1e-6)


def test_a_basis_of_learned_tasks_needs_them():
    strategy = ImpressLearn(mlp(), outside="base", init="keep", basis="tasks", n_basis=2, **SETTINGS)
    with pytest.raises(
        ValueError, match=r"the model has learned: expected 2, got 0; pass a MaskedModel that has learned"
    ):
        strategy.train(class_stream(1).train_stream[0])
    model, rest = train_all(tune(), class_stream(1)).model, {k: v for k, v in SETTINGS.items() if k != "seed"}
    with pytest.raises(ValueError, match=r"expected 2, got 1; learn more tasks first, or pass n_basis=1"):
        ImpressLearn(model, basis="tasks", n_basis=2, **rest).train(class_stream(2).train_stream[1])
    ImpressLearn(model, basis="tasks", n_basis=1, **rest).train(class_stream(2).train_stream[1])
    assert model.task_keys == [0, 1]


@pytest.mark.parametrize("name", ["oneshot", "binary", "entropy", "max_logit", "expected_entropy"])
def test_the_task_is_inferred_around_a_base(name):
    strategy = train_all(tune(density=0.2, head="masked", train_epochs=6), class_stream(3))
    model = strategy.model
    model.task_inference = name
    out = outputs(model, inputs(8), 0)
    for row, key in zip(out, model.inferred_task.tolist(), strict=True):
        assert key in model.task_keys
        assert row.isfinite().all()


@pytest.mark.parametrize("choose", ["gradient", "change"])
@pytest.mark.parametrize("norm", ["frozen", "own"])
def test_weights_in_any_memory_format(choose, norm):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten())
    net.append(nn.Linear(96, 2))

    def learned(layout):
        torch.manual_seed(0)  # the order of batches
        strategy, found = build("sparse_finetuning", net.to(memory_format=layout), choose=choose, norm=norm), []
        train_all(strategy, class_stream(2), lambda task: found.append(outputs(strategy.model, inputs(), task)))
        assert torch.equal(outputs(strategy.model, inputs(), 0), found[0])
        return found

    for contiguous, channels_last in zip(learned(torch.contiguous_format), learned(torch.channels_last), strict=True):
        torch.testing.assert_close(channels_last, contiguous)


class Loose(nn.Module):
    """A network whose weights are in a container of parameters, and not in layers."""

    def __init__(self, container):
        super().__init__()
        weights = {"hidden": nn.Parameter(torch.randn(24, 36) / 6), "out": nn.Parameter(torch.randn(2, 24) / 5)}
        self.weights = nn.ParameterDict(weights) if container is nn.ParameterDict else container(weights.values())

    def forward(self, x):
        hidden, out = self.weights.values() if isinstance(self.weights, nn.ParameterDict) else self.weights
        return (x.flatten(1) @ hidden.T).relu() @ out.T


@pytest.mark.parametrize("container", [nn.ParameterDict, nn.ParameterList])
def test_of_weights_outside_of_layers_only_the_last_is_the_output_layer(container):
    strategy = build("sparse_finetuning", Loose(container))
    masked, own = ["weights.hidden", "weights.out"] if container is nn.ParameterDict else ["weights.0", "weights.1"]
    assert strategy.model.masked_names == [masked]
    recorded = []
    train_all(strategy, class_stream(2), lambda t: recorded.append(outputs(strategy.model, inputs(), t)))
    assert torch.equal(outputs(strategy.model, inputs(), 0), recorded[0])
    assert not torch.equal(*(strategy.model.tensors_of(task)[own] for task in (0, 1)))

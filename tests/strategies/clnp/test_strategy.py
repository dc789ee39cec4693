import copy
import itertools
import pickle

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn
from torch.optim import SGD

from avalanche_supermask import CLNP, MaskedModel, load, save, supermask_metrics
from avalanche_supermask.strategies.clnp.activity import unit_activity
from avalanche_supermask.strategies.clnp.entries import FREE
from avalanche_supermask.strategies.clnp.pruning import (
    LayerUse,
    PruningReport,
    prune,
    strength_that_claims_least,
)
from avalanche_supermask.strategies.clnp.rules import dense_rate, share_of_free
from avalanche_supermask.strategies.clnp.units import Units
from tests.streams import ResNet, class_stream, inputs, lenet, mlp, outputs, train_all

QUICK = {"train_mb_size": 16, "evaluator": None, "seed": 0, "train_epochs": 4, "weight_lr": 0.01, "l1": 1e-3,
         "margin": 0.1, "validation_share": 0.25}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:task .. no free unit is left")


def learned(make=mlp, n_tasks=3, plugins=(), width=None, **arguments):
    net = make(width) if width else make()
    strategy = CLNP(net, plugins=list(plugins), **(QUICK | arguments))
    return train_all(strategy, class_stream(n_tasks, n=96))


def sides(method, name):
    """Return when the target and the source of every entry were claimed, computed entry by entry."""
    rows, columns = method.claims.units.rows[name], method.claims.units.columns.get(name)
    claimed = [*method.claims.claimed.tolist(), -1]
    targets = [claimed[int(r)] for r in rows]
    sources = [-1] if columns is None else [claimed[int(c)] for c in columns]
    return targets, sources


@pytest.mark.parametrize("name", ["nope", "2", "5.weight"])
@pytest.mark.parametrize("head", ["own", "gated"])
def test_an_output_layer_that_is_not_there_is_refused(name, head):
    message = rf"output_layer='{name}' names no layer of Sequential .*its layers with weights are '1', '3', '5'"
    with pytest.raises(ValueError, match=message):
        CLNP(mlp(), output_layer=name, head=head, **QUICK)
    with pytest.raises(ValueError, match=message):
        CLNP(MaskedModel(mlp(), mask="all", init="keep"), output_layer=name, **QUICK)


def test_an_output_layer_may_hold_layers():
    net = nn.Sequential(mlp(), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert all(name.startswith("0.") for name in CLNP(net, output_layer="2", **QUICK).model.masked_names)
    assert "2.0.weight" in CLNP(net, output_layer="2.1", **QUICK).model.masked_names
    deep = nn.Sequential(*[nn.Linear(2, 2) for _ in range(12)])
    with pytest.raises(ValueError, match=r"its last layers with weights are '4', '5', .*'11'$"):
        CLNP(deep, output_layer="12", **QUICK)


# ------------------------------------------------------------------ the partition


@pytest.mark.parametrize("make", [mlp, lenet, ResNet])
@pytest.mark.parametrize("head", ["own", "gated"])
def test_a_mask_holds_what_was_claimed_by_then_and_nothing_that_writes_backwards(make, head):
    strategy = learned(make, head=head)
    method, model = strategy.method, strategy.model
    for place, key in enumerate(model.task_keys):
        for name, mask in model.subnetworks.task_mask(key).items():
            targets, sources = sides(method, name)
            flat = mask.reshape(mask.shape[0], len(sources), -1) if mask.dim() > 1 else mask.reshape(-1, 1, 1)
            for i, target in enumerate(targets):
                for j, source in enumerate(sources):
                    expected = target <= place and source <= place and (target == -1 or source <= target)
                    assert bool((flat[i, j] == expected).all())


def test_the_three_classes_partition_every_weight():
    strategy = learned(n_tasks=2)
    method, model = strategy.method, strategy.model
    visible, free = method.claims.visible(model), method.claims.free(model)
    for name in ("1.weight", "3.weight"):
        targets, sources = (torch.tensor(side) for side in sides(method, name))
        a_l, a_below = int((targets != FREE).sum()), int((sources != FREE).sum())
        interference = ~visible[name]
        assert int(free[name].sum()) == (len(targets) - a_l) * len(sources)
        frozen = visible[name] & ~free[name]
        assert int(frozen.sum() + interference.sum() + free[name].sum()) == visible[name].numel()
        assert not (interference & free[name]).any()
        if name == "1.weight":
            assert a_below == len(sources)
            assert not interference.any()
        # Interference includes entries from a unit that was claimed later to one that was claimed earlier.
        assert (model.subnetworks.frozen[name][interference] == 0).all()


def test_units_are_claimed_once_and_the_report_adds_up():
    history = []

    class Watch(SupervisedPlugin):
        def before_training_exp(self, strategy, **kwargs):
            history.append(strategy.method.claims.claimed.clone())

    strategy = learned(n_tasks=4, plugins=[Watch()])
    history.append(strategy.method.claims.claimed)
    stages = [h for h in history if len(h)]
    for before, after in itertools.pairwise(stages):
        settled = before != FREE
        assert torch.equal(before[settled], after[settled])
    for place, report in enumerate(strategy.method.reports.values()):
        for layer, use in report.layers.items():
            mine = strategy.method.claims.of(layer)
            assert use.new == int((mine == place).sum())
            assert use.free == int((mine > place).sum())
            assert use.total == len(mine)
            assert 0 <= use.reused <= int((mine < place).sum())


# ------------------------------------------------------------------ frozen and free


@pytest.mark.parametrize("l1_form", ["proximal", "subgradient"])
@pytest.mark.parametrize("head", ["own", "gated"])
def test_nothing_reaches_frozen_entries_not_even_a_huge_penalty(l1_form, head):
    net = mlp()
    made = SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    strategy = CLNP(net, optimizer=made, head=head, l1_form=l1_form, **(QUICK | {"l1": 1.0, "weight_lr": None}))
    stream = class_stream(2, n=96)
    strategy.train(stream.train_stream[0])
    kept = strategy.model.subnetworks.task_mask(0)
    before = {n: w.clone() for n, w in strategy.model.subnetworks.frozen.items()}
    x = inputs()
    logits = outputs(strategy.model, x, 0)
    strategy.train(stream.train_stream[1])
    for name, weight in strategy.model.subnetworks.frozen.items():
        assert torch.equal(weight[kept[name]], before[name][kept[name]])
    assert any((w != before[n]).any() for n, w in strategy.model.subnetworks.frozen.items())
    assert torch.equal(outputs(strategy.model, x, 0), logits)


@pytest.mark.parametrize("reads", [{}, {"reads": "active", "finetune_epochs": 2}])
def test_noise_in_every_free_unit_changes_no_finished_task(reads):
    strategy = learned(n_tasks=2, **reads)
    model, x = strategy.model, inputs()
    before = {key: outputs(model, x, key) for key in (0, 1)}
    free = strategy.method.claims.free(model)
    for name, weight in model.subnetworks.frozen.items():
        weight[free[name]] = 1e6 * torch.randn(int(free[name].sum()))
    model._recent.clear()
    for key, logits in before.items():
        assert torch.equal(outputs(model, x, key), logits)


ACTIVE = {"reads": "active", "finetune_epochs": 2, "activity": "relative", "width": 40}


@pytest.mark.parametrize("head", ["own", "gated"])
def test_units_read_active_ones_only_and_every_later_task_sees_them_do_so(head):
    """An entry that a unit does not read is zero, so the unit is the same under all later tasks."""
    strategy = learned(n_tasks=3, head=head, **ACTIVE)
    method, model = strategy.method, strategy.model
    masks = [model.subnetworks.task_mask(key) for key in model.task_keys]
    read = unread = 0
    for name in ("3.weight",):
        targets, sources = sides(method, name)
        for (i, target), (j, source) in itertools.product(enumerate(targets), enumerate(sources)):
            if not source < target < FREE:
                continue
            weights = {float(model.effective_weights(key)[name][i, j]) for key in model.task_keys[target:]}
            assert len(weights) == 1
            if masks[target][name][i, j]:
                read += 1
            else:
                unread += 1
                assert weights == {0.0}
    assert read > 0
    assert unread > 0


def test_until_the_pruning_no_unit_reads_a_claimed_one_and_then_it_begins_at_zero():
    seen = []

    class Spy(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            weights = strategy.model.subnetworks.current_weights(dict(strategy.model.net.named_parameters()))
            seen.append((strategy.clock.train_exp_epochs, weights["3.weight"].detach().clone()))

    strategy = CLNP(mlp(40), plugins=[Spy()], **(QUICK | {k: v for k, v in ACTIVE.items() if k != "width"}))
    stream = class_stream(2, n=96).train_stream
    strategy.train(stream[0])
    claimed = strategy.method.claims.claimed == 0
    columns = claimed[strategy.method.claims.units.columns["3.weight"]]
    rows = ~claimed[strategy.method.claims.units.rows["3.weight"]]
    seen.clear()
    strategy.train(stream[1])
    joins = {epoch: [w[rows][:, columns] for e, w in seen if e == epoch] for epoch in range(4)}
    assert all((w == 0).all() for epoch in (0, 1) for w in joins[epoch])
    assert (joins[2][0] == 0).all()
    assert (joins[3][-1] != 0).any()


def test_free_units_start_anew():
    strategy = learned(mlp, n_tasks=1, width=64)
    model = strategy.model
    free = strategy.method.claims.free(model)
    rows = free["1.weight"].all(dim=1)
    assert rows.any()
    values = model.subnetworks.frozen["1.weight"][rows]
    assert float(values.std()) == pytest.approx(1 / 6 / 3**0.5, rel=0.15)  # U(-1/sqrt(36), 1/sqrt(36))
    assert not torch.equal(values, dict(model.net.named_parameters())["1.weight"][rows])
    assert (model.subnetworks.frozen["1.bias"][free["1.bias"]] == 0).all()


def test_without_the_gate_a_shared_head_forgets():
    """Negative control: every task uses all columns of the shared output layer."""
    strategy = learned(n_tasks=1, head="gated")
    x = inputs()

    def ungated():
        model = copy.deepcopy(strategy.model)
        weights = model.effective_weights(0)
        weights["5.weight"] = model.subnetworks.frozen["5.weight"].clone()
        hidden = {n: model.subnetworks.frozen[n] for n in weights if not n.startswith("5")}
        with torch.no_grad():
            return torch.func.functional_call(
                model.net, {**hidden, **{k: weights[k] for k in ("5.weight", "5.bias")}}, (x,)
            )

    before = ungated()
    strategy.train(class_stream(2, n=96).train_stream[1])
    assert not torch.equal(ungated(), before)


# ------------------------------------------------------------------ pruning


def test_the_loss_of_pruning_stays_within_the_margin():
    for margin in (0.0, 0.05, 1.0):
        strategy = learned(n_tasks=2, width=48, margin=margin)
        for report in strategy.method.reports.values():
            assert report.accuracy_after >= report.accuracy_before - margin
        if margin == 1.0:
            first = strategy.method.reports[0]
            assert all(use.new == 0 for use in first.layers.values()), "any loss is allowed: nothing is kept"


def test_a_larger_margin_claims_no_more_units():
    def claimed(margin):
        torch.manual_seed(0)
        return sum(use.new for use in learned(n_tasks=1, width=48, margin=margin).method.reports[0].layers.values())

    found = [claimed(margin) for margin in (0.0, 0.1, 0.5, 1.0)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1], "without the margin they would be equal"


def test_every_task_claims_its_least_share_while_active_units_last():
    strategy = learned(n_tasks=3, width=40, margin=1.0, min_new=0.25)
    for report in strategy.method.reports.values():
        assert all(use.new == 10 for use in report.layers.values()), "any loss is allowed: only the share is kept"


def test_the_least_share_goes_to_the_most_active_units_and_to_no_silent_one():
    units = Units({"a": range(4), "b": range(4, 8)}, {}, {}, {})
    activity = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.0, 0.0, 0.5, 0.0])
    claimed = torch.tensor([FREE, 0, FREE, FREE, FREE, FREE, FREE, FREE])
    report, after, active = prune(
        units, claimed, activity, place=1, before=1.0, accuracy=lambda _: 1.0, margin=1.0, min_new=0.5
    )
    assert active.nonzero().flatten().tolist() == [1, 2, 3, 6], "unit 1 is another task's, and as active as they are"
    assert [use.reused for use in report.layers.values()] == [1, 0]
    assert (after == 1).nonzero().flatten().tolist() == [2, 3, 6]
    assert [use.new for use in report.layers.values()] == [2, 1]


def test_a_task_claims_no_more_than_the_share_of_the_free_units_that_it_may():
    def claimed(**options):
        torch.manual_seed(0)
        reports = learned(n_tasks=3, width=40, margin=0.0, **options).method.reports
        return [[use.new for use in report.layers.values()] for report in reports.values()]

    limited = claimed(max_new=0.05)
    assert all(0 < new <= 2 for task in limited for new in task), "a twentieth of 40, of 38, of 36, rounded up"
    assert sum(claimed()[0]) > sum(limited[0]), "without the limit it claims more"


def test_the_largest_share_goes_to_the_most_active_free_units():
    units = Units({"a": range(4), "b": range(4, 8)}, {}, {}, {})
    activity = torch.tensor([0.1, 0.4, 0.3, 0.2, 0.0, 0.0, 0.5, 0.0])
    claimed = torch.tensor([FREE, 0, FREE, FREE, 0, 0, 0, 0])
    _, after, _ = prune(units, claimed, activity, place=1, before=1.0, accuracy=lambda _: 0.0, margin=0.0, max_new=0.5)
    assert after.tolist() == [FREE, 0, 1, 1, 0, 0, 0, 0]


def test_the_held_out_data_are_not_trained_on():
    seen = []

    class Watch(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            seen.extend(tuple(x.flatten().tolist()) for x in strategy.mb_x)

        def after_training_epoch(self, strategy, **kwargs):
            held = {tuple(x.flatten().tolist()) for x in strategy.method._held_out[0]}
            assert len(held) == 24
            assert not held & set(seen)

    strategy = learned(n_tasks=1, plugins=[Watch()])
    assert len(set(seen)) == 72
    assert strategy.method._held_out == []


class WeightsByEpoch(SupervisedPlugin):
    """Record the trainable weights after every epoch of the latest task."""

    def before_training_exp(self, strategy, **kwargs):
        self.weights = []

    def after_training_epoch(self, strategy, **kwargs):
        self.weights.append({name: p.detach().clone() for name, p in strategy.model.net.named_parameters()})


def test_fine_tuning_trains_what_is_kept_and_nothing_else():
    recorded = WeightsByEpoch()
    strategy = learned(n_tasks=1, finetune_epochs=2, plugins=[recorded])
    stream = class_stream(2, n=96)
    earlier = strategy.model.task_mask(0)
    strategy.train(stream.train_stream[1])
    pruned, last = recorded.weights[2], recorded.weights[3]  # after the first and the second epoch of fine-tuning
    mask = strategy.model.task_mask(1)
    moved = {name: pruned[name] != last[name] for name in mask}
    for name, kept in mask.items():
        assert not (moved[name] & ~kept).any(), "what was pruned stands still"
        assert not (moved[name] & earlier[name]).any(), "what an earlier task owns stands still"
    new = {name: kept & ~earlier[name] for name, kept in mask.items()}
    hidden = [name for name in new if new[name].any()]
    assert hidden
    assert all(bool(moved[name].any()) for name in hidden), "what is kept and new trains on"


def test_fine_tuning_leaves_an_epoch_to_training():
    for epochs, message in ((4, "expected 0 to 3, got 4; choose it within this range"), (-1, "at least 0 or None")):
        with pytest.raises(ValueError, match=message):
            CLNP(mlp(), **(QUICK | {"finetune_epochs": epochs}))


@pytest.mark.parametrize("statistic", ["mean", "rate", "relative"])
def test_activity_against_a_network_done_by_hand(statistic):
    """Activity is a mean over samples and positions, after the ReLU and in evaluation mode, so without dropout."""
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Dropout(0.9), nn.Flatten(), nn.Linear(48, 2))
    strategy = CLNP(net, **(QUICK | {"train_epochs": 1, "margin": 0.0}))
    method = strategy.method
    found = {}

    class Watch(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            model = strategy.model.eval()
            x = inputs(20)
            found["units"] = unit_activity(model, method.claims.units, x.split(7), statistic=statistic)
            weights = model.subnetworks.current_weights(dict(model.net.named_parameters()))
            with torch.no_grad():
                out = nn.functional.conv2d(x, weights["0.weight"], weights["0.bias"]).relu()
            oracle = ((out > 0).float() if statistic == "rate" else out).mean(dim=(0, 2, 3))
            found["oracle"] = oracle / oracle.mean() if statistic == "relative" else oracle
            model.train()

    strategy.plugins.insert(0, Watch())
    strategy.train(class_stream(1, n=96).train_stream[0])
    assert torch.allclose(found["units"].float(), found["oracle"], atol=1e-5)


# ------------------------------------------------------------------ capacity


def full_network(strategy):
    strategy.method.claims.claimed[:] = 0


def test_exhausted_capacity_warns_and_overwrites_nothing():
    strategy = CLNP(mlp(), **QUICK)
    stream = class_stream(2, n=96)
    strategy.train(stream.train_stream[0])
    full_network(strategy)
    before = {n: w.clone() for n, w in strategy.model.subnetworks.frozen.items()}
    with pytest.warns(UserWarning, match="task 1: no free unit is left in '3', '1'; only other layers"):
        strategy.train(stream.train_stream[1])
    assert all(torch.equal(w, before[n]) for n, w in strategy.model.subnetworks.frozen.items())
    heads = [strategy.model.subnetworks.task_private(key)["5.weight"] for key in (0, 1)]
    assert not torch.equal(*heads)


def test_exhausted_capacity_can_be_an_error():
    strategy = CLNP(mlp(), on_exhausted="error", **QUICK)
    stream = class_stream(2, n=96)
    strategy.train(stream.train_stream[0])
    full_network(strategy)
    with pytest.raises(
        RuntimeError, match=r"no free unit is left in '3', '1', and the task was not learned; start with"
    ):
        strategy.train(stream.train_stream[1])
    assert strategy.model.task_keys == [0]


def test_the_forecast_is_free_over_new_and_in_tensorboards_curves():
    evaluator = EvaluationPlugin(supermask_metrics(units=True), loggers=[])
    strategy = CLNP(mlp(), **(QUICK | {"evaluator": evaluator}))
    assert strategy.capacity() is None
    train_all(strategy, class_stream(2, n=96))
    capacity, report = strategy.capacity(), strategy.method.reports[1]
    layers = report.layers.values()
    assert capacity.tasks_left == min(use.free / use.new if use.new else float("inf") for use in layers)
    assert capacity.graceful_forgetting == report.accuracy_before - report.accuracy_after
    found = evaluator.get_all_metrics()
    for layer, use in report.layers.items():
        for kind in ("new", "reused", "used", "free"):
            curve = found[f"Units{kind.capitalize()}/train_phase/train_stream/{layer}"][1]
            assert len(curve) == 2
            assert curve[-1] == getattr(use, kind)
    assert len(found["TasksLeft/train_phase/train_stream"][1]) == 2


# ------------------------------------------------------------------ norms and the search over the penalty


class WideResNet(ResNet):
    """A network that is wide enough that some channels stay free."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.conv, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.fc = nn.Linear(24, 2)


def test_claimed_channels_keep_gain_shift_and_statistics():
    strategy = learned(WideResNet, n_tasks=3, l1=1e-2)
    model, method = strategy.model, strategy.method
    claimed_first = method.claims.claimed == 0
    assert 0 < int(claimed_first.sum()) < 24
    for layer in ("bn1", "bn2"):
        rows = method.claims.units.rows[f"{layer}.weight"]
        mine = claimed_first[rows]
        stored = [model.subnetworks.task_private(key) for key in model.task_keys]
        for kind in ("running_mean", "running_var"):
            first = stored[0][f"{layer}.{kind}"][mine]
            assert all(torch.equal(task[f"{layer}.{kind}"][mine], first) for task in stored)
        for leaf in ("weight", "bias"):
            gains = [model.effective_weights(key)[f"{layer}.{leaf}"][mine] for key in model.task_keys]
            assert all(torch.equal(gain, gains[0]) for gain in gains)


@pytest.mark.parametrize("reads", [{}, {"reads": "active", "finetune_epochs": 2}])
def test_a_claimed_unit_computes_the_same_for_every_later_task(reads):
    """Units of task 0 have the same pre-activations, including BatchNorm, under task 0 and task 2."""
    strategy = learned(WideResNet, n_tasks=3, l1=1e-2, **reads)
    model = strategy.model.eval()
    mine = (strategy.method.claims.claimed == 0)[strategy.method.claims.units.rows["bn1.weight"]]
    seen = []
    hook = model.net.bn1.register_forward_hook(lambda m, i, out: seen.append(out[:, mine]))
    with torch.no_grad():
        model(inputs(), 0)
        model(inputs(), 2)
    hook.remove()
    assert torch.equal(*seen)


@pytest.mark.parametrize(("margin", "expected"), [(0.0, 1e-6), (0.02, 1e-4), (0.5, 1e-2)])
def test_the_search_takes_the_strength_that_claims_least_within_the_margin(margin, expected):
    outcomes = {1e-6: (30, 0.95), 1e-4: (20, 0.94), 1e-2: (10, 0.60)}  # units claimed, accuracy
    trials = {
        strength: PruningReport(0.0, 1.0, accuracy, {"1": LayerUse(48, new, 0, 48 - new)})
        for strength, (new, accuracy) in outcomes.items()
    }
    assert strength_that_claims_least(trials, margin) == expected


def test_a_task_learns_at_the_strength_that_was_found():
    def seeded(**arguments):
        torch.manual_seed(0)
        return learned(n_tasks=1, **arguments)

    strengths = [1e-6, 3e-2]
    searched = seeded(l1_search=strengths, search_epochs=1)
    found = searched.method.settings_used["l1"]
    backwards = seeded(l1_search=strengths[::-1], search_epochs=1)
    assert backwards.method.settings_used["l1"] == found, "whichever strength is tried last"
    (other,) = {*strengths} - {found}
    weights = {l1: seeded(l1=l1).model.effective_weights(0) for l1 in strengths}
    for name, weight in searched.model.effective_weights(0).items():
        assert torch.equal(weight, weights[found][name]), "the search leaves nothing behind but the strength"
    assert any(not torch.equal(w, weights[other][name]) for name, w in weights[found].items()), "or this shows nothing"


def test_the_search_leaves_no_report_of_its_copies():
    method = learned(n_tasks=2, l1_search=[1e-6, 3e-2], search_epochs=1).method
    assert list(method.reports) == [0, 1]


# ------------------------------------------------------------------ export, state, options


@pytest.mark.parametrize("make", [mlp, lenet, ResNet])
@pytest.mark.parametrize("head", ["own", "gated"])
def test_slim_networks_answer_alike_and_are_smaller(make, head):
    strategy = learned(make, head=head, l1=3e-3)
    x = inputs()
    for key in strategy.model.task_keys:
        small = strategy.export(key, slim=True)
        with torch.no_grad():
            assert torch.allclose(small(x), outputs(strategy.model, x, key), atol=1e-5)
    first = strategy.method.reports[0].layers.values()
    removed = sum(use.free for use in first)
    assert removed > 0, "or nothing could be removed"
    small, whole = strategy.export(0, slim=True), strategy.export(0)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole.parameters())


def test_the_plugin_pickles_without_data():
    strategy = learned(n_tasks=2)
    again = pickle.loads(pickle.dumps(strategy.method))
    assert torch.equal(again.claims.claimed, strategy.method.claims.claimed)
    assert again.reports == strategy.method.reports


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"l1": -1}, "l1 must be a number of at least 0; got -1"),
        ({"margin": 2}, r"margin must be a fraction in \[0, 1\]; got 2"),
        ({"validation_share": 1.0}, "validation_share must be a fraction between 0 and 1"),
        ({"min_new": 1.5}, r"min_new must be a fraction in \[0, 1\]; got 1.5"),
        ({"max_new": 0.0}, r"max_new must be a fraction in \(0, 1\] or None; got 0.0"),
        ({"reads": "some"}, "reads must be 'all' or 'active'; got 'some'"),
        ({"reads": "active", "finetune_epochs": 0}, "expected finetune_epochs of 1 or more, or None; got 0"),
        ({"head": "shared"}, "head must be 'own' or 'gated'; got 'shared'"),
        ({"l1_form": "l2"}, "l1_form must be 'subgradient' or 'proximal'; got 'l2'"),
        ({"activity": "max"}, "activity must be 'mean', 'rate' or 'relative'; got 'max'"),
        ({"on_exhausted": "stop"}, "on_exhausted must be 'warn' or 'error'; got 'stop'"),
    ],
)
def test_unknown_options(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        CLNP(mlp(), evaluator=None, **arguments)


def test_a_network_without_hidden_units():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(
        ValueError, match=r"no weight to mask, as '1.weight', '1.bias' are each task's own.*hidden layer"
    ):
        CLNP(net, **QUICK)
    with pytest.raises(ValueError, match="no hidden units to prune"):
        CLNP(net, head="gated", **QUICK).train(class_stream(1).train_stream[0])


def test_labels_in_one_experience_only():
    """With one or two samples per class, pruning still works: the held-out part falls back to the training samples."""
    x, y = inputs(3), torch.tensor([0, 1, 1])
    stream = tensors_benchmark([(x, y)], [(x, y)], task_labels=[0])
    strategy = CLNP(mlp(), **QUICK)
    strategy.train(stream.train_stream[0])
    assert strategy.model.task_keys == [0]


def test_defaults_leave_room_after_the_tasks_that_the_stream_announces():
    settings = {"train_mb_size": 16, "evaluator": None, "seed": 0, "train_epochs": 4}
    strategy = CLNP(mlp(width=100), **settings)
    stream = class_stream(5)
    for experience in stream.train_stream:
        strategy.train(experience)
    used = strategy.method.settings_used
    assert used["max_new"] == pytest.approx(1 - 0.15**0.2)
    assert used["finetune_epochs"] == 3
    assert used["weight_lr"] == 0.01, "twelve steps"
    assert used["l1"] == 1e-4
    for layer in strategy.capacity().layers.values():
        assert layer.free >= 0.1 * layer.total
    own = CLNP(mlp(width=100), max_new=1.0, finetune_epochs=0, weight_lr=2e-3, **settings)
    own.train(stream.train_stream[0])
    assert [own.method.settings_used[name] for name in ("max_new", "finetune_epochs", "weight_lr")] == [1.0, 0, 2e-3]


def test_a_stream_that_announces_nothing_counts_as_ten_tasks():
    assert share_of_free(object()) == pytest.approx(1 - 0.15**0.1)
    assert dense_rate(50) == 0.01
    assert dense_rate(400) == pytest.approx(0.005)


def test_a_model_whose_units_are_unknown_is_refused_before_it_learns(tmp_path):
    strategy, path = learned(n_tasks=2), tmp_path / "tasks.safetensors"
    save(strategy.model, path)
    model = load(path, mlp())
    again = CLNP(model, **QUICK)
    with pytest.raises(ValueError, match="the model has learned 2 tasks, and this CLNP does not know which units they"):
        again.train(class_stream(3).train_stream[2])
    assert (model.active, model.task_keys) == (None, [0, 1])
    again.eval(class_stream(2).test_stream)


class Loads(SupervisedPlugin):
    """Loads a state from the start of an experience before its last epoch, and stops, as early stopping does."""

    def before_training_epoch(self, strategy, **kwargs):
        epoch = strategy.clock.train_exp_epochs
        if epoch == 0:
            self.state = copy.deepcopy(strategy.model.state_dict())
        elif epoch == strategy.train_epochs - 1:
            strategy.model.load_state_dict(self.state)
            strategy.stop_training()


def test_a_state_from_before_the_pruning_is_pruned_again():
    strategy, x, before = CLNP(mlp(), finetune_epochs=2, plugins=[Loads()], **QUICK), inputs(), {}
    for experience in class_stream(3).train_stream:
        strategy.train(experience)
        for key, answer in before.items():
            assert torch.equal(outputs(strategy.model, x, key), answer)
        before = {key: outputs(strategy.model, x, key) for key in strategy.model.task_keys}
    kept, claims = strategy.model.task_mask(2), strategy.method.claims
    assert all(
        torch.equal(kept[name], entries) for name, entries in claims.kept(strategy.model, claims.claimed).items()
    )


def test_units_of_an_interrupted_task_are_free_again():
    class Interrupt(SupervisedPlugin):
        all_free = ()

        def before_training_epoch(self, strategy, **kwargs):
            if strategy.clock.train_exp_epochs == 0:
                self.all_free = (*self.all_free, bool((strategy.method.claims.claimed == FREE).all()))

        def after_training_iteration(self, strategy, **kwargs):
            if strategy.experience.current_experience == 0 and strategy.clock.train_exp_epochs == 3:
                raise KeyboardInterrupt

    interrupt, stream = Interrupt(), class_stream(2)
    strategy = CLNP(mlp(), finetune_epochs=2, plugins=[interrupt], **QUICK)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream.train_stream[0])
    assert (strategy.method.claims.claimed != FREE).any()
    strategy.train(stream.train_stream[1])
    assert interrupt.all_free == (True, True)

"""The contract of every registered method, on several networks, with several optimizers and other plugins.

The tests check the invariants of the design: finished tasks stay bit-identical; there is one score tensor per layer and
one bit per weight and task; evaluation changes nothing; copies and reloads have the same outputs. A method whose class
has ``forgets = True`` is a control and must fail the first of them.
"""

import copy

import pytest
import torch
from avalanche.training.plugins import EWCPlugin, LwFPlugin
from torch.optim import SGD

from avalanche_supermask import CachedTensors
from avalanche_supermask.data.cached import load_tensors
from tests.building import METHODS, NETWORKS, OPTIMIZERS, PAIRS, build, networks_of, same_state
from tests.streams import class_stream, inputs, mlp, outputs, train_all

# These warnings are expected: small networks fill up, the network `Stranger` has a frozen layer, and some networks
# have no norm.
pytestmark = pytest.mark.filterwarnings(
    "ignore:task .. no free unit is left",
    "ignore:2 parameters of Stranger are frozen",
    "ignore:per_task='norm', but no module",
)
COMPANIONS = {"alone": list, "ewc": lambda: [EWCPlugin(ewc_lambda=1.0)], "lwf": lambda: [LwFPlugin()]}


def drift_of_old_tasks(strategy, stream, key_of=lambda index: index):
    """Return the largest change of any finished task's outputs while later tasks are learned."""
    x = inputs()
    recorded, worst = {}, 0.0

    def after_task(index):
        nonlocal worst
        recorded[key_of(index)] = outputs(strategy.model, x, key_of(index))
        for key, before in recorded.items():
            worst = max(worst, float((outputs(strategy.model, x, key) - before).abs().max()))

    train_all(strategy, stream, after_task)
    return worst


# Every optimizer runs alone, and every companion with one optimizer; `make test-slow` runs the other pairs.
SETTINGS = [
    pytest.param(optimizer, companion, marks=[] if companion == "alone" or optimizer == "sgd" else pytest.mark.slow)
    for companion in COMPANIONS
    for optimizer in OPTIMIZERS
]


@pytest.mark.parametrize(("optimizer", "companion"), SETTINGS)
@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_finished_tasks_stay_bit_identical(method, network, optimizer, companion):
    strategy = build(method, NETWORKS[network](), optimizer=optimizer, plugins=COMPANIONS[companion]())
    drift = drift_of_old_tasks(strategy, class_stream(3))
    if METHODS[method].forgets:
        assert drift > 1e-4, "a control that cannot fail shows nothing"
    else:
        assert drift == 0.0
    assert strategy.model.task_keys == [0, 1, 2]


@pytest.mark.parametrize("method", [m for m in METHODS if not METHODS[m].forgets])
def test_over_eight_tasks_with_parameter_groups(method):
    net = NETWORKS[networks_of(method)[-1]]()
    learning = [p for p in net.parameters() if p.requires_grad]
    groups = [{"params": learning[:2], "lr": 0.01, "weight_decay": 0.0}, {"params": learning[2:], "lr": 0.05}]
    optimizer = SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-2)
    strategy = build(method, net, optimizer=lambda _: optimizer)
    assert drift_of_old_tasks(strategy, class_stream(8)) == 0.0
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 1e-2]


@pytest.mark.parametrize(("method", "network"), [pair for pair in PAIRS if not METHODS[pair[0]].forgets])
def test_with_the_default_optimizer_too(method, network):
    assert drift_of_old_tasks(build(method, NETWORKS[network]()), class_stream(3)) == 0.0


@pytest.mark.parametrize("method", [m for m in METHODS if not METHODS[m].any_module])
@pytest.mark.parametrize("network", ["transformer", "lstm"])
def test_a_network_that_is_refused_is_told_why(method, network):
    strategy = build(method, NETWORKS[network]())
    with pytest.raises(ValueError, match=r"\(.*\) has weights, such as '.*', of which CLNP .*Use ExSSNeT"):
        strategy.train(class_stream(1).train_stream[0])


@pytest.mark.parametrize("per_task", ["norm", "all"])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", ["supsup", "exssnet"])
def test_own_parameters_of_a_task_stay_too(method, network, per_task):
    strategy = build(method, NETWORKS[network](), optimizer="sgd", per_task=per_task)
    assert drift_of_old_tasks(strategy, class_stream(3)) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(method):
    strategy = train_all(
        build(method, mlp(width=64), train_epochs=20, mask_lr=0.02, weight_lr=0.02), class_stream(2, n=96)
    )
    for experience in class_stream(2, n=96).test_stream:
        x, y, _ = load_tensors(experience.dataset, torch.device("cpu"))
        accuracy = (outputs(strategy.model, x, experience.current_experience).argmax(1) == y).float().mean()
        assert accuracy > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_changes_nothing_and_allocates_nothing(method):
    strategy = build(method, NETWORKS["resnet"](), eval_every=1, plugins=[CachedTensors()])
    stream = class_stream(3)
    strategy.train(stream.train_stream[0], eval_streams=[stream.test_stream[:1]])
    before = copy.deepcopy(strategy.model.state_dict())
    rng = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"task label 1 was never trained.*the latest task answers"):
        strategy.eval(stream.test_stream)
    strategy.eval(stream.test_stream)  # There is no second warning; it would be an error.
    assert same_state(strategy.model.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), rng)
    assert strategy.model.task_keys == [0]


@pytest.mark.parametrize("method", METHODS)
def test_one_score_tensor_a_layer_and_one_bit_a_weight_and_task(method):
    strategy = train_all(build(method, mlp()), class_stream(4))
    model = strategy.model
    scores = {n: s.shape for n, s in model.subnetworks.scores.items()}
    assert scores in ({}, model.masked_shapes)
    coefficients = list(model.subnetworks.mixtures.coefficients.values())
    learn = len(scores) + len(coefficients) + len(model.subnetworks.values)
    assert len(list(model.parameters())) == len(list(model.net.parameters())) + learn
    bits = sum(-(-n.numel() // 8) for n in model.subnetworks.frozen.values())
    mixed = {k: sum(4 * a.numel() for a in coefficients) for k in range(2, 4) if coefficients}
    assert model.subnetworks.masks.nbytes == (4 - len(mixed)) * bits
    own = {k: sum(4 * t.numel() for t in model.subnetworks.task_private(k).values()) for k in range(4)}
    sure = 4  # the mean entropy of the task on its own data
    assert model.bytes_per_task() == {k: mixed.get(k, bits) + own[k] + sure for k in range(4)}
    assert model.bytes_per_task(private=False) == {k: mixed.get(k, bits) for k in range(4)}
    assert model.basis_bytes == 0


@pytest.mark.parametrize("method", METHODS)
def test_copies_and_reloads_answer_alike(method):
    strategy = train_all(build(method, NETWORKS["resnet"]()), class_stream(3))
    model, x = strategy.model, inputs()
    fresh = build(method, NETWORKS["resnet"](), seed=9).model
    fresh.load_state_dict(model.state_dict())
    for key in model.task_keys:
        expected = outputs(model, x, key)
        for other in (copy.deepcopy(model), fresh):
            assert torch.equal(outputs(other, x, key), expected)
        with torch.no_grad():
            assert torch.equal(model.export(key)(x), expected)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_batches_equal_batches_of_one_task(method):
    strategy = train_all(build(method, NETWORKS["lenet"]()), class_stream(3))
    x, labels = inputs(12), torch.tensor([0, 1, 2] * 4)
    mixed = outputs(strategy.model, x, labels)
    for key in range(3):
        rows = labels == key
        assert torch.allclose(mixed[rows], outputs(strategy.model, x[rows], key), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_caller_keeps_what_was_passed(method):
    net, plugins = mlp(), [CachedTensors()]
    before = copy.deepcopy(net.state_dict())
    strategy = METHODS[method](net, optimizer=SGD(net.parameters(), lr=0.1), plugins=plugins, evaluator=None)
    train_all(strategy, class_stream(2))
    assert len(plugins) == 1
    assert same_state(net.state_dict(), before)
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_no_global_seed_is_touched_and_the_same_seed_gives_the_same_masks(method):
    def learned():
        torch.manual_seed(5)
        model = train_all(build(method, mlp()), class_stream(2)).model
        return [model.subnetworks.task_mask(key) for key in model.task_keys]

    for a, b in zip(learned(), learned(), strict=True):
        assert same_state(a, b)


@pytest.mark.parametrize("labels", [[4, 2, 9], [1, 0, 7]])
@pytest.mark.parametrize("method", [m for m in METHODS if not METHODS[m].forgets])
def test_task_keys_in_any_order(method, labels):
    stream = class_stream(3, task_labels=labels)
    strategy = build(method, mlp())
    assert drift_of_old_tasks(strategy, stream, key_of=lambda index: labels[index]) == 0.0
    assert strategy.model.task_keys == labels


@pytest.mark.parametrize("method", [m for m in METHODS if not METHODS[m].forgets])
def test_a_task_that_comes_again_can_be_skipped(method):
    strategy = build(method, NETWORKS["resnet"](), on_revisit="skip", plugins=[CachedTensors()])
    stream = class_stream(3)
    for index in (0, 1, 0, 2, 1):
        before = copy.deepcopy(strategy.model.state_dict()) if index in strategy.model.task_keys else None
        strategy.train(stream.train_stream[index])
        if before is not None:
            assert same_state(strategy.model.state_dict(), before)
    assert strategy.model.task_keys == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:task label 0 stands for several learned tasks")
@pytest.mark.parametrize("method", [m for m in METHODS if not METHODS[m].forgets])
def test_a_task_that_comes_again_can_be_learned_anew(method):
    strategy, x = build(method, NETWORKS["resnet"](), on_revisit="new"), inputs()
    stream = class_stream(2)
    train_all(strategy, stream)
    before = outputs(strategy.model, x, 0)
    strategy.train(stream.train_stream[0])
    assert strategy.model.task_keys == [0, 1, 2]
    with torch.no_grad():
        assert torch.equal(strategy.model.eval().forward_task(0, x), before)
        latest = strategy.model.forward_task(2, x)
    assert torch.equal(outputs(strategy.model, x, 0), latest)


def test_an_unknown_way_to_revisit():
    with pytest.raises(ValueError, match="on_revisit must be 'error', 'skip', 'new' or 'continue'; got 'again'"):
        build("supsup", mlp(), on_revisit="again")


@pytest.mark.parametrize("method", ["supsup", "exssnet"])
def test_the_number_of_workers_changes_nothing(method):
    def learned(workers):
        torch.manual_seed(5)
        strategy = build(method, mlp())
        for experience in class_stream(2).train_stream:
            strategy.train(experience, num_workers=workers)
        return strategy.model

    alone, helped = learned(0), learned(2)
    for key in (0, 1):
        assert same_state(alone.effective_weights(key), helped.effective_weights(key))

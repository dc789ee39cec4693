import copy

import pytest
import torch
from avalanche.models import IncrementalClassifier, MTSimpleMLP
from torch import nn
from torch.optim import SGD

from avalanche_supermask import MaskedModel, SupSup, SupSupNNs
from avalanche_supermask.selection import selection
from avalanche_supermask.strategy import Scenario
from benchmarks.lib.networks import MultiHead
from benchmarks.lib.networks import mlp as plain_mlp
from tests.building import learn_nothing
from tests.streams import NETWORKS, ResNet, TiedEmbedding, class_stream, inputs, mlp, outputs, train_all


def test_the_network_is_masked_where_the_papers_mask_it():
    model = MaskedModel(ResNet(), seed=0)
    assert model.masked_names == ["stem.weight", "conv.weight", "fc.weight"]
    lstm = MaskedModel(NETWORKS["lstm"](), seed=0)
    assert lstm.masked_names == ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "fc.weight"]
    assert all((b == 0).all() for n, b in lstm.shared.items() if "bias" in n)


def test_exclude_leaves_weights_out():
    model = MaskedModel(mlp(), exclude=[r"1\..*"], seed=0)
    assert model.masked_names == ["3.weight", "5.weight"]


@pytest.mark.parametrize("option", ["own", "exclude"])
def test_expressions_that_do_nothing_are_told(option):
    with pytest.raises(TypeError, match=rf"{option} must be a list of strings; got '5'; pass {option}=\['5'\]"):
        MaskedModel(mlp(), **{option: "5"})
    with pytest.raises(ValueError, match=rf"{option}: '\(5' is no regular expression .*pass re.escape\(name\)"):
        MaskedModel(mlp(), **{option: ["(5"]})
    with pytest.warns(UserWarning, match=rf"{option}: '5' matches no parameter .* for example '5\\\\.weight'"):
        model = MaskedModel(mlp(), **{option: ["5", r"1\..*"]})
    assert model.masked_names == ["3.weight", "5.weight"]


def test_signed_constants_by_default_and_the_brought_weights_on_request():
    net = mlp()
    brought = net[1].weight.detach().clone()
    assert torch.equal(MaskedModel(net, init="keep").subnetworks.frozen["1.weight"], brought)
    constants = MaskedModel(net, seed=1).subnetworks.frozen["1.weight"]
    assert torch.allclose(constants.abs(), torch.tensor((2 / 36) ** 0.5))
    assert torch.equal(net[1].weight, brought)


@pytest.mark.parametrize(
    ("net", "arguments", "complaint"),
    [
        (nn.ReLU(), {"exclude": ["fc"]}, "ReLU has no weight to mask: expected .*pass a network with a Linear"),
        (
            mlp(),
            {"exclude": [".*"]},
            r"no weight to mask, as '1.weight', '3.weight', '5.weight' are excluded by exclude=.*; exclude fewer",
        ),
        (nn.Linear(2, 2), {"own": [".*"]}, r"as 'weight' is each task's own \(.*named in own\); add a hidden layer"),
        (nn.Sequential(IncrementalClassifier(4)), {}, "as '0.classifier.weight' is of a head; add a hidden layer"),
        (mlp(), {"init": "xavier"}, "init must be 'scaled_constant', 'signed_constant' or 'keep'; got 'xavier'"),
        (mlp(), {"per_task": "bias"}, "per_task must be 'none', 'norm' or 'all'; got 'bias'"),
    ],
)
def test_wrapping_says_what_is_wrong(net, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        MaskedModel(net, **arguments)


def test_before_any_task_the_whole_network_answers():
    model = MaskedModel(mlp(), seed=0)
    weights = {**dict(model.net.named_parameters()), **model.subnetworks.frozen}
    with torch.no_grad():
        whole = torch.func.functional_call(model.net, weights, (inputs(4),))
    assert torch.equal(outputs(model, inputs(4), 0), whole)
    assert model.forward_all_tasks(inputs(4)) == {}


def test_labels_an_int_a_tensor_omitted_or_none():
    model = MaskedModel(ResNet(), seed=0)
    for key in (3, 8):
        learn_nothing(model, key)
    model.eval()
    x = inputs(6)
    with torch.no_grad():
        eight = model(x, 8)
        assert torch.equal(model(x), eight), "omitted: the latest task"
        assert torch.equal(model(x, torch.full((6,), 8)), eight)
        assert not torch.equal(model(x, 3), eight)
        everything = model(x, None)
    assert list(everything) == [3, 8]
    assert torch.equal(everything[8], eight)


def test_a_batch_of_one_keeps_its_dimension():
    model = learn_nothing(MaskedModel(mlp(), seed=0), 0)
    assert outputs(model, inputs(1), torch.tensor([0])).shape == (1, 2)


def test_running_statistics_are_per_task_and_safe_in_training_mode():
    strategy = SupSup(ResNet(), density=0.5, train_epochs=2, train_mb_size=16, evaluator=None, seed=0)
    train_all(strategy, class_stream(3))
    model = strategy.model
    means = [model.subnetworks.task_private(key)["bn1.running_mean"] for key in model.task_keys]
    assert not torch.equal(means[0], means[1])
    before = [m.clone() for m in means]
    model.train()
    for key in model.task_keys:
        model(inputs(8), key)  # LwF or a user may call the model like this in training mode
    assert all(torch.equal(a, b) for a, b in zip(means, before, strict=True))


def test_statistics_of_batchnorm_are_accounted_for():
    model = learn_nothing(MaskedModel(ResNet(), seed=0), 0)
    model.begin(1, 1)
    model.learn_scores(selection(model.masked_shapes, density=0.3))
    model.train()
    model(inputs(8), 1)
    model.commit()
    floats = 2 * (8 + 8) * 4 + 2 * 8  # mean and variance of two layers, two int64 counters
    bits = model.subnetworks.masks.row_bytes
    assert model.bytes_per_task() == {0: bits, 1: bits + floats}


def test_tied_weights_share_one_mask():
    model = learn_nothing(MaskedModel(TiedEmbedding(), seed=0), 0)
    assert model.masked_names == ["tokens.weight", "conv.weight"]
    exported = model.export(0)
    assert exported.out.weight is exported.tokens.weight
    x = inputs(5)
    assert torch.equal(exported(x), outputs(model, x, 0))
    naive = TiedEmbedding().eval()
    naive.load_state_dict(exported.state_dict())
    assert torch.equal(naive(x), outputs(model, x, 0))


class CountsItsCalls(nn.Sequential):
    """A network that changes two buffers in every call: one in place, and one by replacing it."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(36, 4))
        self.register_buffer("in_place", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x):
        self.in_place += 1
        self.replaced = self.replaced + 1
        return super().forward(x) + self.in_place + self.replaced


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("task_inference", ["given", "oneshot", "entropy"])
def test_a_network_that_moves_its_buffers_in_evaluation_does_not_change_a_finished_task(training, task_inference):
    model = learn_nothing(MaskedModel(CountsItsCalls(), seed=0, task_inference=task_inference), 0)
    learn_nothing(model, 1)
    state, x = copy.deepcopy(model.state_dict()), inputs(5)
    model.train(training)
    first = model(x, 0)
    assert torch.equal(model(x, 0), first)
    now = model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in state.items() if isinstance(value, torch.Tensor))


def test_a_layer_used_twice_has_one_mask_and_one_set_of_statistics():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Linear(36, 36), nn.BatchNorm1d(36))
            self.second = self.first
            self.last = nn.Linear(36, 2)

        def forward(self, x):
            return self.last(self.second(self.first(x.flatten(1)).relu()).relu())

    model = learn_nothing(MaskedModel(Twice(), seed=0), 0)
    x = inputs(5)
    assert torch.equal(model.export(0)(x), outputs(model, x, 0))


@pytest.mark.parametrize("network", NETWORKS)
def test_effective_weights_are_weight_times_mask(network):
    """The reference is the same network, whose weights are multiplied by the mask."""
    net = NETWORKS[network]()
    model = learn_nothing(MaskedModel(net, init="keep", seed=0), 0)
    mask = model.subnetworks.task_mask(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name in mask:
                p.mul_(mask[name])
        net.eval()
        assert torch.allclose(net(inputs()), outputs(model, inputs(), 0), atol=1e-6)
    for name, weight in model.effective_weights(0).items():
        assert torch.equal(weight, dict(net.named_parameters())[name])


@pytest.mark.parametrize("net", [MTSimpleMLP(36, 20), MultiHead(plain_mlp(36, (20,), 2))])
@pytest.mark.filterwarnings("ignore:task label")
def test_multi_head_models(net):
    strategy = SupSup(net, density=0.5, train_epochs=8, train_mb_size=16, mask_lr=0.05, evaluator=None, seed=0)
    x, recorded = inputs(), {}

    def after_task(index):
        strategy.eval(class_stream(3).test_stream)  # Evaluation must not create heads of tasks that were not trained.
        recorded[index] = outputs(strategy.model, x, index)
        for key, before in recorded.items():
            assert torch.equal(outputs(strategy.model, x, key), before)

    train_all(strategy, class_stream(3), after_task)
    model = strategy.model
    assert not any("classifier" in name for name in model.masked_names)
    heads = [set(model.subnetworks.task_private(key)) for key in range(3)]
    for key in range(3):
        assert f"classifier.classifiers.{key}.classifier.weight" in heads[key]
        assert not any(f"classifiers.{other}." in name for other in range(3) if other != key for name in heads[key])


def test_mixed_batches_take_the_dtype_of_the_network():
    model = MaskedModel(mlp(), seed=0)
    learn_nothing(learn_nothing(model, 0), 1)
    model.double().eval()
    labels = torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        out = model(inputs(4).double(), labels)
        assert out.dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model.float()(inputs(4), labels).dtype == torch.bfloat16


def test_a_learned_task_cannot_begin_again():
    model = learn_nothing(MaskedModel(mlp(), seed=0), 4)
    with pytest.raises(ValueError, match=r"task 4 is learned already.*learned: \[4\]"):
        model.begin(4)
    with pytest.raises(RuntimeError, match="without begin"):
        model.commit()


def test_values_that_are_not_finite_are_never_stored():
    model = learn_nothing(MaskedModel(mlp(), seed=0), 0)
    before = outputs(model, inputs(), 0)
    model.begin(1)
    model.learn_scores(selection(model.masked_shapes, density=0.3))
    next(iter(model.subnetworks.scores.values())).data[0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"task 1 learned NaN or infinite values and was not stored"):
        model.commit()
    assert model.task_keys == [0]
    assert torch.equal(outputs(model, inputs(), 0), before)


def test_capacity_and_overlap_count_what_masks_hold():
    model = MaskedModel(mlp(), seed=0)
    for key in range(3):
        learn_nothing(model, key)
    masks = [model.subnetworks.task_mask(key) for key in range(3)]
    for name, layer in model.capacity().items():
        uses = torch.stack([mask[name] for mask in masks]).sum(0)
        assert (layer.total, layer.owned, layer.free, layer.reused) == (
            uses.numel(), int((uses > 0).sum()), int((uses == 0).sum()), int((uses > 1).sum()),
        )  # fmt: skip
    shared = sum(int((masks[2][n] & (masks[0][n] | masks[1][n])).sum()) for n in masks[0])
    kept = sum(int(m.sum()) for m in masks[2].values())
    assert model.overlap() == {0: 0.0, 1: pytest.approx(0.3, abs=0.1), 2: shared / kept}


def test_forgetting_frees_exactly_what_only_that_task_owned():
    model = MaskedModel(mlp(), seed=0)
    for key in range(3):
        learn_nothing(model, key)
    x = inputs()
    kept = {key: outputs(model, x, key) for key in (0, 2)}
    frozen = {n: w.clone() for n, w in model.subnetworks.frozen.items()}
    mask, others = model.subnetworks.task_mask(1), model.subnetworks.owned([0, 2])
    freed = model.forget(1)
    assert freed == sum(int((mask[n] & ~others[n]).sum()) for n in mask)
    for key, before in kept.items():
        assert torch.equal(outputs(model, x, key), before)
    for name, weight in model.subnetworks.frozen.items():
        changed = weight != frozen[name]
        assert not (changed & ~(mask[name] & ~others[name])).any()
    with pytest.raises(KeyError, match=r"task 1 is not learned; learned tasks: \[0, 2\]"):
        model.forget(1)
    learn_nothing(model, 1)
    assert model.task_keys == [0, 2, 1]
    for key, before in kept.items():
        assert torch.equal(outputs(model, x, key), before)


def test_scores_do_not_depend_on_the_order_of_tasks():
    model = MaskedModel(mlp(), seed=3)
    a, b = model.fresh_scores(5), model.fresh_scores(6)
    again = MaskedModel(mlp(), seed=3).fresh_scores(5)
    assert all(torch.equal(a[n], again[n]) and not torch.equal(a[n], b[n]) for n in a)


def test_export_is_a_plain_network_that_trains():
    model = learn_nothing(MaskedModel(ResNet(), seed=0), 0)
    net = model.export(0)
    assert type(net) is ResNet
    net(inputs()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    x = inputs()
    before = outputs(model, x, 0)
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    assert torch.equal(outputs(model, x, 0), before)


def test_a_state_of_a_multi_head_model_loads_into_a_fresh_one():
    def build():
        return SupSup(MultiHead(plain_mlp(36, (20,), 2)), density=0.3, train_mb_size=16, evaluator=None, seed=0)

    model, fresh = train_all(build(), class_stream(3)).model, build().model
    fresh.load_state_dict(model.state_dict())
    for key in range(3):
        assert torch.equal(outputs(fresh, inputs(), key), outputs(model, inputs(), key))


def test_scores_may_start_in_the_order_of_the_weights():
    net = nn.Linear(8, 4)
    model = MaskedModel(net, init="keep", scores="magnitude", seed=0)
    random = MaskedModel(net, init="keep", seed=0)
    scores, drawn = model.fresh_scores(3)["weight"], random.fresh_scores(3)["weight"]
    assert torch.equal(scores.abs().flatten().argsort(), net.weight.abs().flatten().argsort())
    assert torch.equal(scores.flatten().sort().values, drawn.flatten().sort().values)
    assert torch.equal(model.fresh_scores(-1)["weight"], random.fresh_scores(-1)["weight"]), "no task's: random"
    with pytest.raises(ValueError, match="scores must be 'random' or 'magnitude'; got 'large'"):
        MaskedModel(net, scores="large")


def test_scores_and_weights_learn_together_where_no_task_owns_them():
    model = MaskedModel(mlp(), seed=0)
    model.begin(0, 0)
    model.subnetworks.set_scores(model.fresh_scores(0))
    select = selection(model.masked_shapes, density=0.5)
    model.learn_scores(select)
    model.commit()
    before = outputs(model, inputs(), 0)
    owned = model.subnetworks.owned()
    model.begin(1, 1)
    model.learn_scores(select, trainable={name: ~m for name, m in owned.items()})
    optimizer = SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(inputs(), 1).square().sum().backward()
        optimizer.step()
    frozen = {name: w.clone() for name, w in model.subnetworks.frozen.items()}
    learned = outputs(model, inputs(), 1)
    model.commit()
    assert torch.equal(outputs(model, inputs(), 1), learned)
    assert torch.equal(outputs(model, inputs(), 0), before)
    for name, weight in model.subnetworks.frozen.items():
        assert torch.equal(weight[owned[name]], frozen[name][owned[name]])
        assert not torch.equal(weight[~owned[name]], frozen[name][~owned[name]])


def test_a_task_with_nothing_of_its_own_adds_no_module():
    """Each new task searches all modules for parameters and moves them, so more modules would make this slower."""
    model = MaskedModel(mlp(outputs=4), seed=0)
    learn_nothing(model, 0)
    before = len(list(model.modules()))
    for key in range(1, 5):
        learn_nothing(model, key)
    assert len(list(model.modules())) == before
    model.forget(2)
    other = MaskedModel(mlp(outputs=4), seed=1)
    other.load_state_dict(model.state_dict())
    assert len(list(other.modules())) == before
    assert other.task_keys == [0, 1, 3, 4]
    assert other.bytes_per_task() == model.bytes_per_task()


def test_the_short_form_of_a_model_and_a_strategy_tells_what_they_hold():
    strategy = SupSup(mlp(), density=0.3, train_epochs=1, train_mb_size=16, evaluator=None, seed=0)
    assert repr(strategy.model) == "MaskedModel(Sequential: 1,488 masked weights in 3 layers, 0 tasks)"
    train_all(strategy, class_stream(2))
    assert repr(strategy.model).endswith("2 tasks, 190 bytes per task)")
    assert repr(strategy).startswith("SupSup(density=0.3, ")


def test_a_method_says_when_it_needs_the_task():
    assert SupSup.scenario == Scenario(training=True, test=False)
    assert SupSupNNs.scenario == Scenario(training=False, test=False)


def test_an_equal_selection_of_the_next_task_keeps_what_was_recorded():
    model = MaskedModel(mlp(), seed=0)
    first, equal, other = (selection(model.masked_shapes, density=density) for density in (0.3, 0.3, 0.5))
    used = []
    for key, select in enumerate((first, equal, other)):
        model.begin(key, key)
        model.set_scores(model.fresh_scores(key))
        model.learn_scores(select)
        used.append(model.subnetworks.select)
        model.commit()
    assert used[0] is used[1] is first
    assert used[2] is other


def test_the_overlap_of_a_task_that_is_not_learned():
    with pytest.raises(KeyError, match="task 7 is not learned; learned tasks: "):
        learn_nothing(MaskedModel(mlp(), seed=0), 0).overlap_of(7)

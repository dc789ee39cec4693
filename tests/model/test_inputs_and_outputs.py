"""Networks with inputs and outputs of any form, by position and by keyword, for one task and for several."""

from types import SimpleNamespace

import pytest
import torch
from avalanche.models import MTSimpleMLP, MultiTaskModule
from torch import nn

from avalanche_supermask import MaskedModel, load, nested, save
from avalanche_supermask.inference import Entropy, MaxLogit
from avalanche_supermask.logits import ABSENT, find_logits
from avalanche_supermask.selection import selection
from tests.streams import class_stream


class Net(nn.Module):
    """A network that takes a tensor, a dictionary or two tensors, and returns outputs in a given form."""

    def __init__(self, form="tensor"):
        super().__init__()
        self.form = form
        self.hidden, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, a, b=None, *, scale=1.0, texts=None):
        if isinstance(a, dict):
            a, b = a["a"], a["b"]
        a = a if b is None else torch.cat([a, b], dim=1)
        h = self.hidden(a * scale).relu()
        o = self.out(h)
        forms = {
            "tuple": (o, h),
            "dict": {"logits": o, "h": h, "loss": o.mean(), "none": None},
            "later": {"h": h, "o": o},
        }
        return forms.get(self.form, o)


def learned(net, tasks=3, **options):
    model = MaskedModel(net, seed=0, **options)
    for key in range(tasks):
        model.subnetworks.set_scores(model.fresh_scores(key))
        model.begin(key, key)
        model.learn_scores(selection(model.masked_shapes, density=0.5))
        model.commit()
    return model.eval()


X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0, 1, 0, 0, 2, 1, 1])


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_keywords_reach_the_network_and_mixed_batches_equal_single_ones(form):
    model = learned(Net(form))
    plain = model.export(1)
    a, b = X[:, :3], X[:, 3:]
    calls = {
        "position": ((X,), {}),
        "dictionary": (({"a": a, "b": b},), {}),
        "keywords": ((), {"a": a, "b": b, "scale": 0.5}),
        "both": ((a,), {"b": b, "texts": list("abcdefgh")}),
    }
    with torch.no_grad():
        for args, keywords in calls.values():
            single = [model(*args, **keywords, task_labels=key) for key in range(3)]
            for one, same in zip(nested.tensors(single[1]), nested.tensors(plain(*args, **keywords)), strict=True):
                assert torch.equal(one, same)
            mixed = model(*args, **keywords, task_labels=LABELS)
            assert type(mixed) is type(single[0])
            for key in range(3):
                rows = key == LABELS
                for whole, part in zip(nested.tensors(mixed), nested.tensors(single[key]), strict=True):
                    if whole.dim():
                        assert torch.allclose(whole[rows], part[rows], atol=1e-6)
    if form == "dict":
        assert mixed["none"] is None
        assert mixed["loss"].dim() == 0


def test_labels_by_position_by_keyword_and_without():
    model = learned(Net())
    with torch.no_grad():
        assert torch.equal(model(X, 1), model(X, task_labels=1))
        assert torch.equal(model(X, torch.tensor([1])), model(X, 1))
        assert torch.equal(model(X), model(X, 2)), "the latest task"
        assert list(model(a=X, task_labels=None)) == [0, 1, 2]
        assert torch.equal(model(X[:, :3], 1, X[:, 3:]), model(X, 1)), "what follows the labels is the network's"


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m: m(X[:, :3], X[:, 3:]), TypeError, r"expected task labels as the second argument.*\(8, 3\).*keyword"),
        (lambda m: m(X, torch.ones(8, 6, dtype=torch.long)), TypeError, r"int64 of shape \(8, 6\)"),
        (lambda m: m(), TypeError, "called without an input"),
        (lambda m: m(X, LABELS[:4]), ValueError, "got 4 task labels for a batch of 8 samples; expected one label"),
    ],
)
def test_what_cannot_be_meant_is_said(call, error, said):
    with pytest.raises(error, match=said):
        call(learned(Net()))


class Labelled(MultiTaskModule):
    """A network that takes labels, by position or by keyword."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, 2)

    def forward(self, a=None, task_labels=None, *, scale=1.0):
        return self.out(a * scale) + task_labels


def test_multi_task_networks_get_their_label_whatever_the_call():
    model = learned(Labelled())
    with torch.no_grad():
        difference = model(X, 2) - model.net.out(X)
        assert torch.equal(model(a=X, task_labels=2), model(X, 2))
        assert torch.equal(model(a=X, scale=1.0, task_labels=LABELS), model(X, LABELS))
    assert difference.shape == (8, 2)


def test_tasks_of_different_widths_share_a_batch_and_no_class_appears_from_nowhere():
    net = MTSimpleMLP(input_size=36, hidden_size=8)
    model = MaskedModel(net, seed=0)
    stream = class_stream(2)
    for key, width in ((0, 2), (1, 4)):
        experience = stream.train_stream[key]
        experience = SimpleNamespace(
            classes_in_this_experience=list(range(width)), task_labels=[key], dataset=experience.dataset
        )
        model.train()
        model.adaptation(experience)
        model.subnetworks.set_scores(model.fresh_scores(key))
        model.begin(key, key)
        model.learn_scores(selection(model.masked_shapes, density=0.5))
        model.commit()
    model.eval()
    with torch.no_grad():
        mixed = model(torch.randn(4, 36), torch.tensor([0, 1, 0, 1]))
    assert mixed.shape == (4, 4)
    assert bool((mixed[[0, 2], 2:] == ABSENT).all())
    assert int(mixed[[0, 2]].argmax(dim=1).max()) < 2


@pytest.mark.parametrize("how", ["entropy", "expected_entropy", "max_logit", "oneshot", "binary"])
@pytest.mark.parametrize(("form", "where"), [("tuple", None), ("dict", None), ("later", "o"), ("later", 1)])
def test_inference_finds_the_logits(how, form, where):
    where = (lambda out: out["o"]) if where == 1 else where
    model, plain = learned(Net(form), logits=where), learned(Net())
    model.task_inference = plain.task_inference = how
    a, b = X[:, :3], X[:, 3:]
    expected = plain(X)
    for args, keywords in (((X,), {}), (({"a": a, "b": b},), {}), ((), {"a": a, "b": b})):
        answer = model(*args, **keywords)
        assert torch.equal(model.inferred_task, plain.inferred_task)
        assert torch.allclose(find_logits(answer, where), expected, atol=1e-6)


class Dense(nn.Module):
    """A network with outputs for every pixel; the dimension of the classes is the second or the last."""

    def __init__(self, last=False):
        super().__init__()
        self.last = last
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        out = self.b(self.a(x).relu())
        return out.movedim(1, -1) if self.last else out


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_dense_outputs_are_compared_over_their_classes(per):
    x = torch.randn(5, 1, 6, 6)
    model = learned(Dense())
    with torch.no_grad():
        outs = torch.stack([model(x, key) for key in range(3)])  # (tasks, batch, classes, height, width)
        p = outs.softmax(dim=2)
        by_hand = {"H": -(p * p.log()).sum(dim=2).mean(dim=(2, 3)), "max": -outs.amax(dim=2).mean(dim=(2, 3))}
    for costs, inference in ((by_hand["H"], Entropy(per=per)), (by_hand["max"], MaxLogit(per=per))):
        model.task_inference = inference
        answer = model(x)
        best = costs.argmin(dim=0) if per == "sample" else costs.mean(dim=1).argmin().expand(5)
        assert model.inferred_task.tolist() == best.tolist()
        assert torch.allclose(answer, outs[best, torch.arange(5)], atol=1e-5)


def test_one_shot_on_dense_outputs_follows_the_gradient_of_the_entropy_over_classes():
    x = torch.randn(4, 1, 6, 6)
    model = learned(Dense())
    masks = [model.subnetworks.task_mask(key) for key in model.task_keys]
    expected = []
    for sample in x.split(1):
        a = torch.full((3,), 1 / 3, requires_grad=True)
        weights = {n: w * sum(a[i] * masks[i][n] for i in range(3)) for n, w in model.subnetworks.frozen.items()}
        p = torch.func.functional_call(model.net, {**weights, **model.shared}, (sample,)).softmax(dim=1)
        loss = -(p * p.log()).sum(dim=1).mean()
        expected.append(int(torch.autograd.grad(loss, a)[0].argmin()))
    model.task_inference = "oneshot"
    model(x)
    assert model.inferred_task.tolist() == expected


def test_classes_may_be_last(tmp_path):
    x = torch.randn(5, 1, 6, 6)
    first, last = learned(Dense()), learned(Dense(last=True))
    last.class_dimension = 3
    first.task_inference = last.task_inference = "entropy"
    first(x)
    out = last(x)
    assert torch.equal(first.inferred_task, last.inferred_task)
    assert last.logits_of(out).shape == (5, 4, 6, 6)
    save(last, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", Dense(last=True))
    assert again.class_dimension == 3
    assert torch.equal(again(x), out)


def test_logits_that_are_named_are_named_in_the_file_too(tmp_path):
    model = learned(Net("later"), logits="o")
    save(model, tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors", Net("later")).logits == "o"


@pytest.mark.parametrize("how", ["entropy", "oneshot"])
def test_outputs_without_classes_have_no_entropy(how):
    model = learned(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)))
    model.task_inference = how
    with pytest.raises(ValueError, match=r"two classes or more; got \(.*, 1\): use task_inference='given'"):
        model(X)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (len, "got builtin_function_or_method: where a strategy overrides mb_task_id, it must be a property"),
        ("task", r"got str: pass the task's number, as in model\(x, 0\)"),
        (object(), "got object: pass the task's number"),
    ],
)
def test_what_cannot_be_task_labels_is_said_with_what_to_do(labels, said):
    model = MaskedModel(nn.Linear(4, 2), seed=0)
    with pytest.raises(TypeError, match=f"expected task labels as the second argument.*{said}"):
        model(torch.randn(3, 4), labels)

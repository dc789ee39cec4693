import copy

import pytest
import torch
from avalanche.training.plugins import EWCPlugin, GEMPlugin, LwFPlugin, ReplayPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.optim import SGD

from avalanche_supermask import (
    CLNP,
    CachedTensors,
    ExSSNeT,
    ImpressLearn,
    SupSup,
    load,
    maybe_load_checkpoint,
    save,
    save_checkpoint,
)
from avalanche_supermask.text import EncoderClassifier, TokenFeatures, text_cnn, tokenise
from tests.test_compatibility import learns_without_forgetting
from tests.text.conftest import make_encoder

COMMON = {"train_mb_size": 16, "eval_mb_size": 32, "evaluator": None}
METHODS = {
    "supsup": lambda net: SupSup(net, density=0.5, mask_lr=0.02, train_epochs=10, seed=0, **COMMON),
    "exssnet": lambda net: ExSSNeT(net, density=0.5, mask_lr=0.02, train_epochs=13, weight_epochs=3, seed=0, **COMMON),
    "kkt": lambda net: ExSSNeT(
        net, density=0.5, mask_lr=0.02, train_epochs=13, weight_epochs=3, seed=0, kkt="knn_best", **COMMON
    ),
    "impresslearn": lambda net: ImpressLearn(
        net, n_basis=2, density=0.5, mask_lr=0.02, train_epochs=10, seed=0, **COMMON
    ),
    "clnp": lambda net: CLNP(net, train_epochs=8, finetune_epochs=4, weight_lr=5e-3, seed=0, **COMMON),
}


def cnn(encoder, classes=2):
    torch.manual_seed(0)
    return text_cnn(encoder, classes, filters=48)


def batch(stream, task=0, n=8):
    return torch.stack([stream.test_stream[task].dataset[i][0] for i in range(n)])


def accuracy(model, experience, key):
    x, y = (torch.stack([torch.as_tensor(s[i]) for s in experience.dataset]) for i in (0, 1))
    model.eval()
    with torch.no_grad():
        return float((model(x, key).argmax(dim=1) == y).float().mean())


def test_padding_changes_no_output(encoder, tokenizer):
    net = cnn(encoder)
    one, long = tokenise(["dog the"], tokenizer), tokenise(["dog the", "cat of to and red blue sun"], tokenizer)
    torch.testing.assert_close(net(long)[:1], net(one))
    with torch.no_grad():
        pooled = EncoderClassifier(make_encoder(), 2).eval()
        torch.testing.assert_close(pooled(long)[:1], pooled(one))


def test_the_frozen_encoder_is_no_part_of_the_parameters(encoder):
    net = cnn(encoder)
    assert [n for n, _ in net.named_parameters()] == [*(f"1.convs.{i}.weight" for i in range(3)), "2.weight", "2.bias"]
    assert copy.deepcopy(net)[0].features is net[0].features


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_texts_and_forgets_nothing(method, encoder, stream):
    strategy = METHODS[method](cnn(encoder))
    learns_without_forgetting(strategy, stream, batch(stream))
    found = [accuracy(strategy.model, e, e.task_label) for e in stream.test_stream]
    assert min(found[:2]) > 0.7, found


@pytest.mark.parametrize(
    "plugins",
    [lambda: [EWCPlugin(1.0)], lambda: [LwFPlugin(1.0, 2.0)], lambda: [ReplayPlugin(20)], lambda: [GEMPlugin(5, 0.5)]],
    ids=["ewc", "lwf", "replay", "gem"],
)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "avalanche's loader"])
def test_avalanches_own_strategies_learn_texts(plugins, cached, encoder, stream):
    net = cnn(encoder)
    extra = [CachedTensors()] if cached else []
    strategy = Naive(
        model=net, optimizer=SGD(net.parameters(), lr=0.1), plugins=[*extra, *plugins()], train_epochs=2,
        criterion=nn.CrossEntropyLoss(), **COMMON,
    )  # fmt: skip
    for experience in stream.train_stream:
        strategy.train(experience)
    x, y = (torch.stack([torch.as_tensor(s[i]) for s in stream.test_stream[2].dataset]) for i in (0, 1))
    with torch.no_grad():
        assert (net.eval()(x).argmax(dim=1) == y).float().mean() > 0.85, "at least 0.93 was measured"


@pytest.mark.parametrize("inference", ["oneshot", "entropy", "expected_entropy", "max_logit"])
def test_the_task_of_a_text_is_inferred(inference, encoder, stream):
    strategy = METHODS["supsup"](cnn(encoder))
    for experience in stream.train_stream:
        strategy.train(experience)
    strategy.model.task_inference = inference
    strategy.model.eval()
    x = batch(stream)
    with torch.no_grad():
        assert strategy.model(x, torch.zeros(len(x))).shape == (8, 2)
    assert set(strategy.model.inferred_task.tolist()) <= {0, 1, 2}


def test_export_file_and_checkpoint(encoder, stream, tmp_path):
    strategy = METHODS["exssnet"](cnn(encoder))
    for experience in stream.train_stream[:2]:
        strategy.train(experience)
    model, x = strategy.model.eval(), batch(stream)
    with torch.no_grad():
        expected = model(x, 1)
        assert torch.equal(model.export(1).eval()(x), expected)
        save(model, tmp_path / "model.safetensors")
        assert torch.equal(load(tmp_path / "model.safetensors", cnn(encoder)).eval()(x, 1), expected)
    save_checkpoint(strategy, tmp_path / "run.pkl")
    strategy.train(stream.train_stream[2])
    again, done = maybe_load_checkpoint(METHODS["exssnet"](cnn(encoder)), tmp_path / "run.pkl")
    assert done == 2
    again.train(stream.train_stream[2])
    again.model.eval()
    strategy.model.eval()
    with torch.no_grad():
        assert torch.equal(again.model(x, 1), expected)
        assert torch.equal(again.model(x, 2), strategy.model(x, 2))


@pytest.mark.parametrize("per_task", ["none", "norm"])
@pytest.mark.parametrize("method", ["supsup", "exssnet", "impresslearn"])
def test_masks_inside_the_encoder_keep_its_weights(method, per_task, stream):
    encoder = make_encoder()
    net = EncoderClassifier(encoder, 2)
    pretrained = {n: p.detach().clone() for n, p in net.named_parameters()}
    options = {"init": "keep", "per_task": per_task, "exclude": [r".*embeddings\..*"], "seed": 0, **COMMON}
    make = {
        "supsup": lambda: SupSup(net, density=0.8, train_epochs=2, scores="magnitude", **options),
        "exssnet": lambda: ExSSNeT(net, density=0.3, train_epochs=2, weight_epochs=1, **options),
        "impresslearn": lambda: ImpressLearn(net, n_basis=2, density=0.5, train_epochs=2, **options),
    }
    strategy = make[method]()
    learns_without_forgetting(strategy, stream, batch(stream))
    model = strategy.model
    if method != "exssnet":
        assert all(torch.equal(w, pretrained[n]) for n, w in model.subnetworks.frozen.items())
    assert "encoder.encoder.layer.0.attention.self.query.weight" in model.masked_names
    assert not any("embeddings" in name for name in model.masked_names)


def test_features_of_a_network_move_with_the_texts(encoder, stream):
    shared = TokenFeatures(encoder)
    first, second = text_cnn(shared, 2, filters=4), text_cnn(shared, 3, filters=4)
    first(batch(stream))
    assert second[0].features is shared
    assert len(shared) == len({tuple(row[0].tolist()) for row in batch(stream)})

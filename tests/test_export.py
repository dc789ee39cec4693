"""`export` returns an ordinary network for every tool: `torch.export`, ONNX, a state dict."""

import warnings

import pytest
import torch

from tests.building import METHODS, build, networks_of
from tests.streams import NETWORKS, class_stream, inputs, train_all

PAIRS = [(m, n) for m in METHODS for n in networks_of(m) if n in NETWORKS]
pytestmark = pytest.mark.filterwarnings("ignore:task .. no free unit is left")


def exported(method, network):
    strategy = train_all(build(method, NETWORKS[network]()), class_stream(2))
    return strategy.export(1, slim=True) if method == "clnp" else strategy.model.export(1)


@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_torch_export_answers_alike(method, network):
    net, x = exported(method, network), inputs(4)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # warnings of the exporter
        program = torch.export.export(net, (x,))
        assert torch.allclose(program.module()(x), net(x), atol=1e-6)


@pytest.mark.parametrize(("method", "network"), [("exssnet", "mlp"), ("exssnet", "resnet"), ("clnp", "lenet")])
def test_onnx_answers_alike(method, network, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    net, x, path = exported(method, network), inputs(4), tmp_path / "task.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), net(x), atol=1e-5)

"""Networks with recurrent layers can be differentiated in evaluation mode, and no setting of the user changes."""

import pytest
import torch
from torch import nn

from avalanche_supermask.recurrent_gradients import differentiable


@pytest.mark.parametrize(
    ("net", "enabled"), [(nn.Sequential(nn.Linear(2, 2)), True), (nn.Sequential(nn.Flatten(), nn.GRU(2, 2)), False)]
)
def test_cudnn_is_off_for_recurrent_layers_only(net, enabled):
    assert torch.backends.cudnn.enabled
    with differentiable(net):
        assert torch.backends.cudnn.enabled == enabled
    assert torch.backends.cudnn.enabled
    with pytest.raises(ValueError, match="failed"), differentiable(net):
        raise ValueError("failed")
    assert torch.backends.cudnn.enabled


def test_other_settings_of_cudnn_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with differentiable(nn.LSTM(2, 2)):
        assert torch.backends.cudnn.benchmark


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "rnn"), reason="this PyTorch has one precision for all layers")
def test_precisions_may_differ_between_kinds_of_layers(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    with differentiable(nn.LSTM(2, 2)):
        assert not torch.backends.cudnn.enabled

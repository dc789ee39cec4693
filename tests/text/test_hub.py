"""Without transformers, and for inputs that are no texts, the error says in one line what to do."""

import sys

import pytest
import torch

from avalanche_supermask.text import EncoderClassifier, FrozenEncoder, text_stream


def test_without_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    columns = {"text": ["a", "b"], "label": ["0", "1"]}
    for use in (
        lambda: FrozenEncoder("some/encoder"),
        lambda: EncoderClassifier("some/encoder", 2),
        lambda: text_stream({"t": (columns, columns)}, tokenizer="some/encoder"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'avalanche-supermask\[text\]'"):
            use()


@pytest.mark.parametrize("x", [torch.rand(2, 2, 5), torch.ones(2, 5, dtype=torch.long)], ids=["floats", "no mask"])
def test_what_is_no_text_is_refused(x, encoder):
    for net in (FrozenEncoder(encoder), EncoderClassifier(encoder, 2)):
        with pytest.raises(ValueError, match=r"expected texts as integers \(batch, 2, length\).*got torch"):
            net(x)

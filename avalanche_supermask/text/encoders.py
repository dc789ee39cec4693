"""Networks on texts: a convolutional network on a frozen encoder (ExSSNeT's for text), or the encoder itself.

The frozen encoder is kept out of the network's parameters on purpose: it is a feature extractor, like a tokenizer. So
no optimizer, penalty or mask meets its weights, and checkpoints do not carry them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from avalanche_supermask.text.features import TokenFeatures, check_texts
from avalanche_supermask.text.hub import pretrained

__all__ = ["ConvPool", "EncoderClassifier", "FrozenEncoder", "text_cnn"]


class FrozenEncoder(nn.Module):
    """Token features of an encoder that never trains, each text encoded once.

    Args:
        encoder: a module called as Hugging Face's models are, or a model's name or folder (see `TokenFeatures`); or a
            `TokenFeatures` that several networks share.

    Shapes: integers ``(batch, 2, length)`` in, float32 ``(batch, longest, width)`` out, zero where there is no token.
    """

    def __init__(self, encoder: TokenFeatures | nn.Module | str | Path) -> None:
        super().__init__()
        # In a tuple, or torch would register the encoder's module.
        self._features = (encoder if isinstance(encoder, TokenFeatures) else TokenFeatures(encoder),)

    @property
    def features(self) -> TokenFeatures:
        """Of the texts met so far."""
        return self._features[0]

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.features(x)


class ConvPool(nn.Module):
    """Convolutions of several widths over the tokens, each followed by ReLU and the maximum over all places.

    Args:
        inputs: width of a token's features.
        filters: of each convolution.
        widths: of the convolutions, in tokens.

    Shapes: ``(batch, tokens, inputs)`` in, ``(batch, filters * len(widths))`` out. Features are zero where there is
    no token, and convolutions have no bias, so a text's output does not depend on how far it was padded.
    """

    def __init__(self, inputs: int, filters: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(inputs, filters, w, padding=w - 1, bias=False) for w in widths)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x.transpose(1, 2)
        return torch.cat([conv(x).relu().amax(dim=2) for conv in self.convs], dim=1)


def text_cnn(
    encoder: TokenFeatures | nn.Module | str | Path,
    classes: int,
    *,
    filters: int = 200,
    widths: Sequence[int] = (3, 4, 5),
) -> nn.Sequential:
    """ExSSNeT's network for text (Kim 2014): a frozen encoder, convolutions over its tokens, an output layer.

    Args:
        encoder: a module called as Hugging Face's models are, a model's name or folder, or a `TokenFeatures`.
        classes: outputs.
        filters: of each convolution (default 200, the published code's).
        widths: of the convolutions, in tokens (default 3, 4 and 5, the published code's).

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> net = text_cnn(BertModel(BertConfig(vocab_size=50, **sizes)), classes=3, filters=8)
        >>> net(torch.ones(4, 2, 6, dtype=torch.long)).shape, [name for name, _ in net.named_parameters()][:2]
        (torch.Size([4, 3]), ['1.convs.0.weight', '1.convs.1.weight'])
    """
    frozen = FrozenEncoder(encoder)
    return nn.Sequential(
        frozen, ConvPool(frozen.features.width, filters, widths), nn.Linear(filters * len(widths), classes)
    )


class EncoderClassifier(nn.Module):
    """An encoder with an output layer on the mean of its tokens: to be masked inside, with ``init="keep"``.

    Args:
        encoder: called as Hugging Face's models are; or a model's name or folder.
        classes: outputs.

    Shapes: integers ``(batch, 2, length)`` in, logits ``(batch, classes)`` out; columns that are padding in the whole
    batch are cut.
    """

    def __init__(self, encoder: nn.Module | str | Path, classes: int) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            encoder = pretrained(str(encoder))
        self.encoder = encoder
        self.fc = nn.Linear(int(encoder.config.hidden_size), classes)  # type: ignore[union-attr,arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        check_texts(x)
        if not _is_compiling():  # a traced network has one length
            x = x[:, :, : max(1, int(x[:, 1].sum(dim=1).max()))]
        ids, mask = x[:, 0], x[:, 1]
        tokens = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (batch, length, width)
        weight = mask.to(tokens.dtype)[:, :, None]
        out: Tensor = self.fc((tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1))
        return out


def _is_compiling() -> bool:
    known = getattr(torch.compiler, "is_compiling", None)  # from PyTorch 2.2 on
    return bool(known and known())

"""Networks for texts: a convolutional network on a frozen encoder (ExSSNeT's network for text), or a whole encoder.

The parameters of the frozen encoder are deliberately not parameters of the network, because the encoder is a feature
extractor, like a tokenizer. So optimizers, penalties and masks do not affect its weights, and checkpoints do not
contain them.
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
    """A module that returns the token features of an encoder that never trains; each text is encoded only once.

    Args:
        encoder: a module that is called like Hugging Face's models, or the name or folder of such a model; or a
            `TokenFeatures` object, which several networks can share.

    Shapes: the input is integers ``(batch, 2, length)``; the output is float32 ``(batch, longest, width)``, and it is
    zero at places without a token.
    """

    def __init__(self, encoder: TokenFeatures | nn.Module | str | Path) -> None:
        super().__init__()
        # The tuple prevents torch from registering the encoder as a submodule.
        self._features = (encoder if isinstance(encoder, TokenFeatures) else TokenFeatures(encoder),)

    @property
    def features(self) -> TokenFeatures:
        """The token features, with those of all texts so far in its memory."""
        return self._features[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return the token features of a batch of texts."""
        return self.features(x)


class ConvPool(nn.Module):
    """Convolutions of several widths over the tokens, each followed by ReLU and the maximum over all places.

    Args:
        inputs: number of features of a token.
        filters: number of filters of each convolution.
        widths: widths of the convolutions, in tokens.

    Shapes: the input is ``(batch, tokens, inputs)``; the output is ``(batch, filters * len(widths))``. Features are
    zero at places without a token, and the convolutions have no bias. So the output for a text does not depend on its
    padding.
    """

    def __init__(self, inputs: int, filters: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(inputs, filters, w, padding=w - 1, bias=False) for w in widths)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled outputs of all convolutions."""
        x = x.transpose(1, 2)
        return torch.cat([conv(x).relu().amax(dim=2) for conv in self.convs], dim=1)


def text_cnn(
    encoder: TokenFeatures | nn.Module | str | Path,
    classes: int,
    *,
    filters: int = 200,
    widths: Sequence[int] = (3, 4, 5),
) -> nn.Sequential:
    """Return ExSSNeT's network for text (Kim 2014): a frozen encoder, convolutions over its tokens, an output layer.

    Args:
        encoder: a module that is called like Hugging Face's models, the name or folder of such a model, or a
            `TokenFeatures` object.
        classes: number of outputs.
        filters: number of filters of each convolution (default 200, as in the published code).
        widths: widths of the convolutions, in tokens (default 3, 4 and 5, as in the published code).

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
    """An encoder with an output layer on the mean of its tokens; masks with ``init="keep"`` can select its weights.

    Args:
        encoder: a module that is called like Hugging Face's models, or the name or folder of such a model.
        classes: number of outputs.

    Shapes: the input is integers ``(batch, 2, length)``; the output is logits ``(batch, classes)``. Columns that are
    padding in the whole batch are removed.
    """

    def __init__(self, encoder: nn.Module | str | Path, classes: int) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            encoder = pretrained(str(encoder))
        self.encoder = encoder
        self.fc = nn.Linear(int(encoder.config.hidden_size), classes)  # type: ignore[union-attr,arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(batch, classes)`` of a batch of texts."""
        check_texts(x)
        if not _is_compiling():  # a traced network has one length
            x = x[:, :, : max(1, int(x[:, 1].sum(dim=1).max()))]
        ids, mask = x[:, 0], x[:, 1]
        tokens = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (batch, length, width)
        weight = mask.to(tokens.dtype)[:, :, None]
        out: Tensor = self.fc((tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1))
        return out


def _is_compiling() -> bool:
    known = getattr(torch.compiler, "is_compiling", None)  # exists since PyTorch 2.2
    return bool(known and known())

"""Text: streams of labelled texts, networks on top of frozen encoders, and encoders that are masked themselves.

It needs the extra ``text``: ``pip install 'avalanche-supermask[text]'``.

A batch of texts is one integer tensor ``(batch, 2, length)`` with the token ids and the attention mask. So Avalanche's
loaders, buffers and plugins handle texts like images, and strategies need no special code for them.
"""

from avalanche_supermask.text.encoders import EncoderClassifier, FrozenEncoder, text_cnn
from avalanche_supermask.text.features import TokenFeatures
from avalanche_supermask.text.streams import text_stream, tokenise

__all__ = ["EncoderClassifier", "FrozenEncoder", "TokenFeatures", "text_cnn", "text_stream", "tokenise"]

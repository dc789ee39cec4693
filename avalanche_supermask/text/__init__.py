"""Text: streams of labelled texts, frozen encoders with a network on top, and encoders that are masked themselves.

Needs the extra ``text``: ``pip install 'avalanche-supermask[text]'``.

A batch of texts is one integer tensor ``(batch, 2, length)``: token ids, and the attention mask. So texts go through
Avalanche's loaders, buffers and plugins as images do, and no strategy has to know of them.
"""

from avalanche_supermask.text.encoders import EncoderClassifier, FrozenEncoder, text_cnn
from avalanche_supermask.text.features import TokenFeatures
from avalanche_supermask.text.streams import text_stream, tokenise

__all__ = ["EncoderClassifier", "FrozenEncoder", "TokenFeatures", "text_cnn", "text_stream", "tokenise"]

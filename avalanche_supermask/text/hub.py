"""Load encoders and tokenizers by name or folder, with Hugging Face's ``transformers``."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["pretrained", "pretrained_tokenizer"]


def pretrained(name: str) -> nn.Module:
    """Return the Hugging Face model with a name or in a folder.

    Raises:
        ImportError: ``transformers`` is not installed.
    """
    transformers = _transformers()
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # loading takes about a second, and a leaderboard has its own bar
    try:
        model: nn.Module = transformers.AutoModel.from_pretrained(name)
    finally:
        if shown:
            logging.enable_progress_bar()
    return model


def pretrained_tokenizer(name: str) -> Any:
    """Return the Hugging Face tokenizer with a name or in a folder.

    Raises:
        ImportError: ``transformers`` is not installed.
    """
    return _transformers().AutoTokenizer.from_pretrained(name)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "encoders and tokenizers by name need transformers: pip install 'avalanche-supermask[text]'"
        ) from error
    return transformers

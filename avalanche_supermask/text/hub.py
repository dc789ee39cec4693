"""Loads encoders and tokenizers by name or folder; Hugging Face's ``transformers`` is needed for nothing else."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["pretrained", "pretrained_tokenizer"]


def pretrained(name: str) -> nn.Module:
    """Hugging Face's model of a name or in a folder.

    Raises:
        ImportError: ``transformers`` is not installed.
    """
    transformers = _transformers()
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # a second of loading needs none, and a leaderboard has its own
    try:
        model: nn.Module = transformers.AutoModel.from_pretrained(name)
    finally:
        if shown:
            logging.enable_progress_bar()
    return model


def pretrained_tokenizer(name: str) -> Any:
    """Hugging Face's tokenizer of a name or in a folder.

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

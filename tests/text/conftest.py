"""A small vocabulary, a tiny untrained encoder, and three tasks in which one word determines the label."""

import random

import pytest
import torch

from avalanche_supermask.text import text_stream

WORDS = ["dog", "cat", "red", "blue", "sun", "moon", "one", "two", "the", "of", "to", "and"]


class WordTokenizer:
    """A tokenizer with the interface of Hugging Face's; unknown words are an error."""

    def __call__(self, texts, *, truncation, max_length):
        assert truncation
        return {"input_ids": [[1 + WORDS.index(w) for w in text.split()][:max_length] for text in texts]}


@pytest.fixture(scope="session")
def tokenizer():
    return WordTokenizer()


def make_encoder(seed=0, layers=1):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertModel(config)


@pytest.fixture
def encoder():
    return make_encoder()


def texts(decisive, n, seed):
    """Return columns of texts and labels; each text has filler words and one word that determines the label."""
    draw = random.Random(seed)
    labels = [draw.choice(decisive) for _ in range(n)]
    fillers = [draw.choices(WORDS[8:], k=draw.randint(1, 9)) for _ in range(n)]
    return {
        "text": [
            " ".join([*f[: len(f) // 2], label, *f[len(f) // 2 :]]) for f, label in zip(fillers, labels, strict=True)
        ],
        "label": labels,
    }


PAIRS = (["cat", "dog"], ["blue", "red"], ["moon", "sun"])


@pytest.fixture
def stream(tokenizer):
    tasks = {"-".join(pair): (texts(pair, 192, seed=i), texts(pair, 32, seed=100 + i)) for i, pair in enumerate(PAIRS)}
    return text_stream(tasks, tokenizer=tokenizer, max_length=12)

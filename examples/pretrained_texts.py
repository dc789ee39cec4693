"""Sparse fine-tuning of a text encoder: tasks share one encoder, and each task changes 2 % of its weights.

The script needs no download: it first trains a tiny BERT to classify the topics of generated sentences, and reads it
back from a folder. ``--encoder FOLDER`` uses your own encoder and its tokenizer instead, as ``save_pretrained`` writes
them.
"""

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel

from avalanche_supermask import CachedTensors, SparseFineTuning
from avalanche_supermask.pretrained import classifier
from avalanche_supermask.text import EncoderClassifier, text_stream

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=8, help="per task (default %(default)s)")
parser.add_argument("--encoder", type=Path, help="folder of an encoder and its tokenizer (default: a made one)")
options = parser.parse_args()

TOPICS = {
    "money": ["bank", "loan", "card", "price", "cash", "rate", "bill", "fee"],
    "travel": ["train", "hotel", "flight", "visa", "beach", "ticket", "bus", "map"],
    "food": ["bread", "soup", "rice", "cook", "salt", "menu", "taste", "oven"],
    "home": ["lamp", "door", "heat", "chair", "clean", "roof", "light", "room"],
}
FILLERS = ["the", "a", "my", "is", "please", "now", "how", "where", "can", "you", "some", "for"]
WORDS = ["[PAD]", *FILLERS, *(word for words in TOPICS.values() for word in words)]


def sentences(topics: list[str], n: int, seed: int) -> dict[str, list[Any]]:
    """Return texts with two words of one topic before six other words, and their topics."""
    draw = random.Random(seed)
    labels = [topics[i % len(topics)] for i in range(n)]
    texts = [" ".join(draw.sample(TOPICS[t], 2) + draw.sample(FILLERS, 6)) for t in labels]
    return {"text": texts, "label": labels}


class Words:
    """A tokenizer in which each known word has a number."""

    def __call__(self, texts: list[str], *, truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        """Return the token ids of texts."""
        return {"input_ids": [[WORDS.index(word) for word in text.split()][:max_length] for text in texts]}


def made_encoder(folder: Path) -> None:
    """Train a tiny BERT to distinguish four topics, and save it in the format of published encoders."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    net = EncoderClassifier(BertModel(BertConfig(vocab_size=len(WORDS), **sizes)), len(TOPICS))
    data = sentences([*TOPICS], 600, 0)
    x = torch.tensor(Words()(data["text"], truncation=True, max_length=32)["input_ids"])
    x = torch.stack([x, torch.ones_like(x)], dim=1)
    y = torch.tensor([[*TOPICS].index(label) for label in data["label"]])
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(4):
        for rows in torch.randperm(len(y)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    net.encoder.save_pretrained(folder)


torch.manual_seed(0)
folder = options.encoder or Path(tempfile.mkdtemp())
if options.encoder is None:
    made_encoder(folder)
tasks = {
    "food or home": (sentences(["food", "home"], 200, 1), sentences(["food", "home"], 100, 2)),
    "travel or food": (sentences(["travel", "food"], 200, 3), sentences(["travel", "food"], 100, 4)),
    "money or home": (sentences(["money", "home"], 200, 5), sentences(["money", "home"], 100, 6)),
}
stream = text_stream(tasks, tokenizer=str(folder) if options.encoder else Words(), max_length=32)

strategy = SparseFineTuning(
    classifier(folder, 2), density=0.02, train_epochs=options.epochs, train_mb_size=32,
    plugins=[CachedTensors()], evaluator=None, seed=0,
)  # fmt: skip
for experience in stream.train_stream:
    strategy.train(experience)

model = strategy.model.eval()
weights = sum(w.nbytes for w in model.subnetworks.frozen.values())
with torch.no_grad():
    for key, (name, experience) in enumerate(zip(tasks, stream.test_stream, strict=True)):
        texts = torch.stack([x for x, *_ in experience.dataset])
        labels = torch.tensor([int(y) for y in experience.dataset.targets])
        right = (model(texts, key).argmax(dim=1) == labels).float().mean()
        print(f"{name}: accuracy {right:.3f}, {model.bytes_per_task()[key]} bytes of mask and output layer")
print(f"{strategy.tasks_left} more tasks fit beside the {weights} bytes of weights")

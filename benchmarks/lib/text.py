"""Text streams of the leaderboard: topics and reviews, GLUE, and intents by domain, on a frozen encoder.

Data are read from ``DIR/text/NAME/train.csv`` and ``test.csv``, with the columns ``label,text``. The encoder is read
from ``DIR/encoder`` (a folder as ``save_pretrained`` writes it), or from the Hugging Face hub if there is no such
folder. The first run computes the features of all texts with a progress bar, and stores them in
``DIR/text/features-*.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from avalanche_supermask.text import TokenFeatures, text_cnn, text_stream
from avalanche_supermask.text.streams import read_csv

__all__ = [
    "ENCODER",
    "GLUE",
    "PER_CLASS",
    "WEBNLP",
    "WEBNLP_ORDERS",
    "clinc150",
    "cnn",
    "datasets",
    "encoder",
    "features_file",
    "out_of_scope",
]

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"

WEBNLP = ("ag_news", "yelp_review_full", "amazon_review_full", "yahoo_answers", "dbpedia")
# The four orders of this family of benchmarks (first used by d'Autume et al. 2019), as indices into WEBNLP.
WEBNLP_ORDERS = {1: (1, 0, 4, 2, 3), 2: (4, 3, 0, 2, 1), 3: (1, 3, 2, 4, 0), 4: (0, 1, 2, 3, 4)}
GLUE = ("qqp", "cola", "mnli", "sst2", "rte")

MAX_LENGTH = 48
PER_CLASS = (200, 100)  # largest numbers of training and test texts per class, if a data set is sampled


def encoder(root: Path | None) -> str:
    """Return the folder of the encoder if it exists, otherwise its name on the hub."""
    folder = _folder(root).parent / "encoder"
    return str(folder) if folder.exists() else ENCODER


def datasets(
    names: Sequence[str], features: str, _seed: int, root: Path | None, *, max_per_class: tuple[int, int] = PER_CLASS
) -> Any:
    """Return a stream with one task per data set; ``max_per_class`` limits training and test texts per class."""
    folder = _folder(root)
    tasks = {name: tuple(_existing(folder / name / f"{side}.csv") for side in ("train", "test")) for name in names}
    return _encoded(tasks, features, root, max_per_class=max_per_class)


def clinc150(_seed: int, root: Path | None, *, max_per_class: tuple[int, int] | None = None) -> Any:
    """Return a stream of ten domains with fifteen intents each: 100 training and 30 test texts per intent, or fewer."""
    folder = _folder(root) / "clinc150"
    domains = json.loads(_existing(folder / "domains.json").read_text())
    sides = [read_csv(_existing(folder / f"{side}.csv")) for side in ("train", "test")]
    tasks = {domain: tuple(_where(side, set(intents)) for side in sides) for domain, intents in domains.items()}
    return _encoded(tasks, "clinc150", root, max_per_class=max_per_class)


def out_of_scope(root: Path | None) -> list[str]:
    """Return the texts of CLINC150 that belong to none of its intents."""
    return read_csv(_existing(_folder(root) / "clinc150" / "oos_test.csv"))["text"]


def cnn(classes: int, features: str, root: Path | None) -> Callable[[], nn.Module]:
    """Return a function that creates ExSSNeT's network for text, with 100 filters per width, on the stored features."""
    return partial(text_cnn, TokenFeatures(encoder(root), file=features_file(features, root)), classes, filters=100)


def _encoded(tasks: dict[str, Any], features: str, root: Path | None, **options: Any) -> Any:
    """Return the stream of the tasks, after the features of all its texts were computed and stored."""
    stream = text_stream(tasks, tokenizer=encoder(root), max_length=MAX_LENGTH, **options)
    file = features_file(features, root)
    known = TokenFeatures(encoder(root), file=file)
    rows = [x for side in (stream.train_stream, stream.test_stream) for task in side for x, *_ in task.dataset]
    unknown = [x for x in rows if not known.knows(x)]
    if unknown:
        from tqdm import tqdm

        for x in tqdm(unknown, desc=f"encoding {features}", unit="text"):
            known(x[None])
        known.save(file)
    return stream


def _folder(root: Path | None) -> Path:
    if root is None:
        raise ValueError("text streams need a folder with text/NAME/train.csv and test.csv: pass --dataset-root DIR")
    return Path(root) / "text"


def features_file(features: str, root: Path | None) -> Path:
    """Return the path of the file with the features of a stream's texts."""
    return _folder(root) / f"features-{features}.safetensors"


def _existing(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there; expected labelled texts as in the docstring of benchmarks/lib/text.py"
        )
    return path


def _where(data: dict[str, list[str]], labels: set[str]) -> dict[str, list[str]]:
    chosen = [label in labels for label in data["label"]]
    return {name: [v for v, wanted in zip(column, chosen, strict=True) if wanted] for name, column in data.items()}

"""Streams of labelled texts for Avalanche: each data set is one task, and texts are tokenised once."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from avalanche.benchmarks import tensors_benchmark
from torch import Tensor

from avalanche_supermask.text.hub import pretrained_tokenizer

__all__ = ["read_csv", "text_stream", "tokenise"]


def text_stream(
    tasks: Mapping[str, tuple[Any, Any]],
    *,
    tokenizer: Any,
    max_length: int = 128,
    text_column: str = "text",
    label_column: str = "label",
    task_labels: bool = True,
    max_per_class: tuple[int, int] | None = None,
    seed: int = 0,
) -> Any:
    """Return an Avalanche benchmark of labelled texts, with one experience per data set in the given order.

    Args:
        tasks: by name, the training data and the test data of each task: paths of csv files with a header, or objects
            with columns, for example a Hugging Face ``datasets.Dataset`` or a dictionary of lists.
        tokenizer: a Hugging Face tokenizer, or its name or folder.
        max_length: largest number of tokens of a text (default 128); longer texts are cut.
        text_column: name of the column with the texts (default ``"text"``).
        label_column: name of the column with the labels, which may have any sortable type (default ``"label"``).
        task_labels: True (default): the tasks have the labels 0, 1, 2 and so on, and the classes of each task are
            numbered from 0 (task-incremental). False: every class has a different number (class-incremental).
        max_per_class: largest number of samples per class in the training data and in the test data. They are drawn
            with ``seed`` and the task's name. None (default): all samples are used.
        seed: seed of that draw (default 0).

    Returns:
        A benchmark whose ``x`` are integers ``(2, length)``: token ids and attention mask. The ``length`` is that of
        the longest text of all tasks. The benchmark has the attributes ``task_names`` and ``class_names``; the latter
        has the names of each task's classes in the order of their numbers.

    Raises:
        ValueError: there is no task, a task has no text, a column is missing, or a test label has no training text.
        FileNotFoundError: a file does not exist.

    Example:
        >>> words = lambda texts, **_: {"input_ids": [[len(w) for w in text.split()] for text in texts]}
        >>> data = {"text": ["so good", "not good at all"], "label": ["+", "-"]}
        >>> stream = text_stream({"reviews": (data, data)}, tokenizer=words)
        >>> stream.train_stream[0].dataset[0][0].tolist(), stream.class_names
        ([[2, 4, 0, 0], [1, 1, 0, 0]], [['+', '-']])
    """
    if not tasks:
        raise ValueError("expected at least one task: {name: (train, test)}; got none")
    tokenizer = _tokenizer(tokenizer)
    sides: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [])
    names: list[list[Any]] = []
    for name, pair in tasks.items():
        columns = [_columns(name, source, text_column, label_column) for source in pair]
        classes = sorted(set(columns[0][1]))
        unknown = sorted(set(columns[1][1]) - set(classes))
        if unknown:
            raise ValueError(f"task {name!r}: test label {unknown[0]!r} has no training text; labels: {classes}")
        first = 0 if task_labels else sum(len(earlier) for earlier in names)
        names.append(classes)
        numbers = {label: first + i for i, label in enumerate(classes)}
        for side, (texts, labels) in enumerate(columns):
            y = torch.tensor([numbers[label] for label in labels])
            if max_per_class:
                rows = _at_most(y, max_per_class[side], seed=seed + 2 * zlib.crc32(name.encode()) + side)
                texts, y = [texts[i] for i in rows], y[rows]
            sides[side].append((tokenise(texts, tokenizer, max_length=max_length), y))
    length = max(x.shape[2] for side in sides for x, _ in side)
    padded = [[(torch.nn.functional.pad(x, (0, length - x.shape[2])), y) for x, y in side] for side in sides]
    labels = list(range(len(names))) if task_labels else [0] * len(names)
    benchmark = tensors_benchmark(train_tensors=padded[0], test_tensors=padded[1], task_labels=labels)
    benchmark.task_names, benchmark.class_names = list(tasks), names
    return benchmark


def tokenise(texts: Sequence[str], tokenizer: Any, *, max_length: int = 128) -> Tensor:
    """Return the token ids and attention masks of texts: integers ``(texts, 2, longest)``, padded on the right.

    Args:
        texts: any number of texts.
        tokenizer: a Hugging Face tokenizer, or its name or folder.
        max_length: largest number of tokens of a text (default 128); longer texts are cut.
    """
    found = _tokenizer(tokenizer)(list(texts), truncation=True, max_length=max_length)["input_ids"]
    x = torch.zeros(len(found), 2, max([1, *map(len, found)]), dtype=torch.long)
    for row, ids in zip(x, found, strict=True):
        row[0, : len(ids)] = torch.as_tensor(ids)
        row[1, : len(ids)] = 1
    return x


def read_csv(path: str | Path) -> dict[str, list[str]]:
    """Return the columns of a UTF-8 csv file with a header, by name."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return {name: [row[name] for row in rows] for name in reader.fieldnames or ()}


def _tokenizer(tokenizer: Any) -> Any:
    return pretrained_tokenizer(str(tokenizer)) if isinstance(tokenizer, (str, Path)) else tokenizer


def _columns(task: str, source: Any, text: str, label: str) -> tuple[list[str], list[Any]]:
    """Return the texts and labels of a csv file or of an object with columns."""
    if isinstance(source, (str, Path)):
        source = read_csv(source)
    have = getattr(source, "column_names", None) or list(source)
    for column in (text, label):
        if column not in have:
            raise ValueError(f"task {task!r}: no column {column!r}; there are {', '.join(have)}")
    texts, labels = list(source[text]), list(source[label])
    if not texts:
        raise ValueError(f"task {task!r}: expected at least one text in training and test data; got none")
    return texts, labels


def _at_most(y: Tensor, most: int, *, seed: int) -> list[int]:
    """Return the rows of at most ``most`` samples of every class, drawn at random, in ascending order."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    return sorted(int(i) for c in y.unique() for i in order[y[order] == c][:most])

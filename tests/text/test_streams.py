import csv

import pytest
import torch

from avalanche_supermask.text import text_stream, tokenise
from tests.text.conftest import texts

DATA = {"text": ["dog cat", "red", "cat the of to"], "label": ["b", "a", "b"]}


def write(path, data):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "text"])
        writer.writerows(zip(data["label"], data["text"], strict=True))
    return path


def samples(experience):
    return [(x.tolist(), int(y), int(t)) for x, y, t in experience.dataset]


def test_a_text_is_its_token_ids_and_their_mask(tokenizer):
    stream = text_stream({"one": (DATA, DATA)}, tokenizer=tokenizer)
    assert samples(stream.train_stream[0]) == [
        ([[1, 2, 0, 0], [1, 1, 0, 0]], 1, 0),
        ([[3, 0, 0, 0], [1, 0, 0, 0]], 0, 0),
        ([[2, 9, 10, 11], [1, 1, 1, 1]], 1, 0),
    ]
    assert stream.class_names == [["a", "b"]]
    assert stream.task_names == ["one"]


def test_csv_files_say_the_same_as_columns(tokenizer, tmp_path):
    data = {"text": ["dog cat", "the of\nto", 'red "and"'.replace('"', "")], "label": ["x, y", "b", "b"]}
    path = write(tmp_path / "train.csv", data)
    from_file = text_stream({"one": (path, str(path))}, tokenizer=tokenizer)
    from_columns = text_stream({"one": (data, data)}, tokenizer=tokenizer)
    assert samples(from_file.train_stream[0]) == samples(from_columns.train_stream[0])


def test_a_hugging_face_dataset_will_do(tokenizer):
    class Dataset:  # the part of datasets.Dataset that text_stream uses
        column_names = ("sentence", "stars", "id")

        def __getitem__(self, name):
            return {"sentence": DATA["text"], "stars": [5, 1, 5], "id": [0, 1, 2]}[name]

    pair = (Dataset(), Dataset())
    stream = text_stream({"one": pair}, tokenizer=tokenizer, text_column="sentence", label_column="stars")
    assert stream.class_names == [[1, 5]]
    assert [y for _, y, _ in samples(stream.train_stream[0])] == [1, 0, 1]


def test_tasks_are_padded_to_one_length_and_cut_at_max_length(tokenizer):
    short = {"text": ["dog", "cat"], "label": [0, 1]}
    stream = text_stream({"one": (DATA, DATA), "two": (short, short)}, tokenizer=tokenizer, max_length=3)
    assert {x.shape for e in stream.train_stream for x, *_ in e.dataset} == {(2, 3)}
    assert [e.task_label for e in stream.train_stream] == [0, 1]


def test_without_task_labels_every_class_has_its_own_number(tokenizer):
    stream = text_stream({"one": (DATA, DATA), "two": (DATA, DATA)}, tokenizer=tokenizer, task_labels=False)
    assert sorted({y for e in stream.train_stream for _, y, _ in samples(e)}) == [0, 1, 2, 3]
    assert {t for e in stream.train_stream for _, _, t in samples(e)} == {0}


def test_samples_of_a_class_are_limited_by_a_seeded_draw(tokenizer):
    data = texts(["dog", "cat"], 60, seed=1)

    def drawn(seed, name="one"):
        tasks = {"first": (data, data), name: (data, data)}
        stream = text_stream(tasks, tokenizer=tokenizer, max_per_class=(5, 3), seed=seed)
        return [samples(side[1]) for side in (stream.train_stream, stream.test_stream)]

    train, test = drawn(0)
    assert [sum(y == c for _, y, _ in train) for c in (0, 1)] == [5, 5]
    assert len(test) == 6
    assert drawn(0) == [train, test]
    assert drawn(1) != [train, test]
    assert drawn(0, name="two") != [train, test]


def test_a_text_without_words_has_no_tokens(tokenizer):
    assert tokenise([""], tokenizer).tolist() == [[[0], [0]]]
    assert tokenise([], tokenizer).shape == (0, 2, 1)


@pytest.mark.parametrize(
    ("train", "test", "complaint"),
    [
        ({"text": [], "label": []}, DATA, "task 'one': expected at least one text"),
        (DATA, {"text": ["dog"], "label": ["z"]}, "task 'one': test label 'z' has no training text"),
        ({"words": ["dog"], "label": ["a"]}, DATA, "task 'one': no column 'text'; there are words, label"),
    ],
)
def test_data_that_will_not_do(tokenizer, train, test, complaint):
    with pytest.raises(ValueError, match=complaint):
        text_stream({"one": (train, test)}, tokenizer=tokenizer)


def test_no_task_and_no_file(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="at least one task"):
        text_stream({}, tokenizer=tokenizer)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        text_stream({"one": (tmp_path / "nowhere.csv", DATA)}, tokenizer=tokenizer)


def test_a_real_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cat", "##s"]))
    x = tokenise(["dogs cat", "bird"], transformers.BertTokenizer(str(vocabulary)), max_length=5)
    assert x[:, 1].sum(dim=1).tolist() == [5, 3]
    assert x.dtype == torch.long
    assert x.shape == (2, 2, 5)

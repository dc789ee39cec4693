"""The text streams of the leaderboard and their scripts, with small data and a small encoder."""

import json
import sys

import pytest
import torch

from benchmarks.lib.streams import STREAMS
from benchmarks.lib.text import GLUE, WEBNLP, out_of_scope
from benchmarks.practice import inside, novelty
from leaderboard.cell import Cell, run_cell, settings_of
from tests.text.conftest import WORDS, make_encoder
from tests.text.test_streams import write

# A cell also evaluates later tasks, for which there is one warning.
pytestmark = pytest.mark.filterwarnings("ignore:task label .* was never trained")
CLASSES = {"ag_news": 4, "yelp_review_full": 5, "amazon_review_full": 5, "yahoo_answers": 10, "dbpedia": 14, "mnli": 3}


def labelled(classes, each):
    """Return texts whose words encode the number of their class."""
    rows = [(c, i) for c in range(classes) for i in range(each)]
    texts = [" ".join([WORDS[c % 12], *["the"] * (c // 12), WORDS[8 + i % 4]]) for c, i in rows]
    return {"text": texts, "label": [f"class {c:03}" for c, _ in rows]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("data")
    make_encoder().save_pretrained(root / "encoder")
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizer(str(root / "vocab.txt")).save_pretrained(root / "encoder")
    for name in (*WEBNLP, *GLUE, "clinc150"):
        folder = root / "text" / name
        folder.mkdir(parents=True)
        classes = 150 if name == "clinc150" else CLASSES.get(name, 2)
        write(folder / "train.csv", labelled(classes, 3))
        write(folder / "test.csv", labelled(classes, 2))
    intents = [f"class {c:03}" for c in range(150)]
    domains = {f"domain {d}": intents[15 * d : 15 * d + 15] for d in range(10)}
    (root / "text" / "clinc150" / "domains.json").write_text(json.dumps(domains))
    write(root / "text" / "clinc150" / "oos_test.csv", {"text": ["sun moon", "one"], "label": ["oos", "oos"]})
    return root


@pytest.mark.parametrize("name", ["webnlp", "webnlp-order1", "glue", "clinc150"])
def test_streams(root, name):
    spec = STREAMS[name]
    stream = spec.build(0, root)
    assert len(stream.train_stream) == spec.tasks
    assert max(int(y) for e in stream.train_stream for _, y, _ in e.dataset) == spec.classes - 1
    x = torch.stack([stream.train_stream[0].dataset[i][0] for i in range(3)])
    assert spec.at(root).network()(x).shape == (3, spec.classes)
    assert list((root / "text").glob("features-*.safetensors"))


def test_the_orders_have_the_same_data_in_other_places(root):
    one, four = (STREAMS[name].build(0, root) for name in ("webnlp-order1", "webnlp"))
    assert one.task_names == ["yelp_review_full", "ag_news", "dbpedia", "amazon_review_full", "yahoo_answers"]
    assert four.task_names == ["ag_news", "yelp_review_full", "amazon_review_full", "yahoo_answers", "dbpedia"]
    texts = [
        {tuple(x[0].tolist()) for x, *_ in s.train_stream[s.task_names.index("dbpedia")].dataset} for s in (one, four)
    ]
    assert texts[0] == texts[1]


def test_out_of_scope_texts(root):
    assert out_of_scope(root) == ["sun moon", "one"]


@pytest.mark.parametrize("method", ["exssnet", "separate", "replay"])
def test_a_cell(root, method):
    cell = Cell("webnlp", method, 0, settings_of("webnlp", method), tasks=2, epochs=2)
    result = run_cell(cell, dataset_root=root, tb_dir=None)
    assert 0 <= result["average_accuracy"] <= 1
    assert result["bytes_total"] < 3_000_000, "the frozen encoder is no part of a method's bytes"
    if method == "replay":
        assert result["output_drift"] > 0, "it trains every weight, so this is what drift looks like"
    else:
        assert result["output_drift"] == 0


def test_without_the_data_it_is_said_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="--dataset-root"):
        STREAMS["webnlp"].build(0, None)
    with pytest.raises(FileNotFoundError, match="ag_news"):
        STREAMS["webnlp"].build(0, tmp_path)


def test_masks_inside_an_encoder(root, tmp_path, monkeypatch):
    out = tmp_path / "inside.json"
    options = ["--tasks", "3", "--n-basis", "2", "--epochs", "1", "--dataset-root", str(root), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["inside", *options])
    inside.main()
    rows = {row["row"]: row for row in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["frozen", "supsup", "impresslearn"]
    assert all(row["forgetting"] == 0.0 for row in rows.values())
    weights = 4 * 16 * 16 + 2 * 16 * 24
    assert rows["supsup"]["selection_bytes"] == [weights // 8] * 3
    assert rows["impresslearn"]["selection_bytes"][2] == 2 * 6 * 4  # two float32 coefficients for each of six matrices
    assert rows["supsup"]["lora_rank8_bytes"] == 4 * (2 * 8 * 32 + 17 * 15)


def test_novelty(root, tmp_path, monkeypatch):
    out = tmp_path / "novelty.json"
    monkeypatch.setattr(sys, "argv", ["novelty", "--methods", "supsup", "--dataset-root", str(root), "--out", str(out)])
    novelty.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["in_scope"], row["out_of_scope"]) == (300, 2)
    assert 0 <= row["accuracy_inferred"] <= row["task_id_accuracy"] <= 1
    assert 0 <= row["auroc"] <= 1

import json
import time
from pathlib import Path

import pytest

from leaderboard.aggregate import frontier, load_results
from leaderboard.page import write_page
from leaderboard.paper_numbers import anchors_table, load_anchors
from leaderboard.report import markdown, table, write_report
from leaderboard.scores import forgetting_curve, forward_transfer, summarise


def result(method="exssnet", seed=0, accuracy=0.9, **changes):
    base = {
        "method": method, "stream": "split-digits", "seed": seed, "average_accuracy": accuracy, "forgetting": 0.0,
        "bwt": 0.0, "bytes_per_task": 100.0, "bytes_total": 1000, "train_seconds": 2.0, "train_cpu_seconds": 2.0,
        "output_drift": 0.0, "accuracy_matrix": [[accuracy]],
        "config": {"settings": {"density": 0.1}, "network": [64, 100, 2], "epochs": 6, "tasks": 5, "batch_size": 32},
        "commit": "abc", "machine": {"processor": "x", "threads": 1},
    }  # fmt: skip
    return {**base, **changes}


def test_mean_and_deviation_over_seeds_best_first():
    rows = [result(seed=s, accuracy=a) for s, a in enumerate((0.90, 0.92, 0.94))]
    rows += [result("naive", accuracy=0.5, train_cpu_seconds=1.0, forgetting=0.3)]
    lines = table(rows).splitlines()
    assert lines[2].startswith("| exssnet | 0.9200 ± 0.0200 | 0.0000 ± 0.0000 |")
    assert "| 2.00 | 0, 1, 2 |" in lines[2]
    assert lines[3].startswith("| naive | 0.5000 | 0.3000 |"), "one seed has no deviation"


def test_rows_without_ids_are_compared_among_themselves():
    inferred = {"settings": {"density": 0.1, "task_inference": "entropy"}}
    config = {**result()["config"], **inferred}
    rows = [result("naive", accuracy=0.5), result("exssnet")]
    rows += [result("exssnet+entropy", accuracy=0.4, config=config, train_cpu_seconds=8.0)]
    rows += [result("naive", stream="split-digits-class", accuracy=0.2)]  # This stream has no task ids.
    given, unknown, without = markdown(rows).split("### scenario: ")[1:]
    assert given.startswith("task id given")
    assert "exssnet+entropy" not in given
    assert "| exssnet |" in given
    assert unknown.startswith("task id unknown")
    assert "| exssnet+entropy | 0.4000 |" in unknown
    assert "| 4.00 |" in unknown, "its time is over that of naive, which has the ids"
    assert without.startswith("task id unknown")


def test_what_pruning_and_the_last_mask_cost():
    report = {"accuracy_before": 0.95, "accuracy_after": 0.94}
    cell = result(
        "clnp", pruning={"0": report, "1": {**report, "accuracy_after": 0.92}}, selection_bytes={"0": 9, "1": 7}
    )
    assert "graceful forgetting 0.0200 per task, at most 0.0300, before fine-tuning" in table([cell])
    assert table([cell], columns=("method", "last mask")).splitlines()[2] == "| clnp | 7 |"


def test_notes_beside_the_results_qualify_them(tmp_path):
    path = tmp_path / "split-digits" / "naive" / "seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result()))
    (tmp_path / "NOTES.md").write_text("Measured on a Tuesday.")
    assert "Measured on a Tuesday." in write_report(tmp_path, tmp_path / "out").read_text()


def test_what_cannot_be_compared_is_a_dash():
    rows = table([result(), result("joint", 0, 0.8, forgetting=None, bwt=None)]).splitlines()
    assert rows[3].startswith("| joint | 0.8000 | – | – | 0 |")


def test_names_are_text_not_markup():
    page = markdown([result("<script>alert(1)</script>")])
    assert "<script>" not in page
    assert "&lt;script>" in page


def test_names_lead_to_no_file_outside_the_folder(tmp_path):
    inside = tmp_path / "a" / "b"
    path = inside / "results" / "split-digits" / "exssnet" / "seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result("../../../escaped", stream="../../../escaped", seed="../../escaped")))
    before = {p for p in tmp_path.rglob("*")}
    write_report(inside / "results", inside / "out")
    write_page(inside / "results", inside / "out" / "index.html")
    written = {p for p in tmp_path.rglob("*")} - before
    assert written == {inside / "out", inside / "out" / "LEADERBOARD.md", inside / "out" / "index.html"}


def test_what_a_result_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "bomb.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "| exssnet |" in markdown([result(stream="bomb:stream")])


def test_files_that_are_no_results(tmp_path):
    path = tmp_path / "split-digits" / "naive" / "seed0.json"
    path.parent.mkdir(parents=True)
    for text in ("", "[]", '{"method": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not a result file"):
            load_results(tmp_path)
    path.write_text(json.dumps(result()))
    assert load_results(tmp_path)[0]["method"] == "exssnet"


def test_scores_against_a_matrix_done_by_hand():
    matrix = [[0.9, 0.1, 0.2], [0.95, 0.8, 0.3], [0.7, 0.75, 0.6]]
    found = summarise(matrix)
    assert found["average_accuracy"] == pytest.approx((0.7 + 0.75 + 0.6) / 3)
    assert found["forgetting"] == pytest.approx(((0.95 - 0.7) + (0.8 - 0.75)) / 2)
    assert found["bwt"] == pytest.approx(((0.7 - 0.9) + (0.75 - 0.8)) / 2)
    assert summarise([[0.5, 0.7]]) == {"average_accuracy": 0.6, "forgetting": None, "bwt": None}
    assert summarise([[0.5]])["forgetting"] is None


def test_forward_transfer_and_the_forgetting_curve_done_by_hand():
    matrix = [[0.9, 0.6, 0.4], [0.95, 0.8, 0.7], [0.7, 0.75, 0.6]]
    assert forward_transfer(matrix, chance=0.5) == pytest.approx(((0.6 - 0.5) + (0.7 - 0.5)) / 2)
    assert forward_transfer([[0.9, 0.8]], chance=0.5) is None
    assert forgetting_curve(matrix) == pytest.approx([0.0, 0.9 - 0.95, ((0.95 - 0.7) + (0.8 - 0.75)) / 2])
    assert forgetting_curve(matrix)[-1] == pytest.approx(summarise(matrix)["forgetting"])


def test_what_was_measured_has_a_column_and_what_was_not_has_none():
    old = result("naive", accuracy_matrix=[[0.9, 0.5], [0.5, 0.9]])
    assert "memory" not in table([old]).splitlines()[0]
    new = result(
        accuracy_matrix=[[0.9, 0.75], [0.9, 0.9]], peak_memory_bytes=2_000_000, free_share=[0.9, 0.8],
        eval_cpu_seconds=3.0, task_id_accuracy=0.75, batch_accuracy=0.85,
    )  # fmt: skip
    columns = ("FWT", "task id", "in batches", "free", "eval time", "memory")
    lines = table([{**old, "eval_cpu_seconds": 1.5}, new], columns=columns).splitlines()
    assert lines[2:] == ["| 0.0000 | – | – | – | 1.00 | – |", "| 0.2500 | 0.7500 | 0.8500 | 0.800 | 2.00 | 2 MB |"]


def test_the_best_for_so_many_bytes():
    sizes = {"naive": (100, 0.5), "supsup": (200, 0.9), "ewc": (300, 0.8), "separate": (400, 0.95)}
    rows = [result(name, accuracy=a, bytes_total=size) for name, (size, a) in sizes.items()]
    assert frontier(rows) == [(100, 0.5, "naive"), (200, 0.9, "supsup"), (400, 0.95, "separate")]
    assert "from 100: naive (0.5000); from 200: supsup (0.9000); from 400: separate (0.9500)" in markdown(rows)


def test_a_paired_test_says_what_the_seeds_do_not_tell_apart():
    rows = [result(seed=s, accuracy=a) for s, a in enumerate((0.90, 0.92, 0.94))]
    rows += [result("supsup", s, a) for s, a in enumerate((0.91, 0.90, 0.94))]
    rows += [result("naive", s, a) for s, a in enumerate((0.50, 0.52, 0.541))]
    rows += [result("ewc", s, 0.6) for s in range(2)]
    page = markdown(rows)
    assert "Paired t-test over common seeds (three at least) against exssnet" in page
    assert "not told apart from it: supsup (0." in page
    assert "ewc (" not in page
    assert "Paired" not in markdown(rows[:3])


def test_anchors_come_from_files(tmp_path):
    entry = {"what": "ours", "source": "a paper", "theirs": 0.8, "differences": "epochs"}
    for seed, row in enumerate(([0.9, 0.7, 0.0], [0.8, 0.8, 0.0])):
        (tmp_path / f"seed{seed}.json").write_text(
            json.dumps({"accuracy_matrix": [[0, 0, 0], row], "rows": [{"x": 0.5 + seed}], "command": "python -m it"})
        )

    def loaded(**changes):
        (tmp_path / "anchors.json").write_text(json.dumps([{**entry, **changes}]))
        return load_anchors(tmp_path)

    (anchor,) = loaded(files="seed*.json", value=["rows", -1, "x"])
    assert (anchor.ours, anchor.seeds) == (1.0, 2)
    assert loaded(files="seed0.json", value=["rows", "*", "x"])[0].ours == 0.5
    (anchor,) = loaded(files="seed*.json", value={"first_tasks": 2})
    assert anchor.ours == pytest.approx(0.8)
    assert "| ours | a paper | 0.8000 | 0.8000 (2) | +0.0000 | epochs | `python -m it` |" in anchors_table([anchor])
    with pytest.raises(ValueError, match=r"anchor 'ours': seed9\.json gives no"):
        loaded(files="seed9.json", value=["rows"])
    with pytest.raises(ValueError, match=r"anchor 'ours': seed0\.json gives no"):
        loaded(files="seed0.json", value=["nothing"])
    assert load_anchors(tmp_path / "elsewhere") == []
    assert anchors_table([]) == ""


def test_the_committed_anchors_can_all_be_read():
    anchors = load_anchors(Path(__file__).parents[2] / "leaderboard" / "results")
    assert len(anchors) >= 8
    assert all(0 < anchor.ours < 1 and anchor.command.startswith("python -m") for anchor in anchors)


def test_a_thousand_results_are_reported_in_ten_seconds(tmp_path):
    matrix = [[0.9] * 20 for _ in range(20)]
    for index in range(1000):
        path = tmp_path / "split-digits" / f"method{index // 4}" / f"seed{index % 4}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result(f"method{index // 4}", index % 4, accuracy_matrix=matrix)))
    started = time.process_time()
    write_report(tmp_path, tmp_path)
    write_page(tmp_path, tmp_path / "index.html")
    assert time.process_time() - started < 10

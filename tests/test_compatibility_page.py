"""The page of compatibility, written from invented outcomes."""

from benchmarks.faults.compatibility import page

BIT = "tests/test_contract.py::test_finished_tasks_stay_bit_identical"


def environment(python, **tests):
    versions = {"torch": "2.9", "torchvision": "0.2", "avalanche-lib": "0.6.0", "numpy": "2.0", "transformers": "5.0"}
    return {"python": python, **versions, "tests": tests}


def test_the_page_counts_what_passed_by_method_network_optimizer_and_companion():
    outcomes = {
        f"{BIT}[exssnet-mlp-sgd-alone]": "passed",
        f"{BIT}[exssnet-mlp-adam-ewc]": "failed",
        f"{BIT}[packnet-norm-lstm-sgd-ewc]": "passed",
        "tests/test_export.py::test_onnx_answers_alike[a]": "passed",
        "tests/test_export.py::test_onnx_answers_alike[b]": "skipped",
        "tests/test_compatibility.py::test_double": "failed",
        "tests/test_masks.py::test_union": "passed",
    }
    text = page([environment("3.10.1"), environment("3.12.0", **outcomes)])
    assert "| 3.10.1 | 2.9 | 0.2 | 0.6.0 | 2.0 | 5.0 | 0 | 0 | 0 |" in text
    assert "| 3.12.0 | 2.9 | 0.2 | 0.6.0 | 2.0 | 5.0 | 4 | 2 | 1 |" in text
    assert "| method \\ network | mlp | lstm |" in text
    assert "| exssnet | 1 of 2 | – |" in text
    assert "| packnet-norm | – | 1 of 1 |" in text
    assert "| sgd | 1 of 1 | 1 of 1 |" in text
    assert "| onnx answers alike | 1 of 1 |" in text
    assert "| double | 0 of 1 |" in text

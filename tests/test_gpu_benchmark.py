"""The command for all GPU measurements works with tiny networks on a CPU."""

import json
import sys

import pytest
import torch

from benchmarks import gpu


def run(monkeypatch, out, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out), "--repeats", "1", *arguments])
    gpu.main()
    return json.loads((out / "parts.json").read_text())


def test_each_part_is_written_as_it_ends(monkeypatch, tmp_path):
    said = run(monkeypatch, tmp_path, "--small", "--device", "cpu")
    assert list(said) == ["speed_float32", "speed_bfloat16", "large_float32", "large_bfloat16"]
    for part, words in said.items():
        assert words.endswith(" s"), words
        found = json.loads((tmp_path / f"{part}.json").read_text())
        assert found["command"].startswith("python -m benchmarks.gpu")
        assert found["autocast"] == ("torch.bfloat16" if part.endswith("bfloat16") else None)
        for row in found["ratios to dense"].values():
            assert {"mask step", "weight step", "evaluation"} <= row.keys()
            assert all(value > 0 for value in row.values())


def test_what_the_time_does_not_allow_is_left_out_and_said(monkeypatch, tmp_path):
    said = run(monkeypatch, tmp_path, "--small", "--device", "cpu", "--minutes", "0")
    assert set(said.values()) == {"left out: the time was up"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path)
    assert "PyTorch finds no GPU here; --small --device cpu tries the script" in capsys.readouterr().err


def test_a_device_that_does_not_exist_is_refused(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, tmp_path, "--device", "nope")
    assert "device must be 'cpu', 'cuda', 'cuda:1' or the like; got 'nope'" in capsys.readouterr().err


def test_a_part_that_fails_is_told_by_the_exit_status(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "ratios", fail)
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, tmp_path, "--small", "--device", "cpu")
    said = json.loads((tmp_path / "parts.json").read_text())
    assert set(said.values()) == {"failed: out of memory"}

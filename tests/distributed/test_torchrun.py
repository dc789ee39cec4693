"""The example runs under `torchrun`, and killed groups resume; the result file has the full number of kills."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.costs.distributed import OPTIONS, kill_and_resume

EXAMPLE = Path(__file__).parents[2] / "examples" / "several_processes.py"


def test_torchrun_runs_the_example(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(EXAMPLE), "--epochs", "2", "--checkpoint", str(tmp_path / "run.pkl"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("2 process(es) learned [0, 1, 2, 3, 4]") == 1
    accuracies = re.findall(r"Top1_Acc_Stream/\S+ = (\S+)", first.stdout)
    assert len(accuracies) == 5, "reported once"
    assert float(accuracies[-1]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
def test_groups_that_are_killed_lose_nothing(method):
    found = kill_and_resume(method, kills=5, seed=1)
    assert found["kills_of_one"] + found["kills_of_both"] >= 5
    assert found["bit_identical"] == found["runs"] > 0

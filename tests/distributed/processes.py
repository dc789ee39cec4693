"""Groups of gloo processes that stay alive from test to test, because importing Avalanche takes seconds."""

import contextlib
import multiprocessing
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

TIMEOUT = timedelta(seconds=120)  # limit of one exchange, after which a waiting process ends its group
_groups = {}


class Group:
    """Processes that run the same function; `run` returns the results of all."""

    def __init__(self, size):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.distributed.processes", "avalanche.training", "avalanche_supermask"])
        meeting_place = Path(tempfile.mkdtemp()) / "group"
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, str(meeting_place)), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function, *arguments):
        """Return the result of ``function(rank, *arguments)`` in every process, by rank."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers = [_answer(pipe) for pipe in self.pipes]
        failed = [said for worked, said in answers if not worked]
        if failed:
            self.stop()
            raise AssertionError("\n".join(failed))
        return [said for _, said in answers]

    def stop(self):
        for process in self.processes:
            process.kill()
            process.join()
        _groups.pop(len(self.processes), None)


def group_of(size):
    """Return the group of this size; it is started once, and again after a failure."""
    if size not in _groups:
        _groups[size] = Group(size)
    return _groups[size]


def _answer(pipe):
    try:
        return pipe.recv()
    except EOFError:
        return False, "a process of the group died"


def _serve(pipe, rank, size, meeting_place):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting_place}", TIMEOUT, size, rank)
    with contextlib.suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.manual_seed(0)
                    pipe.send((True, function(rank, *arguments)))
            except Exception:
                pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))

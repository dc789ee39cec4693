"""Files are written whole or not at all, and what is no file is never replaced."""

import gc
import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch

from avalanche_supermask import save, save_checkpoint, save_task
from avalanche_supermask.saving.atomic_write import written_whole
from tests.building import build
from tests.streams import class_stream, mlp


@contextmanager
def small_disk():
    """Context in which no file can grow beyond 2000 bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(scope="module")
def strategy():
    torch.manual_seed(0)
    strategy = build("supsup", mlp())
    strategy.train(class_stream(1).train_stream[0])
    return strategy


WRITERS = {
    "save": lambda s, path: save(s.model, path),
    "save_task": lambda s, path: save_task(s.model, 0, path),
    "save_checkpoint": save_checkpoint,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_told_in_one_line_and_the_old_file_is_kept(writer, strategy, tmp_path):
    path = tmp_path / "the tasks of Zoë"
    path.write_text("old")
    with (
        small_disk(),
        pytest.raises(OSError, match=r"the tasks of Zoë could not be written; is the disk full\?") as told,
    ):
        WRITERS[writer](strategy, path)
    assert "\n" not in str(told.value)
    del told
    gc.collect()  # PyTorch leaves an open file, whose end Python reports here and not in a later test
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    WRITERS[writer](strategy, path)
    assert path.stat().st_size > 2000


def test_another_error_in_the_block_is_not_called_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="something else"), written_whole(tmp_path / "file"):
        raise RuntimeError("something else")


def test_a_pipe_or_a_device_is_refused_and_left_alone(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="pipe is a device or a pipe; expected the path of a file"), written_whole(pipe):
        pass
    assert pipe.is_fifo()


def test_a_link_stays_a_link_and_permissions_stay(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "file", tmp_path / "link"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    with written_whole(link) as temporary, open(temporary, "w") as file:
        file.write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o600

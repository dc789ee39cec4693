"""Resume after a crash: stop this script between two tasks and run it again; it continues with the next task."""

import argparse
from pathlib import Path

from digits import network, stream

from avalanche_supermask import CachedTensors, ExSSNeT, maybe_load_checkpoint, save_checkpoint

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=4, help="a task (default %(default)s)")
parser.add_argument("--checkpoint", type=Path, default=Path("runs/example.ckpt"), help="file (default %(default)s)")
parser.add_argument("--stop-after", type=int, default=5, help="tasks, as if killed then (default: all five)")
options = parser.parse_args()

tasks = stream()
strategy = ExSSNeT(
    network(), density=0.2, mask_lr=0.02, weight_lr=0.01, train_epochs=options.epochs, train_mb_size=32,
    plugins=[CachedTensors()], evaluator=None, seed=0,
)  # fmt: skip
options.checkpoint.parent.mkdir(parents=True, exist_ok=True)
strategy, first = maybe_load_checkpoint(strategy, options.checkpoint)
print(f"tasks learned before: {strategy.model.task_keys}")
for experience in tasks.train_stream[first : options.stop_after]:
    strategy.train(experience)
    save_checkpoint(strategy, options.checkpoint)
print(f"tasks learned now: {strategy.model.task_keys}")

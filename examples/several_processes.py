"""Train one network in several processes: ``torchrun --nproc_per_node 2 examples/several_processes.py``; or in one."""

import argparse
import os

from avalanche.distributed import DistributedHelper
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin
from digits import network, stream

from avalanche_supermask import CachedTensors, CheckpointPlugin, ExSSNeT, maybe_load_checkpoint

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=4, help="a task (default %(default)s)")
parser.add_argument("--checkpoint", default="several_processes.ckpt", help="file (default %(default)s)")
options = parser.parse_args()

if "LOCAL_RANK" in os.environ:  # torchrun sets it
    DistributedHelper.init_distributed(random_seed=0)
tasks = stream()
loggers = [InteractiveLogger()] if DistributedHelper.is_main_process else []
strategy = ExSSNeT(
    network(), density=0.2, mask_lr=0.02, weight_lr=0.01, train_epochs=options.epochs,
    train_mb_size=32 // DistributedHelper.world_size, eval_mb_size=128,  # sizes per process
    device=DistributedHelper.make_device(), evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=loggers),
    plugins=[CheckpointPlugin(options.checkpoint), CachedTensors()],
)  # fmt: skip
strategy, first = maybe_load_checkpoint(strategy, options.checkpoint)
for experience in tasks.train_stream[first:]:
    strategy.train(experience)
    strategy.eval(tasks.test_stream[: experience.current_experience + 1])
if DistributedHelper.is_main_process:
    print(f"{DistributedHelper.world_size} process(es) learned {strategy.model.task_keys}")

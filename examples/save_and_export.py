"""Save all tasks in one compact file, load the file, and export one of the tasks as a plain program."""

import argparse
from pathlib import Path

import torch
from digits import network, stream

from avalanche_supermask import CachedTensors, SupSup, load, save

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=3, help="a task (default %(default)s)")
parser.add_argument("--file", type=Path, default=Path("runs/example.safetensors"), help="(default %(default)s)")
options = parser.parse_args()

tasks = stream()
strategy = SupSup(
    network(), density=0.05, mask_lr=0.02, train_epochs=options.epochs, train_mb_size=32, plugins=[CachedTensors()],
    evaluator=None, seed=0,
)  # fmt: skip
for experience in tasks.train_stream:
    strategy.train(experience)

options.file.parent.mkdir(parents=True, exist_ok=True)
save(strategy.model, options.file)
model = load(options.file, network())
weights = sum(w.nbytes for w in model.subnetworks.frozen.values())
print(f"{options.file.stat().st_size} bytes for {len(model.task_keys)} tasks, {weights} of them weights")

images = torch.stack([tasks.test_stream[2].dataset[i][0] for i in range(4)])
program = torch.export.export(model.export(2), (images,))
with torch.no_grad():
    print(f"the exported program answers like task 2: {torch.equal(program.module()(images), model(images, 2))}")

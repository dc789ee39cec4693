"""Fast adaptation: ImpressLearn learns a new task as a mixture of earlier masks, which costs only a few numbers."""

import argparse

from digits import network, stream

from avalanche_supermask import CachedTensors, ImpressLearn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=6, help="a task (default %(default)s)")
parser.add_argument("--every", type=int, default=20, help="steps between measurements (default %(default)s)")
options = parser.parse_args()

tasks = stream()
strategy = ImpressLearn(
    network(), n_basis=4, density=0.25, mask_lr=0.02, train_epochs=options.epochs, train_mb_size=32,
    plugins=[CachedTensors()], evaluator=None, seed=0,
)  # fmt: skip
for experience in tasks.train_stream[:4]:
    strategy.train(experience)

curve = strategy.adapt(tasks.train_stream[4], test=tasks.test_stream[4], every=options.every)
print("accuracy on the fifth task over steps:", *(f"{step}: {accuracy:.2f}" for step, accuracy in curve))
print(f"bytes of a mask: {strategy.model.bytes_per_task(private=False)[0]}")
print(f"bytes of its coefficients: {strategy.model.bytes_per_task(private=False)[4]}")

"""The names of the streams and suites for command lines; this module imports nothing, and `streams` takes seconds."""

__all__ = ["STREAM_NAMES", "SUITES"]

STREAM_NAMES: tuple[str, ...] = (
    "split-digits",
    "split-digits-class",
    "permuted-digits",
    "split-mnist",
    "split-mnist-ordered",
    "split-mnist-class",
    "split-mnist-class-ordered",
    "permuted-mnist",
    "rotated-mnist",
    "permuted-mnist-wide",
    "split-fmnist",
    "split-fmnist-class",
    "permuted-digits-100",
    "split-cifar100",
    "split-cifar100-class",
    "superclass-cifar100",
    "permuted-mnist-small",
    "split-cifar10",
    "split-cifar10-class",
    "split-tinyimagenet",
    "split-tinyimagenet-class",
    "core50",
    "core50-class",
    "webnlp",
    "webnlp-order1",
    "webnlp-order2",
    "webnlp-order3",
    "glue",
    "clinc150",
)
"""The keys of `benchmarks.lib.streams.STREAMS`, in their order."""

SUITES: dict[str, tuple[str, ...]] = {
    "digits": ("split-digits", "permuted-digits"),
    "mnist": ("split-mnist", "permuted-mnist", "rotated-mnist"),
    "text": ("webnlp", "clinc150"),
}

"""Named streams and networks, the same for every method; scripts that measure."""

import warnings

# Said by upstream's own code, or expected here: every task is tested from the start, learned or not.
for _message in (
    "no QP solver found",
    "No loggers specified",
    "Call to deprecated function update",
    "__array_wrap__ must accept context",
    "task label .* was never trained",
):
    warnings.filterwarnings("ignore", message=_message)

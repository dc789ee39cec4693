"""Measurements: scripts that write result files, and the named streams and networks of the leaderboard."""

import warnings

# The first four warnings come from upstream code. The last is expected: all tasks are tested before they are learned.
for _message in (
    "no QP solver found",
    "No loggers specified",
    "Call to deprecated function update",
    "__array_wrap__ must accept context",
    "task label .* was never trained",
):
    warnings.filterwarnings("ignore", message=_message)

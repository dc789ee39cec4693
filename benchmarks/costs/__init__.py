"""The costs of masks: time, memory, and runs in several processes."""

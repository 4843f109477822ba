"""One training run: the loop, validation, checkpoints, optimiser and schedule, the log."""
